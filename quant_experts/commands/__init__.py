"""The commands of ``qe``: one module each, which offers its click command as ``command``.

Commands that speak to a service import ``client``; the others import the library. ``options`` holds the options that
several commands share, ``display`` what a terminal shows.
"""

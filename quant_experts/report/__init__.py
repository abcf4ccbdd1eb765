"""The quality report: ``data`` is what is measured, ``page`` and ``charts`` are how people read it.

``data`` imports nothing, so that any room may fill it in.
"""

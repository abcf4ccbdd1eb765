"""Options that several commands share, and the values that they make. Imports ``client``, ``spec`` and ``display``."""

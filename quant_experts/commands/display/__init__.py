"""What a terminal shows: tables, live lines, plans as text. Imports ``client``, ``planning`` and ``progress``."""

"""Text of others on a terminal: names, rows and messages that may hold what moves the cursor or takes the colours."""

from __future__ import annotations

import unicodedata


def readable(text: str) -> str:
    """On one line; a character that shows nothing and does something, as of ANSI sequences, is a mark."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _acts(character) else character for character in " ".join(text.split())
    )


def _acts(character: str) -> bool:
    """Control characters, and those that turn the direction of what follows (Unicode Technical Report 36)."""
    return (
        unicodedata.category(character) == "Cc"
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
    )

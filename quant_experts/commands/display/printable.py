"""Untrusted text on a terminal: names, rows and messages may hold control sequences."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """The text on one line, with control characters replaced by �."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _acts(character) else character for character in " ".join(text.split())
    )


def _acts(character: str) -> bool:
    """Control characters, and characters that change the text direction (Unicode Technical Report 36)."""
    return (
        unicodedata.category(character) == "Cc"
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
    )

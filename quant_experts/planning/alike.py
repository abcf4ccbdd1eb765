"""Which sentences say the same of different places: by the dozen they are one line with a count."""

from __future__ import annotations

import re

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
PLACE = re.compile(r"^[\w.]*\.[\w.]+: ")


def kind_of(sentence: str) -> str:
    """The same for sentences that differ in numbers, or in the module that they are about and begin with."""
    return NUMBER.sub("#", PLACE.sub("", sentence))


def and_more(sentence: str, count: int) -> str:
    """``sentence`` for ``count`` of its kind."""
    return sentence if count <= 1 else f"{sentence} (and {count - 1} more like it)"

"""The one error of targets that ends a push at once."""

from __future__ import annotations


class Refused(Exception):
    """The destination or the order is such that no waiting helps; shown to the push's owner."""

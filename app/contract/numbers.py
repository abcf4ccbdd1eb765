"""Numbers as JSON has them: it knows no integers, and ``60.0`` is the number 60."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
"""A whole number, and neither ``true`` nor ``"60"``."""

"""Numbers as JSON has them: it knows no integers, and ``60.0`` is the number 60."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Behind the bounds of a strict ``int``: before them it would hide them from the schema."""

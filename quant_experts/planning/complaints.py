"""What is wrong with a file of rows: told once for each kind, with a count, however many rows have it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

MOST_KINDS = 20
VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|b'|[0-9]+")
"""What differs between two problems of one kind: what was quoted, and numbers."""


@dataclass
class _Kind:
    row: int
    pointer: str
    detail: str
    count: int = 1


@dataclass
class Complaints:
    """Bounded, whatever a file holds: further kinds are counted together."""

    _kinds: dict[tuple[str, str], _Kind] = field(default_factory=dict)
    _others: int = 0

    def add(self, row: int, pointer: str, detail: str) -> None:
        """``row``: counted from 1; rows come in their order."""
        key = VARYING.sub("*", pointer), VARYING.sub("*", detail)
        complaint = self._kinds.get(key)
        if complaint is not None:
            complaint.count += 1
        elif len(self._kinds) < MOST_KINDS:
            self._kinds[key] = _Kind(row, pointer, detail)
        else:
            self._others += 1

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def errors(self) -> list[dict[str, Any]]:
        """As entries of a problem's ``errors``, in the order of the first row of each kind."""
        problems = [
            {"row": kind.row, "pointer": kind.pointer, "detail": _sentence(kind), "count": kind.count}
            for kind in self._kinds.values()
        ]
        if self._others:
            problems.append({"pointer": "", "detail": f"{self._others} errors of other kinds", "count": self._others})
        return problems

    def summary(self) -> str:
        """The first kind in full, and how many there are beside it."""
        first, *others = self.errors()
        return (
            f"{first['detail']}; and {sum(each['count'] for each in others)} other errors"
            if others
            else first["detail"]
        )


def _sentence(kind: _Kind) -> str:
    more = f" (and {kind.count - 1} more like it)" if kind.count > 1 else ""
    return f"row {kind.row}: {kind.detail}{more}"

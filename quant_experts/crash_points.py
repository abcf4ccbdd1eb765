"""Steps of a run at which its process may die and a later run must go on, told to whoever listens.

Nobody does, unless a fault test has the runner kill itself exactly there; the names are listed in
``core/crash_points.py``.
"""

from __future__ import annotations

from collections.abc import Callable

listener: Callable[[str], None] | None = None


def reach(name: str) -> None:
    if listener is not None:
        listener(name)

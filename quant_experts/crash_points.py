"""Named steps of a run at which its process may die and from which a later run must resume.

Only fault tests listen: they make the runner kill itself exactly there. ``core/crash_points.py`` lists the names.
"""

from __future__ import annotations

from collections.abc import Callable

listener: Callable[[str], None] | None = None


def reach(name: str) -> None:
    if listener is not None:
        listener(name)

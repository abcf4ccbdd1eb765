"""Walls around a process that reads what strangers wrote: raised by itself, for good, without any privilege.

May import nothing of the service: API and workers confine their children with it. ``raise_walls`` is all they need.
"""

from core.confinement.walls import Limits, Walls, raise_walls

__all__ = ["Limits", "Walls", "raise_walls"]

"""Copies of the hub's models and datasets on this machine: their names, and the removal of those without use.

``<home>/models/<repository>/<commit>`` is a whole copy. Beside it lie ``arriving_*``, a download in progress, and
``partial_<commit>``, what an interrupted download left for the next one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

from core.contract.ids import new_id

COMMIT = re.compile(r"[0-9a-f]{40}")
ARRIVING, PARTIAL = "arriving", "partial"
DOWNLOAD_HOURS = 24


def drop_stale_downloads(home: Path, *, hours: float = DOWNLOAD_HOURS) -> int:
    """Drop what interrupted downloads from the hub left and nobody took up for a day."""
    count = 0
    for kind in ("models", "datasets"):
        for pattern in (f"*/{ARRIVING}_*", f"*/{PARTIAL}_*"):
            for directory in (home / kind).glob(pattern):
                if _last_change(directory) < time.time() - hours * 3600:
                    shutil.rmtree(directory, ignore_errors=True)
                    count += 1
    return count


def drop_unused_copies(home: Path, *, days: float) -> int:
    """Drop copies of a hub's models and datasets that no job has used for ``days``; a job fetches them again."""
    count = 0
    for kind in ("models", "datasets"):
        for directory in (home / kind).glob("*/*"):
            if COMMIT.fullmatch(directory.name) and directory.stat().st_mtime < time.time() - days * 24 * 3600:
                # Out of sight first: a job that comes meanwhile must not find half of it.
                removal = directory.with_name(new_id(ARRIVING))
                directory.rename(removal)
                shutil.rmtree(removal, ignore_errors=True)
                count += 1
    return count


def _last_change(directory: Path) -> float:
    """When a file below ``directory`` was last written; a download that another worker is busy with is young."""
    newest = 0.0
    for path in (directory, *directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime)
    return newest

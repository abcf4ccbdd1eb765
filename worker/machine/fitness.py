"""Whether this worker can do a job at all. One with a full or broken disk would fail every job that waits."""

from __future__ import annotations

import shutil
import tempfile

from core.settings import Settings


def unfit(settings: Settings) -> str | None:
    """Why no job may be taken now; None when the work directory takes files and has ``min_free_bytes`` left."""
    work = settings.work_directory
    try:
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=work, prefix=".fit-") as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
        free = shutil.disk_usage(work).free
    except OSError as error:
        return f"{work} cannot be written: {error.strerror or error}"
    if free < settings.min_free_bytes:
        return f"{work} has {free / 1e6:.0f} MB free, QE_MIN_FREE_BYTES asks for {settings.min_free_bytes / 1e6:.0f} MB"
    return None

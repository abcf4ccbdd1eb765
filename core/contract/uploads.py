"""Datasets that arrive in parts: where the parts are until the whole is there.

No table knows of an unfinished upload. Its folder in storage is named by tenant and id, the id says when it began, and
the name of a part says what is in it; so any API process can go on with it, and the keeper sees what has expired.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

PREFIX = "uploads"
LIVES = timedelta(hours=24)
UPLOAD_ID = re.compile(r"up_0[0-9a-f]{11}7[0-9a-f]{19}")
"""A version 7 UUID of this or the next centuries."""


def expires_at(upload_id: str) -> datetime:
    """The first 48 bits of the UUID are milliseconds since 1970 (RFC 9562, section 5.7)."""
    return datetime.fromtimestamp(int(upload_id[3:15], 16) / 1000, UTC) + LIVES

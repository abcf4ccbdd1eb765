"""``?pgbouncer=true`` in QE_DATABASE_URL: PostgreSQL is reached through a pooler in transaction mode.

A session is then another one with each transaction. Nothing may be kept in it: no prepared statements, and the limits
that a connection is opened with must be the role's (docs/scaling.md).
"""

from __future__ import annotations

import re
from typing import Any

from core.settings import Settings

POOLED = re.compile(r"(?<=[?&])pgbouncer=(?:true|1)(?:&|$)")


def is_pooled(database_url: str | None) -> bool:
    return POOLED.search(database_url or "") is not None


def plain(database_url: str) -> str:
    """The address as libpq understands it."""
    return POOLED.sub("", database_url).rstrip("?&")


def of_session(database_url: str, options: str) -> dict[str, Any]:
    """What a connection is opened with; ``options``: settings of the session, which a pooler does not take."""
    return {"prepare_threshold": None} if is_pooled(database_url) else {"options": options}


def direct(settings: Settings, who: str) -> Settings:
    """For what needs a session of its own: with QE_DIRECT_DATABASE_URL, where it is set, as the database. Raises
    SystemExit where PostgreSQL is reached through a pooler nevertheless."""
    database_url = settings.direct_database_url or settings.database_url
    if is_pooled(database_url):
        raise SystemExit(f"{who} needs a session of its own: set QE_DIRECT_DATABASE_URL to PostgreSQL's own address")
    return settings.model_copy(update={"database_url": database_url})

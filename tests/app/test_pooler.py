"""``?pgbouncer=true``: nothing is kept in a session, because the next transaction has another one."""

from __future__ import annotations

import pytest

from core import pooler
from core.settings import Settings
from tests.app.conftest import ok, started
from worker.ledger.connection import connect


def pooled(url: str) -> str:
    return f"{url}&pgbouncer=true"


@pytest.mark.parametrize("url", ["postgresql://h/d", "postgresql://h/d?host=/tmp&sslmode=require"])
def test_libpq_never_sees_the_mark(url: str) -> None:
    assert not pooler.is_pooled(url)
    for marked in (f"{url}{'&' if '?' in url else '?'}pgbouncer=true", url.replace("?", "?pgbouncer=true&")):
        assert pooler.plain(marked) == url
        assert pooler.is_pooled(marked) is ("pgbouncer" in marked)


async def test_api_and_worker_prepare_nothing_and_ask_for_nothing_of_the_session(settings: Settings) -> None:
    url = pooled(str(settings.database_url))
    async with started(settings.model_copy(update={"database_url": url})) as api:
        for _ in range(10):
            ok(await api.client.get("/v1/jobs"))
        async with api.service.engine.connect() as connection:
            for table in ("pg_prepared_statements", "pg_settings WHERE source = 'client' AND name LIKE '%timeout'"):
                assert (await connection.exec_driver_sql(f"SELECT count(*) FROM {table}")).scalar() == 0
    with connect(url) as ours:
        for _ in range(10):
            ours.execute("SELECT 1 AS one")
        row = ours.execute("SELECT count(*) AS prepared FROM pg_prepared_statements").fetchone()
        assert row == {"prepared": 0}


def test_who_needs_a_session_of_its_own_says_so() -> None:
    straight, through = "postgresql://h/d", "postgresql://p/d?pgbouncer=true"
    assert pooler.direct(Settings(database_url=straight), "the keeper").database_url == straight
    assert pooler.direct(Settings(database_url=through, direct_database_url=straight), "a").database_url == straight
    with pytest.raises(SystemExit, match=r"the keeper needs a session of its own: set QE_DIRECT_DATABASE_URL"):
        pooler.direct(Settings(database_url=through), "the keeper")

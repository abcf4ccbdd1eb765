"""Texts that go past the session: behind the same wall, in one piece, and gone from the connection afterwards."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass

import psycopg
import pytest
from sqlalchemy import AsyncAdaptedQueuePool

from app.db.engine import ApiRoleMissing, create_engine, create_sessions, tenant_session
from app.db.pipeline import Statement, columns_of, read, read_across_tenants, transaction, transaction_of
from app.jobs.rows import JobRow
from app.web.wakeups import WorkerNotifier
from core.contract.events import EventType
from core.ledger.outbox import ANNOUNCED
from core.ledger.tables import Job
from tests.app.conftest import Api, ok
from tests.services import Postgres, wait_until


@dataclass
class Who:
    role: str
    tenant: str | None


@dataclass
class Number:
    number: int


WHO = "SELECT current_user AS role, nullif(current_setting('app.tenant', true), '') AS tenant"
COUNT = "SELECT count(*) AS number FROM jobs"


def test_a_row_of_a_job_has_the_columns_of_its_table() -> None:
    columns = set(columns_of(JobRow).split(", "))
    assert columns <= set(Job.__table__.columns.keys())
    assert set(Job.__table__.columns.keys()) - columns == {
        # for the ledger's own use
        "tenant", "run_after", "rung_at", "lease_until", "barren_attempts", "trace_context",
        "artifact_bytes", "event_seq", "spec_version", "avoid",
        "dataset", "evaluation_dataset",
        "needs_host_cpu", "needs_host_cuda", "needs_device", "needs_disk", "deleted_at",
    }, "is the new column one that an answer shows? Then it belongs into JobRow"  # fmt: skip


def test_no_webhook_can_ask_for_the_event_that_is_written_past_the_outbox() -> None:
    assert EventType.CREATED not in ANNOUNCED


async def test_a_job_looks_the_same_whoever_reads_it(api: Api) -> None:
    made = await api.create_job(labels={"a": "b"}, name="n", alias="team/m", accept_if={"max_kl": 1})
    read_directly = ok(await api.client.get(f"/v1/jobs/{made['id']}"))
    of_the_session = ok(await api.client.post(f"/v1/jobs/{made['id']}/cancel"))
    again = ok(await api.client.get(f"/v1/jobs/{made['id']}"))
    assert made == read_directly
    assert (made["alias"], made["name"], made["labels"]) == ("team/m", "n", {"a": "b"})
    assert again == of_the_session
    assert ok(await api.client.get("/v1/jobs"))["data"] == [again]


async def test_a_read_is_behind_the_wall_of_its_tenant_and_the_next_is_not(api: Api) -> None:
    await api.create_job()
    sessions = api.service.sessions
    for tenant, jobs in (("default", 1), ("acme", 0), ("it's 100%s", 0)):
        assert await read(sessions, WHO, {}, of=Who, tenant=tenant) == [Who("qe_api", tenant)]
        assert await read(sessions, COUNT, {}, of=Number, tenant=tenant) == [Number(jobs)]
    assert await read_across_tenants(sessions, WHO, {}, of=Who) == [Who("postgres", None)]
    assert await read_across_tenants(sessions, COUNT, {}, of=Number) == [Number(1)]


async def test_a_transaction_is_kept_whole_or_not_at_all_and_leaves_a_clean_connection(api: Api) -> None:
    sessions, rename = api.service.sessions, "UPDATE jobs SET name = %(name)s"
    await api.create_job()
    async with transaction(sessions, "default") as whole:
        assert await whole.rows(WHO, {}, of=Who) == [Who("qe_api", "default")]
        await whole.run(Statement(rename, {"name": "a"}), Statement(rename, {"name": "b"}))
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with transaction(sessions, "default") as broken:
            await broken.run(Statement(rename, {"name": "c"}), Statement("SELECT 1 / 0"))
    given_up = transaction(sessions, "default")
    await (await given_up.__aenter__()).run(Statement(rename, {"name": "d"}))
    assert not await given_up.__aexit__(KeyError, KeyError(), None)
    async with transaction(sessions, "acme") as foreign:
        await foreign.run(Statement(rename, {"name": "e"}))
    assert api.execute("SELECT name FROM jobs") == [("b",)]
    assert await read_across_tenants(sessions, WHO, {}, of=Who) == [Who("postgres", None)]


async def test_texts_join_the_transaction_of_a_session(api: Api) -> None:
    await api.create_job()
    async with tenant_session(api.service.sessions, lambda: "default") as session, session.begin():
        inside = await transaction_of(session)
        assert await inside.rows(WHO, {}, of=Who) == [Who("qe_api", "default")]
        await inside.run(Statement("UPDATE jobs SET name = 'x'"))
        await session.rollback()
    assert api.execute("SELECT name FROM jobs") == [(None,)]


async def test_a_connection_that_broke_does_not_go_back_to_the_pool(api: Api) -> None:
    sessions, kill = api.service.sessions, "SELECT pg_terminate_backend(pg_backend_pid()) AS number"
    for _ in range(3):
        with pytest.raises(psycopg.OperationalError):
            await read_across_tenants(sessions, kill, {}, of=Number)
        assert await read(sessions, "SELECT 1 AS number", {}, of=Number, tenant="default") == [Number(1)]


@pytest.mark.parametrize("where", ["in a read", "in a transaction"])
async def test_who_is_cancelled_leaves_no_connection_behind(api: Api, where: str) -> None:
    sessions, sleep = api.service.sessions, "SELECT 1 AS number FROM pg_sleep(60)"

    async def slow() -> None:
        if where == "in a read":
            await read(sessions, sleep, {}, of=Number, tenant="default")
        async with transaction(sessions, "default") as opened:
            await opened.rows("SELECT 1 AS number", {}, of=Number)
            await opened.rows(sleep, {}, of=Number)

    def sleeping() -> bool:
        return bool(api.execute("SELECT 1 FROM pg_stat_activity WHERE query = %s", [sleep]))

    task = asyncio.create_task(slow())
    await asyncio.to_thread(wait_until, sleeping, what="the statement that sleeps")
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(3):
        assert await read(sessions, WHO, {}, of=Who, tenant="default") == [Who("qe_api", "default")]
        assert await read_across_tenants(sessions, WHO, {}, of=Who) == [Who("postgres", None)]
    assert time.monotonic() - began < 20
    pool = api.service.engine.pool
    assert isinstance(pool, AsyncAdaptedQueuePool)
    assert (pool.checkedout(), pool.checkedin()) == (0, 1)  # given back, not lost and made anew


async def test_a_login_that_cannot_build_the_wall_is_told_what_to_do(postgres: Postgres, database_url: str) -> None:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE nobody LOGIN")
    engine = create_engine(database_url.replace("//postgres@", "//nobody@"))
    try:
        with pytest.raises(ApiRoleMissing, match="qe_api is missing or not granted: run `qe migrate`"):
            await read(create_sessions(engine), WHO, {}, of=Who, tenant="default")
    finally:
        await engine.dispose()
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
            admin.execute("DROP ROLE nobody")


class HeldNotifier:
    """Stands for a broker that answers when it is let."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, ...]] = []
        self.open = threading.Event()

    def notify(self, *job_ids: str) -> None:
        self.sent.append(job_ids)
        assert self.open.wait(20)
        if "job_2" in job_ids:
            raise ConnectionError("gone")


async def test_what_is_made_while_a_wake_up_is_sent_shares_the_next_one(caplog: pytest.LogCaptureFixture) -> None:
    broker = HeldNotifier()
    notifier = WorkerNotifier(broker)
    await notifier.notify("job_1")
    await asyncio.sleep(0)  # the first message begins
    for number in (2, 3, 4):
        await notifier.notify(f"job_{number}")
    broker.open.set()
    await notifier.close()
    assert broker.sent == [("job_1",), ("job_2", "job_3", "job_4")]
    assert "workers not notified of job_2, job_3, job_4, the keeper will: gone" in caplog.text
    await notifier.notify("job_5")
    await notifier.close()
    assert broker.sent[-1] == ("job_5",)


async def test_a_read_whose_connection_goes_before_its_answer_is_asked_once_more(api: Api) -> None:
    """As when a failover begins in that moment; the pool alone notices what went before it was asked for."""
    api.execute("CREATE SEQUENCE cuts")
    api.execute(
        "CREATE FUNCTION cut_once() RETURNS integer SECURITY DEFINER LANGUAGE sql AS $$ SELECT CASE nextval('cuts')"
        " WHEN 1 THEN pg_terminate_backend(pg_backend_pid())::integer ELSE 7 END $$"
    )
    sessions, ask = api.service.sessions, "SELECT cut_once() AS number"
    assert await read_across_tenants(sessions, ask, {}, of=Number) == [Number(7)]
    api.execute("ALTER SEQUENCE cuts RESTART")
    assert await read(sessions, ask, {}, of=Number, tenant="default") == [Number(7)]

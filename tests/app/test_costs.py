"""What a list or a sum costs does not grow with the jobs that it is not about."""

from __future__ import annotations

import asyncio

import httpx
import psycopg

from app.jobs.queries import MOST_BLOCKS
from tests.app.conftest import BOOTSTRAP_KEY, Api, ok
from tests.app.test_datasets import jsonl, row
from tests.services import wait_until

JOBS = 3000
MOST_ROWS = 300
"""That one request may read of a table with ten times as many."""
OF_THE_TENANT = """INSERT INTO jobs (id, tenant, spec, model_id, method, scheme, alias, status, started_at, finished_at,
        progress, labels)
    SELECT 'job_' || md5(n::text), tenant, spec, 'acme/' || n %% 300, method, scheme, 'team/' || n %% 300,
        CASE WHEN n %% 1000 = 0 THEN 'failed' ELSE 'succeeded' END, clock_timestamp(), clock_timestamp(), progress,
        jsonb_build_object('run', (n %% 300)::text)
    FROM jobs, generate_series(1, %s) AS n"""
READ = (
    "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables WHERE relname IN ('jobs', 'events')"
)
OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
OTHERS += " AND backend_type = 'client backend'"


async def test_no_list_sum_or_check_reads_all_jobs_of_a_tenant(api: Api) -> None:
    job = await api.create_job()
    dataset = ok(await api.client.post("/v1/datasets", files={"file": ("r.jsonl", jsonl(row()))}), 201)["id"]
    api.execute(OF_THE_TENANT, [JOBS])
    for table in ("jobs", "job_labels", "events"):
        api.execute(f"ANALYZE {table}")
    costs = {
        path: await rows_read(api, "GET", path)
        for path in (
            "/v1/jobs",
            "/v1/jobs?status=failed",
            "/v1/jobs?label=run=7",
            "/v1/jobs?model=acme/7",
            "/v1/jobs?alias=team/7",
            "/v1/usage",
            "/metrics",
            f"/v1/jobs/{job['id']}",
        )
    }
    costs["delete"] = await rows_read(api, "DELETE", f"/v1/datasets/{dataset}")
    assert max(costs.values()) <= MOST_ROWS, costs


FINISHED_BLOCKS = """INSERT INTO layers (job_id, block, attempt, seconds, files, report)
    SELECT %s, n, 1, 1, '[]', jsonb_build_object('stack', 'language model', 'index', n, 'part', NULL, 'groups',
        jsonb_build_array(jsonb_build_object('error', '{"rounded": 0.02, "final": 0.01}'::jsonb)))
    FROM generate_series(0, %s - 1) AS n"""


async def test_the_page_of_a_job_of_ten_thousand_blocks_is_as_large_as_of_some_hundred(api: Api) -> None:
    job = (await api.create_job())["id"]
    transport = httpx.ASGITransport(api.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as browser:
        await browser.post("/login", data={"key": BOOTSTRAP_KEY})

        async def page_of(blocks: int) -> str:
            api.execute("DELETE FROM layers")
            api.execute(FINISHED_BLOCKS, [job, blocks])
            api.execute("UPDATE jobs SET blocks_done = %s, blocks_total = %s WHERE id = %s", [blocks, blocks, job])
            return (await browser.get(f"/jobs/{job}")).text

        some, many = await page_of(MOST_BLOCKS), await page_of(10_000)
    assert "every 25th" in many or "25" in many
    assert "One block in 25 of 10,000;" in many
    assert len(many) < 1.1 * len(some) < 1_000_000


async def rows_read(api: Api, method: str, path: str) -> int:
    """Of the large tables. A connection says what it has read when it ends."""
    with psycopg.connect(str(api.settings.database_url), autocommit=True) as connection:

        def alone() -> bool:
            return (connection.execute(OTHERS).fetchone() or (1,))[0] == 0

        def read() -> int:
            return int((connection.execute(READ).fetchone() or (0,))[0])

        async def quiet() -> int:
            for engine in (api.service.engine, api.service.spare, api.service.locks):
                await engine.dispose()
            await asyncio.to_thread(wait_until, alone, what="the connections' end")
            return read()

        before = await quiet()
        response = await api.client.request(method, path)
        assert response.status_code < 300, response.text
        return await quiet() - before

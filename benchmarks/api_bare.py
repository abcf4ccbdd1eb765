"""The bare FastAPI of ``benchmarks.api``: the same statements, and nothing else."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

COLUMNS = "id, name, labels, spec, status, phase, attempt, worker, summary, verdict, error, created_at, finished_at"


def create_app() -> FastAPI:
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        os.environ["QE_DATABASE_URL"], min_size=10, max_size=10, open=False, kwargs={"row_factory": dict_row}
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/v1/jobs/{job_id}")
    async def get(job_id: str) -> dict[str, Any]:
        async with pool.connection() as connection:
            found = await connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE tenant = 'default' AND id = %s".encode(), (job_id,)
            )
            return dict(await found.fetchone() or {})

    @app.get("/v1/jobs")
    async def listed(limit: int = 20) -> list[dict[str, Any]]:
        async with pool.connection() as connection:
            found = await connection.execute(
                f"SELECT {COLUMNS} FROM jobs WHERE tenant = 'default' ORDER BY created_at DESC, id DESC"
                " LIMIT %s".encode(),
                (limit + 1,),
            )
            return list(await found.fetchall())

    @app.post("/v1/jobs")
    async def create(body: dict[str, Any]) -> dict[str, Any]:
        async with pool.connection() as connection:
            made = await connection.execute(
                "INSERT INTO jobs (id, tenant, spec, model_id, method, scheme)"
                f" VALUES (%s, 'default', %s, 'm', 'qe', 'W4A6') RETURNING {COLUMNS}".encode(),
                (f"job_{uuid.uuid4().hex}", Jsonb(body)),
            )
            return dict(await made.fetchone() or {})

    return app

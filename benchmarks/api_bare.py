"""What ``benchmarks.api`` measures the service against: its statement for the route, and nothing else.

``create_app``: FastAPI on the driver itself, the rows as they come out of it. ``create_app_on_the_same_library``: on
SQLAlchemy's sessions and with the response model of the service. Both without what the service adds: key, tenant, wall,
quotas, events, metrics, log.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from app.db.pipeline import columns_of
from app.jobs.creation import CREATE
from app.jobs.rows import JobRow
from app.jobs.schemas import JobView
from core.ledger.tables import Job

COLUMNS = columns_of(JobRow)
EMPTY = dict.fromkeys(("name", "alias", "plan", "forked_from", "comparison_id", "trace_context"))


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
            named = {"job_id": f"job_{uuid.uuid4().hex}", "tenant": "default", "model_id": "m", "method": "qe"}
            values = {"scheme": "W4A6", "spec": Jsonb(body), "labels": Jsonb({}), "progress": Jsonb({})}
            made = await connection.execute(CREATE.encode(), EMPTY | named | values)
            return dict(await made.fetchone() or {})

    return app


def create_app_on_the_same_library() -> FastAPI:
    url = os.environ["QE_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")
    engine = create_async_engine(url, pool_size=20)
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    async def session_of() -> AsyncIterator[AsyncSession]:
        async with sessions.begin() as session:
            yield session

    session_dep = Depends(session_of, scope="function")
    app = FastAPI(lifespan=lifespan)
    mine = select(Job).where(Job.tenant == "default")

    @app.get("/v1/jobs/{job_id}")
    async def get(job_id: str, session: AsyncSession = session_dep) -> JobView:
        return JobView.of((await session.scalars(mine.where(Job.id == job_id))).one())

    @app.get("/v1/jobs")
    async def listed(limit: int = 20, session: AsyncSession = session_dep) -> list[JobView]:
        found = await session.scalars(mine.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit + 1))
        return [JobView.of(row) for row in found]

    @app.post("/v1/jobs", status_code=201)
    async def create(body: dict[str, Any], session: AsyncSession = session_dep) -> JobView:
        values = {"spec": body, "model_id": "m", "method": "qe", "scheme": "W4A6"}
        made = insert(Job).values(id=f"job_{uuid.uuid4().hex}", tenant="default", **values).returning(Job)
        return JobView.of((await session.scalars(made)).one())

    return app

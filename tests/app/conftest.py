"""The API on a real database, Redis and storage: in this process, or behind a real server where bytes must flow."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import uvicorn
from fastapi import FastAPI

from app.deps import Service
from app.main import create_app
from app.web.kernel_copy import FileProtocol
from core.contract.forecast import FORECAST, Forecast
from core.contract.versions import UNDERSTOOD
from core.ledger.tables import Base
from core.settings import Settings
from tests.app.holding import none_held
from tests.services import TEMPLATE, Postgres

BOOTSTRAP_KEY = "qe_bootstrap_key_of_the_tests_0123456789"
MODEL = "acme/tiny-vl"
HUB_DATASET = "acme/rows"


@dataclass(frozen=True)
class Api:
    """A started application and a client that holds the bootstrap key."""

    app: FastAPI
    client: httpx.AsyncClient
    settings: Settings

    @property
    def service(self) -> Service:
        service = self.app.state.service
        assert isinstance(service, Service)
        return service

    def as_key(self, key: str) -> httpx.AsyncClient:
        return client_of(self.app, key)

    async def create_job(self, **changes: Any) -> dict[str, Any]:
        return ok(await self.client.post("/v1/jobs", json=job_body(**changes)), 201)

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a worker's or an operator's own connection would do."""
        assert self.settings.database_url is not None
        understood = f"-c qe.spec_version={UNDERSTOOD}"
        with psycopg.connect(self.settings.database_url, autocommit=True, options=understood) as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def start(self, job_id: str) -> None:
        """As the claim of a worker does it."""
        self.execute(
            """UPDATE jobs SET status = 'running', attempt = attempt + 1, worker = 'w1', phase = 'fitting',
               lease_until = clock_timestamp() + interval '1 hour', started_at = clock_timestamp() WHERE id = %s""",
            [job_id],
        )

    def end(self, job_id: str, status: str, error: dict[str, Any] | None = None) -> None:
        """As the last transaction of a worker does it."""
        self.execute(
            """UPDATE jobs SET status = %s, lease_until = NULL, finished_at = clock_timestamp(), error = %s
               WHERE id = %s""",
            [status, json.dumps(error) if error else None, job_id],
        )
        self.append_event(job_id, f"job.{status}", {"error": error} if error else None)

    def forecast(self, job_id: str, *, done: float, left: float, ago: float = 0.0) -> None:
        """What a runner said ``ago`` seconds before now: seconds of the whole job."""
        said = {FORECAST: Forecast(done, left, time.time() - ago).as_json()}
        self.execute("UPDATE jobs SET progress = progress || %s::jsonb WHERE id = %s", [json.dumps(said), job_id])

    def append_event(self, job_id: str, kind: str, data: dict[str, Any] | None = None) -> None:
        self.execute(
            """WITH j AS (UPDATE jobs SET event_seq = event_seq + 1 WHERE id = %s RETURNING id, event_seq)
               INSERT INTO events (job_id, seq, type, data) SELECT id, event_seq, %s, %s FROM j""",
            [job_id, kind, json.dumps(data or {})],
        )

    def publish(self, job_id: str, name: str, content: bytes, directory: Path, media_type: str = "text/plain") -> str:
        """Store one artifact and its row; returns its SHA-256."""
        digest = hashlib.sha256(content).hexdigest()
        source = directory / digest
        source.unlink(missing_ok=True)  # the storage may hold a link to it: writing would cut what is just being sent
        source.write_bytes(content)
        key = f"jobs/{job_id}/a1/{digest}"
        self.service.storage.put(key, source)
        self.execute(
            """INSERT INTO artifacts (job_id, name, attempt, key, bytes, sha256, media_type)
               VALUES (%s, %s, 1, %s, %s, %s, %s)""",
            [job_id, name, key, len(content), digest, media_type],
        )
        return digest


@pytest.fixture(scope="session")
def app_database(postgres: Postgres) -> Iterator[str]:
    with postgres.database(template=TEMPLATE) as url:
        yield url


@pytest.fixture
def database_url(app_database: str) -> str:
    """One database for all tests of the API, emptied before each: making one takes longer than most of these tests.

    Nothing of the API outlives its test. Tests that kill processes take the database of their own that the fixture of
    this name one folder up makes.
    """
    with psycopg.connect(app_database, options="-c lock_timeout=5s") as connection:
        for table in Base.metadata.tables:
            connection.execute(f"DELETE FROM {table}".encode())
    return app_database


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    return Settings(
        home=tmp_path / "home",
        api_key=BOOTSTRAP_KEY,
        secret="s" * 40,
        hub_key="h" * 40,
        database_url=database_url,
        redis_url=redis_url,
        model_root=tmp_path / "models",
        max_dataset_bytes=4_000_000,
    )


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with started(settings) as api:
        yield api


@asynccontextmanager
async def started(settings: Settings) -> AsyncIterator[Api]:
    app = create_app(settings)
    async with app.router.lifespan_context(app), client_of(app, BOOTSTRAP_KEY) as client:
        api = Api(app, client, settings)
        with none_held(api.service.engine):
            yield api


@asynccontextmanager
async def served(api: Api, http: type[asyncio.Protocol] = FileProtocol) -> AsyncIterator[httpx.AsyncClient]:
    """A client over a real socket: streams arrive as they are sent, bad bytes arrive as they are."""
    server = uvicorn.Server(uvicorn.Config(api.app, port=0, lifespan="off", log_level="warning", http=http))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    headers = {"Authorization": f"Bearer {BOOTSTRAP_KEY}"}
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20) as client:
            yield client
    finally:
        server.should_exit = server.force_exit = True
        await task


def client_of(app: FastAPI, key: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://api", headers={"Authorization": f"Bearer {key}"})


def job_body(**changes: Any) -> dict[str, Any]:
    return {"model": {"id": MODEL}, "calibration": {"dataset": HUB_DATASET}, "scheme": "W4A6", **changes}


def ok(response: httpx.Response, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem details of a response that must be exactly this problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["type"]) == (status, f"/problems/{slug}"), body
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["detail"]
    return body

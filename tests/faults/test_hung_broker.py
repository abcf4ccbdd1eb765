"""A Redis that takes connections and never answers costs the API neither its jobs nor its threads."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, job_body, ok, served, started


@pytest.fixture
def hung_redis() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # the kernel accepts; nobody ever reads
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


async def test_jobs_are_created_and_files_are_read_while_the_broker_hangs(
    database_url: str, hung_redis: str, tmp_path: Path
) -> None:
    settings = Settings(
        home=tmp_path, api_key=BOOTSTRAP_KEY, secret="s" * 40, database_url=database_url, redis_url=hung_redis
    )
    async with started(settings) as api, served(api) as client:
        began = time.monotonic()
        made = await asyncio.gather(*(client.post("/v1/jobs", json=job_body()) for _ in range(40)))
        assert {answer.status_code for answer in made} == {201}
        ready = ok(await client.get("/readyz"))  # storage is asked in a thread
        took = time.monotonic() - began
        assert ready["checks"]["storage"] == "ok"
        assert ready["status"] == "degraded"
        assert took < 20
        assert api.execute("SELECT count(*) FROM jobs") == [(40,)]

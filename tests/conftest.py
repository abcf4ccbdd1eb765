"""Fixtures of every package's tests: real servers, a database per test.

``database_url``        a migrated database of its own
``empty_database_url``  one without a table
``redis_url``           the Redis, emptied before the test
``object_store``        a server of the S3 protocol, its credentials in the environment
``forked``              loading checks of runs in processes that are forked, not started
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.forked import ForkedProcesses
from tests.services import TEMPLATE, ObjectStore, Postgres, running_object_store, running_postgres, running_redis

TEMPORARY_ROOT = "PYTEST_DEBUG_TEMPROOT"


def pytest_configure(config: pytest.Config) -> None:
    """Give each run a root of its own for temporary folders; a run that passes removes it.

    Whenever it starts, pytest closes its usual root, ``/tmp/pytest-of-USER``, to other users. Started by root,
    PostgreSQL runs as another user, so a second run, such as that of ``make test`` in tests/shipping, would stop the
    servers of the first.
    """
    if not hasattr(config, "workerinput"):
        root = tempfile.mkdtemp(prefix="qe-tests-", dir=os.environ.get(TEMPORARY_ROOT))
        Path(root).chmod(0o755)
        os.environ[TEMPORARY_ROOT] = root


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and not hasattr(session.config, "workerinput"):
        shutil.rmtree(os.environ[TEMPORARY_ROOT], ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    with postgres.database(template=TEMPLATE) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as url:
        yield url


@pytest.fixture(scope="session")
def forked() -> Iterator[ForkedProcesses]:
    with ForkedProcesses() as processes:
        yield processes


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def object_store_server() -> Iterator[ObjectStore]:
    with running_object_store() as store:
        yield store


@pytest.fixture
def object_store(object_store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in object_store_server.environment.items():
        monkeypatch.setenv(name, value)
    return object_store_server

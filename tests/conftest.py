"""Fixtures of every package's tests: real servers, a database per test.

``database_url``        a migrated database of its own
``empty_database_url``  one without a table
``redis_url``           the Redis, emptied before the test
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.services import TEMPLATE, Postgres, running_postgres, running_redis


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
def redis_server() -> Iterator[str]:
    with running_redis() as url:
        yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server

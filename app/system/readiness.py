"""Readiness: database and storage must answer. Without the broker the service is only slower."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Awaitable
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.engine import API_ROLE
from app.deps import Service
from app.system.queries import api_role_is_granted, tables_exist
from app.system.schemas import Readiness
from core.storage import Storage

CHECK_SECONDS = 3.0
OK = "ok"


async def check_readiness(deps: Service) -> Readiness:
    database, storage, broker = await asyncio.gather(
        _within(_database(deps)), _within(_in_its_thread(deps)), _within(_broker(deps))
    )
    whole = database == storage == OK
    status = "unavailable" if not whole else "ready" if broker == OK else "degraded"
    return Readiness(status=status, checks={"database": database, "storage": storage, "broker": broker})


async def _within(check: Awaitable[str]) -> str:
    try:
        return await asyncio.wait_for(check, CHECK_SECONDS)
    except TimeoutError:
        return f"no answer within {CHECK_SECONDS:g} s"


async def _database(deps: Service) -> str:
    try:
        async with AsyncSession(deps.spare) as session:
            if not await tables_exist(session):
                return "no tables: run `qe migrate`"
            return OK if await api_role_is_granted(session) else f"no role {API_ROLE}: run `qe migrate`"
    except SQLAlchemyError as error:
        return f"unreachable: {type(error).__name__}"


async def _in_its_thread(deps: Service) -> str:
    return await asyncio.get_running_loop().run_in_executor(deps.probes, _storage, deps.storage)


def _storage(storage: Storage) -> str:
    """Write and remove an empty object: the only way to detect a full or read-only disk."""
    key = f"readiness/{uuid.uuid4().hex}"
    try:
        with tempfile.NamedTemporaryFile() as empty:
            storage.put(key, Path(empty.name))
        storage.delete(key)
    except OSError as error:
        return f"not writable: {error.strerror or type(error).__name__}"
    return OK


async def _broker(deps: Service) -> str:
    if deps.settings.redis_url is None:
        return "QE_REDIS_URL is not set: jobs wait for the keeper"
    try:
        async with redis.asyncio.from_url(
            deps.settings.redis_url, socket_connect_timeout=1, socket_timeout=1
        ) as client:
            await client.ping()
    except (RedisError, OSError) as error:
        return f"unreachable, jobs wait for the keeper: {type(error).__name__}"
    return OK

"""The ASGI application. ``uvicorn --factory app.main:create_app``."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.access.auth import load_keyring
from app.access.quotas import StorageMeter
from app.artifacts.router import router as artifacts
from app.audit.router import router as audit
from app.buckets.router import router as buckets
from app.comparisons.router import router as comparisons
from app.datasets.router import router as datasets
from app.datasets.upload import sweep_abandoned
from app.db.engine import create_engine, create_sessions
from app.deps import Service
from app.hub.router import router as hub
from app.hub_tokens.router import router as hub_tokens
from app.jobs.feed import Feed
from app.jobs.router import router as jobs
from app.keys.router import router as keys
from app.models.router import router as models
from app.parsing import warm_up
from app.plans.router import router as plans
from app.pushes.router import router as pushes
from app.retention.router import router as retention
from app.system.router import router as system
from app.ui import pages
from app.ui.router import router as dashboard
from app.uploads.parts import bytes_of_tenant
from app.uploads.router import router as uploads
from app.uploads.schemas import MOST_PART_BYTES
from app.usage.router import router as usage
from app.web import error_handlers, problems
from app.web.head_requests import HeadMiddleware
from app.web.limiter import TenantLimiter
from app.web.openapi.examples import add_examples
from app.web.openapi.links import add_links
from app.web.openapi.summaries import add_summaries
from app.web.problems import ProblemDetails, documented
from app.web.rate_limit import TokenBuckets
from app.web.telemetry import BodyLimitMiddleware, Telemetry, TelemetryMiddleware
from app.web.wakeups import WorkerNotifier
from app.webhooks.router import router as webhooks
from core import preflight
from core.liveness_file import keep_touching
from core.logs import configure_logging
from core.secret import Seal, service_secret
from core.settings import Settings, read_settings
from core.storage import storage_from_url
from core.tracing import OFF, open_tracing
from core.wakeup import RedisNotifier

COLLECTING = (10_000, 20, 20)
"""Thresholds of the garbage collector's three generations."""
MULTIPART_OVERHEAD = 64 * 1024
"""Bytes of an upload's body that are not the file: boundaries, part headers, the name."""
LOCK_CONNECTIONS = 5
STORAGE_THREADS = 32
"""Most of these threads wait for a disk or an object store."""
READERS = max(2, len(os.sched_getaffinity(0)))
PLANNERS = 8


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application. ``settings``: None reads and checks the environment. It connects to nothing before it starts."""
    if settings is None:
        settings = read_settings()
        preflight.check(settings, models=False, secret=True)
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logging(settings.log_format)
        service = open_service(settings, telemetry)
        telemetry.tracing = open_tracing(settings, "api")
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(STORAGE_THREADS, "storage"))
        sweep_abandoned(settings)
        app.state.service = service
        app.state.feed = Feed()
        warm_up()
        tune_garbage_collector()
        heartbeat = asyncio.create_task(keep_touching(settings.heartbeat_file))
        try:
            yield
        finally:
            heartbeat.cancel()
            await app.state.feed.close()
            await service.notifier.close()
            service.probes.shutdown(wait=False, cancel_futures=True)
            for engine in (service.engine, service.spare, service.locks):
                await engine.dispose()
            await asyncio.to_thread(telemetry.tracing.close)
            telemetry.tracing = OFF

    app = FastAPI(
        title="Quant Experts",
        summary="Post-training quantization of vision-language models as a service.",
        version=version("quant-experts"),
        lifespan=lifespan,
        generate_unique_id_function=operation_name,
        docs_url=None,  # app.ui.reference is ours
        redoc_url=None,
        redirect_slashes=False,  # a redirect would drop the body of a POST at some clients
    )
    limits = dict.fromkeys(("POST /v1/datasets", "POST /datasets"), settings.max_dataset_bytes + MULTIPART_OVERHEAD)
    limits["PUT /v1/datasets/uploads/*"] = MOST_PART_BYTES
    app.add_middleware(HeadMiddleware)
    app.add_middleware(BodyLimitMiddleware, limit=settings.max_body_bytes, limits=limits)
    app.add_middleware(TelemetryMiddleware, telemetry=telemetry)
    # Not left to uvicorn's options, so that the setting holds however the API is started.
    app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)
    error_handlers.register(app)
    pages.register(app)
    routers = (
        plans,
        jobs,
        comparisons,
        artifacts,
        uploads,
        datasets,
        keys,
        hub,
        webhooks,
        audit,
        usage,
        retention,
        hub_tokens,
        buckets,
        pushes,
        models,
        system,
    )
    for router in (*routers, dashboard):
        app.include_router(router)
    _describe_problems(app)
    return app


def operation_name(route: APIRoute) -> str:
    """``jobs_create``, ``keys_list``, ``usage``: what generators of clients call their functions."""
    noun = route.endpoint.__module__.split(".")[1]
    return noun if route.name == noun else f"{noun}_{route.name.removesuffix(f'_{noun}')}"


@functools.cache
def tune_garbage_collector() -> None:
    """Keep the garbage collector from delaying requests.

    What is loaded now stays until the process ends, and scanning it took 0.1 s, for which every request waited. A page
    of jobs creates more than the 700 objects after which Python collects by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTING)


def open_service(settings: Settings, telemetry: Telemetry) -> Service:
    """Raises ValueError when a setting is missing or wrong, naming it."""
    if settings.database_url is None:
        raise ValueError("QE_DATABASE_URL is not set: the API needs postgresql://… (`qe serve` brings its own)")
    engine = create_engine(settings.database_url)
    locks = create_engine(settings.database_url, connections=1, more=LOCK_CONNECTIONS - 1)
    storage = storage_from_url(settings.resolved_storage_url)
    return Service(
        settings=settings,
        engine=engine,
        spare=create_engine(settings.database_url, connections=1, more=1),
        locks=locks,
        sessions=create_sessions(engine),
        storage=storage,
        keyring=load_keyring(settings),
        seal=Seal(service_secret(settings)),
        notifier=WorkerNotifier(RedisNotifier(settings.redis_url) if settings.redis_url is not None else None),
        buckets=TokenBuckets(settings.requests_per_minute) if settings.requests_per_minute else None,
        meter=StorageMeter(partial(bytes_of_tenant, storage), locks),
        readers=TenantLimiter(most=READERS, each=max(1, READERS // 2)),
        planners=TenantLimiter(most=PLANNERS, each=PLANNERS // 2),
        probes=ThreadPoolExecutor(1, "readiness"),
        telemetry=telemetry,
    )


def _describe_bodies(document: dict[str, Any]) -> None:
    """Document two problems of every operation with a body: it cannot be read, or it is too large."""
    responses = documented(problems.MALFORMED_REQUEST, problems.BODY_TOO_LARGE)
    for path in document["paths"].values():
        for operation in path.values():
            if "requestBody" in operation:
                for kind in (problems.MALFORMED_REQUEST, problems.BODY_TOO_LARGE):
                    operation["responses"].setdefault(str(kind.status), responses[kind.status])


def _describe_problems(app: FastAPI) -> None:
    """Add the schema that every documented problem response refers to."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(schema.pop("$defs", {}))
        schemas["ProblemDetails"] = schema
        _describe_bodies(document)
        add_links(document)
        add_summaries(document)
        add_examples(document)
        return document

    app.openapi = openapi  # type: ignore[method-assign]

"""Dependencies of routes: the session, the caller, the parts of the running service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated

from fastapi import BackgroundTasks, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.access.auth import Actor, Caller, Keyring, Scope, identify
from app.access.quotas import StorageMeter
from app.db.engine import OpenSession, Sessions, tenant_session
from app.web import problems
from app.web.limiter import TenantLimiter, limited
from app.web.problems import Problem
from app.web.rate_limit import TokenBuckets
from app.web.telemetry import HEADERS, Telemetry
from app.web.wakeups import RequestNotifier, WorkerNotifier
from core.secret import Seal
from core.settings import Settings
from core.storage import Storage

CALLER = "qe.caller"
bearer = HTTPBearer(auto_error=False, scheme_name="ApiKey", description="`Authorization: Bearer qe_…`")


@dataclass(frozen=True)
class Service:
    """The parts of a running API, made when it starts and closed when it stops."""

    settings: Settings
    engine: AsyncEngine
    spare: AsyncEngine
    """A connection for readiness, which must not wait for requests."""
    locks: AsyncEngine
    """Connections for requests that wait for the lock of a tenant's storage."""
    sessions: Sessions
    storage: Storage
    keyring: Keyring
    seal: Seal
    notifier: WorkerNotifier
    buckets: TokenBuckets | None
    """Rate limit of each key; None: no limit."""
    meter: StorageMeter
    readers: TenantLimiter
    """Limits requests that read files of datasets and local models, which take a core."""
    planners: TenantLimiter
    """Limits plans that wait for the hub."""
    probes: ThreadPoolExecutor
    """The thread of readiness, which must not wait for other threads."""
    telemetry: Telemetry

    def sessions_of(self, caller: Caller) -> OpenSession:
        """Sessions in the tenant's RLS context, for a stream that outlives the session of its request."""
        return lambda: tenant_session(self.sessions, lambda: caller.tenant)

    def reading(self, request: Request, caller: Caller) -> AbstractAsyncContextManager[None]:
        """A slot to read files of datasets and local models. Raises Problem 429, and ClientDisconnect."""
        return limited(request, self.readers, caller.tenant)

    def planning(self, request: Request, caller: Caller) -> AbstractAsyncContextManager[None]:
        """A slot to plan with the hub. Raises as ``reading``."""
        return limited(request, self.planners, caller.tenant)


async def service_of(request: Request) -> Service:  # not def: FastAPI would send it to a thread and back
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(service_of)]


async def session_of(request: Request, deps: ServiceDep) -> AsyncIterator[AsyncSession]:
    async with tenant_session(deps.sessions, lambda: tenant_of(request), actor=lambda: actor_of(request)) as session:
        yield session
        await session.commit()


def actor_of(request: Request) -> Actor:
    """The actor of a request whose key has been checked."""
    caller = request.scope[CALLER]
    return Actor(tenant=caller.tenant, key_id=caller.key_id, request_id=request.scope["request_id"])


def tenant_of(request: Request) -> str:
    """The tenant of the caller that ``require`` let through; empty before that, so that no row is visible."""
    caller = request.scope.get(CALLER)
    return caller.tenant if isinstance(caller, Caller) else ""


# scope="function": commit before the response is sent. FastAPI's default commits after it, so a client could get 201
# and then the COMMIT fails.
SessionDep = Annotated[AsyncSession, Depends(session_of, scope="function")]


def require(scope: Scope | None) -> Callable[..., Awaitable[Caller]]:
    """A dependency that lets only callers with ``scope`` through; None: any valid key."""

    async def caller(
        request: Request,
        deps: ServiceDep,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> Caller:
        challenge = {"WWW-Authenticate": 'Bearer realm="quant-experts"'}
        if credentials is None:
            raise Problem(
                problems.UNAUTHENTICATED, "send the header Authorization: Bearer <API key>", headers=challenge
            )
        caller_of_key = await identify(deps.sessions, deps.keyring, credentials.credentials)
        if caller_of_key is None:
            raise Problem(problems.UNAUTHENTICATED, "the API key is unknown, expired or revoked", headers=challenge)
        count_request(request, deps.buckets, caller_of_key)
        if scope is not None and scope not in caller_of_key.scopes:
            raise Problem(problems.MISSING_SCOPE, f"this key lacks the scope {scope.value}")
        request.scope[CALLER] = caller_of_key
        return caller_of_key

    return caller


def count_request(request: Request, buckets: TokenBuckets | None, caller: Caller) -> None:
    """Count a request of the caller. Every response gets the headers of the rate limit. Raises Problem 429."""
    if buckets is None:
        return
    decision = buckets.take(caller.key_id)
    request.scope[HEADERS] = decision.headers
    if not decision.allowed:
        detail = f"at most {decision.quota} requests a minute with one key: come back in {decision.retry_after} s"
        raise Problem(problems.RATE_LIMITED, detail)


AnyCaller = Annotated[Caller, Depends(require(None))]
JobsReader = Annotated[Caller, Depends(require(Scope.JOBS_READ))]
JobsWriter = Annotated[Caller, Depends(require(Scope.JOBS_WRITE))]
DatasetsReader = Annotated[Caller, Depends(require(Scope.DATASETS_READ))]
DatasetsWriter = Annotated[Caller, Depends(require(Scope.DATASETS_WRITE))]
AuditReader = Annotated[Caller, Depends(require(Scope.AUDIT_READ))]
UsageReader = Annotated[Caller, Depends(require(Scope.USAGE_READ))]
WebhooksReader = Annotated[Caller, Depends(require(Scope.WEBHOOKS_READ))]
WebhooksWriter = Annotated[Caller, Depends(require(Scope.WEBHOOKS_WRITE))]
PushesWriter = Annotated[Caller, Depends(require(Scope.PUSHES_WRITE))]
WorkersReader = Annotated[Caller, Depends(require(Scope.WORKERS_READ))]
KeysAdmin = Annotated[Caller, Depends(require(Scope.KEYS_ADMIN))]


async def notifier_of(deps: ServiceDep, background: BackgroundTasks) -> RequestNotifier:
    return RequestNotifier(deps.notifier, background)


NotifierDep = Annotated[RequestNotifier, Depends(notifier_of)]

"""Authentication of the dashboard: the session of a request, and CSRF checks of forms."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import FormData

from app.access.auth import Caller, Scope, identify_digest
from app.deps import CALLER, ServiceDep, count_request
from app.ui.session import COOKIE, Session, unseal
from app.web import problems
from app.web.problems import Problem

USER = "qe.user"
"""Key in the scope of a request with a valid session; problem pages read it for their menu."""


class SignInRequired(Exception):
    """``expired``: the session has ended."""

    def __init__(self, *, expired: bool) -> None:
        super().__init__()
        self.expired = expired


@dataclass(frozen=True)
class User:
    caller: Caller
    session: Session

    def may(self, scope: str) -> bool:
        return scope in self.caller.scopes


def require_session(scope: Scope | None) -> Callable[..., Awaitable[User]]:
    """A dependency: the signed-in user, whose key has ``scope`` (None: any). Raises SignInRequired, or Problem 403."""

    async def user(request: Request, deps: ServiceDep) -> User:
        sealed = request.cookies.get(COOKIE)
        session = unseal(deps.keyring, sealed)
        if session is None:
            raise SignInRequired(expired=sealed is not None)
        caller = await identify_digest(deps.sessions, deps.keyring, session.digest)
        if caller is None:
            raise SignInRequired(expired=True)
        count_request(request, deps.buckets, caller)
        signed_in = request.scope[USER] = User(caller, session)
        if scope is not None and scope not in caller.scopes:
            raise Problem(problems.MISSING_SCOPE, f"this key lacks the scope {scope.value}")
        request.scope[CALLER] = caller
        return signed_in

    return user


AnyUser = Annotated[User, Depends(require_session(None))]
JobsReader = Annotated[User, Depends(require_session(Scope.JOBS_READ))]
JobsWriter = Annotated[User, Depends(require_session(Scope.JOBS_WRITE))]
DatasetsReader = Annotated[User, Depends(require_session(Scope.DATASETS_READ))]
DatasetsWriter = Annotated[User, Depends(require_session(Scope.DATASETS_WRITE))]
AuditReader = Annotated[User, Depends(require_session(Scope.AUDIT_READ))]
UsageReader = Annotated[User, Depends(require_session(Scope.USAGE_READ))]
WebhooksReader = Annotated[User, Depends(require_session(Scope.WEBHOOKS_READ))]
WebhooksWriter = Annotated[User, Depends(require_session(Scope.WEBHOOKS_WRITE))]
PushesWriter = Annotated[User, Depends(require_session(Scope.PUSHES_WRITE))]
WorkersReader = Annotated[User, Depends(require_session(Scope.WORKERS_READ))]
KeysAdmin = Annotated[User, Depends(require_session(Scope.KEYS_ADMIN))]


async def checked_form(request: Request, user: User) -> FormData:
    """The fields of a form of this session. Raises Problem 403 when its origin or CSRF token is wrong."""
    check_origin(request)
    form = await request.form(max_files=0, max_fields=200)
    check_csrf(user, str(form.get("csrf", "")))
    return form


def check_csrf(user: User, token: str) -> None:
    if not hmac.compare_digest(token.encode("utf-8", "replace"), user.session.csrf.encode()):
        raise Problem(problems.FORGED_FORM, "the form belongs to another session: reload its page and send it again")


def check_origin(request: Request) -> None:
    """Check the headers by which browsers report the origin of a form. Without them the CSRF token and the SameSite
    cookie decide. Raises Problem 403."""
    origin = request.headers.get("origin")
    elsewhere = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if elsewhere or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem(problems.FORGED_FORM, "the form was sent from another site")

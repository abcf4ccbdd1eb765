"""Who looks at the dashboard, and whether a form is really theirs."""

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

VISITOR = "qe.visitor"
"""In the scope of a request once the session is known to be good, for the menu of whatever page comes of it."""


class SignInNeeded(Exception):
    """``expired``: there was a session, and it is no longer good."""

    def __init__(self, *, expired: bool) -> None:
        super().__init__()
        self.expired = expired


@dataclass(frozen=True)
class Visitor:
    caller: Caller
    session: Session

    def may(self, scope: str) -> bool:
        return scope in self.caller.scopes


def visiting(scope: Scope | None) -> Callable[..., Awaitable[Visitor]]:
    """A dependency: the signed-in visitor, whose key has ``scope`` (None: any). Raises SignInNeeded, or Problem 403."""

    async def visitor(request: Request, service: ServiceDep) -> Visitor:
        sealed = request.cookies.get(COOKIE)
        session = unseal(service.keyring, sealed)
        if session is None:
            raise SignInNeeded(expired=sealed is not None)
        caller = await identify_digest(service.sessions, service.keyring, session.digest)
        if caller is None:
            raise SignInNeeded(expired=True)
        count_request(request, service.buckets, caller)
        found = request.scope[VISITOR] = Visitor(caller, session)
        if scope is not None and scope not in caller.scopes:
            raise Problem(problems.MISSING_SCOPE, f"this key lacks the scope {scope.value}")
        request.scope[CALLER] = caller
        return found

    return visitor


AnyVisitor = Annotated[Visitor, Depends(visiting(None))]
JobsReader = Annotated[Visitor, Depends(visiting(Scope.JOBS_READ))]
JobsWriter = Annotated[Visitor, Depends(visiting(Scope.JOBS_WRITE))]
DatasetsReader = Annotated[Visitor, Depends(visiting(Scope.DATASETS_READ))]
DatasetsWriter = Annotated[Visitor, Depends(visiting(Scope.DATASETS_WRITE))]
AuditReader = Annotated[Visitor, Depends(visiting(Scope.AUDIT_READ))]
UsageReader = Annotated[Visitor, Depends(visiting(Scope.USAGE_READ))]
WebhooksReader = Annotated[Visitor, Depends(visiting(Scope.WEBHOOKS_READ))]
WebhooksWriter = Annotated[Visitor, Depends(visiting(Scope.WEBHOOKS_WRITE))]
WorkersReader = Annotated[Visitor, Depends(visiting(Scope.WORKERS_READ))]
KeysAdmin = Annotated[Visitor, Depends(visiting(Scope.KEYS_ADMIN))]


async def form_of(request: Request, visitor: Visitor) -> FormData:
    """The fields of a form of this session. Raises Problem 403 for one that another page made."""
    check_origin(request)
    form = await request.form(max_files=0, max_fields=200)
    check_csrf(visitor, str(form.get("csrf", "")))
    return form


def check_csrf(visitor: Visitor, token: str) -> None:
    if not hmac.compare_digest(token.encode("utf-8", "replace"), visitor.session.csrf.encode()):
        raise Problem(problems.FORGED_FORM, "the form is not of this session: load its page again and repeat it")


def check_origin(request: Request) -> None:
    """Browsers say where a form comes from; what they do not say is left to the token and the SameSite cookie."""
    origin = request.headers.get("origin")
    elsewhere = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if elsewhere or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem(problems.FORGED_FORM, "the form was sent from another site")

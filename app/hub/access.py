"""Authentication of Hub clients: API keys as tokens, and errors in the format of the Hub."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials

from app.access.auth import Caller, Scope
from app.deps import ServiceDep, bearer, require
from app.hub.problems import BAD_TOKEN, REPOSITORY, error_headers
from app.web.problems import UNAUTHENTICATED, Problem

jobs_reader = require(Scope.JOBS_READ)


async def hub_reader(
    request: Request,
    deps: ServiceDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Caller:
    try:
        return await jobs_reader(request, deps, credentials)
    except Problem as problem:
        if problem.kind is not UNAUTHENTICATED:
            headers = error_headers(problem.detail)
        elif credentials is None:
            headers = error_headers("nothing here is public: set HF_TOKEN to an API key of this service", REPOSITORY)
        else:
            headers = error_headers(BAD_TOKEN)
        problem.headers = {**(problem.headers or {}), **headers}
        raise


HubReader = Annotated[Caller, Depends(hub_reader)]

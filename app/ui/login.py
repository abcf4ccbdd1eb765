"""``/login`` and ``/logout``: an API key in, a session out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.access.auth import identify
from app.deps import ServiceDep
from app.ui import session
from app.ui.pages import Page, local_path, redirect_to, render
from app.ui.sign_in import AnyUser, check_origin, checked_form

MOST_KEY = 200
router = APIRouter(route_class=Page)


@router.get("/login")
async def ask(
    request: Request,
    next: Annotated[str, Query(max_length=2000)] = "/",  # noqa: A002 -- the name of the query parameter
    ended: bool = False,
) -> Response:
    return render(request, "login.html", None, next=local_path(next), ended=ended, wrong=False)


@router.post("/login")
async def sign_in(request: Request, deps: ServiceDep) -> Response:
    check_origin(request)
    form = await request.form(max_files=0, max_fields=10)
    key, target = str(form.get("key", "")).strip(), local_path(str(form.get("next", "/"))[:2000])
    if not key or len(key) > MOST_KEY or await identify(deps.sessions, deps.keyring, key) is None:
        return render(request, "login.html", None, status=401, next=target, ended=False, wrong=True)
    response = redirect_to(target)
    session.give(response, request, session.seal(deps.keyring, deps.keyring.digest(key)))
    return response


@router.post("/logout")
async def sign_out(request: Request, user: AnyUser) -> Response:
    await checked_form(request, user)
    response = redirect_to("/login")
    session.take(response)
    return response

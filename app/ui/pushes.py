"""The dashboard's forms about pushes, on the page of a job."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from app.deps import ServiceDep, SessionDep, actor_of
from app.pushes import service
from app.pushes.schemas import NewPush
from app.ui import forms
from app.ui.jobs import job_page
from app.ui.pages import Page, redirect_to
from app.ui.sign_in import PushesWriter, checked_form
from app.web import problems
from app.web.problems import Problem

FIELDS = ("to", "export", "public")
router = APIRouter(route_class=Page)


@router.post("/jobs/{job_id}/pushes")
async def create(request: Request, job_id: str, user: PushesWriter, session: SessionDep, deps: ServiceDep) -> Response:
    values = forms.values_of(await checked_form(request, user), FIELDS)
    try:
        new = NewPush.model_validate(
            {"to": values["to"], "export": values["export"] or None, "private": not values["public"]}
        )
        await service.create_push_once(session, user.caller, actor_of(request), deps, job_id=job_id, new=new, key=None)
    except ValidationError as error:
        wrong = forms.invalid(error.errors())
    except Problem as problem:
        if problem.kind is problems.NOT_FOUND:
            raise
        wrong = forms.refused(problem)
    else:
        return redirect_to(f"/jobs/{job_id}#pushes")
    return await job_page(request, user, session, deps, job_id=job_id, values=values, wrong=wrong)


@router.post("/jobs/{job_id}/pushes/{push_id}/cancel")
async def cancel(request: Request, job_id: str, push_id: str, user: PushesWriter, session: SessionDep) -> Response:
    await checked_form(request, user)
    await service.cancel_push(session, tenant=user.caller.tenant, job_id=job_id, push_id=push_id)
    return redirect_to(f"/jobs/{job_id}#pushes")

"""A plan, and the job that is made of it."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import PrivateAttr

from quant_experts.client.effects import Operation
from quant_experts.client.job import AsyncJob, Job, JobFields, JobOperations
from quant_experts.client.operation import Awaited, Blocking, Operations, bound, operation
from quant_experts.client.requests import jobs as requests
from quant_experts.client.views.plans import PlanView

J = TypeVar("J", bound="JobOperations[Any]")


class PlanOperations(Operations, Generic[J]):
    """What a job would take, and every reason it would be refused."""

    digest: str
    _fields: JobFields
    _job: type[J]

    @operation
    def create(self, *, idempotency_key: str | None = None) -> Operation[J]:
        """Queue the job that was planned, at the commits that were planned. Raises InvalidRequest, Conflict when that
        is no longer what they are."""
        return bound(
            self, requests.create_job(self._job, self._fields, plan=self.digest, idempotency_key=idempotency_key)
        )


class Plan(PlanView, PlanOperations[Job], Blocking):
    _transport: Any = PrivateAttr()
    _fields: JobFields = PrivateAttr()
    _job: type[Job] = PrivateAttr(Job)


class AsyncPlan(PlanView, PlanOperations[AsyncJob], Awaited):
    _transport: Any = PrivateAttr()
    _fields: JobFields = PrivateAttr()
    _job: type[AsyncJob] = PrivateAttr(AsyncJob)

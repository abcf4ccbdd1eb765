"""Reads of jobs and of the rows that belong to a job. The tenant filter is on the job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import cast, func
from sqlalchemy.dialects.postgresql import JSONPATH
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.engine import Sessions
from app.db.pipeline import columns_of, read, transaction_of
from app.db.tenancy import of_job, of_tenant
from app.jobs.rows import JobRow
from app.jobs.schemas import JobDeletion, JobFilter, JobQuery
from app.web import problems
from app.web.lookup import get_owned
from app.web.paging import Signer, cut, last_seen
from app.web.problems import Problem
from core.ledger.states import FINISHED, JobStatus
from core.ledger.tables import Artifact, Attempt, FinishedBlock, Job, JobLabel

JOB_ID = re.compile(r"job_[0-9a-f]{32}")


@dataclass(frozen=True)
class BlockErrors:
    """Errors of a finished block. ``errors``: stage → mean over its input groups. ``stack``, ``index`` and ``part``:
    its place in a model with several stacks."""

    block: int
    attempt: int
    seconds: float
    errors: dict[str, float]
    stack: str | None = None
    index: int | None = None
    part: str | None = None


async def get_job(session: AsyncSession, *, tenant: str, job_id: str, lock: bool = False) -> Job:
    """Raises Problem 404."""
    return await get_owned(session, Job, job_id, tenant=tenant, lock=lock)


JOBS = f"SELECT {columns_of(JobRow)} FROM {of_tenant(Job)}"  # noqa: S608 -- every part is ours


async def get_job_row(sessions: Sessions, *, tenant: str, job_id: str) -> JobRow:
    """Raises Problem 404 for a job that does not exist or is another tenant's: the two look the same."""
    rows: list[JobRow] = []
    if JOB_ID.fullmatch(job_id):
        values = {"tenant": tenant, "id": job_id}
        rows = await read(sessions, f"{JOBS} AND id = %(id)s", values, of=JobRow, tenant=tenant)
    if not rows:
        raise Problem(problems.NOT_FOUND, f"no job {job_id!r}")
    return rows[0]


async def page_of_job_rows(
    sessions: Sessions, *, tenant: str, query: JobQuery, signer: Signer
) -> tuple[Sequence[JobRow], str | None]:
    """Newest first, and the cursor of the next page. Raises Problem for a cursor of another listing.

    Each status is a scan of ``ix_jobs_by_status``, joined by UNION ALL: one scan for several would read every job to
    find those of a rare status. Model, scheme and alias have an index too, and labels a table.
    """
    conditions, values = _matching(query)
    last = last_seen(query, signer, Job.__tablename__)
    if last is not None:
        conditions.append("(created_at, id) < (%(last_time)s, %(last_id)s)")
        values |= {"last_time": last[0], "last_id": last[1]}
    page = " ORDER BY created_at DESC, id DESC LIMIT %(limit)s"
    walks = [" AND ".join([JOBS, *conditions, f"status = {_status(status.value)}"]) for status in query.status]
    if len(walks) > 1:
        text = " UNION ALL ".join(f"({walk}{page})" for walk in walks)
    else:  # a single SELECT in brackets with an ORDER BY cannot have another
        text = walks[0] if walks else " AND ".join([JOBS, *conditions])
    values |= {"tenant": tenant, "limit": query.limit + 1}
    return cut(await read(sessions, text + page, values, of=JobRow, tenant=tenant), query, signer, Job.__tablename__)


def _status(status: str) -> str:
    """The status as a literal, because only then PostgreSQL can use the partial indexes."""
    return f"'{JobStatus(status).value}'"


@dataclass
class _Id:
    id: str


async def ids_of_finished(session: AsyncSession, *, tenant: str, which: JobDeletion, limit: int) -> list[str]:
    """Ids of the finished jobs that match, oldest first."""
    conditions, values = _matching(which)
    if which.status:
        conditions.append("status = ANY(%(status)s)")
        values["status"] = [status.value for status in which.status]
    if which.ids is not None:
        conditions.append("id = ANY(%(ids)s)")
    if which.finished_before is not None:
        conditions.append("finished_at < %(finished_before)s")
    values |= {"ids": which.ids, "finished_before": which.finished_before}
    conditions.append("status = ANY(%(finished)s)")
    text = " AND ".join([f"SELECT id FROM {of_tenant(Job)}", *conditions]) + " ORDER BY created_at, id LIMIT %(limit)s"  # noqa: S608
    values |= {"tenant": tenant, "limit": limit, "finished": [status.value for status in FINISHED]}
    return [row.id for row in await (await transaction_of(session)).rows(text, values, of=_Id)]


def _matching(query: JobFilter) -> tuple[list[str], dict[str, Any]]:
    """Conditions, and the values that they name."""
    filters: list[tuple[str, str, Any]] = [
        ("model_id = %(model)s", "model", query.model),
        ("scheme = %(scheme)s", "scheme", query.scheme),
        ("alias = %(alias)s", "alias", query.alias),
        ("created_at >= %(created_after)s", "created_after", query.created_after),
        ("created_at < %(created_before)s", "created_before", query.created_before),
    ]
    for number, label in enumerate(query.label):
        key, equals, value = label.partition("=")
        name = f"label_{number}"
        with_label = f"SELECT job_id FROM {of_tenant(JobLabel)} AND key = %({name}_key)s"  # noqa: S608
        filters.append((f"id IN ({with_label}{f' AND value = %({name})s' if equals else ''})", name, value))
        filters.append(("true", f"{name}_key", key))
    set_filters = [(condition, name, value) for condition, name, value in filters if value is not None]
    return [condition for condition, _, _ in set_filters], {name: value for _, name, value in set_filters}


async def layers_after(session: AsyncSession, *, job_id: str, block: int, limit: int) -> Sequence[FinishedBlock]:
    statement = of_job(FinishedBlock, job_id).where(FinishedBlock.block > block)
    return (await session.scalars(statement.order_by(FinishedBlock.block).limit(limit))).all()


MOST_BLOCKS = 400
"""Blocks on a page; of a model with more, every second, third … block."""


async def block_errors(session: AsyncSession, *, job_id: str, step: int = 1) -> list[BlockErrors]:
    """Errors of every ``step``-th finished block, in order. The query selects the errors alone: a whole report is a
    hundred times larger."""
    errors = func.jsonb_path_query_array(FinishedBlock.report, cast("$.groups[*].error", JSONPATH))
    place = (
        FinishedBlock.report["stack"].astext,
        FinishedBlock.report["index"].as_integer(),
        FinishedBlock.report["part"].astext,
    )
    columns = (FinishedBlock.block, FinishedBlock.attempt, FinishedBlock.seconds, errors, *place)
    blocks = of_job(FinishedBlock, job_id).where(FinishedBlock.block % step == 0)
    rows = await session.execute(blocks.order_by(FinishedBlock.block).with_only_columns(*columns))
    return [
        BlockErrors(block, attempt, seconds, _means(groups or []), *place)
        for block, attempt, seconds, groups, *place in rows
    ]


def _means(groups: Sequence[dict[str, float | None]]) -> dict[str, float]:
    stages: dict[str, list[float]] = {}
    for group in groups:
        for stage, value in group.items():
            if value is not None:
                stages.setdefault(stage, []).append(value)
    return {stage: sum(values) / len(values) for stage, values in stages.items()}


async def attempts_of(session: AsyncSession, *, job_id: str) -> Sequence[Attempt]:
    return (await session.scalars(of_job(Attempt, job_id).order_by(Attempt.attempt))).all()


async def artifacts_of(session: AsyncSession, *, job_id: str) -> Sequence[Artifact]:
    return (await session.scalars(of_job(Artifact, job_id).order_by(Artifact.name))).all()


async def artifact_named(session: AsyncSession, *, job_id: str, name: str) -> Artifact:
    """Raises Problem 404. The name selects a row and never becomes a path."""
    artifact = None
    if "\0" not in name:
        artifact = await session.scalar(of_job(Artifact, job_id).where(Artifact.name == name))
    if artifact is None:
        raise Problem(problems.NOT_FOUND, f"job {job_id} has no artifact {name!r}")
    return artifact

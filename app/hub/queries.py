"""Finished jobs as repositories of the Hub protocol.

``qe/job_…`` has one commit. An alias has one for every succeeded job that carries it and was not rejected by its
``accept_if``; ``main`` is the newest. Each export of the newest job is a branch with the name of its format. A commit
is named by the digests of its files, so the same bytes are the same commit on every installation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, Text, cast, func, inspect, or_, select
from sqlalchemy.dialects.postgresql import BYTEA, aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.tenancy import owned
from app.hub.problems import repository_not_found, revision_not_found
from app.jobs.queries import JOB_ID, artifacts_of
from app.jobs.schemas import Verdict
from core.contract.alias import JOB_NAMESPACE
from core.ledger.states import JobStatus
from core.ledger.tables import Artifact, Job
from quant_experts.spec.exports import EXPORT_FORMATS, EXPORTS_FOLDER

MAIN = "main"
COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_COMMITS = 200
"""Jobs of one alias; older ones stay reachable under ``qe/job_…``."""


@dataclass(frozen=True)
class Commit:
    """What one finished job made: its checkpoint, or the export of it in the format ``export``."""

    sha: str
    job_id: str
    model_id: str
    scheme: str
    method: str
    date: datetime
    export: str | None = None


async def commits_of(session: AsyncSession, *, tenant: str, repository: str, limit: int = MOST_COMMITS) -> list[Commit]:
    """Newest first. Raises Problem 404 in the words of the protocol when there is none."""
    namespace, _, name = repository.partition("/")
    statement = owned(Job, tenant)
    if namespace == JOB_NAMESPACE:
        if JOB_ID.fullmatch(name) is None:
            raise repository_not_found(f"no repository {repository!a}: {JOB_NAMESPACE}/job_… is the form")
        statement = statement.where(Job.id == name)
    else:
        statement = statement.where(
            Job.alias == repository.replace("\0", ""),
            Job.status == JobStatus.SUCCEEDED,
            _sha_of_files().is_not(None),  # one whose files were deleted serves nothing
            or_(Job.verdict.is_(None), Job.verdict != Verdict.REJECTED),
        )
    statement = statement.order_by(Job.finished_at.desc(), Job.id.desc()).limit(limit)
    rows = await session.execute(
        statement.with_only_columns(
            Job.id, Job.status, Job.model_id, Job.scheme, Job.method, Job.finished_at, _sha_of_files().label("sha")
        )
    )
    commits = []
    for row in rows:
        if row.status != JobStatus.SUCCEEDED:
            raise repository_not_found(f"{row.id} is {row.status}: its files appear when it has succeeded")
        if row.sha is None:  # of an alias the statement has left it out
            raise repository_not_found(f"{row.id} has no files any more: somebody has deleted them")
        commits.append(Commit(row.sha, row.id, row.model_id, row.scheme, row.method, row.finished_at))
    if not commits:
        raise repository_not_found(f"no finished job {repository!a} is visible to this API key")
    return commits


async def commit_at(session: AsyncSession, *, tenant: str, repository: str, revision: str) -> Commit:
    """``main``, a commit, the id of one of the jobs, or an export of the newest. Raises Problem 404."""
    newest_is_enough = revision == MAIN or revision in EXPORT_FORMATS
    commits = await commits_of(
        session, tenant=tenant, repository=repository, limit=1 if newest_is_enough else MOST_COMMITS
    )
    if revision == MAIN:
        return commits[0]
    for commit in commits:
        if revision in (commit.sha, commit.job_id):
            return commit
    for export in await exports_of(session, commits, tenant=tenant):
        if revision in (export.sha, export.export):
            return export
    possible = f"{MAIN}, a commit, a job id or an export of {commits[0].job_id} is possible"
    raise revision_not_found(f"{repository} has no revision {revision!a}: {possible}")


async def exports_of(session: AsyncSession, commits: Sequence[Commit], *, tenant: str) -> list[Commit]:
    """The exports of the jobs of ``commits``, in their order."""
    shas = {name: _sha_of_files(name).label(name) for name in EXPORT_FORMATS}
    jobs = owned(Job, tenant).where(Job.id.in_([commit.job_id for commit in commits]))
    rows = await session.execute(jobs.with_only_columns(Job.id, *shas.values()))
    by_id = {row.id: row._mapping for row in rows}
    return [
        replace(commit, sha=by_id[commit.job_id][name], export=name)
        for commit in commits
        for name in EXPORT_FORMATS
        if by_id[commit.job_id][name] is not None
    ]


async def files_at(
    session: AsyncSession, *, tenant: str, repository: str, revision: str
) -> tuple[Commit, Sequence[Artifact]]:
    """The commit and its files. Those of an export have the names that they have in its folder."""
    commit = await commit_at(session, tenant=tenant, repository=repository, revision=revision)
    artifacts = await artifacts_of(session, job_id=commit.job_id)
    if commit.export is None:
        return commit, [artifact for artifact in artifacts if not artifact.name.startswith(f"{EXPORTS_FOLDER}/")]
    folder = f"{EXPORTS_FOLDER}/{commit.export}/"
    return commit, [_renamed(each, folder) for each in artifacts if each.name.startswith(folder)]


def _renamed(artifact: Artifact, folder: str) -> Artifact:
    """A copy, which belongs to no session, without the folder in its name."""
    columns = {column.key: getattr(artifact, column.key) for column in inspect(Artifact).column_attrs}
    return Artifact(**columns | {"name": artifact.name.removeprefix(folder)})


def _sha_of_files(export: str | None = None) -> ColumnElement[str]:
    """Forty hexadecimal digits of the SHA-256 over the sorted lines ``name, size, SHA-256`` of the checkpoint or of an
    export; null without files."""
    # Collated by bytes: the order must not depend on the locale of a database.
    line = func.concat_ws(" ", Artifact.name, Artifact.bytes, Artifact.sha256)
    lines = func.string_agg(line, aggregate_order_by(cast("\n", Text), Artifact.name.collate("C")))
    digest = func.encode(func.sha256(func.convert_to(lines, "UTF8", type_=BYTEA)), "hex")
    exported = Artifact.name.startswith(f"{EXPORTS_FOLDER}/{export}/" if export else f"{EXPORTS_FOLDER}/")
    of_job = select(func.left(digest, 40)).where(Artifact.job_id == Job.id, exported if export else ~exported)
    return of_job.correlate(Job).scalar_subquery()

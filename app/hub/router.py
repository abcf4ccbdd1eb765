"""``/hub``: finished jobs in the read-only Hugging Face Hub protocol, for stock clients with ``HF_ENDPOINT=…/hub``."""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response

from app.artifacts.sending import BINARY
from app.deps import ServiceDep, SessionDep
from app.hub import tree
from app.hub.access import HubReader
from app.hub.problems import entry_not_found, error_headers
from app.hub.queries import MAIN, Commit, commits_of, exports_of, files_at
from app.hub.schemas import (
    AccessToken,
    CommitView,
    LastCommit,
    ModelView,
    Refs,
    TokenAuth,
    TreeFile,
    TreeFolder,
    WhoAmI,
    title_of,
)
from app.hub.service import send_file
from app.web import problems
from app.web.problems import Problem, documented

MOST_PATHS = 1000
PATHS = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {
                "schema": {
                    "type": "object",
                    "required": ["paths"],
                    "properties": {
                        "paths": {"type": "array", "items": {"type": "string"}, "maxItems": MOST_PATHS},
                        "expand": {"type": "boolean"},
                    },
                }
            }
            for media_type in ("application/x-www-form-urlencoded", "application/json")
        },
    }
}
Expand = Annotated[bool, Query(description="With the commit of every entry.")]
router = APIRouter(prefix="/hub", tags=["hub"])


@router.get("/api/whoami-v2", responses=documented())
async def whoami(caller: HubReader) -> WhoAmI:
    """The owner of the token: `hf auth whoami`."""
    auth = TokenAuth(accessToken=AccessToken(displayName=caller.key_id))
    return WhoAmI(id=caller.tenant, name=caller.tenant, fullname=caller.tenant, auth=auth)


@router.get("/api/models/{namespace}/{name}", responses=documented(problems.NOT_FOUND))
async def model_info(
    namespace: str,
    name: str,
    caller: HubReader,
    session: SessionDep,
    blobs: Annotated[bool, Query(description="With size and digest of every file.")] = False,
) -> ModelView:
    """`HfApi.model_info`; `qe/job_…`, or the alias of a job."""
    return await _model(session, caller, f"{namespace}/{name}", MAIN, blobs=blobs)


@router.get("/api/models/{namespace}/{name}/revision/{revision}", responses=documented(problems.NOT_FOUND))
async def model_info_at(
    namespace: str, name: str, revision: str, caller: HubReader, session: SessionDep, blobs: bool = False
) -> ModelView:
    """`HfApi.model_info(revision=…)`: `main`, a commit, the id of a job, or the format of an export."""
    return await _model(session, caller, f"{namespace}/{name}", revision, blobs=blobs)


@router.get("/api/models/{namespace}/{name}/tree/{revision}", responses=documented(problems.NOT_FOUND))
async def root_tree(
    namespace: str,
    name: str,
    revision: str,
    caller: HubReader,
    session: SessionDep,
    recursive: bool = False,
    expand: Expand = False,
) -> list[TreeFile | TreeFolder]:
    """`HfApi.list_repo_tree`."""
    commit, files = await files_at(session, tenant=caller.tenant, repository=f"{namespace}/{name}", revision=revision)
    return tree.listing(files, below="", recursive=recursive, last=_last(commit, expand))


@router.get("/api/models/{namespace}/{name}/tree/{revision}/{path:path}", responses=documented(problems.NOT_FOUND))
async def folder_tree(
    namespace: str,
    name: str,
    revision: str,
    path: str,
    caller: HubReader,
    session: SessionDep,
    recursive: bool = False,
    expand: Expand = False,
) -> list[TreeFile | TreeFolder]:
    """`HfApi.list_repo_tree(path_in_repo=…)`."""
    commit, files = await files_at(session, tenant=caller.tenant, repository=f"{namespace}/{name}", revision=revision)
    entries = tree.listing(files, below=path, recursive=recursive, last=_last(commit, expand))
    if not entries:
        raise entry_not_found(f"{namespace}/{name} has no folder {path!a}", commit.sha)
    return entries


@router.post(
    "/api/models/{namespace}/{name}/paths-info/{revision}",
    openapi_extra=PATHS,
    responses=documented(problems.NOT_FOUND, problems.MALFORMED_REQUEST, problems.BODY_TOO_LARGE),
)
async def paths_info(
    namespace: str, name: str, revision: str, request: Request, caller: HubReader, session: SessionDep
) -> list[TreeFile | TreeFolder]:
    """`HfApi.get_paths_info`: those of the paths that exist."""
    paths, expand = await _wanted_paths(request)
    commit, files = await files_at(session, tenant=caller.tenant, repository=f"{namespace}/{name}", revision=revision)
    return tree.named(files, paths, last=_last(commit, expand))


@router.get("/api/models/{namespace}/{name}/refs", responses=documented(problems.NOT_FOUND))
async def refs(namespace: str, name: str, caller: HubReader, session: SessionDep) -> Refs:
    """`HfApi.list_repo_refs`: the branch `main`, one for each export, and every job of the alias as a tag."""
    commits = await commits_of(session, tenant=caller.tenant, repository=f"{namespace}/{name}")
    return Refs.of(commits, await exports_of(session, commits[:1], tenant=caller.tenant))


@router.get("/api/models/{namespace}/{name}/commits/{revision}", responses=documented(problems.NOT_FOUND))
async def commits(namespace: str, name: str, revision: str, caller: HubReader, session: SessionDep) -> list[CommitView]:
    """`HfApi.list_repo_commits`: what `main` pointed to, newest first."""
    repository = f"{namespace}/{name}"
    commit, _ = await files_at(session, tenant=caller.tenant, repository=repository, revision=revision)
    history = await commits_of(session, tenant=caller.tenant, repository=repository)
    return [CommitView.of(each) for each in history if each.date <= commit.date]


@router.head("/{namespace}/{name}/resolve/{revision}/{path:path}", include_in_schema=False)
@router.get(
    "/{namespace}/{name}/resolve/{revision}/{path:path}",
    response_class=Response,
    responses={
        **documented(
            problems.NOT_FOUND, problems.PRECONDITION_FAILED, problems.RANGE_NOT_SATISFIABLE, problems.OBJECT_MISSING
        ),
        200: BINARY,
        206: {"description": "The bytes of the `Range`.", **BINARY},
        302: {"description": "To the object store, with `QE_REDIRECT_DOWNLOADS`."},
        304: {"description": "The client has it already (`If-None-Match`)."},
    },
)
async def resolve(
    namespace: str,
    name: str,
    revision: str,
    path: str,
    request: Request,
    caller: HubReader,
    session: SessionDep,
    deps: ServiceDep,
) -> Response:
    """One file, as `hf download` and `from_pretrained` fetch it."""
    return await send_file(
        request, caller, session, deps, repository=f"{namespace}/{name}", revision=revision, path=path
    )


async def _model(session: SessionDep, caller: HubReader, repository: str, revision: str, *, blobs: bool) -> ModelView:
    commit, files = await files_at(session, tenant=caller.tenant, repository=repository, revision=revision)
    return ModelView.of(repository, commit, files, blobs=blobs)


def _last(commit: Commit, expand: bool) -> LastCommit | None:
    return LastCommit(id=commit.sha, title=title_of(commit), date=commit.date) if expand else None


async def _wanted_paths(request: Request) -> tuple[list[str], bool]:
    """The paths from a form (``huggingface_hub``) or JSON (``@huggingface/hub``). Raises Problem 400."""
    body = await request.body()
    paths: Any
    expand: Any
    try:
        if request.headers.get("content-type", "").startswith("application/json"):
            document = json.loads(body)
            paths, expand = document["paths"], document.get("expand", False)
        else:
            form = parse_qs(body.decode(), max_num_fields=MOST_PATHS + 1)
            paths, expand = form["paths"], form.get("expand", ["false"])[0].lower() == "true"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        paths, expand = None, False
    good = isinstance(paths, list) and len(paths) <= MOST_PATHS and all(isinstance(path, str) for path in paths)
    if not good:
        detail = f"send paths as a form or JSON: a list of at most {MOST_PATHS} strings"
        raise Problem(problems.MALFORMED_REQUEST, detail, headers=error_headers(detail))
    return paths, expand is True

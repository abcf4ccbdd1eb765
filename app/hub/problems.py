"""Problems with the headers that Hub clients read.

``huggingface_hub`` turns ``X-Error-Code`` into ``RepositoryNotFoundError``, ``RevisionNotFoundError`` or
``EntryNotFoundError``, and shows ``X-Error-Message``.
"""

from __future__ import annotations

from app.web.problems import NOT_FOUND, Problem

REPOSITORY, REVISION, ENTRY = "RepoNotFound", "RevisionNotFound", "EntryNotFound"
BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 -- the words by which the client knows it
"""Without exactly this message the client treats a 401 as a missing repository."""


def error_headers(message: str, code: str | None = None) -> dict[str, str]:
    """``message`` may quote the client; a header takes printable ASCII only."""
    text = message.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")
    return {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})


def repository_not_found(message: str) -> Problem:
    return Problem(NOT_FOUND, message, headers=error_headers(message, REPOSITORY))


def revision_not_found(message: str) -> Problem:
    return Problem(NOT_FOUND, message, headers=error_headers(message, REVISION))


def entry_not_found(message: str, commit: str) -> Problem:
    """With the commit, so that the client can cache that it lacks the file."""
    return Problem(NOT_FOUND, message, headers=error_headers(message, ENTRY) | {"X-Repo-Commit": commit})

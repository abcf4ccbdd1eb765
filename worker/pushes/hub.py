"""A model repository of the hub as a target. Large files go one by one, and one commit makes all visible at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from worker.pushes.refusal import Refused

PERMANENT = (400, 401, 403, 404, 413, 422)
"""Statuses after which the same request gets the same answer."""


class HubTarget:
    """``order``: ``access`` (the tenant's token), ``repository``, ``private``, ``message``, ``files``."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._api = HfApi(token=order["access"], library_name="quant-experts")
        self._repository = str(order["repository"])
        self._message = str(order["message"])
        self._private = bool(order["private"])
        self._names = [str(file["name"]) for file in order["files"]]
        self._there: dict[str, str] = {}
        self._additions: list[CommitOperationAdd] = []

    def prepare(self) -> None:
        try:
            info = self._api.repo_info(self._repository, timeout=30)
        except RepositoryNotFoundError:
            self._api.create_repo(self._repository, private=self._private, exist_ok=True)
            info = self._api.repo_info(self._repository, timeout=30)
        if self._private and info.private is not True:
            raise Refused(
                f"repository {self._repository!r} is public: make it private, or push with private set to false"
            )
        found = self._api.get_paths_info(self._repository, self._names)
        self._there = {each.path: each.lfs.sha256 for each in found if isinstance(each, RepoFile) and each.lfs}

    def has(self, file: Mapping[str, Any]) -> bool:
        # A small file has the digest of git, which is not ours: the client compares it before the commit.
        return self._there.get(file["name"]) == str(file["sha256"])

    def put(self, file: Mapping[str, Any], path: Path) -> None:
        addition = CommitOperationAdd(path_in_repo=file["name"], path_or_fileobj=path)
        addition.upload_info.sha256 = bytes.fromhex(file["sha256"])
        self._api.preupload_lfs_files(self._repository, [addition], free_memory=True)
        self._additions.append(addition)
        if addition.path_or_fileobj == b"":  # uploaded; small files are sent with the commit
            path.unlink()

    def finish(self) -> dict[str, Any]:
        commit = self._api.create_commit(self._repository, self._additions, commit_message=self._message)
        return {"url": f"{self._api.endpoint}/{self._repository}", "commit": commit.oid}

    def explain(self, error: Exception) -> Exception:
        """The hub's own text may hold signed addresses, so only the status is told."""
        where = f"repository {self._repository!r}"
        if isinstance(error, HFValidationError):
            return Refused(f"{where}: the hub takes no such name")
        if isinstance(error, HfHubHTTPError) and getattr(error, "response", None) is not None:
            status = error.response.status_code
            if status in (401, 403, 404):
                return Refused(f"{where}: the hub answered {status}: may the tenant's token write there?")
            if status in PERMANENT:
                return Refused(f"{where}: the hub answered {status} and will not take it")
            return RuntimeError(f"{where}: the hub answered {status}")
        if isinstance(error, ValueError):  # of an upload that the hub refuses, or of a card
            return RuntimeError(f"{where}: {str(error)[:300]}")
        return RuntimeError(f"{where}: the hub could not be reached ({type(error).__name__})")

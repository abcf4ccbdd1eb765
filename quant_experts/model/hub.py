"""Bring a model or a dataset from the Hugging Face Hub to local disk: a pinned commit, only files on the allow-list.

    python -m quant_experts.model.hub model Qwen/Qwen2-VL-2B-Instruct --revision main --to models/qwen2-vl-2b
    python -m quant_experts.model.hub dataset lmms-lab/some-images --to data

As a program it prints one JSON object per line: ``{"type": "resolved", "commit": …}``, then
``{"type": "done", "path": …}``; or ``{"type": "error", "code": …, "message": …}`` and exit code 1. A token comes from
the environment (``HF_TOKEN``) and is never printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from quant_experts.errors import DiskFull, QuantExpertsError
from quant_experts.files import NO_SPACE

Kind = Literal["model", "dataset"]
T = TypeVar("T")
WAITS = (1.0, 4.0)
"""Seconds before another try: the hub's client repeats some requests on its own, but gives up at the first 500."""

ALLOWED: dict[Kind, tuple[str, ...]] = {
    # No Python file, no pickle: a model is data.
    "model": ("*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model", "LICENSE*", "NOTICE*"),
    "dataset": ("*.jsonl", "*.parquet", "*.json", "README.md"),
}
NESTED: dict[Kind, tuple[str, ...]] = {
    # Some model repositories carry a second copy of the weights in folders of their own, Mistral's beside the first.
    "model": ("*/*", "consolidated*.safetensors"),
    "dataset": (),
}


class RepositoryMissing(QuantExpertsError):
    """No such repository or revision, or it is gated and the token does not open it."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.code = f"{kind}_not_found"


class HubUnavailable(QuantExpertsError):
    """The hub did not answer or answered with a fault; trying again may help."""

    code = "model_unavailable"


def resolve_commit(kind: Kind, repository: str, revision: str | None) -> str:
    """The commit that ``revision`` (branch, tag, commit; default branch when None) points to now.

    Raises RepositoryMissing or HubUnavailable.
    """
    try:
        commit = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=30).sha
    except Exception as error:
        raise _explained(kind, repository, revision, error) from error
    if commit is None:
        raise HubUnavailable(f"the hub names no commit for {kind} {repository!r} at {revision or 'its default branch'}")
    return str(commit)


def download(kind: Kind, repository: str, *, commit: str, to: Path) -> Path:
    """Download the allowed files of ``repository`` at ``commit`` into ``to`` and return it; what is there is kept.

    Whole files of an earlier try are not asked for again. Raises RepositoryMissing, HubUnavailable or DiskFull.
    """
    try:
        snapshot_download(
            repository,
            repo_type=kind,
            revision=commit,
            local_dir=to,
            allow_patterns=list(ALLOWED[kind]),
            ignore_patterns=list(NESTED[kind]),
        )
    except Exception as error:
        raise _explained(kind, repository, commit, error) from error
    return to


def _explained(kind: Kind, repository: str, revision: str | None, error: Exception) -> Exception:
    """The same failure in our words; an error that the hub has no part in is handed back as it is."""
    where = f"{kind} {repository!r}" + (f" at {revision!r}" if revision else "")
    match error:
        case OSError(errno=number) if number in NO_SPACE:
            return DiskFull(f"{where} does not fit on this machine's disk ({error.strerror}): free some space")
        case GatedRepoError():
            return RepositoryMissing(
                kind, f"{where} is gated: accept its terms on the hub and set a token that may read it"
            )
        case RepositoryNotFoundError():
            return RepositoryMissing(kind, f"{where} is not on the hub, or is private and the token does not open it")
        case RevisionNotFoundError():
            return RepositoryMissing(kind, f"{where}: there is no such branch, tag or commit")
        case HFValidationError():
            return RepositoryMissing(kind, f"{where} is not a valid repository id: write owner/name")
        case HfHubHTTPError() if getattr(error, "response", None) is not None:
            return HubUnavailable(
                f"{where} could not be fetched: the hub answered {error.response.status_code}; try again later"
            )
        case HfHubHTTPError() | LocalEntryNotFoundError() | ConnectionError() | TimeoutError() | OSError():
            return HubUnavailable(
                f"{where} could not be fetched from the hub ({type(error).__name__}): try again later"
            )
        case _:
            # httpx's errors, whichever major version of the hub client brought them
            if type(error).__module__.split(".")[0] in {"httpx", "httpx2", "httpcore", "httpcore2", "requests"}:
                return HubUnavailable(
                    f"the hub could not be reached for {where} ({type(error).__name__}): try again later"
                )
            return error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("model", "dataset"))
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--revision", help="branch, tag or commit; the default branch when absent")
    parser.add_argument("--to", type=Path, required=True, help="directory for the files; made when absent")
    arguments = parser.parse_args()
    try:
        commit = _patiently(lambda: resolve_commit(arguments.kind, arguments.repository, arguments.revision))
        _say(type="resolved", commit=commit)
        path = _patiently(lambda: download(arguments.kind, arguments.repository, commit=commit, to=arguments.to))
        _say(type="done", path=str(path))
    except QuantExpertsError as error:
        _say(type="error", code=error.code, message=str(error))
        return 1
    return 0


def _patiently(ask: Callable[[], T]) -> T:
    for seconds in WAITS:
        try:
            return ask()
        except HubUnavailable:
            time.sleep(seconds)
    return ask()


def _say(**line: str) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

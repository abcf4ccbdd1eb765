"""Downloads from the hub, each repository pinned to a commit. They run in a child that can be killed and that alone
sees the token. Copies are kept by commit, so that a second job finds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.contract.errors import FailureCode
from core.contract.ids import new_id
from core.secret import BadSeal, open_hub_token
from core.settings import Settings
from worker import process
from worker.machine.hub_copies import ARRIVING, COMMIT, PARTIAL
from worker.supervisor.fetch import FetchFailed
from worker.supervisor.lease import Lease, Lost, TimedOut, monotonic

LOOK_SECONDS = 1.0
"""How often to look whether a download still grows."""


class _Here(Exception):
    """The commit that the branch points to now is on this machine already."""

    def __init__(self, commit: str) -> None:
        super().__init__(commit)
        self.commit = commit


class Draining(Exception):
    """The worker was asked to stop in the middle of a download."""


@dataclass(frozen=True)
class Access:
    """The token for the hub, and the owner of the copies: a tenant with a token of its own may see what others may
    not."""

    token: str | None
    owner: str | None = None
    """The tenant whose own token it is; None: the service's, and copies are everybody's."""

    @classmethod
    def of(cls, tenant: str, sealed: str | None, settings: Settings) -> Access:
        """``sealed``: the tenant's own token, if it has one. Raises ValueError when it cannot be opened here."""
        if sealed is None:
            return cls(settings.hub_token)
        try:
            return cls(open_hub_token(sealed, tenant=tenant, settings=settings), owner=tenant)
        except BadSeal:
            message = f"the hub token of {tenant} cannot be opened: this worker lacks the API's QE_HUB_KEY"
            raise ValueError(message) from None

    def shelf(self, repository: str) -> str:
        """The directory's name. No repository's has an ``@``."""
        own = "" if self.owner is None else "@" + hashlib.sha256(self.owner.encode()).hexdigest()[:16]
        return repository.replace("/", "--") + own


@dataclass(frozen=True)
class Hub:
    """Downloads from the hub, kept in ``settings.home`` by commit, so that a second job finds them."""

    settings: Settings
    lease: Lease
    log: Path
    draining: Callable[[], bool]
    access: Callable[[], Access]
    command: tuple[str, ...] = (sys.executable, "-m", "quant_experts.model.hub")

    def bring(
        self, kind: str, repository: str, revision: str | None, on_commit: Callable[[str], None]
    ) -> tuple[Path, str]:
        """The local directory of ``repository`` and its commit; ``on_commit`` gets the commit before the download.

        Raises FetchFailed, or what the lease raises when it is disturbed.
        """
        access = self.access()
        shelf = self.settings.resolved_home / f"{kind}s" / access.shelf(repository)
        shelf.mkdir(parents=True, exist_ok=True)
        if revision is not None and COMMIT.fullmatch(revision) and (shelf / revision).is_dir():
            os.utime(shelf / revision)  # used now: see hub_copies.drop_unused_copies
            return shelf / revision, revision
        # Named by the commit only when whole: two workers may download at once, and one of them may die.
        partial = shelf / new_id(ARRIVING)
        if revision is not None:
            _take_up(shelf / f"{PARTIAL}_{revision}", partial)
        commits: list[str] = []

        def learned(commit: str) -> None:
            commits.append(commit)
            on_commit(commit)
            if (shelf / commit).is_dir():
                raise _Here(commit)

        try:
            commit = self._run(kind, repository, revision, partial, learned, access.token)
            _give_final_name(partial, shelf / commit)
            return shelf / commit, commit
        except _Here as here:
            os.utime(shelf / here.commit)
            return shelf / here.commit, here.commit
        except BaseException as reason:
            if commits and _worth_keeping(reason):
                _take_up(partial, shelf / f"{PARTIAL}_{commits[0]}")
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _run(
        self,
        kind: str,
        repository: str,
        revision: str | None,
        to: Path,
        on_commit: Callable[[str], None],
        token: str | None,
    ) -> str:
        secret = {"HF_TOKEN": token} if token else {}
        mirror = {name: os.environ[name] for name in ("HF_ENDPOINT",) if os.environ.get(name)}
        environment = process.scrubbed_environment(
            self.settings.resolved_home / "hub", {**mirror, **secret, "HF_HUB_OFFLINE": "0"}, downloads=True
        )
        command = [*self.command, kind, repository, "--to", str(to)]
        if revision is not None:
            command += ["--revision", revision]
        child = process.start(command, environment=environment, log=self.log, stdout=subprocess.PIPE)
        commit, is_done, failure = "", False, None
        growth = Growth(to, self.settings.hub_patience)
        assert child.stdout is not None
        with self.lease.guarding(child), child.stdout:
            try:
                for raw in process.lines(child.stdout):
                    if raw is None:
                        self._check(f"{kind} {repository!r}", growth)
                        continue
                    line = _json_line(raw)
                    match line.get("type"):
                        case "resolved":
                            commit = str(line["commit"])
                            on_commit(commit)
                        case "done":
                            is_done = True
                        case "error":
                            failure = FetchFailed(FailureCode.of(str(line["code"])), str(line["message"]))
            except BaseException:
                process.kill_group(child)
                raise
            finally:
                status = process.reap(child)
        self.lease.check()
        if failure is not None:
            raise failure
        if not is_done or not commit:
            message = f"fetching {kind} {repository!r} {process.describe_end(status)} without a word"
            raise FetchFailed(FailureCode.MODEL_UNAVAILABLE, message)
        return commit

    def _check(self, what: str, growth: Growth) -> None:
        """Raises Draining, or FetchFailed when nothing arrives any more."""
        if self.draining():
            raise Draining(f"worker stopped while fetching {what}")
        if growth.has_stopped():
            raise FetchFailed(
                FailureCode.MODEL_UNAVAILABLE,
                f"{what}: nothing arrived from the hub for {self.settings.hub_patience:g} s;"
                " it may be limiting your requests: try again later",
            )


def _give_final_name(partial: Path, whole: Path) -> None:
    """Rename a complete download, unless another worker was quicker."""
    if whole.is_dir():
        return
    _sync(partial)
    try:
        partial.rename(whole)
    except OSError:
        if not whole.is_dir():
            raise


class Growth:
    """Whether a download still grows. The hub's client would wait out any ``Retry-After``, with our GPU idle."""

    def __init__(self, directory: Path, patience: float) -> None:
        self._directory = directory
        self._patience = patience
        self._bytes = -1
        self._grew_at = self._looked_at = monotonic()

    def has_stopped(self) -> bool:
        """True once nothing was added for the whole patience."""
        now = monotonic()
        if now - self._looked_at < min(LOOK_SECONDS, self._patience / 4):
            return False
        self._looked_at = now
        size = _bytes_below(self._directory)
        if size != self._bytes:
            self._bytes, self._grew_at = size, now
        return now - self._grew_at > self._patience


def _bytes_below(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # renamed between the two looks
                total += (Path(folder) / name).stat().st_size
    return total


def _sync(directory: Path) -> None:
    """Have the files on the disk: after a power failure the name that comes now would be there, and they might not."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _take_up(partial: Path, name: Path) -> None:
    """Rename what an interrupted download left; of two workers that try, one has it."""
    with contextlib.suppress(OSError):
        partial.rename(name)


def _worth_keeping(reason: BaseException) -> bool:
    """An attempt at the same commit will follow, and the hub's client does not ask for whole files again."""
    return isinstance(reason, (Draining, Lost, TimedOut)) or (
        isinstance(reason, FetchFailed) and reason.code is FailureCode.MODEL_UNAVAILABLE
    )


def _json_line(raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}

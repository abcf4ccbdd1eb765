"""Bringing models and datasets to local disk: what is refused, what is pinned, what a disturbed download leaves."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from core.contract.errors import FailureCode
from core.contract.local_model import model_fingerprint
from core.secret import HUB_TOKENS, Seal
from core.storage import LocalStorage
from tests.services import wait_until
from tests.worker.conftest import Workshop, alive
from worker.ledger import attempts as ledger
from worker.supervisor import fetch, hub_download
from worker.supervisor.lease import CancelRequested, hold_lease

KEY = "k" * 32
COMMIT = "0123456789abcdef0123456789abcdef01234567"

HUB = """
import json, os, sys, time
from pathlib import Path
arguments = sys.argv[1:]
to = Path(arguments[arguments.index("--to") + 1])
mode = Path(sys.argv[0]).with_suffix(".mode").read_text()
def say(**line): print(json.dumps(line), flush=True)
seen = {"arguments": arguments, "token": os.environ.get("HF_TOKEN"), "pid": os.getpid()}
Path(sys.argv[0]).with_suffix(".seen").write_text(json.dumps(seen))
if mode == "error":
    say(type="error", code="model_not_found", message="model 'a/b' is not on the hub"); sys.exit(1)
say(type="resolved", commit=COMMIT)
if mode == "crash":
    sys.exit(7)
to.mkdir(exist_ok=True)
(to / "config.json").write_text("{}")
if mode == "hang":
    time.sleep(600)
say(type="done", path=str(to))
"""


class HubStage:
    """A hub command of our own beside a real lease."""

    def __init__(self, workshop: Workshop, tmp_path: Path) -> None:
        self.workshop, self.script = workshop, tmp_path / "hub.py"
        self.script.write_text(f"COMMIT = {COMMIT!r}\n{HUB}")
        self.resolved: list[str] = []

    def bring(
        self,
        mode: str,
        revision: str | None = None,
        *,
        draining: threading.Event | None = None,
        access: hub_download.Access | None = None,
    ) -> tuple[Path, str]:
        self.script.with_suffix(".mode").write_text(mode)
        self.workshop.add_job()
        settings = self.workshop.settings
        with hold_lease(settings, self.workshop.claim().ref, seconds_left=60) as lease:
            log = self.script.with_suffix(".log")
            asked = (draining or threading.Event()).is_set
            allowed = access or hub_download.Access("hf_secret")
            command = (sys.executable, str(self.script))
            hub = hub_download.Hub(settings, lease, log, asked, lambda: allowed, command=command)
            return hub.bring("model", "a/b", revision, self.resolved.append)

    def seen(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.script.with_suffix(".seen").read_text())
        return found

    def shelf(self) -> list[str]:
        return sorted(path.name for path in (self.workshop.settings.resolved_home / "models" / "a--b").iterdir())


@pytest.fixture
def hub(workshop: Workshop, tmp_path: Path) -> HubStage:
    return HubStage(workshop, tmp_path)


def test_a_hub_model_is_kept_by_its_commit(hub: HubStage) -> None:
    directory, commit = hub.bring("good", "main")
    assert (directory.name, commit, hub.resolved) == (COMMIT, COMMIT, [COMMIT])
    assert (directory / "config.json").is_file()
    assert hub.seen()["token"] == "hf_secret"
    assert "hf_secret" not in json.dumps(hub.seen()["arguments"])
    assert hub.shelf() == [COMMIT]
    again, _ = hub.bring("error", COMMIT)  # the hub is not asked: it would say no
    assert again == directory


def test_what_a_tenants_own_token_opened_is_that_tenants_alone(hub: HubStage) -> None:
    """Also at a commit that the hub need not be asked for."""
    sealed = Seal(KEY, purpose=HUB_TOKENS).seal("hf_own", row="a")
    settings = hub.workshop.settings.model_copy(update={"hub_key": KEY, "hub_token": "hf_secret"})
    own, all_others = hub_download.Access.of("a", sealed, settings), hub_download.Access.of("b", None, settings)
    directory, _ = hub.bring("good", COMMIT, access=own)
    assert hub.seen()["token"] == "hf_own"
    with pytest.raises(fetch.FetchFailed, match="not on the hub"):
        hub.bring("error", COMMIT, access=all_others)
    assert hub.seen()["token"] == "hf_secret"
    assert hub.bring("error", COMMIT, access=own)[0] == directory  # ours is here


def test_a_token_that_cannot_be_opened_here_is_not_replaced_by_the_workers(workshop: Workshop) -> None:
    sealed = Seal(KEY, purpose=HUB_TOKENS).seal("hf_own", row="a")
    for key, tenant in ((None, "a"), ("another" * 8, "a"), (KEY, "b")):
        settings = workshop.settings.model_copy(update={"hub_key": key, "hub_token": "hf_secret"})
        with pytest.raises(ValueError, match="lacks the API's QE_HUB_KEY"):
            hub_download.Access.of(tenant, sealed, settings)


def test_an_error_of_the_hub_keeps_its_code(hub: HubStage) -> None:
    with pytest.raises(fetch.FetchFailed, match="not on the hub") as caught:
        hub.bring("error")
    assert caught.value.code == FailureCode.MODEL_NOT_FOUND


def test_a_download_that_dies_is_worth_another_try_and_leaves_nothing(hub: HubStage) -> None:
    with pytest.raises(fetch.FetchFailed, match="exit code 7") as caught:
        hub.bring("crash")
    assert caught.value.code == FailureCode.MODEL_UNAVAILABLE
    assert hub.shelf() == []


def test_a_cancelled_job_ends_its_download(hub: HubStage) -> None:
    def cancel() -> None:
        wait_until(lambda: hub.resolved, what="the download")
        with hub.workshop.connect() as connection:
            connection.execute("UPDATE jobs SET status = 'cancelling'")

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CancelRequested):
        hub.bring("hang")
    thread.join()
    assert not alive(int(str(hub.seen()["pid"])))
    assert hub.shelf() == []


def test_a_draining_worker_ends_its_download(hub: HubStage) -> None:
    draining = threading.Event()
    draining.set()
    with pytest.raises(hub_download.Draining):
        hub.bring("hang", draining=draining)
    # What has arrived is of use to the next attempt.
    assert hub.shelf() == [f"partial_{COMMIT}"]
    hub.bring("good", COMMIT)
    assert hub.shelf() == [COMMIT]


@pytest.mark.parametrize("name", ["local/..", "local/.", "local/a/b", "local/absent", "local/file", "local/outside"])
def test_only_directories_below_the_model_root_are_models(tmp_path: Path, name: str) -> None:
    root = tmp_path / "models"
    (root / "a" / "b").mkdir(parents=True)
    (root / "file").write_text("x")
    (root / "outside").symlink_to(tmp_path)
    assert fetch.local_model("local/a", root) == root / "a"
    with pytest.raises(fetch.FetchFailed) as caught:
        fetch.local_model(name, root)
    assert caught.value.code == FailureCode.MODEL_NOT_FOUND


def test_a_model_that_the_worker_may_not_read_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    """A container's user is another one than who saved the model, and weights are saved for their owner alone."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").touch(mode=0o600)
    me, stranger = os.geteuid(), 65534
    if me == 0:
        for folder in (tmp_path, *tmp_path.parents):
            if stat.S_IMODE(folder.stat().st_mode) == 0o700:
                folder.chmod(0o755)
        os.seteuid(stranger)
    else:
        (tmp_path / "a" / "model.safetensors").chmod(0)
    try:
        with pytest.raises(
            fetch.FetchFailed, match=r"a/model.safetensors cannot be read by .* chmod --recursive a\+rX a"
        ):
            fetch.local_model("local/a", tmp_path)
    finally:
        os.seteuid(me)


def test_without_a_model_root_there_are_no_local_models() -> None:
    with pytest.raises(fetch.FetchFailed, match="QE_MODEL_ROOT"):
        fetch.local_model("local/a", None)


def test_a_block_file_never_leaves_the_work_directory(tmp_path: Path) -> None:
    file = {"name": "../outside", "key": "jobs/j/blocks/00", "bytes": 1, "sha256": "00"}
    with pytest.raises(ValueError, match="would lie outside"):
        fetch.finished_blocks([file], LocalStorage(tmp_path / "storage"), tmp_path / "work")


def test_the_commit_of_the_first_attempt_is_the_commit_of_the_next(workshop: Workshop) -> None:
    workshop.add_job(model="a/b")
    claim = workshop.claim()
    with workshop.connect() as connection:
        ledger.set_progress(connection, claim.ref, {"model_commit": COMMIT})
        ledger.hand_back(connection, claim.ref, reason="x")
    assert workshop.claim().progress["model_commit"] == COMMIT


def test_a_local_model_that_changed_since_it_was_planned_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1_000_000))
    planned = model_fingerprint(tmp_path)
    fetch.check_fingerprint("local/a", tmp_path, None)
    fetch.check_fingerprint("local/a", tmp_path, planned)
    (tmp_path / "tokenizer.json").write_text("{}")  # of the weights and their configuration only
    fetch.check_fingerprint("local/a", tmp_path, planned)
    with (tmp_path / "model.safetensors").open("r+b") as weights:
        weights.seek(999_000)
        weights.write(b"\x01")
    with pytest.raises(fetch.FetchFailed, match="changed since the job was planned") as caught:
        fetch.check_fingerprint("local/a", tmp_path, planned)
    assert caught.value.code == FailureCode.INVALID_MODEL


def test_a_branch_whose_commit_is_here_already_is_not_downloaded_again(hub: HubStage) -> None:
    directory, _ = hub.bring("good", "main")
    again, commit = hub.bring("hang", "main")  # what is never done
    assert (again, commit, hub.resolved) == (directory, COMMIT, [COMMIT, COMMIT])
    assert hub.shelf() == [COMMIT]


def test_a_download_is_on_the_disk_before_it_has_its_name(hub: HubStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure a directory with a commit's name is taken for whole, by every job to come."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    directory, _ = hub.bring("good")
    arrived = [path.rpartition("/a--b/")[2].partition("/") for path in synced]
    assert [name for folder, _, name in arrived if folder.startswith("arriving_")] == ["config.json"]
    assert directory.name == COMMIT

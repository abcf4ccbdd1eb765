"""``make compose-test``: build the images, run the stack as docs/deployment.md says, and disturb it.

    python -m tests.compose [--results FILE] [--only WORD] [--keep]

Ends with 0 when everything held, 1 when something did not, and 77 where there is no engine to run it on. Variables:
``DOCKER_COMPOSE`` (the Compose binary, where `docker compose` is none) and ``COMPOSE_TEST_BUILD`` (more arguments for
``docker build``). The upgrade starts from the images of the newest tag before this commit; without a tag, of PREVIOUS.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from demo.model import make_qwen2_vl
from demo.rows import write_jsonl
from tests.compose import scenes
from tests.compose.engine import Absent, Engine, find_engine, run
from tests.compose.stack import NotRun, Stack

ROOT = Path(__file__).parent.parent.parent
TARGETS = ("api", "keeper", "worker")
NO_ENGINE = 77
PREVIOUS = "2a0c75ea1a5f6ed45defe1cbed0cd8f64fa1bf14"
"""The first commit whose images start; there is no release yet."""


@dataclass
class Record:
    """What was done, and how it went."""

    rows: list[tuple[str, str, float, str]] = field(default_factory=list)
    failed: bool = False

    def step(self, what: str, body: Callable[[], str | None]) -> bool:
        print(f"… {what}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            said, verdict = body() or "", "ok"
        except NotRun as absent:
            said, verdict = str(absent), "not run"
        except Exception as error:
            traceback.print_exc()
            said, verdict, self.failed = str(error).splitlines()[0][:200], "FAILED", True
        self.rows.append((what, verdict, time.monotonic() - began, said))
        print(f"  {verdict}, {self.rows[-1][2]:.0f} s. {said}", file=sys.stderr, flush=True)
        return verdict != "FAILED"

    def table(self) -> str:
        lines = ["| step | | seconds | seen |", "|---|---|---|---|"]
        return "\n".join(
            [*lines, *(f"| {what} | {how} | {took:.0f} | {said} |" for what, how, took, said in self.rows)]
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="write the table there as well")
    parser.add_argument(
        "--only", metavar="WORD", help="with the images that are there, the scenes with WORD in their names"
    )
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    chosen = parser.parse_args()
    try:
        engine = find_engine()
    except Absent as absent:
        print(f"not run: {absent}. docs/deployment.md says what is needed.", file=sys.stderr)
        return NO_ENGINE
    record, title = Record(), heading(engine)
    with tempfile.TemporaryDirectory(prefix="qe-compose-") as name:
        directory = Path(name)
        (directory / "models").mkdir()
        directory.chmod(0o755)  # the containers' user is another one
        make_qwen2_vl(
            directory / "models" / "tiny", hidden=64, blocks=6, intermediate=96, vision_depth=1, vision_width=32
        )
        for path in (directory / "models").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # weights are saved for their owner's eyes alone
        write_jsonl(directory / "rows.jsonl", 8)
        play(engine, directory, record, only=chosen.only, keep=chosen.keep)
    page = f"{title}\n\n{record.table()}\n"
    print(page)
    if chosen.results is not None:
        chosen.results.write_text(page)
    return 1 if record.failed else 0


def play(engine: Engine, directory: Path, record: Record, *, only: str | None, keep: bool) -> None:
    stack = Stack(engine, ROOT, directory)
    stack.down()
    try:
        if only is None:
            python = engine.python()
            if not record.step("build the images", lambda: build(engine, ROOT, "latest", python)):
                return
            record.step("stop each container in its first second", lambda: scenes.stopped_at_once(engine, TARGETS))
            upgrade(stack, record, python)
        for what, scene in scenes.IN_TURN:
            needed = only is None or only in what or what in (scenes.FIRST, scenes.UNDISTURBED)
            if needed and not record.step(what, partial(scene, stack)) and what == scenes.FIRST:
                print(stack.compose("logs", "--tail", "40", check=False), file=sys.stderr)
                break
    finally:
        if not keep:
            stack.down()


def upgrade(stack: Stack, record: Record, python: str) -> None:
    """From the release before, with its compose file, to this one."""
    previous = checkout_of_the_previous_release(stack.directory)
    if previous is None or not record.step(
        f"build the images of the release before ({previous.name})",
        lambda: build(stack.engine, previous, "previous", python),
    ):
        return
    stack.checkout = previous
    began = record.step(
        "the release before: up, one job, one more that waits", lambda: scenes.before_the_upgrade(stack)
    )
    stack.checkout = ROOT
    if began:
        record.step("upgrade: its files are unchanged, the waiting job runs", lambda: scenes.upgraded(stack))
    stack.down()


def build(engine: Engine, checkout: Path, tag: str, python: str) -> str:
    sizes = []
    for target in TARGETS:
        engine.build(checkout, target, f"quant-experts-{target}:{tag}", python=python)
        sizes.append(f"{target} {engine.megabytes(f'quant-experts-{target}:{tag}'):.0f} MB")
    return f"{', '.join(sizes)}, of which the base image {engine.megabytes(f'python:{python}-slim'):.0f} MB"


def checkout_of_the_previous_release(directory: Path) -> Path | None:
    """None where the history does not reach so far back, as in a shallow clone."""
    tag = run("git", "describe", "--tags", "--abbrev=0", "HEAD^", check=False, directory=ROOT).stdout.strip()
    revision = tag or PREVIOUS
    checkout = directory / revision[:12]
    checkout.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        print(f"no upgrade: {revision} is not in this clone", file=sys.stderr)
        return None
    subprocess.run(["tar", "-x", "-C", str(checkout)], input=archive.stdout, check=True)
    return checkout


def heading(engine: Engine) -> str:
    commit = run("git", "rev-parse", "--short", "HEAD", check=False, directory=ROOT).stdout.strip()
    return (
        f"# Images and compose files on a real engine\n\n`make compose-test` writes this page. {engine.described}, "
        f"{platform.machine()}, commit {commit}, {datetime.now(UTC):%Y-%m-%d}."
    )


if __name__ == "__main__":
    sys.exit(main())

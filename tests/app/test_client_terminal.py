"""What ``qe`` leaves on a real terminal: over a restart of the service, resized, narrow, interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from core.settings import Settings
from quant_experts.commands.display.live_line import _Line, clock
from tests.app.conftest import BOOTSTRAP_KEY, Api, started
from tests.app.test_client_cli import Qe, network, qe, submitted  # noqa: F401 -- fixtures
from tests.services import wait_until
from tests.terminal import Terminal, on_terminal
from worker.embedded.servers import free_port

MACHINE = "gpu-0@host"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QE_API_KEY", BOOTSTRAP_KEY)


def begin(api: Api, job_id: str) -> None:
    api.start(job_id)
    api.append_event(job_id, "job.started", {"attempt": 1, "worker": MACHINE})
    api.append_event(job_id, "job.phase", {"phase": "fitting"})


def block(api: Api, job_id: str, number: int) -> None:
    left = 60.0 * (27 - number) + 30
    data = {"block": number, "blocks": 28, "seconds": 60.0, "error": {"routed": 0.0125}}
    data |= {"fraction": 1 - left / 1800, "eta_seconds": left}
    api.append_event(job_id, "job.block", data)


@contextlib.contextmanager
def serving(settings: Settings, port: int) -> Iterator[None]:
    """The API as a process, which is killed in the end."""
    environment = {
        "QE_HOME": str(settings.home),
        "QE_SECRET": "s" * 40,
        "QE_API_KEY": BOOTSTRAP_KEY,
        "QE_DATABASE_URL": str(settings.database_url),
        "QE_REDIS_URL": str(settings.redis_url),
        "QE_MODEL_ROOT": str(settings.model_root),
    }
    arguments = ["-m", "uvicorn", "app.main:create_app", "--factory", "--log-level", "warning", "--port", str(port)]
    process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **environment})
    try:
        wait_until(lambda: _answers(port), what="the API")
        yield
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


async def seen(terminal: Terminal, text: str) -> None:
    await asyncio.to_thread(terminal.wait_for, text)


async def ended(terminal: Terminal) -> int:
    return await asyncio.to_thread(terminal.end)


async def test_watch_goes_through_a_restart_of_the_service_and_nothing_of_it_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("QE_URL", f"http://127.0.0.1:{port}")
    async with started(settings) as api:
        job_id = (await api.create_job())["id"]
        with serving(settings, port):
            terminal = await asyncio.to_thread(Terminal, "watch", job_id, columns=160)
            await seen(terminal, "queued")
            begin(api, job_id)
            block(api, job_id, 0)
            await seen(terminal, "1 of 28 blocks")
        block(api, job_id, 1)  # while nobody serves
        assert terminal.process.poll() is None
        with serving(settings, port):
            await seen(terminal, "2 of 28 blocks")
            assert len([line for line in terminal.shown() if "block" in line]) == 1
            api.end(job_id, "succeeded")
            assert await ended(terminal) == 0
    assert terminal.shown() == [
        f"attempt 1 on {MACHINE}",
        f"{job_id} succeeded. Files: qe pull {job_id}   Report: qe report {job_id}",
    ]
    assert not terminal.cursor_is_hidden
    assert b"Traceback" not in terminal.raw


@pytest.mark.parametrize("columns", [100, 60, 24])
async def test_ctrl_c_leaves_only_what_is_to_be_read_and_the_job_running(qe: Qe, api: Api, columns: int) -> None:  # noqa: F811
    job_id = await submitted(qe)
    with on_terminal("watch", job_id, columns=columns) as terminal:
        await seen(terminal, "queued")
        begin(api, job_id)
        block(api, job_id, 0)
        await seen(terminal, "1 of 28 blocks")
        terminal.press(b"\x03")
        assert await ended(terminal) == 130
        text = f"{job_id} goes on. Come back: qe watch {job_id}   Stop it: qe cancel {job_id}"
        assert "".join(line.ljust(columns) for line in terminal.shown()).split() == [
            *f"attempt 1 on {MACHINE}".split(),
            *text.split(),
        ]
        assert not terminal.cursor_is_hidden
    assert api.execute("SELECT status FROM jobs") == [("running",)]


async def test_a_terminal_that_changes_its_size_keeps_one_line_that_fits(qe: Qe, api: Api) -> None:  # noqa: F811
    job_id = await submitted(qe)
    with on_terminal("watch", job_id, columns=110) as terminal:
        await seen(terminal, "queued")
        begin(api, job_id)
        block(api, job_id, 0)
        await seen(terminal, "60.0 s · error 1.250% · about 27:")
        for number, columns in ((1, 40), (2, 20), (3, 90)):
            terminal.resize(columns, 20)
            block(api, job_id, number)
            await seen(terminal, f"{number + 1} of 28 blocks")
            lines = terminal.shown()
            assert len(lines) == 2, lines
            assert len(lines[1]) <= columns - 3
        assert "about 24:" in lines[1]


async def test_a_terminal_that_cannot_change_a_line_gets_one_per_step(qe: Qe, api: Api) -> None:  # noqa: F811
    job_id = await submitted(qe)
    begin(api, job_id)
    block(api, job_id, 0)
    api.end(job_id, "succeeded")
    with on_terminal("watch", job_id, kind="dumb", columns=160) as terminal:
        assert await ended(terminal) == 0
        assert [line.split(" · ")[0] for line in terminal.shown()[:4]] == [
            "queued",
            f"attempt 1 on {MACHINE}",
            "fitting",
            "1 of 28 blocks",
        ]
    assert b"\x1b" not in terminal.raw


async def test_on_a_terminal_json_goes_where_stdout_leads(qe: Qe, api: Api, tmp_path: Path) -> None:  # noqa: F811
    job_id = await submitted(qe)
    begin(api, job_id)
    api.end(job_id, "succeeded")
    with on_terminal("watch", job_id, "--json", stdout=tmp_path / "events") as terminal:
        assert await ended(terminal) == 0
        assert terminal.shown() == []
    types = [json.loads(line)["type"] for line in (tmp_path / "events").read_text().splitlines()]
    assert types == ["job.created", "job.started", "job.phase", "job.succeeded"]


async def test_a_comparison_leaves_its_table_once(qe: Qe, api: Api) -> None:  # noqa: F811
    made = json.loads(
        (await qe("compare", "--model", "a/b", "--calibration", "a/rows", "W4A6", "W8A8/rtn", "--no-wait", "--json"))[1]
    )
    with on_terminal("compare", made["id"], columns=90) as terminal:
        await seen(terminal, "W8A8 rtn")
        terminal.press(b"\x03")
        assert await ended(terminal) == 130
        assert f"{made['id']} goes on." in terminal.shown()[0]
    with on_terminal("compare", made["id"], "--cancel", columns=90) as terminal:
        assert await ended(terminal) == 4
        assert [line.split()[0] for line in terminal.shown()] == ["candidate", "W4A6", "W8A8"]


async def test_an_upload_shows_its_bytes_and_leaves_its_end(qe: Qe, api: Api, tmp_path: Path) -> None:  # noqa: F811
    line = json.dumps({"messages": [{"role": "user", "content": "q" * 1000}]}) + "\n"
    (tmp_path / "rows.jsonl").write_text(line * 1000)
    with on_terminal("datasets", "upload", str(tmp_path / "rows.jsonl"), columns=120) as terminal:
        assert await ended(terminal) == 0
        dataset_id = api.execute("SELECT id FROM datasets")[0][0]
        assert terminal.shown() == [dataset_id, f"1000 rows, 0 images, {len(line) * 1000:,} bytes"]
    assert b"the service checks the rows" in terminal.raw
    assert b"/1,023.4 KiB" in terminal.raw


async def test_a_download_shows_its_files_and_leaves_its_end(qe: Qe, api: Api, tmp_path: Path) -> None:  # noqa: F811
    job_id = await submitted(qe)
    api.start(job_id)
    api.publish(job_id, "a.bin", b"a" * 2_000_000, tmp_path)
    api.end(job_id, "succeeded")
    with on_terminal("pull", job_id, "--output", str(tmp_path / "out"), columns=300) as terminal:
        assert await ended(terminal) == 0
        assert terminal.shown() == [f"1 files, 2,000,000 bytes, every digest as announced, in {tmp_path / 'out'}"]
    assert b"1 of 1 files" in terminal.raw
    assert b"1.9/1.9 MiB" in terminal.raw
    assert re.search(rb"[\d.]+ [KM]iB/s", terminal.raw)


@given(
    width=st.integers(1, 130),
    text=st.text("abc ·模", min_size=1, max_size=60),
    forecast=st.none() | st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
    details=st.lists(st.text("xyz 1", min_size=1, max_size=20), max_size=4),
)
def test_the_live_line_is_one_line_that_fits(
    width: int, text: str, forecast: tuple[float, float] | None, details: list[str]
) -> None:
    line = _Line("")
    line.say(text, " · ".join(details), forecast)
    printed = io.StringIO()
    console = Console(width=width, file=printed)
    console.print(line, end="")
    assert "\n" not in printed.getvalue()
    assert cell_len(printed.getvalue()) <= width


def test_of_the_details_the_last_ones_stay_the_longest() -> None:
    line = _Line("")
    line.say("block 1 of 2", "1.5 s · error 1%", (100.0, 100.4))
    shown = []
    for width in (80, 52, 36, 16):
        printed = io.StringIO()
        Console(width=width, file=printed).print(line, end="")
        shown.append(printed.getvalue()[2:])
    assert shown[0].startswith("block 1 of 2 ━")
    assert shown[0].endswith("1.5 s · error 1% · about 01:40 left 00:00")
    assert shown[1:] == [
        "block 1 of 2 1.5 s · error 1% · about 01:40 left",
        "block 1 of 2 about 01:40 left",
        "block 1 of 2",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "00:00"), (59.6, "01:00"), (3599, "59:59"), (3600, "1:00:00"), (108_000, "30:00:00")]
)
def test_hours_do_not_begin_again_after_a_day(seconds: float, said: str) -> None:
    assert clock(seconds) == said

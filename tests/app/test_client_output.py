"""What ``qe`` writes where nobody reads, where there is no room, on any width and in any encoding."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quant_experts import cli
from quant_experts.commands.display.printable import printable
from quant_experts.commands.display.table import _fitted, _total
from tests.app.conftest import Api
from tests.app.test_client_cli import COMPARE, SUBMIT, Qe, network, qe, submitted  # noqa: F401 -- fixtures
from tests.app.test_client_terminal import ended
from tests.terminal import on_terminal

QE = [sys.executable, "-m", "quant_experts.cli"]


def most(size: int) -> None:
    """As large as a file of this process may become, which ends as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


async def ran(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    process: subprocess.CompletedProcess[str] = await asyncio.to_thread(
        subprocess.run, [*QE, *arguments], text=True, stderr=subprocess.PIPE, check=False, **how
    )
    return process


@pytest.mark.parametrize("command", [["jobs"], ["jobs", "--json"], ["watch", "--json"]])
async def test_who_has_read_enough_is_no_error_of_the_service(qe: Qe, api: Api, command: list[str]) -> None:  # noqa: F811
    job_id = await submitted(qe)
    api.start(job_id)
    api.end(job_id, "succeeded")
    read, write = os.pipe()
    os.close(read)
    done = await ran(*command, *([job_id] if command[0] == "watch" else []), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", [["jobs"], ["jobs", "--json"], ["--help"]])
async def test_output_for_which_there_is_no_room_is_one_line(qe: Qe, command: list[str]) -> None:  # noqa: F811
    await submitted(qe)
    with Path("/dev/full").open("w") as full:
        done = await ran(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error file: [Errno 28] No space left on device"
    assert "Traceback" not in done.stderr


async def test_a_full_disk_is_one_line_that_names_the_file_and_the_same_command_goes_on(
    qe: Qe,  # noqa: F811
    api: Api,
    tmp_path: Path,
) -> None:
    job_id = await submitted(qe)
    api.start(job_id)
    api.publish(job_id, "quality_report.html", b"<p>" * 1000, tmp_path, "text/html")
    api.publish(job_id, "model.safetensors", b"m" * 300_000, tmp_path)
    api.end(job_id, "succeeded")
    for size, command, name in (
        (100_000, ["pull", job_id], f"{job_id}/model.safetensors"),
        (1000, ["report", job_id, "--html", "page.html"], "page.html"),
    ):
        done = await ran(*command, preexec_fn=partial(most, size))
        assert (done.returncode, done.stderr) == (1, f"error file: {name}: File too large\n"), done.stderr
    code, out, _ = await qe("pull", job_id)
    assert (code, out.startswith("2 files, 303,000 bytes")) == (0, True)


async def test_what_cannot_be_written_is_named(qe: Qe, api: Api, tmp_path: Path) -> None:  # noqa: F811
    job_id = await submitted(qe)
    api.start(job_id)
    api.publish(job_id, "quality_report.html", b"<p>", tmp_path, "text/html")
    api.end(job_id, "succeeded")
    (tmp_path / "out" / "quality_report.html").mkdir(parents=True)
    for command, name in (
        (["pull", job_id, "--output", "out"], "out/quality_report.html"),
        (["report", job_id, "--html", "absent/page.html"], "absent/page.html"),
    ):
        code, out, err = await qe(*command)
        assert (code, out, err.startswith(f"error file: {name}: "), err.count("\n")) == (1, "", True, 1), err


async def test_a_terminal_that_is_too_narrow_breaks_lines_and_loses_no_id(qe: Qe) -> None:  # noqa: F811
    job_id = await submitted(qe)
    for columns in (20, 40, 80, 100):
        with on_terminal("jobs", columns=columns) as terminal:
            assert await ended(terminal) == 0
            shown = "".join(line.ljust(columns) for line in terminal.shown())
            assert job_id in shown
            assert {"queued", "W4A6", "created", "progress"} <= set(shown.split())


@pytest.mark.parametrize("room", [10, 40, 60, 79, 200])
def test_columns_fit_or_stay_as_they_are(room: int) -> None:
    natural, least = [36, 10, 25, 16], [36, 6, 12, 10]
    widths = _fitted(natural, least, room)
    assert widths == natural or (_total(widths) == room and all(map(int.__ge__, widths, least)))
    assert (_total(widths) <= room) == (room >= _total(least))


async def test_colour_that_is_wished_for_makes_no_terminal_of_a_pipe(
    qe: Qe,  # noqa: F811
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    job_id = await submitted(qe)
    api.start(job_id)
    api.end(job_id, "succeeded")
    watched = await ran("watch", job_id)
    assert (watched.returncode, watched.stderr.splitlines()[:2]) == (0, ["queued", "succeeded"])
    listed = await ran("jobs", stdout=subprocess.PIPE)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["job", job_id]
    assert "\x1b" not in watched.stderr + listed.stdout


async def test_an_encoding_that_lacks_a_character_is_no_end(qe: Qe, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    key = await ran("keys", "create", "模型", "--scope", "jobs:read", stdout=subprocess.DEVNULL)
    listed = await ran("keys", "list", stdout=subprocess.PIPE)
    assert (key.returncode, listed.returncode, "\\u6a21" in listed.stdout) == (0, 0, True)
    shown = await ran("datasets", "show", "模", stdout=subprocess.DEVNULL)
    assert "no dataset '\\u6a21'" in shown.stderr


def test_what_would_move_the_cursor_is_shown_as_a_mark() -> None:
    assert printable("a\x1b[2Jb\x9b31m\n\tc\u202ed\0é模") == "a�[2Jb�31m c�d�é模"


async def test_rows_and_names_of_others_do_nothing_to_a_terminal(qe: Qe, api: Api, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "rows.jsonl").write_text('{"messages": [{"role": "user", "content": "\\u001b]0;title\\u0007"}]}\n')
    dataset_id = (await qe("datasets", "upload", "rows.jsonl"))[1].strip()
    job_id = await submitted(qe)
    for table in ("datasets", "jobs"):  # past the API, which refuses such names, as an older one did not
        api.execute(f"UPDATE {table} SET name = %s", ["\x9b2Jname"])
    api.start(job_id)
    api.append_event(job_id, "job.warning", {"message": "\x1b[2J"})
    api.end(job_id, "failed", {"code": "internal", "message": "\x1b[2J", "retryable": False})
    for command in (["datasets", "show", dataset_id], ["datasets", "list"], ["jobs", job_id], ["watch", job_id]):
        _, out, err = await qe(*command)
        assert "�" in out + err, command
        assert not {"\x1b", "\x9b", "\x07"} & set(out + err), command


async def test_warnings_of_one_kind_are_one_line_while_a_job_is_watched(qe: Qe, api: Api) -> None:  # noqa: F811
    job_id = await submitted(qe)
    api.start(job_id)
    for number in range(90):
        message = f"model.layers.{number}.mlp.down: {number} of 8 experts got no token"
        api.append_event(job_id, "job.warning", {"message": message})
    api.end(job_id, "succeeded")
    err = (await qe("watch", job_id))[2]
    assert err.count("experts got no token") == 1
    assert "and 89 more like it" in err


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("rows", "is a directory"),
        ("acme/rows", "is a directory"),
        ("pipe", "is not a regular file"),
        ("absent.json", "there is no file"),
        ("./absent", "there is no file"),
        ("~/absent", "there is no file"),
        ("ABSENT.JSONL", "there is no file"),
    ],
)
async def test_rows_that_were_meant_as_a_file_are_not_looked_for_on_the_hub(
    qe: Qe,  # noqa: F811
    api: Api,
    tmp_path: Path,
    named: str,
    words: str,
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "acme" / "rows").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    for command in ([*SUBMIT[:-1], named], [*COMPARE[:-1], named, "W4A6", "W4A8"], ["plan", *SUBMIT[1:-1], named]):
        code, _, err = await qe(*command)
        assert (code, words in err, err.count("\n")) == (2, True, 1), err
    assert api.execute("SELECT id FROM jobs") == []


@pytest.mark.parametrize(("named", "words"), [("tiny", "is not an id"), ("./tiny", "which a service does not see")])
async def test_a_model_that_no_service_knows_is_refused_in_words(
    qe: Qe,  # noqa: F811
    tmp_path: Path,
    named: str,
    words: str,
) -> None:
    if named == "./tiny":
        (tmp_path / "tiny").mkdir()
    rows = ["--calibration", "acme/rows"]
    for command in (["submit"], ["compare", "W4A6", "W4A8"]):
        code, _, err = await qe(*command, "--model", named, *rows)
        assert (code, words in err, "local/NAME" in err, err.count("\n")) == (2, True, True, 1), err


def test_a_command_whose_packages_are_not_there_says_which_extra_brings_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert cli.run(["plan", "--here", "--model", "acme/x"]) == 2
    err = capsys.readouterr().err
    assert ("pip install 'quant-experts[engine]'" in err, err.count("\n")) == (True, 1), err

"""The commands that speak to a service, against the real API."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response
from rich.console import Console

from quant_experts import cli
from quant_experts.client import ComparisonView
from quant_experts.client.retries import RetryPolicy
from quant_experts.commands.display.comparison_table import table_of
from quant_experts.spec.methods import METHOD_VERSION
from tests.app.conftest import BOOTSTRAP_KEY, MODEL, Api, ok, served
from tests.app.cutting import Cuts, cutting
from tests.rows import picture

Qe = Callable[..., Awaitable[tuple[int, str, str]]]
SUBMIT = ["submit", "--model", MODEL, "--calibration", "acme/rows"]


@pytest.fixture
async def network(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Cuts]:
    async with served(api) as direct, cutting(direct.base_url.port or 0) as cuts:
        monkeypatch.setenv("QE_URL", cuts.url)
        monkeypatch.setenv("QE_API_KEY", BOOTSTRAP_KEY)
        monkeypatch.chdir(tmp_path)
        yield cuts


@pytest.fixture
def qe(network: Cuts, capsys: pytest.CaptureFixture[str]) -> Qe:
    """Runs one command; its exit code, stdout, stderr."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(cli.run, list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def interruptible(*arguments: str) -> subprocess.Popen[str]:
    """One command as a process that Ctrl-C reaches, whatever this one does with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "quant_experts.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


async def submitted(qe: Qe, *more: str) -> str:
    code, out, err = await qe(*SUBMIT, *more)
    assert code == 0, err
    return out.strip()


async def test_submit_sends_the_options_of_quantize(qe: Qe, api: Api) -> None:
    job_id = await submitted(
        qe, "--scheme", "W4A8", "--group-size", "64", "--seed", "3", "--sensitive-groups", "a.down",
        "--sensitive-bits", "6", "--accept-max-kl", "0.1", "--name", "n", "--label", "team=vision", "--timeout", "600",
    )  # fmt: skip
    spec = api.execute("SELECT spec FROM jobs WHERE id = %s", [job_id])[0][0]
    given = {name: value for name, value in spec["options"].items() if value is not None}
    sensitive = {"groups": ["a.down"], "share": None, "weight_bits": 6}
    assert given == {"group_size": 64, "seed": 3, "sensitive": sensitive, "method_version": METHOD_VERSION}
    assert (spec["scheme"], spec["method"], spec["accept_if"]["max_kl"]) == ("W4A8", "balanced", 0.1)
    assert (spec["name"], spec["labels"], spec["timeout_s"]) == ("n", {"team": "vision"}, 600)
    auto = await submitted(qe, "--scheme", "auto", "--max-bytes", "2.5GB")
    target = api.execute("SELECT spec->'target' FROM jobs WHERE id = %s", [auto])[0][0]
    assert target == {"max_bytes": 2_500_000_000, "max_kl": None}


async def test_submit_uploads_a_file_once(qe: Qe, api: Api, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}) + "\n")
    for _ in range(2):
        code, _, err = await qe("submit", "--model", MODEL, "--calibration", str(rows))
        assert (code, "1 rows as ds_" in err) == (0, True)
    assert len(api.execute("SELECT id FROM datasets")) == 1
    code, _, err = await qe("submit", "--model", MODEL, "--calibration", "absent.jsonl")
    assert (code, "no file absent.jsonl" in err) == (2, True)


async def test_submit_takes_images_beside_the_rows_with_it(qe: Qe, api: Api, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(seed=number))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dot."}]
    rows = [{"image": f"images/{number}.png", "conversations": turns} for number in range(3)]
    clip = {"type": "video", "video": ["images/2.png", "images/1.png"]}
    film = {"messages": [{"role": "user", "content": [clip, {"type": "text", "text": "What?"}]}]}
    (tmp_path / "rows.json").write_text(json.dumps([*rows, film], indent=1))
    for _ in range(2):
        code, _, err = await qe("submit", "--model", MODEL, "--calibration", "rows.json", "--scheme", "W4A16")
        assert (code, "rows.json: 4 rows as ds_" in err) == (0, True), err
    ((dataset, name, images),) = api.execute("SELECT id, name, images FROM datasets")
    assert (name, images) == ("rows.json", 5)
    for where in ("2/images/0", "4/images/1"):
        assert (await api.client.get(f"/v1/datasets/{dataset}/rows/{where}")).content == picture(seed=1)
    (tmp_path / "notes.txt").write_text("secret")
    gone = [{**row, "image": f"gone/{number}.png"} for number, row in enumerate(rows)]
    (tmp_path / "rows.json").write_text(json.dumps([*gone, {**rows[0], "image": "notes.txt"}]))
    code, _, err = await qe("datasets", "upload", "rows.json")
    assert code == 1
    assert "row 1: 'gone/0.png' does not exist beside the calibration file (and 2 more like it); row 4: 'no" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--scheme", "W9A1"], "unknown scheme 'W9A1'"),
        (["--alias", "qe/mine"], "namespace 'qe' is reserved"),
        (["--model", "local/absent"], "no directory 'absent' below"),
    ],
)
async def test_what_is_wrong_is_said_before_rows_are_sent(
    qe: Qe, api: Api, tmp_path: Path, more: list[str], words: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "q"}]}) + "\n")
    code, _, err = await qe("submit", "--model", MODEL, "--calibration", "rows.jsonl", *more)
    assert (code, words in err) == (1, True), err
    assert api.execute("SELECT id FROM datasets") == []


async def test_the_same_idempotency_key_makes_one_job(qe: Qe, api: Api) -> None:
    first = await submitted(qe, "--idempotency-key", "nightly-1")
    assert await submitted(qe, "--idempotency-key", "nightly-1") == first


async def test_watch_ends_as_the_job_ends_over_broken_connections(qe: Qe, api: Api, network: Cuts) -> None:
    codes = {}
    for status in ("succeeded", "failed", "cancelled", "rejected"):
        job_id = await submitted(qe)
        api.start(job_id)
        api.append_event(job_id, "job.phase", {"phase": "fitting"})
        data = {"block": 0, "blocks": 2, "seconds": 1.5, "error": {"routed": 0.0125}}
        data |= {"fraction": 0.5, "eta_seconds": 2.4}
        api.append_event(job_id, "job.block", data)
        if status == "rejected":
            api.execute("UPDATE jobs SET verdict = 'rejected' WHERE id = %s", [job_id])
        if status == "cancelled":
            api.execute("UPDATE jobs SET status = 'cancelling' WHERE id = %s", [job_id])
        error = {"code": "timeout", "message": "it took too long", "retryable": True} if status == "failed" else None
        api.end(job_id, "succeeded" if status == "rejected" else status, error)
        if status == "succeeded":
            network.after = [10**9, 800]
        codes[status], out, err = await qe("watch", job_id)
        assert "1 of 2 blocks · block 0 · 1.5 s · error 1.250% · about 00:02 left" in err
        assert out == ""
        assert err.count("1 of 2 blocks") == 1
    assert codes == {"succeeded": 0, "failed": 3, "cancelled": 4, "rejected": 5}
    assert network.made == 1
    _, out, _ = await qe("watch", job_id, "--json")
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [1, 2, 3, 4]


async def test_a_block_is_named_with_its_stack_where_there_are_several(qe: Qe, api: Api) -> None:
    job_id = await submitted(qe)
    api.start(job_id)
    behind = {"stack": "vision", "index": None}
    places: list[dict[str, Any]] = [{"stack": "vision", "index": 0}, behind | {"part": "projector"}, behind, {}]
    for block, place in enumerate(places):
        api.append_event(job_id, "job.block", {"block": block, "blocks": 4, "seconds": 1.0, **place})
    api.end(job_id, "succeeded")
    _, _, err = await qe("watch", job_id)
    titles = [line.rsplit(" · ", 1)[0] for line in err.splitlines() if " of 4 blocks" in line]
    assert titles == [
        *("1 of 4 blocks · vision block 0", "2 of 4 blocks · vision projector"),
        *("3 of 4 blocks · vision, behind its blocks", "4 of 4 blocks · block 3"),
    ]


async def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(qe: Qe, api: Api) -> None:
    job_id = await submitted(qe)
    process = await asyncio.to_thread(interruptible, "watch", job_id)
    assert process.stderr is not None
    assert await asyncio.to_thread(process.stderr.readline) == "queued\n"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.to_thread(process.communicate)
    assert process.returncode == 130
    assert f"qe watch {job_id}" in err
    assert f"qe cancel {job_id}" in err
    assert api.execute("SELECT status FROM jobs") == [("queued",)]


async def test_jobs_are_listed_shown_cancelled_and_retried(qe: Qe, api: Api) -> None:
    first, second = await submitted(qe, "--label", "team=a"), await submitted(qe, "--label", "team=b")
    code, out, _ = await qe("jobs", "--label", "team")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["job", second, first]
    code, out, _ = await qe("jobs", "--label", "team=a", "--json")
    assert [json.loads(line)["id"] for line in out.splitlines()] == [first]
    assert (await qe("jobs", "--limit", "1", "--json"))[1].count("\n") == 1
    assert (await qe("cancel", first, second))[1] == f"{first} cancelled\n{second} cancelled\n"
    code, out, _ = await qe("jobs", first)
    assert "status       cancelled" in out
    assert (await qe("retry", first))[1] == f"{first} queued, 0 blocks are kept\n"
    code, _, err = await qe("retry", first)
    assert (code, "error conflict" in err) == (1, True)


async def test_logs_are_the_events_as_lines(qe: Qe, api: Api) -> None:
    job_id = await submitted(qe)
    api.start(job_id)
    api.append_event(job_id, "job.warning", {"message": "two\nlines"})
    code, out, _ = await qe("logs", job_id)
    events = ok(await api.client.get(f"/v1/jobs/{job_id}/events"))["data"]
    assert code == 0
    assert [line.split(" ")[1:3] for line in out.splitlines()] == [[f"#{each['seq']}", each["type"]] for each in events]
    assert (await qe("logs", job_id, "--tail", "1"))[1] == out.splitlines()[-1] + "\n"
    code, _, err = await qe("logs", "job_" + "0" * 32)
    assert (code, len(err.splitlines())) == (1, 1)


async def test_rows_of_a_task_are_uploaded_when_nothing_else_is_wrong(
    qe: Qe, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows", "task"):
        row = {"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "a"}]}
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    submit = ["submit", "--model", MODEL, "--calibration", "rows.jsonl", "--evaluation", "task.jsonl"]
    for wrong, why in (
        (["--accept-min-exact-match", "2"], "less than or equal to 1"),
        (["--no-evaluation-original", "--accept-max-exact-match-drop", "0"], "says original false"),
    ):
        code, _, err = await qe(*submit, *wrong)
        assert (code, why in err) == (1, True), err
    assert api.execute("SELECT count(*) FROM datasets") == [(0,)]
    job_id = (await qe(*submit, "--evaluation-rows", "4", "--accept-max-exact-match-drop", "0.02"))[1].strip()
    job = ok(await api.client.get(f"/v1/jobs/{job_id}"))
    names = dict(api.execute("SELECT id, name FROM datasets"))
    assert names == {job["calibration"]["dataset"]: "rows.jsonl", job["evaluation"]["dataset"]: "task.jsonl"}
    assert (job["evaluation"]["rows"], job["accept_if"]["max_exact_match_drop"]) == (4, 0.02)
    forked = (await qe("fork", job_id, "--evaluation-tokens", "8"))[1].strip()
    assert ok(await api.client.get(f"/v1/jobs/{forked}"))["evaluation"] == {**job["evaluation"], "max_new_tokens": 8}
    held_out = (await qe("fork", job_id, "--evaluation", "held-out"))[1].strip()
    assert ok(await api.client.get(f"/v1/jobs/{held_out}"))["evaluation"] == {**job["evaluation"], "dataset": None}
    code, _, err = await qe(*submit[:5], "--evaluation", "./absent.jsonl")
    assert (code, "--evaluation: there is no file ./absent.jsonl" in err) == (2, True)
    code, _, err = await qe("submit", "--model", MODEL, "--calibration", "acme/rows", "--evaluation-rows", "4")
    assert (code, "--evaluation-rows goes with --evaluation" in err) == (2, True)
    out = (await qe("compare", *submit[1:5], "W4A6", "W4A8", "--evaluation", "held-out", "--no-wait", "--json"))[1]
    assert api.execute("SELECT count(*) FROM jobs WHERE spec->'evaluation' <> 'null'") == [(5,)], out


async def test_watch_says_what_came_of_the_task_and_of_each_export(qe: Qe, api: Api) -> None:
    job_id = await submitted(qe)
    api.start(job_id)
    exports = [
        {"format": "dequantized", "losses": ["routed experts are left out"], "problem": None},
        {"format": "compressed-tensors", "losses": [], "problem": "it does not load"},
    ]
    summary = {"exports": exports, "evaluation": {"sentence": "Exact match of the replies to 2 rows: 50 %."}}
    api.execute("UPDATE jobs SET summary = %s", [json.dumps(summary)])
    api.end(job_id, "succeeded")
    _, _, err = await qe("watch", job_id)
    assert "Exact match of the replies to 2 rows: 50 %.\n" in err
    assert f"export dequantized: qe pull {job_id} --export dequantized\n" in err
    assert "export dequantized: not in it: routed experts are left out\n" in err
    assert "export compressed-tensors: not made: it does not load\n" in err


async def test_pull_and_report_bring_the_result(qe: Qe, api: Api, tmp_path: Path) -> None:
    job_id = await submitted(qe, "--name", "nightly")
    code, _, err = await qe("pull", job_id)
    assert (code, "appear all at once" in err) == (1, True)
    api.start(job_id)
    missed = "The KL is 0.01234, at most 0.01 was asked for"
    report = {
        "quality": {"kl": 0.01234, "top1_agreement": 0.9},
        "size": {"bytes_after": 12345},
        "acceptance": {"verdict": "rejected", "missed": [missed]},
    }
    for name, content in (("quality_report.json", json.dumps(report)), ("quality_report.html", "<p>hi"), ("a/b", "x")):
        api.publish(job_id, name, content.encode(), tmp_path)
    api.end(job_id, "succeeded")
    summary = {"missed": [missed], "warning_list": ["Small text."], "warnings": 1}
    api.execute("UPDATE jobs SET verdict = 'rejected', summary = %s", [json.dumps(summary)])
    code, out, _ = await qe("jobs")
    assert all(part in out for part in ("rejected", "nightly", missed)), out
    code, _, err = await qe("watch", job_id)
    assert (code, missed in err) == (5, True), err
    assert "warning: Small text." in (await qe("report", job_id))[2]
    code, out, _ = await qe("pull", job_id)
    assert (code, out.startswith("3 files, ")) == (0, True)
    assert (tmp_path / job_id / "a" / "b").read_text() == "x"
    code, out, _ = await qe("pull", job_id, "--output", "other", "--file", "a/b", "--json")
    assert [Path(path).read_text() for path in json.loads(out)] == ["x"]
    assert (tmp_path / "other" / "a" / "b").read_text() == "x"
    code, out, _ = await qe("report", job_id)
    assert out.splitlines() == [
        "KL to full precision   0.0123",
        "same next token        90.0 %",
        "size after             12.1 KiB",
        "verdict                rejected",
        f"limit missed           {missed}",
    ]
    assert json.loads((await qe("report", job_id, "--json"))[1]) == report
    code, out, _ = await qe("report", job_id, "--html", "page.html")
    assert (code, out, Path("page.html").read_text()) == (0, "", "<p>hi")


async def test_fork_sends_what_was_said_and_no_defaults(qe: Qe, api: Api) -> None:
    job_id = await submitted(
        qe,
        "--scheme",
        "W4A8",
        "--method",
        "gptq",
        "--seed",
        "3",
        "--experts",
        "4",
        "--accept-max-kl",
        "0.1",
        "--label",
        "a=b",
    )
    code, out, err = await qe(
        "fork", job_id, "--seed", "0", "--unset", "options.experts", "--unset", "accept_if", "--label", "c=d"
    )
    assert code == 0, err
    [(spec, parent)] = api.execute("SELECT spec, forked_from FROM jobs WHERE id = %s", [out.strip()])
    given = {name: value for name, value in spec["options"].items() if value is not None}
    assert given == {"seed": 0, "method_version": METHOD_VERSION}
    assert (parent, spec["scheme"], spec["method"]) == (job_id, "W4A8", "gptq")
    assert (spec.get("accept_if"), spec["labels"]) == (None, {"a": "b", "c": "d"})
    code, _, err = await qe("fork", job_id, "--seed", "1", "--unset", "options.seed")
    assert (code, "another option gives it" in err) == (2, True)
    code, _, err = await qe("fork", job_id, "--scheme", "W9A9")
    assert (code, "/scheme" in err) == (1, True)


def end(api: Api, job_id: str, *, kl: float, size: int) -> None:
    api.start(job_id)
    summary = {"kl": kl, "top1_agreement": 0.9, "effective_bits": 4.5, "bytes_after": size, "seconds": 61.2}
    api.execute("UPDATE jobs SET summary = %s WHERE id = %s", [json.dumps(summary), job_id])
    api.end(job_id, "succeeded")


COMPARE = ["compare", "--model", MODEL, "--calibration", "acme/rows"]


async def test_compare_shows_one_table_with_what_nothing_beats(qe: Qe, api: Api, tmp_path: Path) -> None:
    code, out, err = await qe(
        *COMPARE, "W4A6", "small:W4A6/gptq,experts=4,group_size=64", "W8A8/rtn", "--seed", "5", "--no-wait", "--json"
    )
    assert code == 0, err
    made = json.loads(out)
    assert [job["label"] for job in made["jobs"]] == ["W4A6 balanced", "small", "W8A8 rtn"]
    specs = [api.execute("SELECT spec FROM jobs WHERE id = %s", [job["job_id"]])[0][0] for job in made["jobs"]]
    assert [spec["options"]["seed"] for spec in specs] == [5, 5, 5]
    assert (specs[1]["options"]["experts"], specs[1]["options"]["group_size"]) == (4, 64)

    waiting = asyncio.create_task(qe("compare", made["id"], "--plot", "plot.svg"))
    for job, (kl, size) in zip(made["jobs"], [(0.02, 1_000_000), (0.03, 1_100_000), (0.0, 2_000_000)], strict=True):
        await asyncio.to_thread(end, api, job["job_id"], kl=kl, size=size)
    code, out, err = await asyncio.wait_for(waiting, 30)
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["candidate", "status", "KL", "same", "token", "bits", "size", "seconds", "job"]
    first, second, third = (job["job_id"] for job in made["jobs"])
    assert rows[1] == ["★", "W4A6", "balanced", "succeeded", "0.02", "90.0%", "4.50", "977", "KiB", "61", first]
    assert rows[2] == ["small", "succeeded", "0.03", "90.0%", "4.50", "1.05", "MiB", "61", second]
    assert rows[3] == ["★", "W8A8", "rtn", "succeeded", "0", "90.0%", "4.50", "1.91", "MiB", "61", third]
    assert out.splitlines()[4].endswith("smallest first: W4A6 balanced, W8A8 rtn")
    assert "<svg" in Path("plot.svg").read_text()
    code, out, _ = await qe("compare")
    assert out.splitlines()[1].split()[:4] == [made["id"], "3", "of", "3"]


async def test_compare_ends_with_a_code_when_a_job_did_not_succeed(qe: Qe, api: Api) -> None:
    code, out, _ = await qe(*COMPARE, "W4A6", "W4A8", "--no-wait", "--json")
    made = json.loads(out)
    first, _ = (job["job_id"] for job in made["jobs"])
    code, out, _ = await qe("compare", made["id"], "--cancel", "--json")
    assert (code, [job["status"] for job in json.loads(out)["jobs"]]) == (4, ["cancelled", "cancelled"])
    await qe("retry", first)
    api.start(first)
    api.end(first, "failed", {"code": "out_of_memory", "message": "no room", "retryable": True})
    code, out, err = await qe("compare", made["id"])
    assert (code, "W4A6 balanced: error out_of_memory: no room" in err) == (3, True)
    assert "–" in out


async def test_the_table_fits_a_terminal_of_80_columns(qe: Qe, api: Api) -> None:
    made = json.loads((await qe(*COMPARE, "W4A6/smoothquant", "W8A8/rtn", "--no-wait", "--json"))[1])
    for job in made["jobs"]:
        end(api, job["job_id"], kl=0.01234, size=12_345_670_000)
    comparison = ComparisonView.model_validate((await api.client.get(f"/v1/comparisons/{made['id']}")).json())
    printed = io.StringIO()
    console = Console(width=80, file=printed, highlight=False)
    console.print(table_of(comparison, width=80))
    lines = printed.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].split() == (
        ["★", "W4A6", "smoothquant", "succeeded", "0.01234", "90.0%", "4.50", "11.5", "GiB", "61"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*COMPARE, "W4A6"], "at least two"),
        ([*COMPARE, "W4A6", "/gptq"], "write [LABEL:]SCHEME"),
        ([*COMPARE, "W4A6", "W4A6,experts"], "is not OPTION=VALUE"),
        ([*COMPARE, "W4A6", "W4A8", "--cancel"], "goes with a COMPARISON"),
        (["compare", "W4A6", "W4A8"], "--model and --calibration"),
        (["compare", "--model", MODEL, "W4A6", "W4A8"], "--model and --calibration"),
    ],
)
async def test_a_comparison_that_is_none_is_an_error_of_the_arguments(qe: Qe, arguments: list[str], words: str) -> None:
    code, _, err = await qe(*arguments)
    assert (code, words in err, err.count("\n")) == (2, True, 1), err


async def test_ctrl_c_leaves_a_comparison_running_and_says_how_to_come_back(qe: Qe, api: Api) -> None:
    made = json.loads((await qe(*COMPARE, "W4A6", "W4A8", "--no-wait", "--json"))[1])
    process = await asyncio.to_thread(interruptible, "compare", made["id"])
    assert process.stderr is not None
    assert await asyncio.to_thread(process.stderr.readline) == "W4A6 balanced · queued\n"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.to_thread(process.communicate)
    assert process.returncode == 130
    assert f"qe compare {made['id']} --cancel" in err
    assert api.execute("SELECT DISTINCT status FROM jobs") == [("queued",)]


async def test_an_interrupted_upload_goes_on_with_the_same_command(
    qe: Qe, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rows = tmp_path / "rows.jsonl"
    line = json.dumps({"messages": [{"role": "user", "content": "q" * 1000}]}) + "\n"
    rows.write_text(line * 300)
    arrived: list[str] = []
    third = asyncio.Event()

    @api.app.middleware("http")
    async def hold(request: Request, call_next: Any) -> Response:
        if request.method == "PUT":
            if len(arrived) == 3 and not third.is_set():
                third.set()
                await asyncio.sleep(3600)
            arrived.append(request.url.path.rpartition("/")[2])
        answer: Response = await call_next(request)
        return answer

    command = ("datasets", "upload", str(rows), "--part-size", "30k", "--parallel", "1")
    process = await asyncio.to_thread(interruptible, *command)
    await asyncio.wait_for(third.wait(), 30)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.to_thread(process.communicate)
    assert process.returncode == 130, err
    code, out, err = await qe(*command)
    assert code == 0, err
    assert err == f"300 rows, 0 images, {len(line) * 300:,} bytes\n"
    assert sorted(arrived, key=int) == [str(number) for number in range(1, 12)]
    assert (await qe("datasets", "upload", str(rows)))[1] == out
    dataset_id = out.strip()
    assert (await qe("datasets", "list"))[1].splitlines()[1].split()[:4] == [
        dataset_id,
        "300",
        "0",
        f"{len(line) * 300:,}",
    ]
    shown = (await qe("datasets", "show", dataset_id, "--rows", "1"))[1]
    assert "rows         300, 0 with images" in shown
    assert "row 1:\n  user: qqq" in shown
    assert json.loads((await qe("datasets", "show", dataset_id, "--json"))[1])["statistics"]["rows"] == 300
    assert (await qe("datasets", "delete", dataset_id))[1] == f"{dataset_id} deleted\n"


async def test_an_interrupted_download_waits_for_no_answer_and_goes_on_with_the_same_command(
    qe: Qe, api: Api, tmp_path: Path
) -> None:
    held = asyncio.Event()

    @api.app.middleware("http")
    async def hold(request: Request, call_next: Any) -> Response:
        if request.url.path.endswith("/b.bin") and not held.is_set():
            held.set()
            await asyncio.sleep(3600)
        answer: Response = await call_next(request)
        return answer

    job_id = await submitted(qe)
    api.start(job_id)
    for name in ("a.bin", "b.bin"):
        api.publish(job_id, name, name.encode() * 1000, tmp_path)
    api.end(job_id, "succeeded")
    process = await asyncio.to_thread(interruptible, "pull", job_id)
    await asyncio.wait_for(held.wait(), 30)
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.to_thread(process.communicate, timeout=30)
    assert (process.returncode, "the same command goes on" in err) == (130, True)
    code, out, _ = await qe("pull", job_id)
    assert (code, out.startswith("2 files, 10,000 bytes")) == (0, True)


async def test_webhooks_are_made_seen_and_removed(qe: Qe, api: Api) -> None:
    code, out, err = await qe("webhooks", "create", "https://hooks.example.com/qe", "--event", "job.cancelled")
    webhook_id, secret = out.split()
    assert (code, secret.startswith("whsec_"), "not shown again" in err) == (0, True, True)
    job_id = await submitted(qe)
    await qe("cancel", job_id)
    [message] = (await qe("webhooks", "deliveries", webhook_id))[1].splitlines()
    assert message.endswith("job.cancelled pending, 0 attempts")
    assert (await qe("webhooks", "redeliver", webhook_id, message.split()[0]))[0] == 0
    assert (await qe("webhooks", "ping", webhook_id))[1].startswith("whd_")
    assert (await qe("webhooks", "rotate", webhook_id, "--keep", "60"))[1].split()[1] != secret
    assert (await qe("webhooks", "list"))[1] == f"{webhook_id} enabled https://hooks.example.com/qe job.cancelled\n"
    assert (await qe("webhooks", "delete", webhook_id))[1] == f"{webhook_id} deleted\n"
    code, _, err = await qe("webhooks", "create", "http://127.0.0.1/")
    assert (code, "/url" in err) == (1, True)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_json_cannot_say_is_refused_under_its_option(
    capsys: pytest.CaptureFixture[str], number: str
) -> None:
    options = (
        *("--accept-max-kl", "--accept-min-top1", "--accept-max-perplexity-increase", "--accept-min-image-sensitivity"),
        *("--smoothquant-alpha", "--sensitive-share", "--bits-per-weight"),
    )
    for command in (SUBMIT, [*COMPARE, "W4A6", "W4A8"], ["fork", "job_x"], ["plan", *SUBMIT[1:]]):
        for option in options:
            assert cli.run([*command, option, number]) == 2
            assert capsys.readouterr().err.endswith(f"'{option}': '{number}' is not a finite number\n")


@pytest.mark.parametrize("days", ["nan", "inf", "1e300", "-1e300"])
def test_a_date_that_is_none_is_refused_under_its_option(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, days: str
) -> None:
    (tmp_path / "rows.jsonl").write_text("x")
    assert cli.run(["datasets", "upload", str(tmp_path / "rows.jsonl"), "--expires-in", days]) == 2
    err = capsys.readouterr().err
    assert ("--expires-in" in err, err.count("\n")) == (True, 1)


def test_the_exit_codes_are_said_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["watch", "--help"])
    said = capsys.readouterr().out
    told = [int(line.split()[0]) for line in said.partition("Exit code:")[2].strip().splitlines()]
    assert told == [0, 1, 2, 3, 4, 5, 6, 130, 141]
    table = (Path(__file__).parents[2] / "docs" / "client.md").read_text().partition("| exit code |")[2]
    rows = [row.split("|")[1] for row in table.partition("\n\n")[0].splitlines()[2:]]
    assert [int(code) for row in rows for code in row.split(",")] == told


async def test_what_goes_wrong_is_one_line_and_a_code(qe: Qe, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = await qe("jobs", "job_nothing")
    assert (code, err.count("\n")) == (1, 1)
    code, _, err = await qe(*SUBMIT, "--group-size", "7")
    assert (code, "/options/group_size" in err) == (1, True)
    code, _, err = await qe(*SUBMIT, "--max-kl", "1")
    assert (code, "goes with --scheme auto" in err) == (2, True)
    code, _, err = await qe(*SUBMIT, "--label", "x")
    assert (code, "KEY=VALUE" in err) == (2, True)
    monkeypatch.setattr("quant_experts.client.client.RetryPolicy", lambda: RetryPolicy(retries=0))
    code, _, err = await qe("jobs", "--url", "http://127.0.0.1:9")
    assert (code, "connection_failed" in err) == (6, True)


def test_the_commands_do_not_load_torch_nor_wait_for_it() -> None:
    program = (
        "import sys; from quant_experts import cli; "
        "[cli.run([name, '--help']) for name in cli.CLIENT]; "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_without_httpx_the_commands_say_what_to_install(tmp_path: Path) -> None:
    program = (
        "import importlib.util, sys; real = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *a: None if name == 'httpx' else real(name, *a); "
        "from quant_experts.cli import run; sys.exit(run(['jobs']))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "pip install 'quant-experts[client]'" in found.stderr

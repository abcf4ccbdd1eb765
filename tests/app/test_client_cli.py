"""``qe submit | watch | jobs | pull | report | cancel | retry`` against the real API."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from quant_experts import cli
from quant_experts.client.retrying import RetryPolicy
from tests.app.conftest import BOOTSTRAP_KEY, MODEL, Api, served
from tests.app.cutting import Cuts, cutting

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
    assert given == {"group_size": 64, "seed": 3, "sensitive": sensitive}
    assert (spec["scheme"], spec["method"], spec["accept_if"]["max_kl"]) == ("W4A8", "qe", 0.1)
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
        assert "block 1 of 2 · 1.5 s · error 1.250% · 00:02 left" in err
        assert out == ""
        assert err.count("block 1 of 2") == 1
    assert codes == {"succeeded": 0, "failed": 3, "cancelled": 4, "rejected": 5}
    assert network.made == 1
    _, out, _ = await qe("watch", job_id, "--json")
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [1, 2, 3, 4]


async def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(qe: Qe, api: Api) -> None:
    job_id = await submitted(qe)
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-m", "quant_experts.cli", "watch", job_id],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
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


async def test_pull_and_report_bring_the_result(qe: Qe, api: Api, tmp_path: Path) -> None:
    job_id = await submitted(qe)
    code, _, err = await qe("pull", job_id)
    assert (code, "appear all at once" in err) == (1, True)
    api.start(job_id)
    report = {"quality": {"kl": 0.01234, "top1_agreement": 0.9}, "size": {"bytes_after": 12345}}
    for name, content in (("quality_report.json", json.dumps(report)), ("quality_report.html", "<p>hi"), ("a/b", "x")):
        api.publish(job_id, name, content.encode(), tmp_path)
    api.end(job_id, "succeeded")
    code, out, _ = await qe("pull", job_id)
    assert (code, out.startswith("3 files, ")) == (0, True)
    assert (tmp_path / job_id / "a" / "b").read_text() == "x"
    code, out, _ = await qe("pull", job_id, "--output", "other", "--file", "a/b", "--json")
    assert [Path(path).read_text() for path in json.loads(out)] == ["x"]
    code, out, _ = await qe("report", job_id)
    assert out.splitlines() == [
        "KL to full precision   0.01234",
        "same next token        0.9",
        "bytes after            12,345",
    ]
    assert json.loads((await qe("report", job_id, "--json"))[1]) == report
    code, out, _ = await qe("report", job_id, "--html", "page.html")
    assert (code, out, Path("page.html").read_text()) == (0, "", "<p>hi")


async def test_what_goes_wrong_is_one_line_and_a_code(qe: Qe, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = await qe("jobs", "job_nothing")
    assert (code, err.count("\n")) == (1, 1)
    code, _, err = await qe(*SUBMIT, "--group-size", "7")
    assert (code, "/options/group_size" in err) == (1, True)
    code, _, err = await qe(*SUBMIT, "--max-kl", "1")
    assert (code, "goes with --scheme auto" in err) == (2, True)
    code, _, err = await qe(*SUBMIT, "--label", "x")
    assert (code, "KEY=VALUE" in err) == (2, True)
    monkeypatch.setattr("quant_experts.client.synchronous.RetryPolicy", lambda: RetryPolicy(retries=0))
    code, _, err = await qe("jobs", "--url", "http://127.0.0.1:9")
    assert (code, "connection_failed" in err) == (6, True)


def test_the_commands_do_not_load_torch_nor_wait_for_it() -> None:
    program = (
        "import sys; from quant_experts.cli import run; "
        "[run([name, '--help']) for name in ('submit', 'watch', 'jobs', 'pull', 'report', 'cancel', 'retry')]; "
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

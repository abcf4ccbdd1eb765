"""``qe plan`` asked of a service, and ``qe submit`` of what was planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.settings import Settings
from quant_experts.cli import run
from tests.app.conftest import Api
from tests.app.test_client_cli import Qe, network, qe  # noqa: F401 -- fixtures
from tests.models import make_model
from tests.planning.directory_hub import directory_hub
from tests.rows import image_row, write_rows

PLAN = ["plan", "--model", "local/small", "--calibration", "rows.jsonl"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(autouse=True)
def inputs(network: object, settings: Settings, tmp_path: Path, model: Path) -> None:  # noqa: F811
    """The model where the service finds it; the rows where the command runs."""
    assert settings.model_root is not None
    shutil.copytree(model, settings.model_root / "small")
    write_rows(tmp_path / "rows.jsonl", [image_row(number) for number in range(6)])


async def test_what_a_service_planned_is_submitted_by_its_digest(qe: Qe, api: Api) -> None:  # noqa: F811
    api.execute(
        "INSERT INTO workers (id, host, device, memory_bytes, cores) VALUES"
        " ('a', 'h', 'cpu', 64000000000, 4), ('b', 'h', 'cpu', 64000000000, 4), ('c', 'h', 'cpu', 1000000, 4),"
        " ('d', 'h', 'cpu', NULL, NULL)"
    )
    code, out, err = await qe(*PLAN, "--seed", "3", "--vision", "quantize", "--split", "validation")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("local/small, qwen2_vl: 4 blocks")
    stacks = [line for line in lines if line.startswith(" ") and line.endswith(":")]
    assert stacks == [" vision, 1 blocks:", " behind the vision blocks:", " language model, 2 blocks:"]
    assert "  2 × cpu (59.6 GiB): can run it" in lines
    assert any(line.startswith("  1 × cpu (977 KiB): cannot run it: the job needs") for line in lines)
    assert "  1 × cpu: may run it: the worker does not say how much memory it has" in lines
    digest = lines[-1].split()[1].strip(",")
    assert err.splitlines()[-1] == f"Run exactly this: qe submit --plan {digest}"

    code, out, err = await qe("submit", "--plan", digest, "--name", "nightly", "--accept-max-kl", "0.5")
    assert code == 0, err
    [(spec, kept)] = api.execute("SELECT spec, plan FROM jobs WHERE id = %s", [out.strip()])
    assert (spec["model"]["id"], spec["options"]["seed"], spec["options"]["vision"]) == ("local/small", 3, "quantize")
    assert spec["calibration"]["split"] == "validation"
    assert (spec["name"], spec["accept_if"]["max_kl"], kept["digest"]) == ("nightly", 0.5, digest)
    code, _, err = await qe("submit", "--plan", digest, "--seed", "4")
    assert (code, "--seed" in err, err.count("\n")) == (2, True, 1)
    code, _, err = await qe("submit", "--plan", "0" * 64)
    assert (code, "kept for 24 hours" in err) == (1, True)
    code, _, err = await qe("submit", "--model", "local/small")
    assert (code, "--calibration" in err) == (2, True)


async def test_a_revision_is_planned_and_submitted_once_under_the_key_that_is_given(
    qe: Qe,  # noqa: F811
    api: Api,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = ["plan", "--model", "acme/small", "--calibration", "acme/rows", "--json", "--revision"]
    with directory_hub(**{"models/acme/small": model, "datasets/acme/rows": model}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        code, out, _ = await qe(*plan, "gone")
        assert (code, json.loads(out)["refusals"][0]["pointer"]) == (1, "/model/revision")
        digest = json.loads((await qe(*plan, "v2"))[1])["digest"]
    submit = ["submit", "--plan", digest, "--idempotency-key", "one"]
    first, again = await qe(*submit), await qe(*submit)
    assert first == again
    [(revision,)] = api.execute("SELECT spec->'model'->>'revision' FROM jobs")
    assert revision == "v2"


async def test_the_table_is_the_one_of_a_plan_made_here(qe: Qe, model: Path) -> None:  # noqa: F811
    here = (await qe("plan", "--model", str(model), "--calibration", "rows.jsonl"))[1].splitlines()
    there = (await qe(*PLAN))[1].splitlines()
    assert here[0].removeprefix("qwen2_vl") == there[0].removeprefix("local/small, qwen2_vl")
    assert len(here) > 10
    differing = [pair for pair in zip(here[1:], there[1:], strict=False) if pair[0] != pair[1]]
    # The rows lie here already, and a worker has to fetch them.
    assert [line.split()[0] for pair in differing for line in pair] == ["disk:", "disk:"]
    assert there[len(here)] == "workers: none is alive, the job would wait"


async def test_a_refusal_of_the_service_is_said_and_exit_code_1(qe: Qe) -> None:  # noqa: F811
    code, out, err = await qe(*PLAN, "--group-size", "128")
    assert (code, "qe submit" in err) == (1, False)
    assert "(/options/group_size)" in next(line for line in out.splitlines() if line.startswith("refused: "))
    code, out, _ = await qe(*PLAN, "--group-size", "128", "--json")
    assert (code, json.loads(out)["accepted"]) == (1, False)


async def test_where_a_plan_is_made_is_what_the_user_would_expect(
    qe: Qe,  # noqa: F811
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    shutil.copytree(model, tmp_path / "local" / "small")
    code, _, err = await qe(*PLAN)
    assert (code, "--here or --on-service" in err, err.count("\n")) == (2, True, 1)
    assert (await qe(*PLAN, "--here"))[1].startswith("qwen2_vl")
    assert (await qe(*PLAN, "--on-service"))[1].startswith("local/small")
    for asked in ("--on-service", "--url=http://127.0.0.1:9"):
        code, _, err = await qe("plan", "--model", str(model), asked)
        assert (code, "which a service does not see" in err) == (2, True)
    code, _, err = await qe("plan", "--model", "acme/x")
    assert (code, "--calibration" in err) == (2, True)
    code, _, err = await qe(*PLAN, "--here", "--url", "http://127.0.0.1:9")
    assert (code, "--here and --url" in err) == (2, True)
    shutil.rmtree(tmp_path / "local")
    monkeypatch.delenv("QE_URL")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code, _, err = await qe(*PLAN)
    assert (code, "QE_URL" in err) == (2, True)
    (tmp_path / "quant-experts").mkdir()
    (tmp_path / "quant-experts" / "config.toml").write_text('url = "http://127.0.0.1:9"')
    monkeypatch.setattr("quant_experts.commands.plan._has_client", lambda: False)
    monkeypatch.setenv("QE_URL", "http://127.0.0.1:9")
    code, _, err = await qe(*PLAN)
    assert (code, "pip install 'quant-experts[client]'" in err) == (2, True)


def test_a_config_file_names_the_service_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from quant_experts.commands.plan import on_the_service

    monkeypatch.delenv("QE_URL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert not on_the_service("acme/x", url=None, answer=None)
    (tmp_path / "quant-experts").mkdir()
    (tmp_path / "quant-experts" / "config.toml").write_text('url = "http://127.0.0.1:9"')
    assert on_the_service("acme/x", url=None, answer=None)
    assert run(["plan", "--model", "acme/x"]) == 2

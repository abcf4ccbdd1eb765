"""``qe plan`` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quant_experts.cli import run
from tests.models import make_model
from tests.planning.big import write_72b
from tests.rows import image_row, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_vl", tmp_path_factory.mktemp("models") / "tiny")


def test_the_plan_is_said_in_sentences(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [image_row(i) for i in range(6)])
    assert run(["plan", "--model", str(model), "--calibration", str(rows), "--scheme", "W4A8"]) == 0
    said = capsys.readouterr().out
    assert "qwen2_vl: 2 blocks" in said
    assert "qkv: q_proj, k_proj, v_proj  128 → 128 + 64 + 64" in said
    assert "lm_head" in said
    assert "output head: kept in full precision" in said
    assert "bits per quantized weight" in said
    assert "refused" not in said


def test_every_stack_is_spoken_of(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", str(model), "--vision", "quantize"]) == 0
    said = capsys.readouterr().out.splitlines()
    stacks = [line for line in said if line.startswith(" ") and line.endswith(":")]
    assert stacks == [" vision, 1 blocks:", " behind the vision blocks:", " language model, 2 blocks:"]
    assert said[said.index(" behind the vision blocks:") + 1] == "  fc1: mlp.0  256 → 256"


def test_the_plan_is_json_and_a_refusal_is_exit_code_1(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--json", "--model", str(model), "--group-size", "128"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [refusal["pointer"] for refusal in found["refusals"]] == ["/options/group_size"]
    assert found["size"]["exact"] is True


def test_a_machine_that_does_not_say_which_cores_are_ours_has_all_of_them(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert run(["plan", "--model", str(model)]) == 0
    assert "on cpu: peak" in capsys.readouterr().out


def test_a_model_that_cannot_be_planned_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--model", str(tmp_path)]) == 1
    assert "invalid_model" in capsys.readouterr().err


def test_planning_a_72b_model_does_not_wait_for_torch(tmp_path: Path) -> None:
    big = write_72b(tmp_path / "big")
    code = (
        "import sys; from quant_experts.cli import run; code = run(['plan', '--model', sys.argv[1]]);"
        "assert not {'torch', 'transformers'} & sys.modules.keys(); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(big)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "80 blocks" in done.stdout

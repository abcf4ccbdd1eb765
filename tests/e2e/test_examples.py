"""The examples, against a served instance: they end well for an accepted checkpoint and badly for another."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import Site

EXAMPLES = Path(__file__).parents[2] / "examples"
ACTION = yaml.safe_load((EXAMPLES / "github-action" / "action.yml").read_text())
INPUT = re.compile(r"\$\{\{ inputs\.([a-z-]+) \}\}")


@pytest.fixture
def reached(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("QE_URL", site.service.url)
    monkeypatch.setenv("QE_API_KEY", site.service.client.headers["Authorization"].removeprefix("Bearer "))
    return site


def action_step(directory: Path, inputs: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """Run the step that quantizes as GitHub does: exit code, outputs, what it said. The step that installs is not."""
    given = {name: str(details.get("default", "")) for name, details in ACTION["inputs"].items()} | inputs
    (step,) = [step for step in ACTION["runs"]["steps"] if step.get("id") == "quantize"]
    assert "${{" not in step["run"], "what is in an input would be run"
    environment = {name: INPUT.sub(lambda match: given[match[1]], text) for name, text in step["env"].items()}
    (directory / "qe").mkdir()
    (directory / "qe" / "bin").symlink_to(Path(sys.executable).parent)
    outputs = directory / "outputs"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={**os.environ, **environment, "RUNNER_TEMP": str(directory), "GITHUB_OUTPUT": str(outputs)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = outputs.read_text().splitlines() if outputs.exists() else []
    return done.returncode, dict(line.split("=", 1) for line in lines), done.stdout + done.stderr


@pytest.mark.slow
def test_the_action_fails_on_the_verdict_and_names_the_job(reached: Site, tmp_path: Path) -> None:
    inputs = {
        "url": os.environ["QE_URL"],
        "api-key": os.environ["QE_API_KEY"],
        "model": "local/tiny",
        "calibration": str(reached.rows),
        "max-kl": "0.0000001",
    }
    code, outputs, said = action_step(tmp_path, inputs)
    assert code == 5, said
    job = reached.service.job(outputs["job"])
    assert (job["status"], job["verdict"]) == ("succeeded", "rejected")


@pytest.mark.slow
def test_the_function_returns_the_accepted_job_and_finds_it_again(reached: Site) -> None:
    quantize: Any = load(EXAMPLES / "quantizing.py").quantize
    arguments = ("local/tiny", str(reached.rows), "W4A8", 100.0, "run-1")
    job_id = quantize(*arguments)
    assert reached.service.job(job_id)["verdict"] == "accepted"
    assert quantize(*arguments) == job_id


def test_the_function_raises_with_the_reason(reached: Site, tmp_path: Path) -> None:
    quantize: Any = load(EXAMPLES / "quantizing.py").quantize
    with pytest.raises(Exception, match="absent"):
        quantize("local/absent", str(reached.rows), "W4A8", 100.0, "run-2")


def test_the_actions_inputs_are_all_used() -> None:
    text = (EXAMPLES / "github-action" / "action.yml").read_text()
    assert set(INPUT.findall(text)) == set(ACTION["inputs"])


def test_the_shell_completes_commands_and_options() -> None:
    qe = str(Path(sys.executable).with_name("qe"))

    def completed(words: str) -> set[str]:
        number = str(len(words.split(" ")) - 1)
        asked = {"_QE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
        done = subprocess.run([qe], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert completed("qe sub") == {"submit"}
    assert {"worker", "serve", "jobs"} <= completed("qe ")
    assert completed("qe submit --accept-max-k") == {"--accept-max-kl"}
    source = subprocess.run(
        [qe], env={**os.environ, "_QE_COMPLETE": "bash_source"}, capture_output=True, text=True, check=True
    ).stdout
    assert subprocess.run(["bash", "-n"], input=source, text=True, check=False).returncode == 0


def load(path: Path) -> Any:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module

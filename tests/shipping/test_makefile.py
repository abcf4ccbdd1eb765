"""Every target of `make help` does what it says, on a copy of the checkout as a user would clone it, in short forms."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.services import ROOT, wait_until
from worker.embedded.servers import free_port


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What git knows of the checkout, uncommitted changes included, as a repository of its own."""
    directory = tmp_path_factory.mktemp("clone")
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    git(directory, "init", "-q")
    git(directory, "config", "user.name", "Tests")
    git(directory, "config", "user.email", "tests@example.org")
    commit(directory)
    yield directory
    shutil.rmtree(directory)


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=True).stdout


def commit(directory: Path) -> None:
    git(directory, "add", "-A")
    git(directory, "commit", "-qm", "all")


def command(*words: str) -> list[str]:
    """With the environment that runs the tests, which is taken for installed."""
    return ["make", f"VENV={sys.prefix}", "--old-file", f"{sys.prefix}/.installed", *words]


def make(clone: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "MAKE", "QE_"))}
    return subprocess.run(
        command(*words), cwd=clone, env={**inherited, **environment}, capture_output=True, text=True, timeout=280
    )


def ok(clone: Path, *words: str, **environment: str) -> str:
    done = make(clone, *words, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M))


def helps(clone: Path) -> None:
    assert {line.split()[0] for line in ok(clone, "help").splitlines()} == targets()


def finds_its_tests(target: str) -> Callable[[Path], None]:
    """The suite runs these tests in a shorter form; that the target selects any is looked at here."""

    def check(clone: Path) -> None:
        said = ok(clone, target, PYTEST_ADDOPTS="--collect-only")
        assert int(re.findall(r"(\d+) tests? collected", said)[-1]) >= 1

    return check


def makes_the_documentation(clone: Path) -> None:
    assert "build/site/index.html" in ok(clone, "docs")
    assert (clone / "build" / "site" / "index.html").is_file()


def leaves_formatted_code_alone(clone: Path) -> None:
    ok(clone, "format")
    assert git(clone, "status", "--porcelain", "--untracked-files=no") == "", "run `make format`"


def writes_the_same_readme(clone: Path) -> None:
    ok(clone, "readme")
    assert git(clone, "status", "--porcelain", "README.md") == ""


def writes_the_same_contract(clone: Path) -> None:
    ok(clone, "openapi")
    assert git(clone, "status", "--porcelain", "openapi.json") == "", "run `make openapi`"


def tries_a_type_of_model(clone: Path) -> None:
    assert "cohere: built discovered quantized" in ok(clone, "models", "TYPES=cohere")
    git(clone, "checkout", "-q", "docs", "benchmarks")


def pins_what_is_installed(clone: Path) -> None:
    before = (clone / "constraints.txt").read_text().splitlines()
    ok(clone, "constraints")
    after = (clone / "constraints.txt").read_text().splitlines()
    git(clone, "checkout", "-q", "constraints.txt")
    assert after[:2] == before[:2]
    assert {"torch", "fastapi", "celery"} <= {line.partition("==")[0] for line in after}


def knows_its_benchmarks(clone: Path) -> None:
    """They take minutes to hours; the nightly workflow runs two of them."""
    said = ok(clone, "bench", "ARGS=--help")
    assert said.count("usage: ") == len(re.findall(r"^== ", said, re.M)) > 3


def storms(clone: Path) -> None:
    """A hundredth of the part that holds most: jobs under kills of every process and outages of both servers."""
    said = ok(clone, "faults", "ARGS=--only storm", QE_FAULTS_SCALE="0.01")
    assert "0 violations" in said
    assert "## Storm, seed 1" in (clone / "benchmarks" / "results" / "faults.md").read_text()
    git(clone, "checkout", "-q", "benchmarks")


def serves_until_interrupted(clone: Path) -> None:
    environment = {**os.environ, "QE_PORT": str(free_port()), "QE_HOME": str(clone / ".qe"), "QE_WORKERS": "0"}
    log = clone / "build" / "serve.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command("serve"), cwd=clone, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        wait_until(lambda: b"Ctrl-C stops everything" in log.read_bytes(), seconds=90, what="the service")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(60)
        assert log.read_text().splitlines()[-1].startswith(("stopped", "make")), log.read_text()
        assert "\nstopped\n" in log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def releases_once_everything_names_the_version(clone: Path) -> None:
    words = ["release", *(word for done in ("lint", "test", "docs") for word in ("--old-file", done))]
    version = re.findall(r'__version__ = "(.+)"', (clone / "quant_experts" / "__init__.py").read_text())[0]
    refused = make(clone, *words)
    assert refused.returncode != 0
    assert f"CHANGELOG.md has no line '## [{version}] - 20" in refused.stderr
    changes = clone / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("## [Unreleased]", f"## [{version}] - 2026-12-01", 1))
    assert "commit or drop what git status shows" in make(clone, *words).stderr
    commit(clone)
    assert f"v{version} is set" in ok(clone, *words)
    assert git(clone, "tag").split() == [f"v{version}"]
    assert built(clone) == {"whl", "gz"}
    assert f"v{version} exists" in make(clone, *words).stderr


def asks_for_an_environment_with_vllm(clone: Path) -> None:
    """vLLM takes 3.4 GB and another transformers: its tests are run by hand (docs/serving.md)."""
    refused = make(clone, "vllm-test")
    assert refused.returncode != 0
    assert "no vLLM in DIR=''" in refused.stdout


def built(clone: Path) -> set[str]:
    return {path.name.rpartition(".")[2] for path in (clone / "dist").glob("quant_experts-*")}


def builds_wheel_and_archive(clone: Path) -> None:
    ok(clone, "wheel")
    assert built(clone) == {"whl", "gz"}


def locks_what_is_locked(clone: Path) -> None:
    ok(clone, "lock")
    assert git(clone, "status", "--porcelain", "deploy") == "", "run `make lock`"


def removes_what_the_others_made(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / "build").mkdir(exist_ok=True)
    assert subprocess.run(["make", "clean"], cwd=clone, capture_output=True).returncode == 0
    assert not {".venv", "build", "dist", ".qe"} & {path.name for path in clone.iterdir()}


SHORT: dict[str, Callable[[Path], None]] = {
    "help": helps,
    "docs": makes_the_documentation,
    "format": leaves_formatted_code_alone,
    "openapi": writes_the_same_contract,
    "readme": writes_the_same_readme,
    "models": tries_a_type_of_model,
    "constraints": pins_what_is_installed,
    "screenshots": finds_its_tests("screenshots"),
    "fuzz": finds_its_tests("fuzz"),
    "faults": storms,
    "bench": knows_its_benchmarks,
    "vllm-test": asks_for_an_environment_with_vllm,
    "lock": locks_what_is_locked,
    "serve": serves_until_interrupted,
    "release": releases_once_everything_names_the_version,
    "wheel": builds_wheel_and_archive,
    "clean": removes_what_the_others_made,
}


@pytest.mark.slow
@pytest.mark.parametrize("target", SHORT)
def test_a_target_does_what_it_says(target: str, clone: Path) -> None:
    SHORT[target](clone)


def test_a_run_of_the_tests_leaves_the_folders_of_another_open(tmp_path: Path) -> None:
    """Servers of the outer run, started as another user, stand in them."""
    root = tmp_path.parents[1]
    root.chmod(0o711)
    inner = tmp_path / "test_inner.py"
    inner.write_text("def test_it(tmp_path):\n    pass\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", f"--rootdir={tmp_path}", str(inner)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert stat.S_IMODE(root.stat().st_mode) == 0o711


def test_every_target_is_run_by_a_test_or_by_ci() -> None:
    """``browser`` is what ``test`` needs; an engine for ``images`` and ``compose-test`` is on GitHub's machines."""
    ci = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    run = {target for path in ci for target in re.findall(r"\bmake ([a-z-]+)", path.read_text())}
    assert targets() <= {*SHORT, *run, "browser"}


def test_every_target_is_declared_phony() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)[0].split()
    assert targets() == set(phony)


def test_workflows_call_targets_that_exist() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        steps = [
            step.get("run", "") for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]
        ]
        assert set(re.findall(r"\bmake ([a-z-]+)", "\n".join(steps))) <= targets(), path.name

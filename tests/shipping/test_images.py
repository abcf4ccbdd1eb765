"""The Dockerfile as data. `make compose-test` builds and runs it where an engine answers."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

from tests.shipping.environments import ROOT
from tests.shipping.test_extras import API, KEEPER, WORKER

DOCKERFILE = (ROOT / "Dockerfile").read_text()
TARGETS = ["api", "worker", "keeper"]


def stages() -> dict[str, str]:
    """Stage name → its text, with the text of the stages it is made from before it."""
    texts: dict[str, str] = {}
    for base, name, body in re.findall(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S):
        texts[name] = texts.get(base.replace("${TORCH}", "cpu"), "") + body
    return texts


def test_nothing_but_the_base_image_is_fetched_before_the_build() -> None:
    assert not re.search(r"^# *syntax=", DOCKERFILE, re.M)  # its front end would come from a registry
    outside = [base for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) if ":" in base]
    assert outside == ["python:${PYTHON}-slim"]


def test_every_path_that_the_dockerfile_copies_exists_and_is_in_the_build_context() -> None:
    sent = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M)
    copied = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for source in line.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source == "." or any(source == each or source.startswith(f"{each}/") for each in sent), source
    assert {"quant_experts", "app", "worker", "migrations"} <= set(sent)


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_installs_the_one_wheel_beside_a_lock_file(target: str) -> None:
    stage = stages()[target]
    assert stage.count("--no-deps --no-index /dist/*.whl") == 1
    assert f"--require-hashes -r /tmp/{target}.txt" in stage
    assert "COPY . ." not in stage  # a change of code reaches the image through the wheel alone
    assert stage.index("--require-hashes") < stage.index("/dist/*.whl")


def test_the_lock_files_are_made_from_the_extras_that_the_tests_start() -> None:
    script = (ROOT / "deploy" / "requirements" / "lock.sh").read_text()
    for name, extras in (("api", API), ("keeper", KEEPER), ("worker-cuda", WORKER)):
        line = re.search(rf"^lock {name}\.txt (.+)$", script, re.M)
        assert line
        assert tuple(re.findall(r"--extra (\S+)", line[1])) == extras


@pytest.mark.parametrize("target", TARGETS)
def test_a_stop_is_heard_from_the_first_moment(target: str) -> None:
    """Process 1 without a handler ignores SIGTERM; tini is process 1, and passes it on to Python's default action."""
    assert re.findall(r"^ENTRYPOINT (.+)$", stages()[target], re.M) == ['["tini", "--"]']


@pytest.mark.parametrize("target", TARGETS)
def test_the_user_is_not_root_and_given_by_number(target: str) -> None:
    made = re.search(r"useradd --system --uid ([1-9]\d*)", stages()[target])
    assert made
    assert re.findall(r"^USER (\S+)$", stages()[target], re.M)[-1] == made[1]  # Kubernetes cannot look a name up


@pytest.mark.parametrize("target", TARGETS)
def test_every_image_says_what_it_is(target: str) -> None:
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in stages()[target]


@pytest.mark.parametrize("target", TARGETS)
def test_every_command_of_the_images_exists(target: str) -> None:
    words = json.loads(re.findall(r"^CMD (\[.+\])$", stages()[target], re.M)[-1])
    if words[0] == "qe":
        assert entry_points(group="quant_experts.commands", name=words[1])
        return
    references = [word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(:[A-Za-z_]+)?", word)]
    assert references, words
    for reference in references:
        module, _, attribute = reference.partition(":")
        specification = importlib.util.find_spec(module)
        assert specification is not None, module
        assert specification.origin is not None
        text = Path(specification.origin).read_text()
        assert not attribute or re.search(rf"^(def |class )?{attribute}\b", text, re.M)


@pytest.mark.parametrize("target", TARGETS)
def test_health_is_the_age_of_a_file(target: str) -> None:
    """A check that starts Python, or asks a server that is busy, takes seconds of its limit."""
    check = re.search(r"^HEALTHCHECK .* CMD (.+)$", stages()[target], re.M)
    assert check
    assert check[1] == 'test -n "$(find "$QE_HEARTBEAT_FILE" -mmin -1)"'
    assert "QE_HEARTBEAT_FILE=/tmp/heartbeat" in stages()[target]


def test_what_a_release_publishes_has_the_names_that_compose_and_the_chart_pull() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["images"]
    published = {(each["target"], each["name"], each["torch"]) for each in workflow["strategy"]["matrix"]["include"]}
    assert {(target, target, "cpu") for target in TARGETS} | {("worker", "worker-cuda", "cuda")} == published
    meta = next(step for step in workflow["steps"] if step.get("id") == "meta")
    assert meta["with"]["images"] == "ghcr.io/${{ github.repository }}-${{ matrix.name }}"
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "quant-experts" / "values.yaml").read_text())
    example = re.search(r"^# QE_IMAGES=(\S+)$", (ROOT / ".env.example").read_text(), re.M)
    assert example
    assert example[1] == chart["image"]["prefix"] == "ghcr.io/quant-experts/quant-experts"

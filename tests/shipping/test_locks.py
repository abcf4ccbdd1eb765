"""``deploy/requirements``: what the images install is what the extras ask for, in the versions that are tested here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.shipping.environments import ROOT, closure
from tests.shipping.test_extras import API, KEEPER, WORKER

LOCKS = ROOT / "deploy" / "requirements"
TORCH_ALONE = {"torch", "torchvision"}
"""On the CPU they come from an index of their own, without hashes: torch.txt."""


def locked(name: str) -> dict[str, str]:
    """Distribution → version."""
    text = (LOCKS / f"{name}.txt").read_text()
    assert len(re.findall(r"^\S+==", text, re.M)) == len(re.findall(r"^\S+==.*\n    --hash=sha256:", text, re.M))
    return {canonicalize_name(found): version for found, version in re.findall(r"^(\S+?)==(\S+)", text, re.M)}


def pinned() -> dict[str, str]:
    lines = re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return {canonicalize_name(name): version for name, version in lines}


@pytest.mark.parametrize(
    ("name", "extras"), [("api", API), ("keeper", KEEPER), ("worker", WORKER), ("worker-cuda", WORKER)]
)
def test_a_lock_file_holds_what_its_extras_need(name: str, extras: tuple[str, ...], wheel: Path) -> None:
    needed = {canonicalize_name(found.metadata["Name"]) for found in closure(wheel, *extras)}
    missing = needed - set(locked(name)) - (TORCH_ALONE if name == "worker" else set())
    assert not missing, f"{name}.txt lacks {sorted(missing)}: run `make lock`"


@pytest.mark.parametrize("name", ["api", "keeper", "worker", "worker-cuda", "build"])
def test_a_lock_file_holds_the_versions_that_are_tested(name: str) -> None:
    tested = pinned()
    other = {each: version for each, version in locked(name).items() if tested.get(each, version) != version}
    assert not other, f"{name}.txt has other versions than constraints.txt: {other}; run `make lock`"


@pytest.mark.parametrize("name", ["api", "keeper"])
def test_no_torch_where_nothing_is_computed(name: str) -> None:
    assert not {each for each in locked(name) if each.startswith(("torch", "nvidia", "numpy", "transformers"))}


def test_both_workers_have_one_torch() -> None:
    lines = [line for line in (LOCKS / "torch.txt").read_text().splitlines() if not line.startswith("#")]
    cuda = locked("worker-cuda")
    for requirement in map(Requirement, lines):
        assert requirement.specifier.contains(cuda[requirement.name])
    assert cuda["torch"] == pinned()["torch"]
    assert {Requirement(line).name for line in lines} == TORCH_ALONE

"""Environments with only what an extra names: the wheel, and the distributions that it asks for, linked from ours."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
PROJECT = "quant-experts"


@dataclass(frozen=True)
class Environment:
    """A virtual environment outside the checkout; nothing of the checkout is on its path."""

    root: Path

    @property
    def python(self) -> str:
        return str(self.root / "bin" / "python")

    @property
    def packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(self.root), "platbase": str(self.root)}))

    def variables(self, **more: str) -> dict[str, str]:
        """Nothing of the caller's environment but the system's own."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
        return {**kept, "HOME": str(self.root), **more}

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.root,
            env=self.variables(**variables),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )


def make_environment(root: Path, wheel: Path, *extras: str) -> Environment:
    """``pip install 'wheel[extras]'`` into an empty environment, without asking an index."""
    venv.create(root, with_pip=False, symlinks=True)
    environment = Environment(root)
    for found in closure(wheel, *extras):
        _link(found, environment.packages)
    with ZipFile(wheel) as archive:
        archive.extractall(environment.packages)
    return environment


def wheel_of_the_checkout(folder: Path) -> Path:
    before = Path.cwd()
    os.chdir(ROOT)  # PEP 517: a build backend is called in the source tree
    try:
        return folder / build_wheel(str(folder))
    finally:
        os.chdir(before)


def closure(wheel: Path, *extras: str) -> list[Distribution]:
    """The distributions that pip would install beside ``wheel[extras]``, from those that are installed here."""
    with ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    ours: Distribution = PathDistribution(ZipPath(wheel, metadata.removesuffix("METADATA")))  # type: ignore[arg-type]
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    open_questions = [requirement for extra in ("", *extras) for requirement in _required(ours, extra)]
    while open_questions:
        name, wanted = open_questions.pop()
        for extra in ("", *wanted):
            if (name, extra) in asked:
                continue
            asked.add((name, extra))
            found.setdefault(name, distribution(name))
            open_questions += _required(found[name], extra)
    return list(found.values())


def _required(distribution: Distribution, extra: str) -> Iterator[tuple[str, Iterable[str]]]:
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield canonicalize_name(requirement.name), requirement.extras


def _link(found: Distribution, packages: Path) -> None:
    """Hard links: no copy of torch, and no symbolic link that leads Python back to the other environment."""
    for file in found.files or ():
        source, target = Path(str(found.locate_file(file))), packages / file
        if ".." in file.parts or not source.is_file():
            continue  # scripts, and byte code that was never written
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            target.symlink_to(source)

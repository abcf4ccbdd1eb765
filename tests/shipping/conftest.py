from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.shipping.environments import Environment, make_environment, wheel_of_the_checkout

MakeEnvironment = Callable[..., Environment]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of_the_checkout(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def environment(wheel: Path) -> Iterator[MakeEnvironment]:
    """Makes the environment of the extras that it is called with."""
    with tempfile.TemporaryDirectory(prefix="qe-environment-") as folder:
        Path(folder).chmod(0o755)  # started by root, PostgreSQL runs as another user; pytest's folders are closed to it
        yield lambda *extras: make_environment(Path(folder) / "environment", wheel, *extras)

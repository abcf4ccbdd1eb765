from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shipping.environments import Environment, make_environment, wheel_of_the_checkout

MakeEnvironment = Callable[..., Environment]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of_the_checkout(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> MakeEnvironment:
    """Makes the environment of the extras that it is called with."""
    return lambda *extras: make_environment(tmp_path / "environment", wheel, *extras)

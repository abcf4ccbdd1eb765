"""Fixtures of the library's tests."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quant_experts.checkpoint.verify import verify_in_fresh_process
from quant_experts.run.quantize import quantize


@pytest.fixture(scope="session", autouse=True)
def forked_loading_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs inside of the test process have their checkpoints loaded by forked processes, which takes 0.3 seconds and
    not 4. Commands that tests start, and jobs over HTTP, start a process for each."""

    def ask(directory: Path, probe: Path, device: str) -> dict[str, Any]:
        answer: dict[str, Any] = request.getfixturevalue("forked").ask(directory, probe, device)
        return answer

    with pytest.MonkeyPatch.context() as patched:
        for function in (verify_in_fresh_process, inspect.unwrap(quantize)):
            patched.setitem(function.__kwdefaults__, "ask", ask)
        yield

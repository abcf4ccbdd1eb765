"""Schemathesis reads ``/openapi.json`` of the served API and tries to catch it at breaking its own contract.

Valid and invalid requests to every operation, and walks along the links from what was made to what can be done with it,
with real things to meet (``fuzzing_supply``). Each run has a new seed, which it prints: ``QE_FUZZ_SEED`` repeats one.
``make fuzz`` is the long version.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.settings import Settings
from tests.app.conftest import BOOTSTRAP_KEY, Api, ok, served, started
from tests.app.fuzzing_supply import WAITING, finish, supply

ROOT = Path(__file__).parent.parent.parent
CONFIG = Path(__file__).parent / "schemathesis.toml"
MINUTES = float(os.environ.get("QE_FUZZ_MINUTES", "0"))
"""0: the short run of the suite."""
SEED = os.environ.get("QE_FUZZ_SEED") or str(random.SystemRandom().randrange(10**9))
LEFT_OUT = ["--exclude-path", "/metrics"]
"""Its body is Prometheus text, which has no schema."""
READY_SECONDS = 300


async def finish_jobs(api: Api) -> None:
    """A worker that needs no time: queued jobs become finished ones with files. Those to be cancelled wait longer."""
    while True:
        queued = (
            "SELECT id FROM jobs WHERE status = 'queued' AND queued_at < clock_timestamp()"
            f" - CASE alias WHEN '{WAITING}' THEN interval '5 min' ELSE interval '10 s' END LIMIT 5"
        )
        for (job_id,) in await asyncio.to_thread(api.execute, queued):
            await asyncio.to_thread(finish, api, job_id)
        await asyncio.sleep(0.5)


def never_reached(api: Api, document: dict[str, object]) -> set[str]:
    """Operations that answered nothing but errors."""
    paths = document["paths"]
    assert isinstance(paths, dict)
    every = {f"{method.upper()} {path}" for path, operations in paths.items() for method in operations}
    reached = {
        f"{sample.labels['method']} {re.sub(r':path}', '}', sample.labels['route'])}"
        for metric in api.service.telemetry.requests.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["status"] < "400"
    }
    return every - reached - {"GET /metrics"}


@pytest.mark.timeout(0)
async def test_the_service_keeps_its_own_contract(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nschemathesis: QE_FUZZ_SEED={SEED} repeats this run")
    made = tmp_path / "supply.json"
    async with started(settings.model_copy(update={"requests_per_minute": 0})) as api, served(api) as client:
        document = ok(await client.get("/openapi.json"))
        helpers = [asyncio.create_task(finish_jobs(api)), asyncio.create_task(supply(api, made))]
        for _ in range(READY_SECONDS * 10):
            if made.exists() or helpers[1].done():
                break
            await asyncio.sleep(0.1)
        assert made.exists() or helpers[1].done(), f"nothing real is there after {READY_SECONDS} s"
        command = [
            str(Path(sys.executable).with_name("st")),
            *("--config-file", str(CONFIG)),
            *("run", f"{client.base_url}/openapi.json"),
            *("--header", f"Authorization: Bearer {BOOTSTRAP_KEY}"),
            *("--phases", "examples,coverage,fuzzing,stateful"),
            *("--seed", SEED),
            *("--request-timeout", "60"),  # a machine that is busy with other work is no finding
            *(["--max-time", str(int(MINUTES * 60))] if MINUTES else ["--max-examples", "1"]),
            *LEFT_OUT,
            *("--no-color", "--continue-on-failure"),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.app.fuzzing_hooks",
            "QE_FUZZ_SUPPLY": str(made),
            "QE_FUZZ_SEED": SEED,
        }
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        said = f"seed {SEED}\n" + done.stdout[-12000:] + done.stderr
        for helper in helpers:
            assert not helper.done() or helper.exception() is None, said
            helper.cancel()
        missed = never_reached(api, document)
    print(f"answered with an error alone: {sorted(missed) or 'nothing'}")
    assert done.returncode == 0, said
    tried = re.search(r"(\d+) generated", done.stdout)
    assert tried is not None
    assert int(tried[1]) > 1000, "it tried hardly anything"
    # The short run has an example of each, which may come to meet nothing that is real.
    assert not (MINUTES and missed), f"seed {SEED}: never answered but with an error: {sorted(missed)}"

"""Schemathesis reads ``/openapi.json`` of the served API and tries to catch it at breaking its own contract.

Valid and invalid requests to every operation, and walks along the links from what was made to what can be done with it.
While it tries, a worker takes the jobs that it makes, so that finished ones and their files are met too. Seeded: the
same requests every time. ``make fuzz`` is the long version.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.app.conftest import BOOTSTRAP_KEY, Api, served

CONFIG = Path(__file__).parent / "schemathesis.toml"
MINUTES = float(os.environ.get("QE_FUZZ_MINUTES", "0"))
"""0: the short, seeded run of the suite."""
SEEDED = ["--max-examples", "1", "--seed", "1", "--generation-deterministic"]
LEFT_OUT = ["--exclude-path", "/metrics"]
"""Its body is Prometheus text, which has no schema."""


async def finish_jobs(api: Api, directory: Path) -> None:
    """A worker that needs no time: every queued job becomes a finished one with files."""
    report = json.dumps({"quality": {"kl": 0.01}}).encode()
    files = {"quality_report.json": report, "quality_report.html": b"<p>", "config.json": b"{}"}
    types = {"json": "application/json", "html": "text/html"}
    while True:
        for (job_id,) in await asyncio.to_thread(api.execute, "SELECT id FROM jobs WHERE status = 'queued' LIMIT 5"):
            await asyncio.to_thread(api.start, job_id)
            for name, content in files.items():
                kind = types[name.rpartition(".")[2]]
                await asyncio.to_thread(api.publish, job_id, name, content, directory, kind)
            await asyncio.to_thread(api.end, job_id, "succeeded")
        await asyncio.sleep(0.2)


async def test_the_service_keeps_its_own_contract(api: Api, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    async with served(api) as client:
        worker = asyncio.create_task(finish_jobs(api, tmp_path / "files"))
        command = [
            str(Path(sys.executable).with_name("st")),
            *("--config-file", str(CONFIG)),
            *("run", f"{client.base_url}/openapi.json"),
            *("--header", f"Authorization: Bearer {BOOTSTRAP_KEY}"),
            *("--phases", "examples,coverage,fuzzing,stateful"),
            *(["--max-time", str(int(MINUTES * 60))] if MINUTES else SEEDED),
            *LEFT_OUT,
            *("--no-color", "--continue-on-failure"),
        ]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        worker.cancel()
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    tried = re.search(r"(\d+) generated", done.stdout)
    assert tried is not None
    assert int(tried[1]) > 1000, "it tried hardly anything"

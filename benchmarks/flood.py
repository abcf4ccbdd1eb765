"""What one tenant feels while another floods the API: response times, and the memory of the API's process.

    python -m benchmarks.flood [--seconds 10] [--rounds 3]

One API process behind uvicorn, PostgreSQL and Redis of this machine. The quiet tenant asks 20 times a second for jobs,
a dataset and readiness, each time measured from when it was due, so that a server that stands still is seen. The flood
of the other tenant is, in turn: 50 clients that ask for statistics of 20 000 rows; 20 that upload a Parquet file of
some kilobytes which becomes 3.2 GB; 20 that plan a job on a model whose header has 24 MB. Rounds without a flood and
with each alternate, so that what else the machine does falls on all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import psutil

from tests.app.test_datasets import jsonl, row
from tests.app.test_parsing import dictionary_bomb
from tests.services import TEMPLATE, running_postgres, running_redis
from worker.embedded.servers import free_port
from worker.process import reap, start

RESULTS = Path(__file__).parent / "results" / "flood.md"
KEY = "qe_benchmark_key_0123456789_0123456789"
PER_SECOND = 20
TIMES_QUIET = 2.0
"""The p99 of the quiet tenant under a flood may be so many times that without one."""

Flood = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


@contextlib.contextmanager
def served(home: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of an API."""
    with running_postgres() as postgres, postgres.database(template=TEMPLATE) as database, running_redis() as redis:
        port = free_port()
        environment = {
            **os.environ,
            "QE_HOME": str(home),
            "QE_API_KEY": KEY,
            "QE_SECRET": "s" * 40,
            "QE_DATABASE_URL": database,
            "QE_REDIS_URL": redis,
            "QE_MODEL_ROOT": str(home / "models"),
            "QE_REQUESTS_PER_MINUTE": "0",
        }
        command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", str(port)]
        command += ["--http", "app.web.kernel_copy:FileProtocol", "--no-access-log"]
        api = start(command, environment=environment, log=home / "api.log")
        address = f"http://127.0.0.1:{port}"
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{address}/readyz").status_code == 200:
                        break
                time.sleep(0.1)
            yield address, api.pid
        finally:
            api.terminate()
            reap(api)


def write_model(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    tensor = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    header = json.dumps({f"t{number}": tensor for number in range(380_000)}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


async def ask(client: httpx.AsyncClient, paths: list[str], seconds: float, failed: list[str]) -> list[float]:
    """Milliseconds of each request of the quiet tenant."""
    took: list[float] = []
    began = time.perf_counter()

    async def one(number: int) -> None:
        due = began + number / PER_SECOND
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        path = paths[number % len(paths)]
        answer = await client.get(path)
        took.append(1000 * (time.perf_counter() - due))
        if answer.status_code != 200:
            failed.append(f"{path}: {answer.status_code}")

    await asyncio.gather(*(one(number) for number in range(int(seconds * PER_SECOND))))
    return took


async def flooding(client: httpx.AsyncClient, flood: Flood, clients: int, answers: list[int]) -> None:
    async def again() -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answers.append((await flood(client)).status_code)

    await asyncio.gather(*(again() for _ in range(clients)))


async def most_memory(pid: int, found: list[int]) -> None:
    """Of the API's own process, not of its children."""
    process = psutil.Process(pid)
    while True:
        found.append(process.memory_info().rss)
        await asyncio.sleep(0.05)


async def measure(address: str, pid: int, home: Path, *, seconds: float, rounds: int) -> list[str]:
    limits = httpx.Limits(max_connections=None, keepalive_expiry=2)  # before the server closes idle ones
    async with contextlib.AsyncExitStack() as stack:

        async def client_of(key: str) -> httpx.AsyncClient:
            headers = {"Authorization": f"Bearer {key}"}
            client = httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits)
            return await stack.enter_async_context(client)

        owner = await client_of(KEY)

        async def tenant(name: str) -> tuple[httpx.AsyncClient, str]:
            scopes = ["datasets:read", "datasets:write", "jobs:read", "jobs:write"]
            made = await owner.post("/v1/keys", json={"name": name, "tenant": name, "scopes": scopes})
            client = await client_of(made.json()["key"])
            rows = jsonl(*(row(text=f"row {number}") for number in range(20_000)))
            return client, (await client.post("/v1/datasets", files={"file": ("r.jsonl", rows)})).json()["id"]

        (quiet, theirs), (greedy, dataset) = await tenant("quiet"), await tenant("greedy")
        paths = ["/v1/jobs", f"/v1/datasets/{theirs}", "/readyz"]
        bomb = dictionary_bomb(messages=200, text_bytes=16_000_000)
        body = {"model": {"id": "local/hostile"}, "calibration": {"dataset": dataset}, "scheme": "W4A6"}
        floods: dict[str, tuple[Flood, int]] = {
            "statistics, 50 clients": (lambda c: c.get(f"/v1/datasets/{dataset}/statistics"), 50),
            "Parquet bombs, 20 clients": (
                lambda c: c.post("/v1/datasets", files={"file": ("bomb.parquet", bomb)}),
                20,
            ),
            "headers of 24 MB, 20 clients": (lambda c: c.post("/v1/jobs:plan", json=body), 20),
        }
        took: dict[str, list[float]] = {"no flood": [], **{name: [] for name in floods}}
        memory: dict[str, list[int]] = {name: [] for name in took}
        answers: dict[str, list[int]] = {name: [] for name in took}
        failed: list[str] = []
        await ask(quiet, paths, 2, failed)
        for _ in range(rounds):
            for name, times in took.items():
                watching = asyncio.create_task(most_memory(pid, memory[name]))
                flood = floods.get(name)
                busy = asyncio.create_task(flooding(greedy, *flood, answers[name])) if flood else None
                await asyncio.sleep(1)
                times += await ask(quiet, paths, seconds, failed)
                for task in filter(None, (watching, busy)):
                    task.cancel()
                await asyncio.sleep(2)
        return report(took, memory, answers, failed, len(bomb))


def report(
    took: dict[str, list[float]],
    memory: dict[str, list[int]],
    answers: dict[str, list[int]],
    failed: list[str],
    bomb: int,
) -> list[str]:
    p99 = {name: statistics.quantiles(times, n=100)[98] for name, times in took.items()}
    lines = ["| the other tenant | p50 | p99 | beside no flood | answers to it | most memory of the API |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, times in took.items():
        said = ", ".join(f"{answers[name].count(code)} × {code}" for code in sorted(set(answers[name]))) or "–"
        lines.append(
            f"| {name} | {statistics.median(times):.1f} ms | {p99[name]:.1f} ms | {p99[name] / p99['no flood']:.2f} |"
            f" {said} | {max(memory[name]) / 2**20:.0f} MiB |"
        )
    kinds = ", ".join(f"{count} × {what}" for what, count in Counter(failed).most_common()) or "none"
    lines += ["", f"Requests of the quiet tenant that failed, of {sum(map(len, took.values()))}: {kinds}."]
    lines += [f"The Parquet file has {bomb} bytes.", ""]
    kept = all(value <= TIMES_QUIET * p99["no flood"] for value in p99.values())
    lines += [f"At most {TIMES_QUIET:g} times the quiet p99: {'kept' if kept else 'NOT KEPT'}."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        write_model(home / "models" / "hostile")
        with served(home) as (address, pid):
            lines = asyncio.run(measure(address, pid, home, seconds=arguments.seconds, rounds=arguments.rounds))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    head = ["# One tenant floods the API", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    head += [f"{os.cpu_count()} cores, load of the machine at the end {load}.", ""]
    RESULTS.write_text("\n".join([*head, *lines]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""How fast a large file leaves the service, beside nginx serving the same file on the same machine in the same run.

    python -m benchmarks.downloads [--nginx /usr/sbin/nginx] [--gigabytes 2] [--rounds 5]

nginx comes from Debian's packages (``apt-get install nginx-light``, or ``apt-get download nginx`` and ``dpkg -x``).
Every way is one server process, the reader is curl, the file is in the page cache, and the ways take turns, so that
whatever else the machine does falls on all of them. One more round asks for something small all the while. Then fifty
clients fetch fifty ranges at once and every digest is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from core.storage import LocalStorage
from demo.service import Service, running_service
from worker.embedded.servers import embedded_postgres, free_port
from worker.process import start

RESULTS = Path(__file__).parent / "results" / "downloads.md"
NAME = "model.safetensors"
CLIENTS = 50
TARGET = 0.8
CONFIGURATION = """
daemon off; master_process off; worker_processes 1; user root; pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; default_type application/octet-stream;
  client_body_temp_path {directory}/b; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{
    listen 127.0.0.1:{port};
    location = /plain {{ alias {file}; }}
    location /_objects/ {{ internal; alias {storage}/; etag off; add_header ETag $upstream_http_etag; }}
    location / {{ proxy_pass http://127.0.0.1:{accel}; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


@dataclass
class Way:
    """One way to serve the file."""

    name: str
    url: str
    process: psutil.Process
    rates: list[float] = field(default_factory=list)
    """MB/s, one per round."""
    seconds: list[float] = field(default_factory=list)
    """CPU seconds of the server process per download."""
    latencies: list[float] = field(default_factory=list)
    """Milliseconds of small requests to the same server meanwhile."""
    small: str = ""
    memory_before: int = 0
    memory_peak: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nginx", type=Path, default=shutil.which("nginx"))
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.nginx is None:
        raise SystemExit("no nginx on this machine: apt-get install nginx-light, or name one with --nginx")
    directory = Path(tempfile.mkdtemp(prefix="qe-downloads-"))
    try:
        os.environ["QE_WORKERS"] = "0"
        with running_service(directory) as service:
            size = int(arguments.gigabytes * 1e9)
            job_id = publish(directory, size)
            with serving(directory, service, arguments.nginx, job_id) as ways:
                authorization = service.client.headers["authorization"]
                for number in range(arguments.rounds):
                    for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                        measure(way, authorization, size)
                for way in ways:
                    if way.small:
                        with asking(way, authorization):
                            download(way, authorization, size)
                digests = {way.name: ranged(way, authorization, directory, size) for way in (ways[1], ways[3])}
        report(ways, digests, size, arguments.rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def publish(directory: Path, size: int) -> str:
    """A succeeded job with one file of ``size`` random bytes."""
    source = directory / NAME
    block = os.urandom(1 << 20)
    with source.open("wb") as file:
        for number in range(0, size, len(block)):
            file.write((number.to_bytes(8) + block)[: min(len(block), size - number)])
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    job_id = "job_" + "0" * 32
    LocalStorage(directory / "home" / "storage").put(f"jobs/{job_id}/a1/{NAME}", source)
    with psycopg.connect(embedded_postgres(directory / "home").url, autocommit=True) as connection:
        spec = {"model": {"id": "acme/x"}, "calibration": {"dataset": "acme/rows"}, "scheme": "W4A6"}
        connection.execute(
            "INSERT INTO jobs (id, tenant, spec, model_id, method, scheme, status, finished_at)"
            " VALUES (%s, 'default', %s, 'acme/x', 'qe', 'W4A6', 'succeeded', clock_timestamp())",
            (job_id, json.dumps(spec)),
        )
        connection.execute(
            "INSERT INTO artifacts (job_id, name, attempt, key, bytes, sha256, media_type)"
            " VALUES (%s, %s, 1, %s, %s, %s, 'application/octet-stream')",
            (job_id, NAME, f"jobs/{job_id}/a1/{NAME}", size, digest),
        )
    return job_id


@contextlib.contextmanager
def serving(directory: Path, service: Service, nginx: Path, job_id: str) -> Iterator[list[Way]]:
    """nginx alone, the service as `qe serve` starts it, and two more API processes: by reading, and behind nginx."""
    home, storage = directory / "home", directory / "home" / "storage"
    front, reading, accelerated = free_port(), free_port(), free_port()
    environment = {
        **os.environ,
        "QE_HOME": str(home),
        "QE_DATABASE_URL": embedded_postgres(home).url,
        "QE_API_KEY": str(service.client.headers["authorization"]).removeprefix("Bearer "),
    }
    uvicorn = [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--log-level", "warning", "--port"]
    configuration = directory / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            directory=directory,
            port=front,
            accel=accelerated,
            storage=storage,
            file=storage / f"jobs/{job_id}/a1/{NAME}",
        )
    )
    commands = {
        "nginx": ([str(nginx), "-p", str(directory), "-c", str(configuration)], environment),
        "reading": ([*uvicorn, str(reading), "--http", "h11"], environment),
        "accelerated": ([*uvicorn, str(accelerated)], {**environment, "QE_ACCEL_PREFIX": "/_objects"}),
    }
    started = {
        name: start(command, environment=own, log=directory / f"{name}.log")
        for name, (command, own) in commands.items()
    }
    try:
        for port in (front, reading, accelerated):
            _await(port)
        artifact = f"/v1/jobs/{job_id}/artifacts/{NAME}"
        job = f"/v1/jobs/{job_id}"
        api = next(
            psutil.Process(child.pid)
            for child in psutil.Process().children(recursive=True)
            if "app.main:create_app" in child.cmdline() and "app.web.kernel_copy:FileProtocol" in child.cmdline()
        )
        processes = {name: psutil.Process(child.pid) for name, child in started.items()}
        base = f"http://127.0.0.1:{front}"
        yield [
            Way("nginx, the file itself", f"{base}/plain", processes["nginx"]),
            Way("the API, kernel copy (default)", f"{service.url}{artifact}", api, small=f"{service.url}{job}"),
            Way(
                "the API, reading 1 MiB at a time",
                f"http://127.0.0.1:{reading}{artifact}",
                processes["reading"],
                small=f"http://127.0.0.1:{reading}{job}",
            ),
            Way(
                "the API behind nginx, `X-Accel-Redirect`",
                f"{base}{artifact}",
                processes["nginx"],
                small=f"{base}{job}",
            ),
        ]
    finally:
        for child in started.values():
            child.terminate()
            child.wait(10)


def measure(way: Way, authorization: str, size: int) -> None:
    way.memory_before = way.memory_before or way.process.memory_info().rss
    before = way.process.cpu_times()
    with watching(way):
        way.rates.append(download(way, authorization, size))
    after = way.process.cpu_times()
    way.seconds.append(after.user + after.system - before.user - before.system)


def download(way: Way, authorization: str, size: int) -> float:
    """MB/s."""
    header = f"Authorization: {authorization}"
    written = "%{http_code} %{size_download} %{speed_download}"
    done = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-H", header, "-w", written, way.url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, received, speed = done.stdout.split()
    if (status, int(received)) != ("200", size):
        raise SystemExit(f"{way.name}: {done.stdout}, expected 200 and {size} bytes")
    return float(speed) / 1e6


@contextlib.contextmanager
def watching(way: Way) -> Iterator[None]:
    """Keeps the peak of the server's memory."""

    def look() -> None:
        way.memory_peak = max(way.memory_peak, way.process.memory_info().rss)

    with _again_and_again(look, 0.05):
        yield


@contextlib.contextmanager
def asking(way: Way, authorization: str) -> Iterator[None]:
    """Keeps the latency of small requests, fifty in a second."""

    def ask() -> None:
        began = time.perf_counter()
        get(way.small, {"Authorization": authorization})
        way.latencies.append((time.perf_counter() - began) * 1000)

    with _again_and_again(ask, 0.02):
        yield


@contextlib.contextmanager
def _again_and_again(do: Callable[[], None], every: float) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(every):
            do()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ranged(way: Way, authorization: str, directory: Path, size: int) -> tuple[int, float, int]:
    """(right digests, MB/s of all together, peak memory): as many clients at once as there are ranges."""
    edges = [size * number // CLIENTS for number in range(CLIENTS + 1)]
    source = directory / NAME
    way.memory_peak = 0

    def one(number: int) -> bool:
        first, end = edges[number], edges[number + 1]
        body = get(way.url, {"Authorization": authorization, "Range": f"bytes={first}-{end - 1}"}, hashlib.sha256)
        with source.open("rb") as file:
            file.seek(first)
            expected, left = hashlib.sha256(), end - first
            while left:
                chunk = file.read(min(1 << 20, left))
                expected.update(chunk)
                left -= len(chunk)
        return body == expected.hexdigest()

    began = time.perf_counter()
    with watching(way), ThreadPoolExecutor(CLIENTS) as pool:
        right = sum(pool.map(one, range(CLIENTS)))
    return right, size / 1e6 / (time.perf_counter() - began), way.memory_peak


def get(url: str, headers: dict[str, str], digest: Callable[[], hashlib._Hash] | None = None) -> str:
    """The digest of the body, without holding it."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=300)
    connection.request("GET", f"/{path}", headers=headers)
    response = connection.getresponse()
    if response.status not in (200, 206):
        raise SystemExit(f"{url}: {response.status}")
    hashed = digest() if digest is not None else None
    while chunk := response.read(1 << 20):
        if hashed is not None:
            hashed.update(chunk)
    connection.close()
    return hashed.hexdigest() if hashed is not None else ""


def _await(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            connection.getresponse()
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing answers on port {port}")


def report(ways: list[Way], digests: dict[str, tuple[int, float, int]], size: int, rounds: int) -> None:
    nginx, default = statistics.median(ways[0].rates), statistics.median(ways[1].rates)
    rows = [
        "| served by | MB/s | of nginx | CPU s | memory | latency median / p95, ms |",
        "|---|---:|---:|---:|---:|---:|",
        *(_row(way, nginx) for way in ways),
    ]
    verdict = "met" if default >= TARGET * nginx else "not met"
    text = f"""# Downloads

    python -m benchmarks.downloads --rounds {rounds}

A file of {size / 1e9:g} GB in the page cache, fetched by curl on the same machine ({os.cpu_count()} cores, load
{os.getloadavg()[0]:.1f} at the end of the run); median of {rounds} rounds in turn, with smallest and largest. CPU is
the server process's for one download, memory its growth over all rounds. The latency is of `GET /v1/jobs/{{id}}` at the
same API process during one more download.

{chr(10).join(rows)}

Target: at least {TARGET:.0%} of nginx. The default has {default / nginx:.0%}: {verdict}.

{CLIENTS} clients at once, each with its own range, which hash in Python on the same cores:

| served by | right digests | MB/s together | server's memory |
|---|---:|---:|---:|
{chr(10).join(_digests(name, *found) for name, found in digests.items())}
"""
    RESULTS.write_text(text)
    print(text)


def _digests(name: str, right: int, together: float, peak: int) -> str:
    return f"| {name} | {right} of {CLIENTS} | {together:.0f} | {peak / 1e6:.0f} MB |"


def _row(way: Way, nginx: float) -> str:
    latency = "–"
    if len(way.latencies) > 20:
        latency = f"{statistics.median(way.latencies):.0f} / {statistics.quantiles(way.latencies, n=20)[-1]:.0f}"
    rate, growth = statistics.median(way.rates), (way.memory_peak - way.memory_before) / 1e6
    rates = f"{rate:.0f} ({min(way.rates):.0f}–{max(way.rates):.0f}) | {rate / nginx:.0%}"
    return f"| {way.name} | {rates} | {statistics.median(way.seconds):.2f} | {growth:+.1f} MB | {latency} |"


if __name__ == "__main__":
    main()

"""The whole service on one machine in one command: ``qe serve``.

PostgreSQL and Redis from wheels (unless QE_DATABASE_URL and QE_REDIS_URL name servers), migrations, the API, Celery
workers and the keeper, each a process of its own with a log in QE_HOME/logs. One that dies is started again. Ctrl-C
stops them in order, a second Ctrl-C at once; and if this process dies, the kernel takes all of them with it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from pydantic import ValidationError

from core import preflight
from core.migrate import migrate
from core.secret import hub_key
from core.settings import Settings, complaints
from worker import process
from worker.embedded.parts import TICK_SECONDS, Interrupts, Part, ServiceFailed, look_after, stop
from worker.embedded.servers import ServerFailed, embedded_postgres, embedded_redis
from worker.machine import device

START_SECONDS = 120.0
MAX_PORT = 65535


@click.command()
@click.option("--host", help="Address to listen on; QE_HOST, or 127.0.0.1.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on; QE_PORT, or 8000.")
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), help="Data directory; QE_HOME, or .qe.")
@click.option("--workers", type=click.IntRange(0, 64), help="Celery workers; QE_WORKERS, or 1.")
def serve(**options: object) -> None:
    """Start the service on this machine; Ctrl-C stops all of it.

    PostgreSQL and Redis come along, unless QE_DATABASE_URL and QE_REDIS_URL name others. Every setting is a QE_*
    environment variable: QE_API_KEY, QE_MODEL_ROOT, QE_STORAGE_URL and the rest are in docs/deployment.md.
    """
    try:
        values = {name: value for name, value in options.items() if value is not None}
        run(Settings.model_validate({**Settings().model_dump(), **values}))
    except (ServiceFailed, ServerFailed) as failure:
        raise click.ClickException(str(failure)) from failure
    except ValidationError as error:
        raise click.ClickException("; ".join(complaints(error))) from error


def run(settings: Settings) -> None:
    """Serve until somebody interrupts. Raises ServiceFailed or ServerFailed; nothing is left running in any case."""
    preflight.check_packages("app", "worker", *(["engine"] if settings.workers else []))
    interrupts = Interrupts()
    home = settings.resolved_home
    (home / "logs").mkdir(parents=True, exist_ok=True)
    with _home_to_ourselves(home):
        _check_port(settings.host, settings.port)
        parts: list[Part] = []
        try:
            environment = _start_servers(settings, parts, interrupts)
            new_key, environment["QE_API_KEY"] = _api_key(settings, home)
            environment["QE_HUB_KEY"] = hub_key(settings)
            _start_service(settings, parts, environment, interrupts)
            address = f"http://{settings.host}:{settings.port}"
            click.echo(f"Quant Experts listens on {address}  (dashboard at /, API at /v1, its docs at /docs)")
            click.echo(f"  API key: {environment['QE_API_KEY'] if new_key else _where_is_the_key(settings, home)}")
            if new_key:
                click.echo(f"  It is shown this once, and kept in {home / 'api_key'}.")
            click.echo(f"  Data in {home}, logs in {home / 'logs'}. Ctrl-C stops everything.")
            look_after(parts, interrupts)
        except KeyboardInterrupt:
            click.echo("stopping; workers finish the block in hand (Ctrl-C again ends them at once)")
        finally:
            stop(parts, interrupts)
    click.echo("stopped")


def _start_servers(settings: Settings, parts: list[Part], interrupts: Interrupts) -> dict[str, str]:
    """Servers that the settings do not name; the environment of everything that comes after."""
    home = settings.resolved_home
    database_url, redis_url = settings.database_url, settings.redis_url
    if database_url is None:
        postgres = embedded_postgres(home)
        part = Part("postgres", postgres.start, stop_signal=signal.SIGINT)
        parts.append(part)
        part.child = postgres.start()
        postgres.wait(part.child)
        database_url = postgres.url
    interrupts.check()
    if redis_url is None:
        redis = embedded_redis(home)
        part = Part("redis", redis.start)
        parts.append(part)
        part.child = redis.start()
        redis.wait(part.child)
        redis_url = redis.url
    interrupts.check()
    migrate(database_url)
    return {
        **os.environ,
        "QE_HOME": str(home),
        "QE_DATABASE_URL": database_url,
        "QE_REDIS_URL": redis_url,
        "QE_STORAGE_URL": settings.resolved_storage_url,
        "PYTHONUNBUFFERED": "1",
    }


def _start_service(settings: Settings, parts: list[Part], environment: dict[str, str], interrupts: Interrupts) -> None:
    logs = settings.resolved_home / "logs"
    # Only the API and the workers are told what only they need. A heartbeat file is one process's.
    private = {"QE_API_KEY", "QE_SECRET", "QE_HUB_KEY", "QE_HUB_TOKEN", "QE_HEARTBEAT_FILE"}
    common = {name: value for name, value in environment.items() if name not in private}

    def part(name: str, command: list[str], *needs: str, nth: int = 0, **more: str) -> Part:
        own = {**common, **{need: environment[need] for need in needs if need in environment}, **more}
        own["QE_METRICS_PORT"] = str(_metrics_port(settings, nth))
        return Part(name, lambda: process.start(command, environment=own, log=logs / f"{name}.log"))

    python = sys.executable
    api = [python, "-m", "uvicorn", "--factory", "app.main:create_app", "--host", settings.host]
    # Streams of events stay open for hours; they are dropped, and clients take them up with Last-Event-ID.
    api += [
        "--port",
        str(settings.port),
        "--timeout-graceful-shutdown",
        "3",
        "--http",
        "app.web.kernel_copy:FileProtocol",
    ]
    api += ["--no-proxy-headers"]  # the app has QE_TRUSTED_PROXIES
    worker = [python, "-m", "worker.queue.command", "--name"]
    service = [
        part("api", api, "QE_API_KEY", "QE_SECRET", "QE_HUB_KEY", "QE_HUB_TOKEN"),
        part("keeper", [python, "-m", "worker.keeper"], "QE_SECRET", "QE_HUB_KEY"),
    ]
    gpus = _gpus_by_worker(settings.workers)
    for number in range(1, settings.workers + 1):
        name = f"worker-{number}"
        command = [*worker, f"{name}@%h"]
        service.append(part(name, command, "QE_HUB_KEY", "QE_HUB_TOKEN", nth=number, **gpus[number - 1]))
    for each in service:
        parts.append(each)
        each.child = each.start()
    _wait_until_ready(settings, service[0], logs, interrupts)


def _gpus_by_worker(workers: int) -> list[dict[str, str]]:
    """The GPUs dealt out among the workers, as their environments say it. Raises ServiceFailed."""
    try:
        uuids = [each.uuid for each in device.devices() if each.uuid is not None]
    except device.NoSuchDevice as error:
        raise ServiceFailed(str(error)) from error
    if not uuids:
        return [{}] * workers
    # More workers than GPUs share them.
    gpus_of_workers = [uuids[number::workers] or [uuids[number % len(uuids)]] for number in range(workers)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(hand)} for hand in gpus_of_workers]


def _metrics_port(settings: Settings, nth: int) -> int:
    """The keeper's is the one that was asked for, worker n has the nth after it: they share a machine here."""
    port = settings.metrics_port + nth
    return port if settings.metrics_port and port <= MAX_PORT else 0


def _wait_until_ready(settings: Settings, api: Part, logs: Path, interrupts: Interrupts) -> None:
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 -- compared, not bound
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/readyz"
    deadline = time.monotonic() + START_SECONDS
    while True:
        interrupts.check()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if not api.running():
                raise ServiceFailed(f"the API did not start: {_complaint(logs / 'api.log')}") from None
            if time.monotonic() > deadline:
                raise ServiceFailed(f"the API is not ready after {START_SECONDS:g} s; see {logs / 'api.log'}") from None
        time.sleep(TICK_SECONDS)


def _complaint(log: Path) -> str:
    """The last line of ``log`` that names an error, and where the rest is."""
    lines = [
        line for line in log.read_text(errors="replace").splitlines() if re.match(r"\w*(Error|Exception|Exit)\b", line)
    ]
    return f"{lines[-1]} (log: {log})" if lines else f"its log is {log}"


@contextmanager
def _home_to_ourselves(home: Path) -> Iterator[None]:
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceFailed(
                f"another `qe serve` uses {home}: stop it, or set QE_HOME to another directory"
            ) from None
        yield


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceFailed(
                f"port {port} on {host} cannot be used ({error.strerror}): set QE_PORT or QE_HOST"
            ) from error


def _api_key(settings: Settings, home: Path) -> tuple[bool, str]:
    """(made just now, the bootstrap key). One that we made is kept, so that a restart does not lock its owner out."""
    if settings.api_key is not None:
        return False, settings.api_key
    path = home / "api_key"
    if path.is_file() and (own_key := path.read_text().strip()):
        return False, own_key
    key = f"qe_{secrets.token_urlsafe(32)}"
    draft = path.with_suffix(".part")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)  # whole or not at all: the home is ours alone
    return True, key


def _where_is_the_key(settings: Settings, home: Path) -> str:
    return "as in QE_API_KEY" if settings.api_key is not None else f"kept in {home / 'api_key'}"


if __name__ == "__main__":
    serve()

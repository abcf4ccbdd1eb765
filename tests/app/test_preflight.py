"""A wrong setup is refused by every process, before it does anything, in one line that says what to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from core import preflight
from core.secret import Seal
from core.settings import Settings

SECRET, OTHER = "s" * 40, "t" * 40
PROCESSES = {
    "api": ["-m", "uvicorn", "--factory", "app.main:create_app", "--port", "0"],
    "migrate": ["-m", "core.migrate"],
    "worker": ["-m", "worker.queue.command"],
    "worker --once": ["-m", "worker.queue.command", "--once"],
    "keeper": ["-m", "worker.keeper"],
}


def start(process: str, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QE_", "PG"))}
    environment = {**kept, "QE_REDIS_URL": "redis://127.0.0.1:9/0", "QE_SECRET": SECRET, **settings}
    command = [sys.executable, *PROCESSES[process]]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that it said."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "home")


@pytest.mark.parametrize(("process", "variable"), [*((each, "QE_SECRET") for each in PROCESSES), ("api", "QE_API_KEY")])
def test_a_short_secret(process: str, variable: str, home: str) -> None:
    said = refusal(start(process, **{variable: "short"}, QE_HOME=home, QE_DATABASE_URL="postgresql://127.0.0.1:9/qe"))
    assert said.startswith(f"{variable}: it has 5 characters; at least 32")
    assert not Path(home).exists()


@pytest.mark.parametrize("process", PROCESSES)
def test_another_secret_than_before(process: str, home: str, database_url: str) -> None:
    preflight.check(Settings(database_url=database_url, secret=SECRET), models=False, secret=True)
    said = refusal(start(process, QE_SECRET=OTHER, QE_HOME=home, QE_DATABASE_URL=database_url))
    assert said.startswith("QE_SECRET is not the one with which this database was used before")
    assert "qe migrate --accept-new-secret" in said


def test_another_secret_is_taken_when_that_is_said(home: str, database_url: str) -> None:
    old, new = (Settings(database_url=database_url, secret=each) for each in (SECRET, OTHER))
    preflight.check(old, models=False, secret=True)
    command = [sys.executable, *PROCESSES["migrate"], "--accept-new-secret"]
    environment = {**os.environ, "QE_SECRET": OTHER, "QE_DATABASE_URL": database_url, "QE_HOME": home}
    subprocess.run(command, check=True, env=environment, timeout=60)
    preflight.check(new, models=False, secret=True)
    with pytest.raises(SystemExit):
        preflight.check(old, models=False, secret=True)


def test_what_the_database_keeps_of_the_secret_opens_nothing(database_url: str) -> None:
    settings = Settings(database_url=database_url, secret=SECRET)
    preflight.check(settings, models=False, secret=True)
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT digest FROM service_secret").fetchone()
    assert row is not None
    assert re.fullmatch("[0-9a-f]{64}", row[0])
    sealed = Seal(SECRET).seal("value", row="webhook")
    for guess in (row[0], bytes.fromhex(row[0]).decode("latin-1")):
        with pytest.raises(Exception, match="cannot be opened"):
            Seal(guess).open(sealed, row="webhook")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_login_that_postgresql_refuses(process: str, home: str, database_url: str) -> None:
    parts = urlsplit(database_url)
    nobody = parts._replace(path="/no_such_database").geturl()
    said = refusal(start(process, QE_HOME=home, QE_DATABASE_URL=nobody))
    assert said.startswith("PostgreSQL refuses the login of QE_DATABASE_URL")
    assert 'database "no_such_database" does not exist' in said


def test_a_wrong_password_says_what_a_volume_remembers(capsys: pytest.CaptureFixture[str]) -> None:
    answer = 'connection failed: FATAL:  password authentication failed for user "qe"'
    with pytest.raises(SystemExit, match=r"ALTER ROLE qe PASSWORD") as refused:
        preflight._refuse_for_good(answer)
    assert "POSTGRES_PASSWORD counts only when the volume is made" in str(refused.value)


def test_a_database_that_is_away_or_starts_is_waited_for() -> None:
    for answer in ("connection refused", "FATAL:  the database system is starting up", "too many clients already"):
        preflight._refuse_for_good(answer)


def test_a_misspelt_setting_is_named(home: str, database_url: str) -> None:
    said = start("migrate", QE_MAX_RUNING_JOBS="3", QE_HOME=home, QE_DATABASE_URL=database_url).stderr
    assert (
        said.count("QE_MAX_RUNING_JOBS is not a setting and has no effect; there is a setting QE_MAX_RUNNING_JOBS") == 1
    )


def test_what_compose_alone_reads_is_known_and_its_misspellings_are_named() -> None:
    root = Path(__file__).parent.parent.parent
    text = (root / "docker-compose.yml").read_text() + (root / "docker-compose.gpu.yml").read_text()
    text += (root / ".env.example").read_text()
    used = {*re.findall(r"(?<!\$)\$\{(\w+)", text), *re.findall(r"^(?:# )?(\w+)=", text, re.M)}
    settings = {f"QE_{name.upper()}" for name in Settings.model_fields}
    of_others = {name for name in used if name.startswith(("OTEL_", "AWS_"))}
    assert set(preflight.COMPOSE_VARIABLES) == used - settings - of_others
    wrong = {"QE_WORKER_MEMROY": "QE_WORKER_MEMORY", "QE_IMAGE": "QE_IMAGES", "POSTGRES_MEMRY": "POSTGRES_MEMORY"}
    assert preflight.misspelt(wrong) == wrong
    assert preflight.misspelt(["POSTGRES_PORT", "GRAFANA_PORT", "QE_API_PORT", "PGPASSWORD", "PATH", "HOME"]) == {}


def test_names_of_the_example_and_of_the_client_are_no_misspelt_settings() -> None:
    example = (Path(__file__).parent.parent.parent / ".env.example").read_text()
    assert (
        preflight.misspelt([*re.findall(r"^#? ?(QE_\w+)=", example, re.M), "QE_URL", "QE_CHROMIUM", "QE_KERNELS"]) == {}
    )


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check_packages("app", "worker", "engine")
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["torch>=2", "nowhere[a,b]>=2; extra == 'engine'", "x; extra == 'dev'"]
    )
    preflight.check_packages("worker")
    with pytest.raises(SystemExit, match=r"^not installed: nowhere\. pip install 'quant-experts\[worker,engine\]'$"):
        preflight.check_packages("worker", "engine")


@pytest.mark.parametrize("process", ["worker", "worker --once"])  # of the API another machine's may be meant
def test_a_missing_directory_of_models(process: str, home: str, tmp_path: Path) -> None:
    missing = tmp_path / "models"
    said = refusal(
        start(process, QE_MODEL_ROOT=str(missing), QE_HOME=home, QE_DATABASE_URL="postgresql://127.0.0.1:9/qe")
    )
    assert said == f"QE_MODEL_ROOT: {missing} is not a directory: make it, or name another"
    assert not missing.exists()


def test_a_storage_that_is_none(home: str) -> None:
    url = "ftp://files"
    said = refusal(start("keeper", QE_STORAGE_URL=url, QE_HOME=home, QE_DATABASE_URL="postgresql://127.0.0.1:9/qe"))
    assert "QE_STORAGE_URL 'ftp://files'" in said

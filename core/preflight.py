"""What is wrong with how a process was set up, in one line that says what to do, before it does anything."""

from __future__ import annotations

import difflib
import functools
import hmac
import logging
import os
import re
from collections.abc import Iterable
from importlib import metadata
from urllib.parse import urlsplit

import psycopg

from core import pooler
from core.secret import service_secret
from core.settings import Settings
from core.storage import storage_from_url
from core.tracing import check_tracing

CONNECT_SECONDS = 5
PURPOSE = b"quant-experts: which secret, 1"
REFUSED = re.compile(r"password authentication failed|no password supplied|does not exist|no pg_hba\.conf entry")
"""Answers of PostgreSQL that waiting does not change."""
VOID = (
    "QE_SECRET is not the one with which this database was used before: no API key and no webhook secret that is stored"
    " in it would work. Set the old one again. If it is lost, or was to be replaced, run"
    " `qe migrate --accept-new-secret` (with Docker"
    " `docker compose run --rm migrate python -m core.migrate --accept-new-secret`), then make new keys and webhooks"
)
COMPOSE_VARIABLES = [
    "COMPOSE_PROJECT_NAME", "GRAFANA_PASSWORD", "POSTGRES_MEMORY", "POSTGRES_PASSWORD", "QE_API_MEMORY", "QE_BACKUPS",
    "QE_DOMAIN", "QE_GRAFANA_PORT", "QE_HTTPS_PORT", "QE_HTTP_PORT", "QE_IMAGES", "QE_KEEPER_MEMORY", "QE_MODELS",
    "QE_OBJECTS_PORT", "QE_PROMETHEUS_PORT", "QE_PYTHON", "QE_VERSION", "QE_WORKER_MEMORY", "TORCH_INDEX",
]  # fmt: skip
"""Compose alone reads these from .env. ``migrate`` gets the whole file, and warns of a misspelt name."""
EXTRA = re.compile(r"([\w.-]+)[^;]*; extra == ['\"](\w+)['\"]")
"""A requirement of the distribution, with the extra that alone brings it."""
logger = logging.getLogger(__name__)


def check(settings: Settings, *, models: bool, secret: bool) -> None:
    """``models``: this process reads local models; ``secret``: it uses the service's secret. Raises SystemExit.

    A database that is away is no fault of the setup: every process waits for it.
    """
    _warn_of_misspelt()
    if models and settings.model_root is not None and not settings.model_root.is_dir():
        raise SystemExit(f"QE_MODEL_ROOT: {settings.model_root} is not a directory: make it, or name another")
    try:
        check_tracing(settings)
        if urlsplit(settings.resolved_storage_url).scheme != "file":
            storage_from_url(settings.resolved_storage_url)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if settings.database_url is None:
        return
    try:
        with _connected(settings.database_url) as connection:
            if secret:
                _same_secret(connection, fingerprint(settings))
    except psycopg.ProgrammingError as error:
        raise SystemExit(f"QE_DATABASE_URL: {_line(error)}") from None
    except psycopg.OperationalError as error:
        _refuse_for_good(_line(error))


@functools.cache
def _warn_of_misspelt() -> None:
    """Once in a process."""
    for name, setting in misspelt(os.environ).items():
        logger.warning("%s is not a setting and has no effect; there is a setting %s", name, setting)


def misspelt(names: Iterable[str]) -> dict[str, str]:
    """Those of ``names`` that look like a setting and are none, each with the setting that it looks like."""
    settings = [*(f"QE_{name.upper()}" for name in Settings.model_fields), *COMPOSE_VARIABLES]
    near = {name: difflib.get_close_matches(name, settings, n=1, cutoff=0.9) for name in names if name not in settings}
    return {name: matches[0] for name, matches in near.items() if matches}


def check_packages(*extras: str) -> None:
    """Raises SystemExit where a distribution that these extras name is not installed."""
    if not _installed("quant-experts"):
        return  # a checkout on the path: nothing says what it needs
    parts = [EXTRA.fullmatch(each) for each in metadata.requires("quant-experts") or ()]
    requirements = {part[1] for part in parts if part and part[2] in extras}
    missing = sorted(each for each in requirements if not _installed(each))
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}. pip install 'quant-experts[{','.join(extras)}]'")


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def accept_secret(settings: Settings) -> None:
    """Record that this database is used with the secret of these settings."""
    assert settings.database_url is not None
    with _connected(settings.database_url) as connection:
        connection.execute(
            "INSERT INTO service_secret (id, digest) VALUES (1, %(digest)s)"
            " ON CONFLICT (id) DO UPDATE SET digest = excluded.digest, since = clock_timestamp()",
            {"digest": fingerprint(settings)},
        )


def _connected(database_url: str) -> psycopg.Connection:
    return psycopg.connect(
        pooler.plain(database_url), autocommit=True, connect_timeout=CONNECT_SECONDS, prepare_threshold=None
    )


def fingerprint(settings: Settings) -> str:
    """Tells one secret from another, and nothing else about it."""
    return hmac.new(service_secret(settings).encode(), PURPOSE, "sha256").hexdigest()


def _same_secret(connection: psycopg.Connection, digest: str) -> None:
    """The first process that comes to a database says which secret it is used with; SystemExit for another one."""
    table = connection.execute("SELECT to_regclass('service_secret') IS NOT NULL").fetchone()
    if table is None or not table[0]:
        return  # not migrated yet
    row = connection.execute("SELECT digest FROM service_secret").fetchone()
    if row is None:
        connection.execute("INSERT INTO service_secret (id, digest) VALUES (1, %s) ON CONFLICT DO NOTHING", (digest,))
        row = connection.execute("SELECT digest FROM service_secret").fetchone()
    if row is not None and not hmac.compare_digest(row[0], digest):
        raise SystemExit(VOID)


def _refuse_for_good(answer: str) -> None:
    if not REFUSED.search(answer):
        logger.warning("the database cannot be reached: %s", answer)
        return
    advice = "correct QE_DATABASE_URL or PGPASSWORD"
    if "password" in answer:
        advice += (
            ". With Docker, POSTGRES_PASSWORD counts only when the volume is made: set the old one again, or give the"
            " database the new one: docker compose exec postgres psql --username qe --command"
            " \"ALTER ROLE qe PASSWORD '…'\""
        )
    raise SystemExit(f"PostgreSQL refuses the login of QE_DATABASE_URL ({answer}): {advice}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

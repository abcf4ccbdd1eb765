"""Carries pushes: takes one that is due, has a child upload it file by file, and records what came of it.

The child asks for each file that its destination lacks, and only then is the file brought from our storage to local
disk. The keeper has no more of a push on disk than what the child has not sent on.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from core.contract.destination import Prefix, Repository, Tracking, destination_of
from core.crash_points import reach
from core.secret import BadSeal, open_bucket_secret, open_hub_token
from core.settings import Settings
from core.storage import ObjectMissing, Storage, storage_from_url
from worker import process
from worker.ledger.attempts import hub_token
from worker.ledger.connection import Connection, connect
from worker.pushes import queue
from worker.pushes.queue import Due, File, NotOurs, Over, Progress

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
BEAT_SECONDS = 20.0
LONGEST_SECONDS = 24 * 3600.0
"""Of one attempt. The next goes on with what has not arrived."""
PREFIX = "push-"
"""Of its directories below ``QE_HOME/work``."""
COMMITS = ("model_commit", "dataset_commit")
OF_TRACKING = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Variables that open the operator's tracking server."""
COMMAND = (sys.executable, "-m", "worker.pushes.uploader")


class Failed(Exception):
    """Why an attempt failed, shown to the push's owner. ``final``: no waiting helps."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


class Stopping(Exception):
    """The keeper was asked to stop."""


def push_regularly(settings: Settings, stop: threading.Event) -> None:
    """Push until ``stop`` is set. Waits for a database that is away."""
    while not stop.is_set():
        try:
            storage = storage_from_url(settings.resolved_storage_url)
            with connect(settings.database_url or "") as connection:
                while not stop.is_set():
                    if not push_next(connection, storage, settings, stop):
                        stop.wait(IDLE_SECONDS)
        except psycopg.Error as error:
            logger.warning("the ledger cannot be reached, pushes wait: %s", error)
            stop.wait(settings.keeper_interval)
        except Exception:  # a thread that is gone would push nothing any more, and nobody would notice
            logger.exception("pushes wait")
            stop.wait(settings.keeper_interval)


def push_next(connection: Connection, storage: Storage, settings: Settings, stop: threading.Event) -> bool:
    """Carry one push that is due, to its end or its failure. False: none is due."""
    due = queue.take_due(connection)
    if due is None:
        return False
    try:
        result = _carry(connection, storage, due, settings, stop)
        reach("push.uploaded")
        queue.succeed(connection, due, result)
        logger.info("%s: %s is at %s", due.id, due.job_id, due.destination)
    except Stopping:
        queue.release(connection, due)
    except NotOurs as error:
        logger.info("%s", error)
    except Over as reason:
        queue.cancel(connection, due, str(reason))
        logger.info("%s: %s", due.id, reason)
    except Failed as failure:
        queue.fail(connection, due, str(failure), is_final=failure.final)
        logger.warning("%s to %s: %s", due.id, due.destination, failure)
    return True


def _carry(
    connection: Connection, storage: Storage, due: Due, settings: Settings, stop: threading.Event
) -> Mapping[str, Any]:
    """What the child says at its end. Raises Failed, Over, NotOurs or Stopping."""
    files = queue.files_of(connection, due)
    order = _order(connection, due, files, settings)
    progress = Progress(len(files), sum(file.bytes for file in files))
    queue.beat(connection, due, progress)
    settings.work_directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=settings.work_directory, ignore_cleanup_errors=True) as name:
        return _Upload(connection, storage, due, files, progress, Path(name), stop).run(order, settings)


class _Upload:
    """One attempt: the child, and what it is given."""

    def __init__(
        self,
        connection: Connection,
        storage: Storage,
        due: Due,
        files: list[File],
        progress: Progress,
        directory: Path,
        stop: threading.Event,
    ) -> None:
        self._connection = connection
        self._storage = storage
        self._due = due
        self._files = {file.name: (number, file) for number, file in enumerate(files)}
        self._progress = progress
        self._directory = directory
        self._stop = stop

    def run(self, order: Mapping[str, Any], settings: Settings) -> Mapping[str, Any]:
        child = process.start(
            COMMAND,
            environment=_environment(settings, order),
            directory=settings.resolved_home,  # where a tracking store without a server keeps its artifacts
            log=settings.resolved_home / "logs" / f"{self._due.id}.log",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with child.stdin, child.stdout:
                process.write_all(child.stdin, _line(order))
                return self._follow(child)
        finally:
            process.kill_group(child)
            process.reap(child)

    def _follow(self, child: subprocess.Popen[bytes]) -> Mapping[str, Any]:
        assert child.stdout is not None
        began = beaten = time.monotonic()
        for raw in process.lines(child.stdout):
            now = time.monotonic()
            if self._stop.is_set():
                raise Stopping
            if now - began > LONGEST_SECONDS:
                raise Failed(f"it took longer than {LONGEST_SECONDS / 3600:g} hours", final=False)
            if now - beaten > BEAT_SECONDS:
                queue.beat(self._connection, self._due, self._progress)
                beaten = now
            if raw is None:
                continue
            said = json.loads(raw)
            match said["type"]:
                case "want":
                    process.write_all(child.stdin, _line({"path": str(self._bring(said["name"]))}))
                case "there":
                    self._progress.files_done += 1
                    self._progress.bytes_done += self._files[said["name"]][1].bytes
                    queue.beat(self._connection, self._due, self._progress)
                    reach("push.file_there")
                case "done":
                    return dict(said["result"])
                case "error":
                    raise Failed(str(said["message"]), final=bool(said["final"]))
        raise Failed(f"the upload {process.describe_end(process.reap(child))} without a word", final=False)

    def _bring(self, name: str) -> Path:
        """The file from our storage, on local disk under a name of ours."""
        number, file = self._files[name]
        path = self._directory / str(number)
        try:
            self._storage.fetch(file.key, path)
        except ObjectMissing:
            queue.beat(self._connection, self._due, self._progress)  # which raises Over where it was deleted
            raise Failed(f"{name} is gone from the service's storage", final=True) from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise Failed(f"{name} cannot be read from the service's storage: {reason}", final=False) from None
        return path


def _order(connection: Connection, due: Due, files: list[File], settings: Settings) -> dict[str, Any]:
    """What the child is to do. Raises Failed without a key for the destination."""
    destination = destination_of(due.destination)
    listed = [{name: value for name, value in vars(file).items() if name != "key"} for file in files]
    order: dict[str, Any] = {"files": listed, "message": f"{due.job_id}, quantized by Quant Experts"}
    try:
        if isinstance(destination, Repository):
            return order | _to_hub(connection, due, destination, settings)
        if isinstance(destination, Tracking):
            return order | _to_tracking(connection, due, settings)
        return order | _to_bucket(connection, due, destination, settings)
    except BadSeal as error:
        raise Failed(f"{error} (by this keeper)", final=False) from None


def _to_hub(connection: Connection, due: Due, repository: Repository, settings: Settings) -> dict[str, Any]:
    """With the tenant's own token: the service's would let every tenant write what its operator may write."""
    sealed = hub_token(connection, tenant=due.tenant)
    if sealed is None:
        raise Failed("the tenant has no hub token any more: set one, and push again", final=True)
    return {
        "kind": "hub",
        "walled": False,  # no tenant chooses the hub's address
        "access": open_hub_token(sealed, tenant=due.tenant, settings=settings),
        "repository": repository.id,
        "private": due.private,
    }


def _to_bucket(connection: Connection, due: Due, prefix: Prefix, settings: Settings) -> dict[str, Any]:
    row = connection.execute(
        "SELECT endpoint_url, region, path_style, access_key_id, sealed FROM buckets WHERE tenant = %s AND name = %s",
        (due.tenant, prefix.bucket),
    ).fetchone()
    if row is None:
        raise Failed(
            f"the tenant has no key for bucket {prefix.bucket!r} any more: set one, and push again", final=True
        )
    secret = open_bucket_secret(row["sealed"], tenant=due.tenant, bucket=prefix.bucket, settings=settings)
    return {
        "kind": "bucket",
        "walled": not settings.push_allow_private,
        "access": {"access_key_id": row["access_key_id"], "secret": secret},
        "bucket": prefix.bucket,
        "prefix": prefix.prefix,
        **{name: row[name] for name in ("endpoint_url", "region", "path_style")},
    }


def _to_tracking(connection: Connection, due: Due, settings: Settings) -> dict[str, Any]:
    if settings.mlflow_tracking_uri is None:
        raise Failed("this keeper has no QE_MLFLOW_TRACKING_URI", final=False)
    row = connection.execute("SELECT * FROM jobs WHERE id = %s", (due.job_id,)).fetchone() or {}
    spec, summary, labels = row["spec"], row["summary"] or {}, row["labels"] or {}
    asked = {"model": row["model_id"], "scheme": row["scheme"], "method": row["method"]}
    asked |= {"dataset": spec["calibration"]["dataset"], **{name: row["progress"].get(name) for name in COMMITS}}
    asked |= {f"options.{name}": value for name, value in (spec.get("options") or {}).items()}
    return {
        "kind": "tracking",
        "walled": False,  # no tenant chooses its address
        "uri": settings.mlflow_tracking_uri,
        "experiment": f"quant-experts/{due.tenant}",
        "job": due.job_id,
        "name": row["name"] or due.job_id,
        "tags": {"qe.tenant": due.tenant, "qe.verdict": row["verdict"] or "", "qe.alias": row["alias"] or "", **labels},
        "params": {name: value for name, value in asked.items() if value is not None},
        "metrics": {
            name: value for name, value in summary.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        },
    }  # fmt: skip


def _environment(settings: Settings, order: Mapping[str, Any]) -> dict[str, str]:
    """Without any key, but for runs that of the tracking server. A proxy has an address of our own network, so there is
    none behind the wall."""
    names = ("HF_ENDPOINT", "AWS_CA_BUNDLE", *(OF_TRACKING if order["kind"] == "tracking" else ()))
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    nobodys = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # a client of its own, which knows neither proxies nor walls
    }
    home = settings.resolved_home / "hub"
    return process.scrubbed_environment(home, {**given, **nobodys}, downloads=not order["walled"])


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"

"""A run of MLflow as a target: what the job was asked for, the figures of its report, and the report itself.

The run of a job is known by its tag, so that a second attempt goes on with the first one's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

JOB_TAG = "qe.job"


class TrackingTarget:
    """``order``: ``uri``, ``experiment``, and of the run ``job``, ``name``, ``tags``, ``params``, ``metrics``."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._uri = str(order["uri"])
        self._order = order
        self._client = MlflowClient(tracking_uri=self._uri)
        self._experiment, self._run = "", ""
        self._there: dict[str, int | None] = {}

    def prepare(self) -> None:
        self._experiment = self._find_or_create()
        found = self._client.search_runs([self._experiment], f"tags.`{JOB_TAG}` = '{self._order['job']}'")
        if found:
            self._run = found[0].info.run_id
            self._there = {each.path: each.file_size for each in self._client.list_artifacts(self._run)}
        else:
            tags = {**self._order["tags"], JOB_TAG: self._order["job"]}
            self._run = self._client.create_run(self._experiment, run_name=self._order["name"], tags=tags).info.run_id

    def has(self, file: Mapping[str, Any]) -> bool:
        return file["name"] in self._there and self._there[file["name"]] in (file["bytes"], None)

    def put(self, file: Mapping[str, Any], path: Path) -> None:
        named = path.parent / "named" / file["name"]  # MLflow takes the name from the file
        named.parent.mkdir(exist_ok=True)
        path.rename(named)
        self._client.log_artifact(self._run, str(named))
        named.unlink()

    def finish(self) -> dict[str, Any]:
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, 0) for name, value in self._order["metrics"].items()]
        params = [Param(name, str(value)) for name, value in self._order["params"].items()]
        self._client.log_batch(self._run, metrics=metrics, params=params)
        self._client.set_terminated(self._run)
        address = urlsplit(self._uri)
        if address.scheme not in ("http", "https"):
            return {"url": f"mlflow:{self._run}"}
        host = address.netloc.rpartition("@")[2]
        return {"url": f"{address.scheme}://{host}/#/experiments/{self._experiment}/runs/{self._run}"}

    def explain(self, error: Exception) -> Exception:
        """Without the address, which may hold a password."""
        if isinstance(error, MlflowException):
            return RuntimeError(f"the tracking server answered {error.error_code}")
        return RuntimeError(f"the tracking server could not be used ({type(error).__name__})")

    def _find_or_create(self) -> str:
        name = self._order["experiment"]
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

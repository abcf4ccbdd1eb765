"""Shared by ``qe submit``, ``qe fork`` and ``qe compare``: options of a job, its rows, and its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from quant_experts.client import Client, EmbeddingProgress, InvalidRequest, Job, UploadProgress
from quant_experts.client.views.datasets import DatasetView
from quant_experts.commands.display.live_line import bytes_bar
from quant_experts.commands.service_client import print_json, say_warnings
from quant_experts.commands.watch import watch
from quant_experts.planning.number_text import size_text

FILES = (".jsonl", ".parquet", ".json", ".ndjson", ".csv", ".tsv", ".txt", ".gz", ".zip")
"""A name with such an ending is a file, not a dataset of the hub."""
EVALUATION = "--evaluation"
CALIBRATION = (
    "File of rows, uploaded with the images that it names unless the service has it; or ds_…; or a hub dataset id."
)

label_option = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Repeatable; qe jobs --label finds it."
)
timeout_option = click.option(
    "--timeout", "timeout_s", type=int, metavar="S", help="Seconds after which it fails.  [default: a day]"
)
max_wait_option = click.option(
    "--max-wait", "max_wait_s", type=int, metavar="S", help="Seconds that it may wait for a worker.  [default: any]"
)
priority_option = click.option(
    "--priority",
    type=click.IntRange(-100, 100),
    metavar="N",
    help="Your own waiting jobs with the highest go first.",
)
device_option = click.option("--device", metavar="CLASS", help='Only on such a device: "cpu", "gpu", or "H100".')
idempotency_option = click.option(
    "--idempotency-key", metavar="TEXT", help="The same command with the same key is carried out once in 24 hours."
)

OPTIONS = (
    click.option("--name", metavar="TEXT", help="What people call the job."),
    click.option("--alias", metavar="OWNER/NAME", help="Under which the Hub protocol serves the finished checkpoint."),
    label_option,
    timeout_option,
    max_wait_option,
    priority_option,
    device_option,
    idempotency_option,
    click.option("--watch", "and_watch", is_flag=True, help="Then follow it, and end, as qe watch does."),
)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: all options, in the order of the help."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def report_submitted(client: Client, job: Job, *, as_json: bool, and_watch: bool) -> int:
    """Print the job's id, and follow the job with ``--watch``. Returns the exit code."""
    if as_json:
        print_json(job)
    else:
        click.echo(job.id)
        say_warnings(job.warnings)
    if and_watch:
        return watch(client, job.id, as_json=as_json)
    click.echo(f"Follow it: qe watch {job.id}", err=True)
    return 0


NO_ROWS = f"ds_{'0' * 32}"
"""An id that no dataset has: real ids begin with a timestamp."""


def rows_of(
    client: Client, calibration: str, *, ask: Callable[[str], object] | None = None, option: str = "--calibration"
) -> str:
    """The id of the rows that ``option`` names; a local file is uploaded. ``ask`` sends the request with the id of a
    dataset. It is called with a missing dataset first, so that other errors show before the upload.

    Raises UsageError for a missing file.
    """
    path = _local_file(calibration, option)
    if path is None:
        return calibration
    if ask is not None:
        _check(ask)
    dataset = uploaded(client, path)
    click.echo(f"{path.name}: {dataset.rows} rows as {dataset.id}", err=True)
    return dataset.id


def _local_file(rows: str, option: str) -> Path | None:
    """The file that ``option`` names; None for an id. Raises UsageError for a path without a file."""
    path = Path(rows)
    if path.is_file():
        return path
    if path.exists() and rows:
        what = "a directory" if path.is_dir() else "not a regular file"
        raise click.UsageError(f"{option} {rows} is {what}: give a JSONL or Parquet file, ds_… or a hub id")
    if path.suffix.lower() in FILES or rows.startswith((".", "/", "~")):
        raise click.UsageError(f"{option}: there is no file {rows}")
    return None


def task_before_upload(task: dict[str, Any] | None) -> dict[str, Any] | None:
    """The evaluation as it is sent to see whether anything else is wrong: a file is a dataset that is missing. Raises
    UsageError as ``rows_of``."""
    if task is None or task.get("dataset") is None or _local_file(task["dataset"], EVALUATION) is None:
        return task
    return {**task, "dataset": NO_ROWS}


def uploaded_task(client: Client, task: dict[str, Any] | None) -> dict[str, Any] | None:
    """The evaluation with the id of its rows. Raises UsageError as ``rows_of``."""
    if task is None or task.get("dataset") is None:
        return task
    return {**task, "dataset": rows_of(client, task["dataset"], option=EVALUATION)}


def _check(ask: Callable[[str], object]) -> None:
    try:
        ask(NO_ROWS)
    except InvalidRequest as error:
        if error.type != "dataset-not-found":
            raise


def uploaded(client: Client, path: Path, **how: Any) -> DatasetView:
    """Upload a file, with a progress bar."""
    with bytes_bar() as bar:
        task = bar.add_task(path.name, total=None)

        def show(progress: UploadProgress) -> None:
            text = f"{path.name} · {progress.parts_done} of {progress.parts} parts" if progress.parts > 1 else path.name
            if progress.done == progress.total:
                text = f"{path.name} · the service checks the rows"
            elif progress.again:
                text += f" · sent again {progress.again}×"
            bar.update(task, completed=progress.done, total=progress.total, description=text)

        def embedding(progress: EmbeddingProgress) -> None:
            text = f"{path.name} · {progress.images} images put inside, {size_text(progress.bytes)}"
            bar.update(task, completed=0, total=None, description=text)

        return client.datasets.upload(path, on_progress=show, on_embedded=embedding, **how)


def labels_of(pairs: tuple[str, ...]) -> dict[str, str]:
    """Raises UsageError for the first entry that is no pair."""
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--label {pair}: write KEY=VALUE")
        labels[key] = value
    return labels

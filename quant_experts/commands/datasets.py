"""``qe datasets``: calibration rows on a service."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import click

from quant_experts.client import DatasetView, FiguresView
from quant_experts.client.upload import PART_BYTES
from quant_experts.commands.display.dates import to_the_minute, to_the_second
from quant_experts.commands.display.printable import printable
from quant_experts.commands.display.table import print_rows
from quant_experts.commands.display.token_table import token_lines
from quant_experts.commands.options.dates import in_days
from quant_experts.commands.options.job import uploaded
from quant_experts.commands.options.spec import Bytes, Finite
from quant_experts.commands.service_client import connected, json_option, print_json, url_option


@click.group("datasets", short_help="Upload, list, show and remove calibration rows.")
def command() -> None:
    """Calibration rows on a service: uploaded once, checked, never changed."""


@command.command("upload", short_help="Upload JSONL or Parquet rows.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--name", metavar="TEXT", help="What people call it.  [default: the file's name]")
@click.option("--expires-in", type=Finite(), metavar="DAYS", help="No new job gets it after that.")
@click.option(
    "--part-size",
    type=Bytes(),
    default=PART_BYTES,
    metavar="SIZE",
    help="A larger file goes in parts.  [default: 16MiB]",
)
@click.option(
    "--parallel", type=click.IntRange(1, 16), default=3, show_default=True, metavar="N", help="Parts at once."
)
@click.option("--again", is_flag=True, help="Also when the service has the same bytes already.")
@json_option("The dataset as one JSON object on stdout.")
@url_option
def upload(
    *,
    file: Path,
    name: str | None,
    expires_in: float | None,
    part_size: int,
    parallel: int,
    again: bool,
    as_json: bool,
    url: str | None,
) -> None:
    """Upload FILE, with the images that its rows name by paths beside it, and print the dataset's id. After a break
    (Ctrl-C, a lost network, a reboot) the same command sends only the parts that are missing; an unfinished upload is
    kept for a day.
    """
    if part_size < 1:
        raise click.UsageError("--part-size: a part has at least one byte")
    expires_at = in_days(expires_in) if expires_in is not None else None
    with connected(url) as client:
        dataset = uploaded(
            client, file, name=name, expires_at=expires_at, reuse=not again, part_bytes=part_size, parallel=parallel
        )
    if as_json:
        print_json(dataset)
    else:
        click.echo(dataset.id)
        click.echo(f"{dataset.rows} rows, {dataset.images} images, {dataset.bytes:,} bytes", err=True)


@command.command("list", short_help="List datasets, newest first.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N")
@json_option("One JSON object per dataset and line.")
@url_option
def list_datasets(*, limit: int, as_json: bool, url: str | None) -> None:
    """List datasets, newest first."""
    with connected(url) as client:
        datasets = list(islice(client.datasets.list(), limit))
    if as_json:
        for dataset in datasets:
            print_json(dataset)
    else:
        _table(datasets)


@command.command("show", short_help="Figures of a dataset, and its first rows.")
@click.argument("dataset_id", metavar="DATASET")
@click.option("--rows", "count", type=click.IntRange(0, 1000), default=3, show_default=True, metavar="N")
@click.option("--model", metavar="ID", help="Count its tokens: a hub id, or local/NAME.  [default: an estimate]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@json_option("The dataset with its figures and rows as one JSON object on stdout.")
@url_option
def show(
    *, dataset_id: str, count: int, model: str | None, revision: str | None, as_json: bool, url: str | None
) -> None:
    """Figures of DATASET, how many tokens MODEL makes of it, and its first rows as they were uploaded."""
    with connected(url) as client:
        dataset = client.datasets.get(dataset_id)
        figures = client.datasets.statistics(dataset_id, model=model, revision=revision)
        rows = list(islice(client.datasets.rows(dataset_id), count)) if count else []
    if as_json:
        details = {
            **dataset.model_dump(mode="json"),
            "statistics": figures.model_dump(mode="json"),
            "first_rows": [row.model_dump(mode="json") for row in rows],
        }
        click.echo(json.dumps(details))
        return
    for title, value in _lines(dataset, figures).items():
        click.echo(f"{title:<12} {value}")
    if figures.tokens is not None:
        for line in token_lines(figures.tokens):
            click.echo(line)
    for row in rows:
        sizes = "".join(f" [{image.format} {image.width}×{image.height}]" for image in row.images)
        click.echo(f"row {row.number}:{sizes}")
        for message in row.messages:
            click.echo(f"  {printable(str(message.get('role')))}: {_text(message.get('content'))}")


@command.command("delete", short_help="Remove datasets for good.")
@click.argument("dataset_ids", metavar="DATASET...", nargs=-1, required=True)
@url_option
def delete(*, dataset_ids: tuple[str, ...], url: str | None) -> None:
    """Remove every DATASET for good. Refused while an unfinished job needs it."""
    with connected(url) as client:
        for dataset_id in dataset_ids:
            client.datasets.delete(dataset_id)
            click.echo(f"{dataset_id} deleted")


def _table(datasets: list[DatasetView]) -> None:
    rows = [
        (
            each.id,
            f"{each.rows:,}",
            f"{each.images:,}",
            f"{each.bytes:,}",
            each.status,
            each.name or "",
            to_the_minute(each.created_at),
        )
        for each in datasets
    ]
    titles = ("dataset", "rows", "images", "bytes", "status", "name", "created")
    print_rows(titles, rows, right=("rows", "images", "bytes"))


def _lines(dataset: DatasetView, figures: FiguresView) -> dict[str, str]:
    lines = {
        "dataset": dataset.id,
        "name": printable(dataset.name or ""),
        "format": f"{dataset.format}, {dataset.bytes:,} bytes",
        "rows": f"{figures.rows:,}, {figures.rows_with_images:,} with images"
        + (f", {figures.rows_with_audio:,} with audio" if figures.rows_with_audio else ""),
        "images": ", ".join(f"{count:,} {kind}" for kind, count in figures.image_formats.items()),
        "audio": _audio(figures),
        "expires": to_the_second(dataset.expires_at),
        "sha256": dataset.sha256,
    }
    for title, spread, unit in (
        ("text", figures.characters, "characters in a row"),
        ("pixels", figures.image_pixels, "in an image"),
    ):
        if spread is not None:
            lines[title] = f"{spread.least:,.0f} to {spread.most:,.0f} {unit}, median {spread.median:,.0f}"
    return {title: value for title, value in lines.items() if value}


def _audio(figures: FiguresView) -> str:
    seconds = figures.audio_seconds
    if seconds is None:
        return f"{figures.audio:,} files" if figures.audio else ""
    return f"{figures.audio:,} files, {seconds.total:,.1f} seconds, {seconds.least:,.1f} to {seconds.most:,.1f} each"


def _text(content: object) -> str:
    """The text of a message, on one line; an image is a mark."""
    if isinstance(content, str):
        return printable(content)[:200]
    parts = content if isinstance(content, list) else []
    texts = [str(part.get("text", f"<{part.get('type')}>")) for part in parts if isinstance(part, dict)]
    return printable(" ".join(texts))[:200]

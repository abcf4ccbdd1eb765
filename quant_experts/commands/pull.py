"""``qe pull``: a finished job's files."""

from __future__ import annotations

import json
from pathlib import Path

import click

from quant_experts.client import DownloadProgress
from quant_experts.commands.display.live_line import bytes_bar
from quant_experts.commands.service_client import connected, json_option, url_option
from quant_experts.spec.exports import EXPORT_FORMATS


@click.command("pull", short_help="Download a finished job's files.")
@click.argument("job_id", metavar="JOB")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where to.  [default: JOB]"
)
@click.option("--file", "names", multiple=True, metavar="NAME", help="Only this file; repeatable.")
@click.option("--export", type=click.Choice(EXPORT_FORMATS), help="Only this export, as a directory of its own.")
@click.option("--parallel", type=click.IntRange(1, 32), default=4, show_default=True, metavar="N", help="At once.")
@json_option("The paths as one JSON array on stdout.")
@url_option
def command(
    job_id: str,
    *,
    output: Path | None,
    names: tuple[str, ...],
    export: str | None,
    parallel: int,
    as_json: bool,
    url: str | None,
) -> None:
    """Download the files of JOB, check every digest, and go on where an earlier call was interrupted."""
    directory = output or Path(job_id)
    with connected(url) as client, bytes_bar() as progress:
        task = progress.add_task("files", total=None)

        def show(step: DownloadProgress) -> None:
            progress.update(
                task, completed=step.done, total=step.total, description=f"{step.files_done} of {step.files} files"
            )

        job = client.jobs.get(job_id)
        paths = job.pull(directory, names=names or None, export=export, parallel=parallel, on_progress=show)
    if as_json:
        click.echo(json.dumps([str(path) for path in paths]))
    else:
        size = sum(path.stat().st_size for path in paths)
        click.echo(f"{len(paths)} files, {size:,} bytes, every digest as announced, in {directory}")

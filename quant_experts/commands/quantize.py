"""``qe quantize``: one model, one set of rows, one checkpoint."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from quant_experts.commands.disk_space import check_disk_space, disk_full_advice
from quant_experts.commands.display.run_progress import RunProgress, say
from quant_experts.commands.exit_codes import REJECTED
from quant_experts.commands.options.evaluation import OPTIONS as EVALUATION
from quant_experts.commands.options.evaluation import evaluation_of, evaluation_options
from quant_experts.commands.options.exports import check_exports, export_option
from quant_experts.commands.options.spec import spec_of, spec_options
from quant_experts.errors import InvalidCalibration, InvalidModel, Stopped
from quant_experts.progress import ShouldStop

CACHE = "QE_CACHE"


@click.command("quantize", short_help="Quantize a model into a checkpoint.")
@click.option(
    "--model", required=True, metavar="DIR_OR_ID", help="Model directory, or a Hugging Face Hub id owner/name."
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a hub model.")
@click.option(
    "--calibration",
    required=True,
    metavar="FILE",
    help="JSONL or Parquet rows of messages (and images), a dataset directory, or a hub dataset id.",
)
@click.option("--split", default="train", show_default=True, help="Split of a calibration dataset.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Directory of the checkpoint; must not exist.",
)
@spec_options
@export_option
@evaluation_options("FILE")
@click.option("--device", metavar="cpu|cuda", help="Where to compute.  [default: cuda where there is one]")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where finished blocks are kept.  [default: OUT.work]",
)
@click.option("--keep-work", is_flag=True, help="Keep the work directory after success.")
def command(
    *,
    model: str,
    revision: str | None,
    calibration: str,
    split: str,
    output: Path,
    exports: tuple[str, ...],
    device: str | None,
    work: Path | None,
    keep_work: bool,
    **options: Any,
) -> int:
    """Quantize MODEL with the rows of CALIBRATION into the checkpoint OUT.

    Finished blocks are kept in the work directory: interrupted, the same command goes on from there and ends with the
    same bytes. Ctrl-C stops at the next point that loses nothing finished; a second one stops at once.

    A checkpoint that misses a limit of --accept-… is kept, and the exit code is 5.
    """
    asked = {name: options.pop(name) for name in EVALUATION}
    spec, accept_if = spec_of(**options)
    evaluation = evaluation_of(asked, accept_if)
    check_exports(exports, spec)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise click.UsageError(f"--output: {output} exists and is not an empty directory")
    work = work or output.with_name(f"{output.name}.work")
    _check_names(model, calibration)
    if evaluation is not None and evaluation.dataset is not None:
        _check_rows(evaluation.dataset, "evaluation")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    display = RunProgress()
    with display, _stopping_softly() as should_stop:
        directory, model_id, commit = _find_model(model, revision, display)
        check_disk_space(directory, spec, output=output, work=work, exports=exports)
        rows = _find_rows(calibration, display)
        if evaluation is not None and evaluation.dataset is not None:
            task_rows = _find_rows(evaluation.dataset, display)
            evaluation = evaluation.model_copy(update={"dataset": str(task_rows)})
        display.note("loading torch and transformers")
        from transformers.utils.logging import disable_progress_bar

        from quant_experts.run.quantize import quantize

        disable_progress_bar()
        try:
            with disk_full_advice(work):
                report = quantize(
                    model=directory,
                    calibration=rows,
                    output=output,
                    spec=spec,
                    work=work,
                    model_id=model_id,
                    model_commit=commit,
                    split=split,
                    device=device,
                    accept_if=accept_if,
                    exports=exports,
                    evaluation=evaluation,
                    on_event=display.on_event,
                    should_stop=should_stop,
                )
        except Stopped as stopped:
            raise Stopped(f"finished blocks are kept in {work}; run the same command again to go on") from stopped
    if not keep_work:
        shutil.rmtree(work, ignore_errors=True)
    from quant_experts.report.charts.sentences import memory, task
    from quant_experts.report.charts.warning_list import warning_list
    from quant_experts.report.page import verdict

    say(verdict(report))
    if report.evaluation is not None:
        say(task(report.evaluation))
    say(memory(report.size))
    for warning in warning_list(report):
        click.echo(f"warning: {warning}", err=True)
    say(f"checkpoint: {output}   report: {output / 'quality_report.html'}")
    if report.acceptance is not None and report.acceptance.verdict == "rejected":
        click.echo(f"rejected: {'; '.join(report.acceptance.missed)}", err=True)
        return REJECTED
    return 0


def _check_names(model: str, calibration: str) -> None:
    """Before the first of them is fetched."""
    if not Path(model).is_dir() and not _is_hub_id(model):
        raise InvalidModel(f"model {model} is neither a directory nor a hub id owner/name")
    _check_rows(calibration, "calibration")


def _check_rows(rows: str, what: str) -> None:
    path = Path(rows)
    if not path.exists() and (not _is_hub_id(rows) or path.suffix in {".jsonl", ".json", ".parquet"}):
        raise InvalidCalibration(f"{what} {rows} is neither a file, a directory nor a hub dataset owner/name")


def _find_model(model: str, revision: str | None, display: RunProgress) -> tuple[Path, str | None, str | None]:
    """Directory, id and commit. Raises what the hub answered."""
    directory = Path(model)
    if directory.is_dir():
        return directory, None, None
    from quant_experts.model.hub import download, resolve_commit

    display.note(f"fetching {model}")
    commit = resolve_commit("model", model, revision)
    return download("model", model, commit=commit, to=_cache() / "models" / model / commit), model, commit


def _find_rows(calibration: str, display: RunProgress) -> Path:
    path = Path(calibration)
    if path.exists():
        return path
    from quant_experts.model.hub import download, resolve_commit

    display.note(f"fetching {calibration}")
    commit = resolve_commit("dataset", calibration, None)
    return download("dataset", calibration, commit=commit, to=_cache() / "datasets" / calibration / commit)


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")


def _cache() -> Path:
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "quant-experts")


@contextmanager
def _stopping_softly() -> Iterator[ShouldStop]:
    """A ``should_stop`` that the first SIGINT or SIGTERM turns on; the second one interrupts at once."""
    signals: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        # Not through rich: the signal may have come in the middle of its own printing, which would then print twice.
        os.write(2, b"\nqe: stopping as soon as what is in hand can be left; Ctrl-C again stops at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

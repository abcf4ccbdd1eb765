"""The finished checkpoint on its way out: files into storage, rows for the ledger, figures for the job's summary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from core.crash_points import reach
from core.storage import SEGMENT
from worker.ledger.attempts import AttemptRef
from worker.runner import protocol
from worker.supervisor.relay import mean_errors
from worker.supervisor.retrying_storage import RetryingStorage

REPORT = "quality_report.json"
SIZES = ("effective_bits", "base_bits", "bytes_before", "bytes_after", "bytes_loaded", "bytes_unpacked")
MOST_WARNINGS = 50
MOST_REPLIES, MOST_TEXT = 6, 300
"""Replies of a summary, and characters of each text."""
MEDIA_TYPES = {
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".py": "text/x-python; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".jinja": "text/plain; charset=utf-8",
    "": "text/plain; charset=utf-8",
}


class Incomplete(Exception):
    """A file that the runner announced is not there, or has another size."""


def publish(
    storage: RetryingStorage, ref: AttemptRef, output: Path, files: Sequence[protocol.File]
) -> Iterator[dict[str, Any]]:
    """Put each file into storage and yield its row: ``name key bytes sha256 media_type``. Raises Incomplete."""
    for file in files:
        source = output / file.name
        inside = source.resolve().is_relative_to(output.resolve())
        if not inside or not source.is_file() or source.stat().st_size != file.bytes:
            raise Incomplete(
                f"{file.name!r} was announced with {file.bytes} bytes, and there is no such file of that size"
            )
        key = f"{ref.prefix}/{safe_name(file.name)}"
        storage.put(key, source)
        reach("artifact.uploaded")
        yield {
            "name": file.name,
            "key": key,
            "bytes": file.bytes,
            "sha256": file.sha256,
            "media_type": MEDIA_TYPES.get(PurePosixPath(file.name).suffix, "application/octet-stream"),
        }


def safe_name(name: str) -> str:
    """The name itself where storage takes it as one segment, else a digest of it: a name never becomes a path."""
    return name if SEGMENT.fullmatch(name) else f"f_{hashlib.sha256(name.encode()).hexdigest()}"


def summary_of(output: Path) -> dict[str, Any]:
    """The figures of a finished run that a list of jobs shows; empty when there is no readable report."""
    try:
        report = json.loads((output / REPORT).read_text())
    except (OSError, ValueError):
        return {}
    quality, size = report.get("quality") or {}, report.get("size") or {}
    groups = [group for block in report.get("blocks") or [] for group in block.get("groups") or []]
    images, acceptance = report.get("images") or {}, report.get("acceptance") or {}
    warnings = _warnings(report)
    return {
        "verdict": acceptance.get("verdict"),
        "missed": acceptance.get("missed") or [],
        "error": mean_errors(groups),
        **{name: quality.get(name) for name in ("kl", "top1_agreement")},
        **_perplexities(quality),
        **{name: size.get(name) for name in SIZES},
        "baseline_kl": (report.get("baseline") or {}).get("kl"),
        "calibration_verdict": (report.get("calibration") or {}).get("verdict"),
        "images_verdict": images.get("verdict"),
        "evaluation": _evaluation(report.get("evaluation")),
        "image_sensitivity": _image_sensitivity(images),
        "rows_used": report.get("rows_used"),
        "rows_held_out": report.get("rows_held_out"),
        "warnings": len(warnings),
        "warning_list": warnings[:MOST_WARNINGS],
        "seconds": report.get("seconds"),
    }


def _evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Scores, and the few replies that tell most; the report has all."""
    from quant_experts.report.charts.sentences import shown_replies, task
    from quant_experts.report.data import TaskEvaluation

    try:
        measured = None if evaluation is None else TaskEvaluation.model_validate(evaluation)
    except ValidationError:
        return None
    if measured is None:
        return None
    shown = [measured.replies[index] for index in shown_replies(measured)[:MOST_REPLIES]]
    return {
        "sentence": task(measured),
        "rows": measured.rows,
        "scores": [score.model_dump(mode="json") for score in measured.scores],
        "replies": [
            {
                **{name: _cut(getattr(reply, name)) for name in ("question", "reference", "full", "quantized")},
                "row": reply.row,
                "scores_full": reply.scores_full,
                "scores_quantized": reply.scores_quantized,
            }
            for reply in shown
        ],
    }


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"


def _perplexities(quality: Mapping[str, Any]) -> dict[str, Any]:
    """None where the tokens are too few for a perplexity to mean anything."""
    from quant_experts.report.data import FEWEST_TOKENS

    few = (quality.get("tokens") or 0) < FEWEST_TOKENS
    return {name: None if few else quality.get(name) for name in ("perplexity_full", "perplexity_quantized")}


def _warnings(report: Mapping[str, Any]) -> list[str]:
    """The warnings as the report's page groups them; of a report that this version does not read, as they stand."""
    from quant_experts.report.charts.warning_list import warning_list
    from quant_experts.report.data import QualityReport

    try:
        return warning_list(QualityReport.model_validate(report))
    except ValidationError:
        return [str(warning) for warning in report.get("warnings") or []]


def _image_sensitivity(images: Mapping[str, Any]) -> float | None:
    """How strongly the quantized model reacts to another image, relative to the full-precision one."""
    from quant_experts.report.data import Reaction, smallest_ratio

    reactions = (images.get("swapped"), images.get("blanked"))
    try:
        return smallest_ratio(*(Reaction.model_validate(reaction) for reaction in reactions if reaction))
    except ValidationError:
        return None

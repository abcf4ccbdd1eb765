"""A plan held against the run that followed it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

import pytest

from quant_experts.calibration.captured_inputs import read_captured_inputs
from quant_experts.planning.disk import VARIANTS_EACH, disk_by_phase
from quant_experts.planning.local import read_local
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows
from quant_experts.planning.shapes import shapes_of
from quant_experts.planning.sizes import Size, size_of
from quant_experts.report.data import QualityReport
from quant_experts.spec.specification import QuantizationSpec


def planned_size(model: Path, spec: QuantizationSpec) -> Size:
    """From the files of ``model`` alone."""
    return size_of(shapes_of(read_local(model), vision=spec.vision), Recipe.of(**spec.model_dump()))


def check_planned_size(model: Path, spec: QuantizationSpec, report: QualityReport) -> None:
    """Bytes and bits came out exactly as planned."""
    size, found = planned_size(model, spec), report.size
    assert found is not None
    assert size.is_exact
    assert (size.bytes_before, size.bytes_after_most) == (found.bytes_before, found.bytes_after)
    assert size.bits_most == found.effective_bits


DISK_WITHIN = 1.35
"""Times the measured peak; what is planned is never less than it."""
MARKS = {
    ".sensitivity": "sensitivity",
    ".last-stack": "gradients",
    ".gradients.states": "gradients",
    "auto": "trials",
    "exports": "exporting",
    ".out.part": "packing",
    "chain": "walking",
}
"""A file or directory that is there in a phase, those that tell most first."""


@contextmanager
def disk_peaks(directory: Path) -> Iterator[dict[str, int]]:
    """Phase of a run in ``directory`` → the most bytes that its work and output had on disk at once.

    Looked at whenever a tensor file is whole and not yet renamed, which is when all that is temporary is there too.
    """
    peaks: dict[str, int] = {}

    def look(point: str) -> None:
        files = {path.relative_to(directory): path for path in directory.rglob("*") if path.is_file()}
        own = {name: path for name, path in files.items() if name.parts[0] in ("work", "out", ".out.part")}
        there = {part for name in own for part in name.parts}
        phase = next((name for mark, name in MARKS.items() if mark in there), "gathering")
        peaks[phase] = max(peaks.get(phase, 0), sum(path.stat().st_size for path in own.values()))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("quant_experts.model.tensor_file.reach", look)
        yield peaks


def check_planned_disk(
    peaks: dict[str, int],
    model: Path,
    work: Path,
    spec: QuantizationSpec,
    *,
    phases: set[str],
    exports: Sequence[str] = (),
) -> None:
    """Of every phase, ``phases`` among them, at least what was measured is planned for such rows, and not much more."""
    recipe, shapes = Recipe.of(**spec.model_dump(), exports=exports), shapes_of(read_local(model), vision=spec.vision)
    planned = disk_by_phase(shapes, recipe, rows_of_the_run(work), size_of(shapes, recipe))
    assert phases <= peaks.keys()
    for phase, peak in peaks.items():
        assert peak <= planned[phase] <= DISK_WITHIN * peak, (phase, peak, planned[phase])


def rows_of_the_run(work: Path) -> Rows:
    """As a plan that knew the seeded choice would judge them."""
    inputs = read_captured_inputs(work, json.loads((work / "calls.json").read_text())["fingerprint"])
    assert inputs is not None
    passed = [*inputs.rows, *inputs.variants]
    return Rows(
        rows=len(inputs.rows),
        tokens=fmean(row.tokens for row in passed),
        spread=1.0,
        images=len(inputs.variants) / VARIANTS_EACH / len(inputs.held_out),
        image_tokens=fmean(row.tokens_vision for row in passed),
    )

"""A plan held against the run that followed it."""

from __future__ import annotations

from pathlib import Path

from planning.local import read_local
from planning.recipe import Recipe
from planning.shapes import shapes_of
from planning.sizes import Size, size_of
from quant_experts.config import QuantizationSpec
from quant_experts.report import QualityReport


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

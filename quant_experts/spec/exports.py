"""The formats that a finished checkpoint can be exported to, by name, and what each has no place for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

ExportFormat = Literal["compressed-tensors", "dequantized"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
EXPORTS_FOLDER = "exports"
"""In a checkpoint's directory, with one folder for each export."""


def export_refusal(formats: Iterable[str], *, smoothing: str, reconstruction: str) -> str | None:
    """Why a method cannot be exported to one of the formats; None where it can."""
    needs = [name for name, there in (("smoothing", smoothing), ("experts", reconstruction)) if there != "none"]
    if "compressed-tensors" not in formats or not needs:
        return None
    return (
        f"the method has {' and '.join(needs)}, for which compressed-tensors has no place: "
        'export it as "dequantized", choose the method "gptq" or "fast", which have none, or leave that export out'
    )

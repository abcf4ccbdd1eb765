"""``--export``: other formats in which a finished checkpoint is written."""

from __future__ import annotations

from collections.abc import Sequence

import click

from quant_experts.spec.exports import EXPORT_FORMATS, export_refusal
from quant_experts.spec.specification import QuantizationSpec

export_option = click.option(
    "--export",
    "exports",
    type=click.Choice(EXPORT_FORMATS),
    multiple=True,
    help="Write the finished checkpoint in this format too, into its folder exports; repeatable.",
)


def check_exports(formats: Sequence[str], spec: QuantizationSpec) -> None:
    """Raises UsageError when a format has no place for the method."""
    refusal = export_refusal(formats, smoothing=spec.smoothing, reconstruction=spec.reconstruction)
    if refusal is not None:
        raise click.UsageError(f"--export: {refusal}")

"""The exports that a run was asked for, in folders of the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant_experts.errors import InvalidSpec, QuantExpertsError
from quant_experts.export import export
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import Advanced, ExportOutcome, OnEvent, ShouldStop, WrittenFile, stop_if
from quant_experts.spec.exports import EXPORT_FORMATS, EXPORTS_FOLDER, export_refusal
from quant_experts.spec.specification import QuantizationSpec


@dataclass(frozen=True)
class Exports:
    """``files``: their names are relative to the checkpoint. ``outcomes``: one for each format."""

    files: tuple[WrittenFile, ...] = ()
    outcomes: tuple[ExportOutcome, ...] = ()


def check_exports(formats: Sequence[str], spec: QuantizationSpec, plans: Sequence[Sequence[GroupPlan]]) -> None:
    """Raises InvalidSpec before anything is computed when a format is unknown or has no place for the method or for a
    mixture of experts."""
    unknown = [name for name in formats if name not in EXPORT_FORMATS]
    if unknown:
        raise InvalidSpec(f"export {unknown[0]!r}: choose {', '.join(EXPORT_FORMATS)}")
    refusal = export_refusal(formats, smoothing=spec.smoothing, reconstruction=spec.reconstruction)
    if refusal is not None:
        raise InvalidSpec(refusal)
    mixture = next((plan for block in plans for plan in block if plan.of_mixture), None)
    if formats and mixture is not None:
        raise InvalidSpec(
            f"{mixture.parent} are experts of a mixture, which no export has a place for yet: leave the exports out"
        )


def make_exports(
    checkpoint: Path, formats: Sequence[str], *, device: str, on_event: OnEvent, should_stop: ShouldStop
) -> Exports:
    """Export the directory ``checkpoint`` to each format. One that cannot be made or loaded does not end the run: its
    outcome says why. Raises Stopped."""
    files: list[WrittenFile] = []
    outcomes: list[ExportOutcome] = []
    for done, name in enumerate(formats):
        stop_if(should_stop, "before an export; a later run goes on from the finished blocks")
        folder = f"{EXPORTS_FOLDER}/{name}"
        try:
            result = export(checkpoint, name, checkpoint / folder, device=device)
        except QuantExpertsError as error:
            outcomes.append(ExportOutcome(name, problem=str(error)))
        else:
            files += [WrittenFile(f"{folder}/{file.name}", file.bytes, file.sha256) for file in result.files]
            outcomes.append(ExportOutcome(name, bytes=result.bytes, losses=result.losses, loaded=result.loaded))
        on_event(Advanced("exporting", done + 1, len(formats)))
    return Exports(tuple(files), tuple(outcomes))

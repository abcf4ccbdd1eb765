"""Try points of the grid: each is a walk over the model on a few rows, in ``auto/<digest>`` of the work directory.

``auto.json`` records the KL of each finished point, so that a stopped search continues; the point's directory is
deleted.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.evaluation.next_token import evaluate
from quant_experts.fit.problem import ModalityWeights
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.run_context import RunContext
from quant_experts.model.tensor_file import json_digest
from quant_experts.progress import Advanced, BlockFinished, Event
from quant_experts.report.data import AutoSearch, FrontierPoint, ModelQuality
from quant_experts.search.choice import best_within_bytes, smallest_within_kl, worth_trying
from quant_experts.search.grid import Point, grid, resolved
from quant_experts.seeding import generator
from quant_experts.sensitivity.measurements import SensitivityMeasurements
from quant_experts.sensitivity.record import read_record, write_record
from quant_experts.spec.specification import QuantizationSpec, Target
from quant_experts.walk.blocks import last_stack_inputs, walk
from quant_experts.walk.group_settings import GroupSettings
from quant_experts.walk.resume_files import claim_directory

FIT_ROWS = 16
HELD_OUT_ROWS = 16
RECORD = "auto.json"

SENSITIVITY_SCHEME = "W4A8"
"""Groups are ranked once, at the scheme in the middle; the run itself measures again at the scheme that was chosen."""


@dataclass
class _Trials:
    """The points that were tried. ``open_model``: opens a fresh model; a walk leaves quantized layers in its own."""

    measurements: SensitivityMeasurements
    open_model: Callable[[], Blueprint]
    inputs: CapturedInputs
    modality_weights: dict[str, ModalityWeights]
    expected: int
    """Number of points that the search will try, for the progress."""
    kl: dict[str, float] = field(default_factory=dict)
    """Label → KL on held-out rows."""
    seconds: float = 0.0

    def kl_of(self, point: Point) -> float:
        """Raises what a walk raises, Stopped among it: a later search then continues inside this point."""
        if point.label not in self.kl:
            began = time.monotonic()
            quality = self._try(point)
            self.seconds += time.monotonic() - began
            self.kl[point.label] = quality.kl
            self._record()
        return self.kl[point.label]

    def recall(self) -> None:
        """Read what an earlier search recorded."""
        context = self.measurements.context
        record = read_record(context.work, RECORD, context.fingerprint)
        if record is not None:
            content, self.measurements.files[RECORD] = record
            self.kl, self.seconds = content["kl"], content["seconds"]

    def _try(self, point: Point) -> ModelQuality:
        context = self.measurements.context
        fingerprint = json_digest([context.fingerprint, point.options])
        directory = context.work / "auto" / fingerprint[:16]
        claim_directory(directory, {"point": fingerprint})
        blocks = len(context.plans)
        before, total = len(self.kl) * blocks, max(self.expected, len(self.kl) + 1) * blocks

        def on_event(event: Event) -> None:
            if isinstance(event, BlockFinished):
                context.on_event(Advanced("calibrating", before + event.block + 1, total))

        settings = GroupSettings(point.spec, point.weight_bits, self.modality_weights)
        trial = replace(
            context,
            blueprint=self.open_model(),
            work=directory,
            fingerprint=settings.fingerprint(fingerprint),
            on_event=on_event,
        )
        walk(trial, self.inputs, settings)
        quality, _ = evaluate(trial.blueprint, last_stack_inputs(trial, self.inputs), directory)
        shutil.rmtree(directory)
        return quality

    def _record(self) -> None:
        context, content = self.measurements.context, {"kl": self.kl, "seconds": self.seconds}
        self.measurements.files[RECORD] = write_record(context.work, RECORD, context.fingerprint, content)


def search(
    spec: QuantizationSpec, measurements: SensitivityMeasurements, *, open_model: Callable[[], Blueprint]
) -> tuple[QuantizationSpec, AutoSearch]:
    """Search for the spec that meets ``spec.target``; returns it and the points that were tried.

    ``open_model``: opens the model anew, without the weights of its blocks.
    Raises InvalidSpec that says how close the search came when no point meets the target; what a walk raises; Stopped.
    """
    target = spec.target
    assert target is not None, 'scheme "auto" has a target'
    context = measurements.context
    sensitivity = measurements.sensitivity(resolved(spec, {"scheme": SENSITIVITY_SCHEME}))
    points = grid(
        spec,
        context.plans,
        {name: values.kl for name, values in sensitivity.items()},
        unquantized_bytes=_unquantized_bytes(context),
        dtype=context.blueprint.dtype,
    )
    few = few_inputs(measurements.inputs, spec.seed)
    trials = _Trials(measurements, open_model, few, measurements.modality_weights(spec), _expected(points, target))
    trials.recall()
    if target.max_bytes is not None:
        choice = best_within_bytes(points, target.max_bytes, trials.kl_of)
    else:
        assert target.max_kl is not None
        choice = smallest_within_kl(points, target.max_kl, trials.kl_of)
    shutil.rmtree(context.work / "auto", ignore_errors=True)
    return choice.spec, AutoSearch(
        target={name: value for name, value in target.model_dump().items() if value is not None},
        points=[_tried(point, trials.kl[point.label], point is choice) for point in points if point.label in trials.kl],
        rows=len(few.fit),
        seconds=round(trials.seconds, 1),
    )


def missed_target(search: AutoSearch | None, quality: ModelQuality) -> list[str]:
    """A warning when the finished model misses the target that it met on the few rows of the search."""
    max_kl = None if search is None else search.target.get("max_kl")
    if search is None or max_kl is None or quality.kl <= max_kl:
        return []
    kl = next(point.kl for point in search.points if point.chosen)
    return [
        f'scheme "auto": the finished model has a KL of {quality.kl:.3g}, above the target of {max_kl:g}; the search '
        f"saw {kl:.3g} after {search.rows} calibration rows; ask for a lower max_kl"
    ]


def few_inputs(inputs: CapturedInputs, seed: int) -> CapturedInputs:
    """A seeded choice of the rows to fit, and the first held-out rows. Some of both reach the first stack."""
    fit = inputs.fit
    permutation = [fit[place] for place in torch.randperm(len(fit), generator=generator(seed, "auto", "rows")).tolist()]
    fit_rows = sorted(_begin(permutation, FIT_ROWS), key=lambda row: row.index)
    return replace(inputs, rows=(*_begin(inputs.held_out, HELD_OUT_ROWS), *fit_rows), variants=(), files=())


def _begin(rows: Sequence[CapturedRow], number: int) -> list[CapturedRow]:
    """The first ``number`` rows. If none of them reaches the stack, the next row that does replaces the last."""
    head, others = list(rows[:number]), rows[number:]
    if not any(row.tree is not None for row in head):
        head[-1:] = [next((row for row in others if row.tree is not None), head[-1])]
    return head


def _unquantized_bytes(context: RunContext) -> int:
    """Bytes of every tensor that no group replaces."""
    weights = context.blueprint.weights
    names = {f"{plan.parent}.{layer}.weight" for block in context.plans for plan in block for layer in plan.layers}
    return sum(weights.bytes(name) for name in weights.names if name not in names)


def _expected(points: Sequence[Point], target: Target) -> int:
    if target.max_bytes is not None:
        return len(worth_trying(points, target.max_bytes))
    return 1 + math.ceil(math.log2(len(points)))


def _tried(point: Point, kl: float, is_choice: bool) -> FrontierPoint:
    return FrontierPoint(
        label=point.label,
        options=point.options,
        bytes=point.bytes,
        effective_bits=point.effective_bits,
        kl=kl,
        chosen=is_choice,
    )

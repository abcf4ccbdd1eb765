"""Each point that is tried is a walk over the model on a few rows, in ``auto/<number>`` of the work directory.

What a finished point came to is kept in ``auto.json``, so that a stopped search goes on, and its directory is deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from quant_experts.calibration.captured_inputs import Call, Calls
from quant_experts.evaluation.next_token import evaluate
from quant_experts.fit.problem import ModalityWeights
from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import Advanced, BlockFinished, Event
from quant_experts.report.data import AutoSearch, FrontierPoint, ModelQuality
from quant_experts.search.choice import best_within_bytes, smallest_within_kl, worth_trying
from quant_experts.search.grid import Point, grid, resolved
from quant_experts.seeding import generator
from quant_experts.sensitivity.measuring import Measuring
from quant_experts.sensitivity.record import read_record, write_record
from quant_experts.spec.specification import QuantizationSpec, Target
from quant_experts.walk.blocks import calls_behind, walk
from quant_experts.walk.group_settings import Treatment
from quant_experts.walk.resume_files import claim_directory

FIT_ROWS = 16
HELD_OUT_ROWS = 16
RECORD = "auto.json"

SENSITIVITY_SCHEME = "W4A8"
"""Groups are ranked once, at the scheme in the middle; the run itself measures again at the scheme that was chosen."""


@dataclass
class _Trials:
    """The points that were tried. ``open_model``: a fresh blueprint, because a walk leaves quantized layers in it."""

    measuring: Measuring
    open_model: Callable[[], Blueprint]
    calls: Calls
    modality_weights: dict[str, ModalityWeights]
    expected: int
    """Number of points, for the progress."""
    kl: dict[str, float] = field(default_factory=dict)
    """Label → KL on held-out rows."""
    seconds: float = 0.0

    def kl_of(self, point: Point) -> float:
        """Raises what a walk raises; Stopped too, after which a later search goes on inside of this point."""
        if point.label not in self.kl:
            started = time.monotonic()
            quality = self._try(point)
            self.seconds += time.monotonic() - started
            self.kl[point.label] = quality.kl
            self._keep()
        return self.kl[point.label]

    def recall(self) -> None:
        """Take over what an earlier search found out."""
        found = read_record(self.measuring.work, RECORD, self.measuring.fingerprint)
        if found is not None:
            content, self.measuring.files[RECORD] = found
            self.kl, self.seconds = content["kl"], content["seconds"]

    def _try(self, point: Point) -> ModelQuality:
        measuring = self.measuring
        fingerprint = _digest([measuring.fingerprint, point.options])
        directory = measuring.work / "auto" / fingerprint[:16]
        claim_directory(directory, {"point": fingerprint})
        blueprint = self.open_model()
        blocks = len(measuring.plans)
        before, total = len(self.kl) * blocks, max(self.expected, len(self.kl) + 1) * blocks

        def on_event(event: Event) -> None:
            if isinstance(event, BlockFinished):
                measuring.on_event(Advanced("calibrating", before + event.block + 1, total))

        treatment = Treatment(point.spec, point.weight_bits, self.modality_weights)
        decided = treatment.fingerprint(fingerprint)
        walk(
            blueprint,
            measuring.plans,
            self.calls,
            treatment,
            work=directory,
            fingerprint=decided,
            on_event=on_event,
            should_stop=measuring.should_stop,
        )
        behind = calls_behind(measuring.plans, self.calls, directory, decided, blueprint)
        quality, _ = evaluate(blueprint, behind, directory)
        shutil.rmtree(directory)
        return quality

    def _keep(self) -> None:
        work, fingerprint = self.measuring.work, self.measuring.fingerprint
        content = {"kl": self.kl, "seconds": self.seconds}
        self.measuring.files[RECORD] = write_record(work, RECORD, fingerprint, content)


def search(
    spec: QuantizationSpec, measuring: Measuring, *, open_model: Callable[[], Blueprint]
) -> tuple[QuantizationSpec, AutoSearch]:
    """The spec to go on with, and what was seen. ``open_model``: the model without the weights of its blocks, anew.

    Raises InvalidSpec that says how close it came when no point meets the target; what a walk raises; Stopped.
    """
    target = spec.target
    assert target is not None, 'scheme "auto" has a target'
    measured = measuring.sensitivity(resolved(spec, {"scheme": SENSITIVITY_SCHEME}))
    points = grid(
        spec,
        measuring.plans,
        {name: values.kl for name, values in measured.items()},
        kept_bytes=_kept_bytes(measuring.blueprint, measuring.plans),
        dtype=measuring.blueprint.dtype,
    )
    few = few_calls(measuring.calls, spec.seed)
    trials = _Trials(measuring, open_model, few, measuring.modality_weights(spec), _expected(points, target))
    trials.recall()
    if target.max_bytes is not None:
        chosen = best_within_bytes(points, target.max_bytes, trials.kl_of)
    else:
        assert target.max_kl is not None
        chosen = smallest_within_kl(points, target.max_kl, trials.kl_of)
    shutil.rmtree(measuring.work / "auto", ignore_errors=True)
    return chosen.spec, AutoSearch(
        target={name: value for name, value in target.model_dump().items() if value is not None},
        points=[_seen(point, trials.kl[point.label], point is chosen) for point in points if point.label in trials.kl],
        rows=len(few.fit),
        seconds=round(trials.seconds, 1),
    )


def missed_target(found: AutoSearch | None, quality: ModelQuality) -> list[str]:
    """What to warn about when the finished model is not what the few rows of the search promised."""
    max_kl = None if found is None else found.target.get("max_kl")
    if found is None or max_kl is None or quality.kl <= max_kl:
        return []
    seen = next(point.kl for point in found.points if point.chosen)
    return [
        f'scheme "auto": the finished model has a KL of {quality.kl:.3g}, above the target of {max_kl:g}; the search '
        f"saw {seen:.3g} after {found.rows} calibration rows; ask for a lower max_kl"
    ]


def few_calls(calls: Calls, seed: int) -> Calls:
    """A seeded choice of the rows to fit, and the first held-out rows; the first stack is called for some of both."""
    fit = calls.fit
    drawn = [fit[place] for place in torch.randperm(len(fit), generator=generator(seed, "auto", "rows")).tolist()]
    chosen = sorted(_begin(drawn, FIT_ROWS), key=lambda call: call.index)
    return replace(calls, rows=(*_begin(calls.held_out, HELD_OUT_ROWS), *chosen), variants=(), files=())


def _begin(rows: Sequence[Call], number: int) -> list[Call]:
    """The first ``number`` rows; when the stack is called for none of them, the next row for which it is comes in for
    the last."""
    chosen, others = list(rows[:number]), rows[number:]
    if not any(call.tree is not None for call in chosen):
        chosen[-1:] = [next((call for call in others if call.tree is not None), chosen[-1])]
    return chosen


def _kept_bytes(blueprint: Blueprint, plans: Sequence[Sequence[GroupPlan]]) -> int:
    """Of every tensor that no group replaces."""
    replaced = {f"{plan.parent}.{layer}.weight" for block in plans for plan in block for layer in plan.layers}
    return sum(blueprint.weights.bytes(name) for name in blueprint.weights.names if name not in replaced)


def _expected(points: Sequence[Point], target: Target) -> int:
    if target.max_bytes is not None:
        return len(worth_trying(points, target.max_bytes))
    return 1 + math.ceil(math.log2(len(points)))


def _seen(point: Point, kl: float, chosen: bool) -> FrontierPoint:
    return FrontierPoint(
        label=point.label,
        options=point.options,
        bytes=point.bytes,
        effective_bits=point.effective_bits,
        kl=kl,
        chosen=chosen,
    )


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

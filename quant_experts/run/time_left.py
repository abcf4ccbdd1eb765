"""The time that is left of a run, over all its phases: predicted as in a plan, corrected by what the run measures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from quant_experts.calibration.captured_inputs import CapturedInputs, count_tokens
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows
from quant_experts.planning.seconds import CORE, GPU, PhaseSeconds, block_seconds, on_cores, phases_of
from quant_experts.planning.shapes import Shapes
from quant_experts.progress import Advanced, BlockFinished, Event, Forecast, OnEvent, Phase, PhaseStarted
from quant_experts.spec.choices import Evaluation
from quant_experts.spec.specification import QuantizationSpec

OLDER_WEIGHT = 0.7
"""Weight of a block's seconds for each block that finished after it."""
WARM_UP = 0.25
"""What the first block takes more than the next one, as a share of the seconds that the process took to start. Measured
on the demo's model: 0.22 to 0.33."""
LONGEST_START = 60.0
"""Seconds. An older process has done something else before."""
MEASURING = "measuring"
"""Measuring the whole model before blocks are fitted: a part of the phase ``calibrating`` that counts from 0 again."""
STAGES = ("preparing", "calibrating", MEASURING, *get_args(Phase)[2:])


@dataclass(frozen=True)
class ExpectedSeconds:
    """Seconds at the rates of a plan. ``blocks``: of each one that is walked; ``measuring``: before the first."""

    phases: dict[str, PhaseSeconds]
    blocks: tuple[float, ...]
    measuring: float = 0.0


class Forecaster:
    """An ``on_event`` that sends a ``Forecast`` before every other event, once it knows what to expect."""

    def __init__(
        self, on_event: OnEvent, *, started: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``started``: seconds that this process took to start, as the verifying process will; None: unknown."""
        self._on_event, self._clock, self._started = on_event, clock, started
        self._expecting: Callable[[Rows], ExpectedSeconds] | None = None
        self._rows: Rows | None = None
        self._expected: ExpectedSeconds | None = None
        self._stage, self._units = "preparing", (0, 0)
        self._began = self._stage_began = self._last_event_at = clock()
        self._before = started or 0.0
        """Seconds before this run: of the process, and of blocks that an earlier run finished."""
        self._blocks: list[tuple[float, float]] = []
        """(measured, predicted) seconds of finished blocks."""
        self._is_warm = False

    def expect(self, expecting: Callable[[Rows], ExpectedSeconds] | None, inputs: CapturedInputs | None = None) -> None:
        """``expecting``: the seconds that rows take. The rows are those of ``inputs``, or become known as they are
        calibrated. None: no forecasts."""
        self._expecting = expecting
        if inputs is not None:
            self._rows = _rows(len(inputs.rows), len(inputs.rows), count_tokens(inputs.rows))
        self._expected = expecting(self._rows) if expecting and self._rows else None

    def __call__(self, event: Event) -> None:
        self._take(event)
        self._last_event_at = self._clock()
        if self._expected is not None:
            self._on_event(self._forecast(self._expected))
        self._on_event(event)

    def _take(self, event: Event) -> None:
        match event:
            case PhaseStarted(phase, total):
                self._enter(phase, total or 0, began=self._clock())
            case Advanced(phase, done, total):
                if phase == "calibrating" and (done <= self._units[0] or total != self._units[1]):
                    self._enter(MEASURING, total, began=self._last_event_at)
                self._units = (done, total)
                if event.tokens and self._expecting and done.bit_count() == 1:
                    self._rows = _rows(total, done, event.tokens)
                    self._expected = self._expecting(self._rows)
            case BlockFinished():
                block_seconds = self._expected.blocks if self._expected else ()
                prediction = block_seconds[event.block] if event.block < len(block_seconds) else 0.0
                self._blocks.append((event.seconds - self._warm_up(event), prediction))
                self._before += event.seconds if event.resumed else 0.0
                self._stage_began = self._clock()
            case _:
                pass

    def _warm_up(self, event: BlockFinished) -> float:
        """Of the first block that is computed: modules that are loaded, kernels that are tuned."""
        if self._expected is None or event.resumed or self._is_warm:
            return 0.0
        self._is_warm = True
        seconds = self._expected.phases["preparing"].starting * self._slower(self._expected)
        return min(WARM_UP * seconds, event.seconds / 2)

    def _enter(self, stage: str, total: int, *, began: float) -> None:
        self._stage, self._units, self._stage_began = stage, (0, total), began

    def _forecast(self, expected: ExpectedSeconds) -> Forecast:
        now = self._clock()
        in_stage = now - self._stage_began
        done, total = self._units
        if self._stage == "fitting":
            seconds = self._blocks_left(expected, in_stage)
        elif done and self._stage in ("calibrating", MEASURING, "generating", "exporting"):
            seconds = in_stage / done * (total - done)
        else:
            seconds = max(0.0, self._predicted(expected, self._stage) - in_stage)
        later = STAGES[STAGES.index(self._stage) + 1 :]
        seconds += sum(self._predicted(expected, stage) for stage in later)
        return Forecast(done=now - self._began + self._before, left=seconds)

    def _blocks_left(self, expected: ExpectedSeconds, in_stage: float) -> float:
        in_hand, *others = [seconds * self._factor for seconds in expected.blocks[len(self._blocks) :]] or [0.0]
        return max(0.0, in_hand - in_stage) + sum(others)

    def _predicted(self, expected: ExpectedSeconds, stage: str) -> float:
        if stage == "fitting":
            return sum(expected.blocks) * self._factor
        if stage == MEASURING:
            return expected.measuring * self._factor
        phase = expected.phases.get(stage, PhaseSeconds(0.0, 0.0))
        return phase.starting * self._slower(expected) + phase.working * self._factor

    def _slower(self, expected: ExpectedSeconds) -> float:
        """Seconds that this process took to start over those that were predicted."""
        prediction = expected.phases["preparing"].starting
        return 1.0 if self._started is None or not prediction else self._started / prediction

    @property
    def _factor(self) -> float:
        """Measured over predicted seconds, the newest blocks most."""
        weight, actual, prediction = 1.0, 0.0, 0.0
        for seconds, likely in reversed(self._blocks):
            actual, prediction = actual + weight * seconds, prediction + weight * likely
            weight *= OLDER_WEIGHT
        return actual / prediction if actual and prediction else 1.0


def expected_seconds(
    shapes: Shapes | None,
    spec: QuantizationSpec,
    device: torch.device,
    exports: Sequence[str] = (),
    evaluation: Evaluation | None = None,
) -> Callable[[Rows], ExpectedSeconds] | None:
    """Rows → the seconds that a run over them takes; None for a model that cannot be planned."""
    if shapes is None:
        return None
    recipe = Recipe.of(**spec.model_dump(), exports=exports, evaluation=evaluation)
    rates = GPU if device.type == "cuda" else on_cores(CORE, torch.get_num_threads())
    measures = recipe.measures_sensitivity or recipe.smoothing == "mbq"

    def expected(rows: Rows) -> ExpectedSeconds:
        blocks = tuple(block_seconds(shapes, block, recipe, rows, rates) for block in shapes.blocks)
        return ExpectedSeconds(phases_of(shapes, recipe, rows, rates), blocks, sum(blocks) if measures else 0.0)

    return expected


def _rows(rows: int, with_tokens: int, tokens: tuple[int, int]) -> Rows:
    """``tokens``: of ``with_tokens`` rows, and how many of them are images'."""
    of_all, of_images = tokens
    return Rows(rows, of_all / with_tokens, 1.0, 1.0 if of_images else 0.0, of_images / with_tokens, counted=True)


def seconds_to_start() -> float | None:
    """Age of this process, if it is young enough to have done nothing but start; None where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        ticks = float(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        age = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
        if 0 < age < LONGEST_START:
            return age
    return None

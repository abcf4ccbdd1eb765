"""How much of a run is left: one figure over all phases, right as soon as blocks were measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quant_experts.planning.rows import Rows
from quant_experts.planning.seconds import PhaseSeconds
from quant_experts.progress import Advanced, BlockFinished, Event, Forecast, PhaseStarted
from quant_experts.run.time_left import ExpectedSeconds, Forecaster, expected_seconds
from quant_experts.run.written_size import planned_shapes
from quant_experts.spec.specification import QuantizationSpec
from tests.models import make_model

START = 4.0


class Run:
    """A run of seconds that are chosen, and what it was forecast at each event."""

    def __init__(self, *, blocks: int, factor: float = 1.0, started: float | None = START) -> None:
        """``factor``: real over predicted seconds of a block."""
        self.now, self.seconds, self.events = 0.0, 10.0 * factor, list[Event]()
        self.blocks, self.started = blocks, started
        self.forecaster = Forecaster(self.events.append, started=started, clock=lambda: self.now)
        phases = {
            "preparing": PhaseSeconds(2.0, 0.0),
            "calibrating": PhaseSeconds(0.0, 8.0),
            "verifying": PhaseSeconds(3.0, 1.0),
        }
        self.forecaster.expect(lambda rows: ExpectedSeconds(phases, (rows.tokens,) * blocks))

    def say(self, event: Event, *, after: float = 0.0) -> Forecast | None:
        self.now += after
        told = len(self.events)
        self.forecaster(event)
        first = self.events[told]
        return first if isinstance(first, Forecast) else None

    def finish(self, block: int, *, resumed: bool = False) -> Forecast | None:
        """The first block takes a quarter of what it took to start more."""
        seconds = self.seconds + (0.0 if block or resumed else (self.started or 2.0) / 4)
        event = BlockFinished(block, self.blocks, seconds, {}, (), (), resumed=resumed)
        return self.say(event, after=0.0 if resumed else seconds)


def calibrated(run: Run) -> None:
    run.say(PhaseStarted("calibrating", 2))
    for done in (1, 2):
        run.say(Advanced("calibrating", done, 2, tokens=(10 * done, 0)), after=4.0)


def left(forecast: Forecast | None) -> float:
    assert forecast is not None
    return forecast.left


def test_nothing_is_said_before_anything_is_known_of_the_rows() -> None:
    run = Run(blocks=4)
    assert run.say(PhaseStarted("calibrating", 2)) is None
    # 4 s for the other row, 4 blocks of 10 s, 6 s to start as this process did in 4 instead of 2, and 1 s of work.
    assert left(run.say(Advanced("calibrating", 1, 2, tokens=(10, 0)), after=4.0)) == 4 + 40 + 6 + 1


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_after_the_first_block_the_time_left_is_that_of_measured_blocks(factor: float) -> None:
    run = Run(blocks=4, factor=factor)
    calibrated(run)
    run.say(PhaseStarted("fitting", 4))
    assert left(run.finish(0)) == pytest.approx(3 * 10 * factor + 6 + factor)
    run.now += run.seconds / 2
    assert left(run.say(Advanced("fitting", 1, 2))) == pytest.approx(2.5 * 10 * factor + 6 + factor)


def test_the_last_phases_are_part_of_it_and_the_end_is_the_end() -> None:
    run = Run(blocks=2)
    calibrated(run)
    run.say(PhaseStarted("fitting", 2))
    run.finish(0)
    after_the_blocks = run.finish(1)
    assert left(after_the_blocks) == 7
    assert after_the_blocks is not None
    assert after_the_blocks.fraction == pytest.approx((4 + 8 + 21) / (4 + 8 + 21 + 7))
    said = [run.say(PhaseStarted(phase)) for phase in ("evaluating", "packing", "verifying")]
    assert [left(forecast) for forecast in said] == [7, 7, 7]
    end = run.say(PhaseStarted("publishing"), after=7.0)
    assert end is not None
    assert (end.left, end.fraction) == (0, 1)


def test_blocks_of_an_earlier_run_count_as_done_and_are_a_measure() -> None:
    run = Run(blocks=4, factor=2.0, started=None)
    run.now = 1.0
    calibrated(run)
    run.say(PhaseStarted("fitting", 4))
    run.finish(0, resumed=True)
    forecast = run.finish(1, resumed=True)
    assert forecast is not None
    assert (forecast.done, forecast.left) == (1 + 8 + 40, 2 * 20 + 3 + 2)


def test_a_second_look_at_all_rows_before_the_blocks_counts_anew() -> None:
    run = Run(blocks=2)
    calibrated(run)
    run.say(Advanced("calibrating", 1, 5), after=3.0)
    assert left(run.say(Advanced("calibrating", 2, 5), after=3.0)) == pytest.approx(3 * 3 + 20 + 7)


def test_a_real_model_is_expected_block_by_block(tmp_path: Path) -> None:
    model = make_model("qwen2_vl", tmp_path)
    spec, device = QuantizationSpec.preset("qe"), torch.device("cpu")
    expected = expected_seconds(planned_shapes(model, spec), spec, device)
    assert expected is not None
    found = expected(Rows(8, 100.0, 1.0, 1.0, 50.0))
    assert len(found.blocks) == 2
    assert min(found.blocks) > 0
    assert set(found.phases) == {"preparing", "calibrating", "evaluating", "packing", "verifying"}
    assert expected_seconds(planned_shapes(tmp_path / "nothing", spec), spec, device) is None

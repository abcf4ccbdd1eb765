"""How long a run takes: multiplications and bytes counted per group, times what a machine was seen to do per second.

Shipped rates are of one CPU core (measured) and of a data-centre GPU (a cautious guess, wide range). As soon as the
service has finished jobs of its own, their measured seconds per block take the guess's place: see ``Calibration``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from quant_experts.planning.blocks import Block, Group
from quant_experts.planning.memory import HELD_OUT_TOKENS
from quant_experts.planning.recipe import Recipe
from quant_experts.planning.rows import Rows
from quant_experts.planning.shapes import PATCHES_PER_TOKEN, Shapes
from quant_experts.planning.sizes import ranks_in
from quant_experts.spec.choices import Evaluation
from quant_experts.spec.ranks import Ranks

SUBSAMPLE = 512
"""Tokens that a smoothing search tries its scales on."""
TRIALS = {"none": 0, "outlier": 0, "smoothquant": 0, "rotation": 0, "search": 6, "awq": 20, "mbq": 20}
OVERSAMPLING, ITERATIONS, NEAR = 16, 6, 4
"""Of the low-rank solver: columns, and applications of its operator from scratch and near a known answer."""
PASSES = 14
"""Times that rounding a matrix once reads or writes it as float32."""
SEARCH, SEARCH_ON_TRIAL = 65, 17
"""As many more where the weight grid is searched, in full and for a scale on trial."""
REFINE_STEPS = 1600
SWEEPS = 3
"""Of rounding ``descent``; each of them multiplies the weights with the moment four times."""

FEWEST_MEASURED = 3
"""Blocks that a calibration needs."""

VARIANTS = 16
"""Held-out rows with other images, at most."""
ROW = 0.01
"""Seconds of the processor for one row."""
DISK = 400e6
"""Bytes per second."""
UNPACKED = 16
"""Bytes moved for a weight that is dequantized before it is multiplied with."""


@dataclass(frozen=True)
class Rates:
    """Per second: float32 multiplications and additions; those of the model's own dtype; bytes moved. ``group``:
    seconds for every input group, ``run`` for every job, whatever their size. ``spread``: factors for the range."""

    solve: float
    forward: float
    bytes: float
    group: float
    run: float
    spread: tuple[float, float]


CORE = Rates(solve=40e9, forward=20e9, bytes=4e9, group=0.15, run=15.0, spread=(0.3, 3.0))
GPU = Rates(solve=15e12, forward=60e12, bytes=700e9, group=0.15, run=60.0, spread=(0.25, 4.0))


@dataclass(frozen=True)
class PhaseSeconds:
    """``starting``: until a process has loaded torch and transformers; ``working``: what it does then."""

    starting: float
    working: float

    @property
    def seconds(self) -> float:
        return self.starting + self.working


@dataclass(frozen=True)
class Calibration:
    """Measured over predicted seconds of blocks of finished jobs, at the shipped rates of the same kind of device."""

    ratios: tuple[float, ...]

    @property
    def factor(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Around the factor: the tenth and ninetieth percentile of what was seen, and a quarter on top of it."""
        ordered = sorted(self.ratios)
        low, high = _quantile(ordered, 0.1) / self.factor, _quantile(ordered, 0.9) / self.factor
        return min(low, 1.0) / 1.25, max(high, 1.0) * 1.25


@dataclass(frozen=True)
class Seconds:
    """``per_block``: mean over the blocks, at the shipped rates, for calibrating later plans. ``basis``: what the range
    stands on."""

    least: float
    likely: float
    most: float
    per_block: float
    blocks_measured: int

    @property
    def basis(self) -> str:
        return "measured" if self.blocks_measured else "shipped"


def calibration_of(ratios: Sequence[float]) -> Calibration | None:
    """None when too few blocks were measured."""
    usable = tuple(ratio for ratio in ratios if ratio > 0)
    return Calibration(usable) if len(usable) >= FEWEST_MEASURED else None


def seconds_of(
    shapes: Shapes, recipe: Recipe, rows: Rows, *, rates: Rates, cores: int = 1, calibration: Calibration | None = None
) -> Seconds:
    """``cores``: that the computing process may use; of a GPU's rates, 1."""
    rates = on_cores(rates, cores)
    blocks = [block_seconds(shapes, block, recipe, rows, rates) for block in shapes.blocks]
    factor = calibration.factor if calibration else 1.0
    around = calibration.spread if calibration else rates.spread
    walk = sum(blocks) * factor * (2.0 if recipe.measures_sensitivity or recipe.smoothing == "mbq" else 1.0)
    rest = sum(phase.seconds for phase in phases_of(shapes, recipe, rows, rates).values())
    low = walk * around[0] / (1 + (rows.spread - 1) / 2) + rest / 2
    high = walk * around[1] * (1 + (rows.spread - 1) / 2) + rest * 3
    count = len(calibration.ratios) if calibration else 0
    return Seconds(low, walk + rest, high, sum(blocks) / len(blocks), count)


def block_seconds(shapes: Shapes, block: Block, recipe: Recipe, rows: Rows, rates: Rates) -> float:
    samples = rows.used(recipe.samples)
    total = 0.0
    for group in block.groups:
        tokens = shapes.tokens(group.reads, rows) * group.share
        held_out = tokens * recipe.held_out(samples)
        fit = tokens * max(1, samples) - held_out
        more = tokens * VARIANTS * min(rows.images, 1)
        once = 2.0 * group.weights
        forwards = once * (2 * (fit + held_out) + 2 * (held_out + more) + (0 if recipe.is_rounding_alone else held_out))
        solution, traffic = _fit_work(group, recipe, fit, held_out)
        observation = 2.0 * group.width**2 * fit
        total += forwards / rates.forward + (observation + solution) / rates.solve + traffic / rates.bytes + rates.group
    return total


def _fit_work(group: Group, recipe: Recipe, fit: float, held_out: float) -> tuple[float, float]:
    """Float32 operations and bytes moved while one group is fitted and measured."""
    d, out = group.width, group.rows
    reservoir, matrix = min(recipe.reservoir, fit), 4.0 * group.weights
    trials = TRIALS.get(recipe.smoothing, 5)
    trial_tokens = min(SUBSAMPLE, reservoir)
    work = 2.0 * group.weights * trial_tokens * (trials + bool(trials))
    traffic = matrix * PASSES * (trials + 2) + 4.0 * fit * d * 8
    if recipe.weight_grid == "searched":
        traffic += matrix * (SEARCH + SEARCH_ON_TRIAL * trials)
    if recipe.rounding in ("gptq", "descent"):
        work += 4.0 * d**3 + 2.0 * out * d**2
        traffic += matrix * 128
    if recipe.rounding == "descent":
        work += SWEEPS * 8.0 * out * d**2
        traffic += SWEEPS * matrix * 128
    if recipe.rounding == "obq":
        work += 2.0 * out * d**3
        traffic += matrix * d
    ranks = ranks_in(group, recipe)
    if ranks.shared:
        work += ITERATIONS * _apply(d, out, min(ranks.shared, d, out) + OVERSAMPLING)
    if ranks.experts:
        work += _routed_work(group, recipe, ranks, reservoir)
    held_out_tokens = min(HELD_OUT_TOKENS, held_out)
    measurements = 2 if recipe.is_rounding_alone else 4
    work += 2.0 * group.weights * held_out_tokens * measurements
    traffic += matrix * 4 * measurements
    if recipe.refine != "none":
        work += REFINE_STEPS * 6.0 * group.weights * 64
    return work, traffic


def _apply(d: int, out: int, columns: int) -> float:
    """One application of E M Eᵀ and the factorisation of its columns."""
    return 4.0 * d * out * columns + 2.0 * d**2 * columns + 4.0 * out * columns**2


def _routed_work(group: Group, recipe: Recipe, ranks: Ranks, reservoir: float) -> float:
    d, out, inner = group.width, group.rows, min(group.width, group.rows)
    experts, columns = ranks.experts, min(ranks.routed, inner) + OVERSAMPLING
    preparation = 2.0 * reservoir * d * inner + 2.0 * inner * d * (d + inner) + (2.0 * out * d**2 if out > d else 0.0)
    own_tokens = 4.0 * columns * reservoir
    first = experts * ITERATIONS * (inner * own_tokens + 2.0 * inner**2 * columns)
    again = recipe.lloyd_rounds * NEAR * (inner * own_tokens + experts * 2.0 * inner**2 * columns)
    side = min(d, reservoir)
    router = 2.0 * reservoir * d * side + side**3
    channels = min(experts * recipe.important_channels, max(d - recipe.important_channels, 1))
    return preparation + first + again + router + 10.0 * channels**3


def phases_of(shapes: Shapes, recipe: Recipe, rows: Rows, rates: Rates) -> dict[str, PhaseSeconds]:
    """What a run does but fitting blocks, by the name of its phase."""
    samples = rows.used(recipe.samples)
    tower = 2.0 * shapes.vision_parameters * PATCHES_PER_TOKEN * rows.tokens * min(rows.images, 1)
    head = 2.0 * shapes.hidden * shapes.vocabulary * rows.tokens
    probe = tower + head + 2.0 * shapes.weights * rows.tokens
    verifying = PhaseSeconds(
        0.5 * rates.run,
        shapes.bytes_before / DISK + probe / rates.forward + UNPACKED * shapes.weights / rates.bytes,
    )
    phases = {
        "preparing": PhaseSeconds(0.5 * rates.run, 0.0),
        "calibrating": PhaseSeconds(0.0, tower * (samples + VARIANTS) / rates.forward + ROW * samples),
        "evaluating": PhaseSeconds(0.0, head * recipe.held_out(samples) * 3 / rates.forward),
        "packing": PhaseSeconds(0.0, (4.0 * shapes.others + 2.0 * shapes.bytes_before) / DISK),
        "verifying": verifying,
    }
    if recipe.evaluation:
        phases["generating"] = PhaseSeconds(0.0, _generating(shapes, recipe.evaluation, rows, rates, tower))
    if recipe.exports:
        each = verifying.working + 2.0 * shapes.bytes_before / DISK + UNPACKED * shapes.weights / rates.bytes
        exports = len(recipe.exports)
        phases["exporting"] = PhaseSeconds(exports * verifying.starting, exports * each)
    return phases


def _generating(shapes: Shapes, evaluation: Evaluation, rows: Rows, rates: Rates, tower: float) -> float:
    """At most: every reply is as long as it may be. A step reads all weights once; those of the checkpoint are unpacked
    in every step."""
    replies, step = evaluation.rows, 2.0 * shapes.weights + 2.0 * shapes.hidden * shapes.vocabulary
    prompts = replies * (ROW + (tower + 2.0 * shapes.weights * rows.tokens) / rates.forward)
    tokens = replies * evaluation.max_new_tokens
    original = shapes.bytes_before / DISK + tokens * max(step / rates.forward, shapes.bytes_before / rates.bytes)
    unpacking = UNPACKED * shapes.weights / rates.bytes
    checkpoint = shapes.bytes_before / DISK + (replies + tokens) * (unpacking + step / rates.forward)
    return checkpoint + prompts + (original + prompts if evaluation.original else 0.0)


def on_cores(rates: Rates, cores: int) -> Rates:
    """More cores help, each a little less."""
    many = max(1, cores) ** 0.8
    return Rates(
        rates.solve * many, rates.forward * many, rates.bytes * min(many, 4.0), rates.group, rates.run, rates.spread
    )


def _quantile(values: Sequence[float], share: float) -> float:
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)

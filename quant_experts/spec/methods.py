"""The named methods and what their options mean where they are left out: one table for library, planner and API.

A method is a choice for the three slots (docs/method.md, section 6) with what it lays over the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"smoothing": "none", "rounding": "rtn", "reconstruction": "none"},
    "balanced": {"smoothing": "rotation", "rounding": "gptq", "reconstruction": "qe", "exempt": False},
    "best": {"smoothing": "rotation", "rounding": "descent", "reconstruction": "qe", "exempt": False},
    "rtn": {"smoothing": "none", "rounding": "rtn", "reconstruction": "none"},
    "smoothquant": {"smoothing": "smoothquant", "rounding": "rtn", "reconstruction": "none"},
    "awq": {"smoothing": "awq", "rounding": "rtn", "reconstruction": "none"},
    "mbq": {"smoothing": "mbq", "rounding": "rtn", "reconstruction": "none"},
    "gptq": {"smoothing": "none", "rounding": "gptq", "reconstruction": "none"},
    "obq": {"smoothing": "none", "rounding": "obq", "reconstruction": "none"},
    "svd": {"smoothing": "none", "rounding": "rtn", "reconstruction": "svd"},
    "lqer": {"smoothing": "none", "rounding": "rtn", "reconstruction": "lqer"},
    "aser": {"smoothing": "none", "rounding": "rtn", "reconstruction": "aser"},
    "qe": {"smoothing": "search", "rounding": "rtn", "reconstruction": "qe"},
    "qe-gptq": {"smoothing": "search", "rounding": "gptq", "reconstruction": "qe"},
    "qe-paper": {
        "smoothing": "outlier",
        "rounding": "rtn",
        "reconstruction": "qe",
        "router": "norm",
        "lloyd_rounds": 0,
        "weight_grid": "max",
    },
}

DEFAULT_METHOD = "balanced"
"""Of a run that names none."""


@dataclass(frozen=True)
class Measurement:
    """``bits``: stored per quantized weight. ``kl``: nats per token. ``cpu_seconds``: of the whole run."""

    scheme: str
    bits: float
    kl: float
    cpu_seconds: int

    @property
    def text(self) -> str:
        return f"{self.scheme} KL {self.kl:.3g} at {self.bits:.2f} bits in {self.cpu_seconds} s"


MEASURED_ON = "SmolLM2-135M-Instruct"
MEASUREMENTS: Mapping[str, tuple[Measurement, ...]] = {
    "fast": (Measurement("W4A16", 4.22, 0.263, 187),),
    "balanced": (Measurement("W4A16", 4.79, 0.0756, 222),),
    "best": (Measurement("W4A16", 4.79, 0.0729, 262),),
}
"""What methods that are named for what people want cost and reach, from loading to the check of the checkpoint:
benchmarks/results/real_peers.md. The machine was shared."""

METHOD_VERSION = 4
"""The newest version of the method: what a run that is made now has, unless it asks for another."""
_SECOND: Mapping[str, Any] = {"weight_grid": "searched"}
_THIRD: Mapping[str, Any] = {
    **_SECOND,
    "shared_rank": "auto",
    "routed_rank": "auto",
    "experts": "auto",
    "adapter_dtype": "int8",
}
DEFAULTS: Mapping[int, Mapping[str, Any]] = {1: {}, 2: _SECOND, 3: _THIRD, 4: _THIRD}
"""Version of the method → what every preset lays over the fields' own defaults. Version 4 changes the smoothing of two
presets, see ``choices_of``, and what ``search`` tries, see ``search_rotates``.

A field's own default is what a spec that was recorded without the field meant. A default that changes gets a new
version, so that a resumed run, a queued job and a recipe go on meaning what they meant (docs/adr/0030).
"""


def choices_of(method: str, method_version: int) -> dict[str, Any]:
    """What a preset of a version lays over the fields' own defaults. Raises KeyError for an unknown method."""
    chosen = {**DEFAULTS.get(method_version, {}), **PRESETS[method]}
    if method_version < 4 and chosen["smoothing"] == "rotation":
        chosen["smoothing"] = "search"
    return chosen


def search_rotates(method_version: int) -> bool:
    """Whether smoothing ``search`` tries the rotation too."""
    return method_version > 3


MOST_WEIGHT_BITS = 8
"""Weight bits."""


def levels_of(method_version: int) -> tuple[int, ...]:
    """Weight bits that a budget may raise a group to."""
    return tuple(range(3, MOST_WEIGHT_BITS + 1)) if method_version > 3 else (6, MOST_WEIGHT_BITS)


GROUP_SIZES = (128, 64, 32)
"""That ``group_size`` "auto" tries, largest first."""


def group_sizes_of(method_version: int) -> tuple[int, ...]:
    """Those of a version of the method."""
    return GROUP_SIZES if method_version > 1 else GROUP_SIZES[:1]


def group_size_of(group_size: int | str, width: int, method_version: int) -> int:
    """Input channels that share a weight scale in a group of this input width; a number has been seen to divide it."""
    if isinstance(group_size, int):
        return group_size
    sizes = group_sizes_of(method_version) if group_size == "auto" else ()
    return next((size for size in sizes if width % size == 0), width)

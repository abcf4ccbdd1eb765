"""What is to be done to a model, as far as it decides sizes, memory and time.

Names and defaults are those of the library's QuantizationSpec; ``tests/planning/test_recipe.py`` holds them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

AUTO = "auto"
AUTO_GROUP_SIZES = (128, 64, 32)
METHOD_VERSION = 2
DEFAULTS: Mapping[int, Mapping[str, Any]] = {1: {}, 2: {"weight_grid": "searched"}}
OBQ_WIDTH = 1024
"""Input channels beyond which ``obq`` refuses a group."""
LEVELS = (6, 8)
"""Weight bits that ``budget`` may raise a group to."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
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
        "lloyd_rounds": 0,
        "weight_grid": "max",
    },
}


@dataclass(frozen=True)
class Recipe:
    """``scheme``: ``"auto"`` has the bits of no scheme; sizes then are bounds. ``sensitive``, ``budget``,
    ``target``: as in the body of a job."""

    method_version: int = 1
    scheme: str = "W4A6"
    method: str = "qe"
    smoothing: str = "search"
    rounding: str = "rtn"
    reconstruction: str = "qe"
    group_size: int | str = "auto"
    weight_grid: str = "max"
    shared_rank: int = 32
    routed_rank: int = 32
    experts: int = 8
    important_channels: int = 32
    lloyd_rounds: int = 3
    refine: str = "none"
    reservoir: int = 8192
    adapter_dtype: str = "bf16"
    vision: str = "keep"
    sensitive: Mapping[str, Any] | None = None
    budget: Mapping[str, Any] | None = None
    target: Mapping[str, Any] | None = None
    samples: int = 128
    holdout: float = 0.1
    seed: int = 0

    @classmethod
    def of(cls, method: str = "qe", **options: Any) -> Recipe:
        """The recipe of a named method with ``options`` laid over it; None means the default, unknown names nothing."""
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in options.items() if value is not None and name in known}
        version = given.get("method_version", METHOD_VERSION)
        return cls(**{"method": method, "method_version": version, **DEFAULTS[version], **PRESETS[method], **given})

    @property
    def bits(self) -> tuple[int, int]:
        """Of weights and activations. Raises ValueError for ``"auto"``."""
        found = re.fullmatch(r"W(\d+)A(\d+)", self.scheme)
        if found is None:
            raise ValueError(f"scheme {self.scheme!r} has no bits")
        return int(found[1]), int(found[2])

    @property
    def is_rounding_alone(self) -> bool:
        slots = (self.smoothing, self.rounding, self.reconstruction)
        return (*slots, self.weight_grid) == ("none", "rtn", "none", "max")

    @property
    def measures_sensitivity(self) -> bool:
        """Every group is rounded on its own and the whole model's loss measured, before anything is fitted."""
        by_share = self.sensitive is not None and self.sensitive.get("share") is not None
        return self.scheme == AUTO or by_share or self.budget is not None

    def held_out(self, rows: int) -> int:
        """Of ``rows`` used rows."""
        return max(2, round(self.holdout * rows))

    def group_size_for(self, width: int) -> int:
        if self.group_size == "channel":
            return width
        if self.group_size != "auto":
            return int(self.group_size)
        sizes = AUTO_GROUP_SIZES if self.method_version > 1 else AUTO_GROUP_SIZES[:1]
        return next((size for size in sizes if width % size == 0), width)

    def scale_bits(self, item: int) -> int:
        """Of a weight scale in a model whose values have ``item`` bytes."""
        return 8 * (min(item, 2) if self.method_version > 1 else item)

"""What is to be done to a model, as far as it decides sizes, memory and time.

Names and defaults are those of the library's QuantizationSpec, which has no ``exports`` and no ``evaluation``;
``tests/planning/test_recipe.py`` holds them together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from quant_experts.spec.choices import Evaluation
from quant_experts.spec.methods import (
    DEFAULT_METHOD,
    METHOD_VERSION,
    choices_of,
    group_size_of,
    search_rotates,
)
from quant_experts.spec.ranks import Ranks, in_mixture, ranks_of

AUTO = "auto"
OBQ_WIDTH = 1024
"""Input channels beyond which ``obq`` refuses a group."""


@dataclass(frozen=True)
class Recipe:
    """``scheme``: ``"auto"`` has the bits of no scheme; sizes then are bounds. ``sensitive``, ``budget``,
    ``target``: as in the body of a job. ``exports``: formats that the checkpoint is also written in. ``evaluation``:
    replies that are generated with the original and with the checkpoint."""

    method_version: int = 1
    scheme: str = "W4A6"
    method: str = "qe"
    smoothing: str = "search"
    rounding: str = "rtn"
    reconstruction: str = "qe"
    group_size: int | str = "auto"
    weight_grid: str = "max"
    shared_rank: int | str = 32
    routed_rank: int | str = 32
    experts: int | str = 8
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
    exports: Sequence[str] = ()
    evaluation: Evaluation | None = None

    @classmethod
    def of(cls, method: str = DEFAULT_METHOD, **options: Any) -> Recipe:
        """The recipe of a named method with ``options`` laid over it; None means the default, unknown names nothing."""
        names = {field.name for field in fields(cls)}
        set_options = {name: value for name, value in options.items() if value is not None and name in names}
        version = set_options.get("method_version", METHOD_VERSION)
        values = {"method": method, "method_version": version, **choices_of(method, version), **set_options}
        return cls(**{name: value for name, value in values.items() if name in names})

    @property
    def bits(self) -> tuple[int, int]:
        """Of weights and activations. Raises ValueError for ``"auto"``."""
        match = re.fullmatch(r"W(\d+)A(\d+)", self.scheme)
        if match is None:
            raise ValueError(f"scheme {self.scheme!r} has no bits")
        return int(match[1]), int(match[2])

    def for_group(self, *, of_mixture: bool) -> Recipe:
        """Of an input group; ``of_mixture``: it belongs to one expert of a mixture."""
        return replace(self, **in_mixture(self)) if of_mixture else self  # type: ignore[arg-type]  # names of fields

    def ranks_for(self, *, rows: int, width: int, layers: int) -> Ranks:
        """Of the experts of an input group; what its widths do not allow is clamped later."""
        return ranks_of(self, rows=rows, width=width, layers=layers)

    @property
    def is_rounding_alone(self) -> bool:
        slots = (self.smoothing, self.rounding, self.reconstruction)
        return (*slots, self.weight_grid) == ("none", "rtn", "none", "max")

    @property
    def may_rotate(self) -> bool:
        """A group's base may be rounded behind a rotation."""
        return self.smoothing == "rotation" or (self.smoothing == "search" and self.search_rotates)

    @property
    def search_rotates(self) -> bool:
        return search_rotates(self.method_version)

    @property
    def measures_sensitivity(self) -> bool:
        """Every group is rounded on its own and the whole model's loss measured, before anything is fitted."""
        by_share = self.sensitive is not None and self.sensitive.get("share") is not None
        return self.scheme == AUTO or by_share or self.budget is not None

    def held_out(self, rows: int) -> int:
        """Of ``rows`` used rows."""
        return max(2, round(self.holdout * rows))

    def group_size_for(self, width: int) -> int:
        return group_size_of(self.group_size, width, self.method_version)

    def scale_bits(self, item: int) -> int:
        """Of a weight scale in a model whose values have ``item`` bytes."""
        return 8 * (min(item, 2) if self.method_version > 1 else item)

"""The choices of a method's three slots, by name. Each is a file of ``quant_experts/fit/<slot>``, found by its name.

The order is that of the API's contract: a new choice goes to the end.
"""

from __future__ import annotations

from typing import Literal, get_args

Smoothing = Literal["none", "outlier", "smoothquant", "awq", "mbq", "search", "rotation"]
Rounding = Literal["rtn", "gptq", "obq", "descent"]
Reconstruction = Literal["none", "svd", "lqer", "aser", "qe"]
SMOOTHINGS: tuple[str, ...] = get_args(Smoothing)
ROUNDINGS: tuple[str, ...] = get_args(Rounding)
RECONSTRUCTIONS: tuple[str, ...] = get_args(Reconstruction)

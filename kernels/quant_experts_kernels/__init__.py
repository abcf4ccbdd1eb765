"""CPU kernels for checkpoints of Quant Experts: int4 weights times int8 activations.

The loader that a checkpoint carries (``modeling_quant_experts.py``) finds this package and calls it;
a user has nothing to do. It needs torch alone. ``API`` is the contract with loaders, which are older or newer than it.
"""

from __future__ import annotations

from quant_experts_kernels.layers import PackedLinear, takes
from quant_experts_kernels.library import path

__version__ = "0.1.0"
API = 1

__all__ = ["API", "PackedLinear", "path", "takes"]

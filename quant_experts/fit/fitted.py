"""The result of the fit of one input group, for storing and running it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from quant_experts.fit.rotation import Rotation


@dataclass(frozen=True)
class FittedGroup:
    """A quantized input group of n layers with outputs out_1 … out_n and shared input width d.

    ``codes``: per layer (out_j, d) int8; ``scales``: per layer (out_j, d/group_size) float32.
    ``smooth``: (d,) float32, x is divided by it, or None. ``rotation``: None, or what the base reads is rotated after
    that; then ``smooth`` carries the signs, and ``codes`` are of the rotated weights.
    ``shared_down``: (r_s, d), ``shared_up``: per layer (out_j, r_s).
    ``routed_down``: (N_r, r_r, d), ``routed_up``: per layer (N_r, out_j, r_r), ``router``: (N_r, d).
    Adapters are float32 and None (empty for ``*_up``) where the method has none. All floats hold values that
    ``scale_dtype`` represents exactly. In int8 an adapter is a whole multiple, -127 to 127, of its row's scale:
    ``shared_down_scale``: (r_s,), ``shared_up_scale``: per layer (out_j,), ``routed_down_scale``: (N_r, r_r),
    ``routed_up_scale``: per layer (N_r, out_j); None and empty otherwise. ``in_bf16`` then is the same group with
    adapters in 16 bits, to compare with.
    """

    name: str
    layers: tuple[str, ...]
    weight_bits: int
    activation_bits: int
    group_size: int
    smoothing: str
    codes: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    smooth: Tensor | None
    warnings: tuple[str, ...]
    rotation: Rotation | None = None
    shared_down: Tensor | None = None
    shared_up: tuple[Tensor, ...] = ()
    routed_down: Tensor | None = None
    routed_up: tuple[Tensor, ...] = ()
    router: Tensor | None = None
    shared_down_scale: Tensor | None = None
    shared_up_scale: tuple[Tensor, ...] = ()
    routed_down_scale: Tensor | None = None
    routed_up_scale: tuple[Tensor, ...] = ()
    in_bf16: FittedGroup | None = None

    @property
    def int8_adapters(self) -> bool:
        return self.shared_down_scale is not None or self.routed_down_scale is not None

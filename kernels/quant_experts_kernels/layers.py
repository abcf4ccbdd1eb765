"""What a loader calls: whether a layer can be taken, its packed form, and its arithmetic.

Forward of a layer as in ``modeling_quant_experts.py``: codes, scales and routing of a token are those of the
formula; sums are exact integers within a group of weights and float32 beyond, and low-rank activations stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant_experts_kernels.library import library, path

PANEL = 16
"""Output channels that lie side by side in memory."""
UNQUANTIZED_BITS = 16
_KINDS = {torch.bfloat16: 1, torch.int8: 2}
Adapter = tuple[Tensor | None, Tensor | None]
"""A matrix in bfloat16, or in int8 with a bfloat16 scale per row; (None, None) for none."""


def takes(group_size: int, others: Sequence[Tensor | None]) -> bool:
    """Whether there are kernels for groups of so many weights, with a bias, adapters and router like ``others``."""
    known = all(each is None or each.dtype in _KINDS for each in others)
    return known and group_size % 32 == 0 and path() not in ("", "baseline")


def summed_group(group_size: int, activation_bits: int) -> int:
    """Inputs over which integers are summed: the weights' group; at most 128 of 16 bits, which share an exponent."""
    if activation_bits < UNQUANTIZED_BITS:
        return group_size
    return next(group for group in (128, 64, 32) if group_size % group == 0)


class PackedLinear(nn.Module):
    """A layer's integers, scales and "up" halves as the kernels read them. They move and copy with the layer.

    An integer of 2 to 4 bits takes half a byte, one of 5 to 8 bits two: 16 high + low, one after the other along d.

    blocks: (panels, parts d / 8, 16, 4) uint8 · scales: (panels, parts d / g, 16) bfloat16 ·
    shared_up: (panels, r_s, 16) · routed_up: (N_r, panels, r_r, 16); in int8 with a scale for each channel.
    """

    def __init__(
        self, codes: Tensor, scales: Tensor, bits: int, activation_bits: int, shared_up: Adapter, routed_up: Adapter
    ) -> None:
        """codes: (out, d) int8; scales: (out, d / g) bfloat16; shared_up: (out, r_s); routed_up: (N_r, out, r_r)."""
        super().__init__()
        self.bits, self.activation_bits, self.parts = bits, activation_bits, 1 if bits <= 4 else 2
        self.out_features, self.in_features = codes.shape
        self.group_size = self.in_features // scales.shape[1]
        if self.parts == 2:
            codes = torch.cat([codes >> 4, (codes & 15) - 8], dim=1)
            scales = torch.cat([scales * 16, scales], dim=1)
        for name, tensor in (
            ("blocks", _blocks(_panels(codes + 8, 0).view(torch.uint8))),
            ("scales", _panels(scales, 0).transpose(1, 2).contiguous()),
            ("shared_up", _up(shared_up[0], 0)),
            ("shared_up_scale", _up_scale(shared_up[1], 0)),
            ("routed_up", _up(routed_up[0], 1)),
            ("routed_up_scale", _up_scale(routed_up[1], 1)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def prepare(
        self,
        x: Tensor,
        smooth: Tensor | None,
        turned: Tensor | None,
        scale: Tensor | None,
        shared: Adapter,
        routed: Adapter,
        router: Tensor | None,
    ) -> Tensor:
        """What the layers of an input group share, as the kernels lay it out: a tensor of bytes.

        x: (tokens, d) bfloat16; smooth: (d,) float32; turned: (tokens, d) float32, what is quantized where that is not
        x / smooth; scale: (tokens, 1) float32, where the tokens' scales are given; shared: (r_s, d);
        routed: (N_r, r_r, d); router: (N_r, d) bfloat16.
        """
        arguments = (x, smooth, turned, scale, *shared, *routed, router, self.group_size, self.activation_bits)
        if torch.compiler.is_compiling():
            return torch.ops.quant_experts_kernels.prepare(*arguments)
        return _prepare(*arguments)

    def forward(self, prepared: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """prepared: by :meth:`prepare` of any layer of the group from x (tokens, d); returns (tokens, out) bfloat16."""
        arguments = (
            prepared, x, self.blocks, self.scales, bias,
            self.shared_up, self.shared_up_scale, self.routed_up, self.routed_up_scale,
            self.group_size, self.activation_bits, self.parts, self.out_features,
        )  # fmt: skip
        if torch.compiler.is_compiling():
            return torch.ops.quant_experts_kernels.linear(*arguments)
        return _linear(*arguments)

    def multiplies(self, x: Tensor) -> bool:
        """Whether :meth:`forward` takes x: (…, d). It has no gradient."""
        plain = x.dtype == self.scales.dtype == torch.bfloat16 and x.device.type == "cpu"
        return plain and not (x.requires_grad and torch.is_grad_enabled())

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The dequantized integers, (out, d)."""
        grouped = self.codes().unflatten(1, (-1, self.group_size)).to(dtype)
        return grouped.mul_(self.weight_scale().to(dtype).unsqueeze(-1)).flatten(1)

    def codes(self) -> Tensor:
        """(out, d) int8, as they were given."""
        panels = self.blocks.shape[0]
        halves = torch.stack([self.blocks & 15, self.blocks >> 4], dim=3)  # (panels, d / 8, 16, 2, 4)
        rows = halves.permute(0, 2, 1, 3, 4).reshape(panels * PANEL, -1)[: self.out_features]
        if self.parts == 1:
            return rows.view(torch.int8) - 8
        high, low = rows.chunk(2, dim=1)
        return ((high << 4) ^ low ^ 128).view(torch.int8)

    def weight_scale(self) -> Tensor:
        """(out, d / g), as they were given."""
        return self.scales.transpose(1, 2).flatten(0, 1)[: self.out_features].chunk(self.parts, dim=1)[-1].contiguous()

    def adapters(self) -> dict[str, Tensor | None]:
        """shared_up, shared_up_scale, routed_up and routed_up_scale, as they were given."""
        out = self.out_features

        def rows(up: Tensor | None, dim: int) -> Tensor | None:
            return None if up is None else up.transpose(-1, -2).flatten(dim, dim + 1).narrow(dim, 0, out).contiguous()

        def scales(scale: Tensor | None, dim: int) -> Tensor | None:
            return None if scale is None else scale.flatten(dim).narrow(dim, 0, out).contiguous()

        return {
            "shared_up": rows(self.shared_up, 0),
            "shared_up_scale": scales(self.shared_up_scale, 0),
            "routed_up": rows(self.routed_up, 1),
            "routed_up_scale": scales(self.routed_up_scale, 1),
        }


def _panels(tensor: Tensor, dim: int) -> Tensor:
    """Rows along ``dim``, filled up with zeros to whole panels, as (…, panels, 16, …)."""
    missing = -tensor.shape[dim] % PANEL
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1 - dim) + (0, missing)).unflatten(dim, (-1, PANEL))


def _blocks(codes: Tensor) -> Tensor:
    """codes: (panels, 16, d) uint8, 0 to 15; returns (panels, d / 8, 16, 4) bytes, k in the lower half."""
    halves = codes.unflatten(2, (-1, 2, 4))
    return (halves[:, :, :, 0] | (halves[:, :, :, 1] << 4)).transpose(1, 2).contiguous()


def _up(up: Tensor | None, dim: int) -> Tensor | None:
    return None if up is None else _panels(up, dim).transpose(-1, -2).contiguous()


def _up_scale(scale: Tensor | None, dim: int) -> Tensor | None:
    return None if scale is None else _panels(scale, dim).contiguous()


def _address(tensor: Tensor | None, dtype: torch.dtype = torch.bfloat16) -> int | None:
    if tensor is None:
        return None
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"kernels need contiguous {dtype} in main memory, not {tensor.dtype} on {tensor.device}")
    return tensor.data_ptr()


def _adapter(matrix: Tensor | None, scale: Tensor | None, rank: int) -> tuple[int | None, int, int | None, int]:
    if matrix is None:
        return None, 0, None, 0
    kind = _KINDS.get(matrix.dtype, 1)
    return _address(matrix, torch.int8 if kind == 2 else torch.bfloat16), kind, _address(scale), rank


def _prepared_bytes(tokens: int, width: int, group: int, bits: int, rank: int) -> int:
    return library().qe_prepared_bytes(tokens, width, group, bits, rank)


def _prepare(
    x: Tensor,
    smooth: Tensor | None,
    turned: Tensor | None,
    scale: Tensor | None,
    shared: Tensor | None,
    shared_scale: Tensor | None,
    routed: Tensor | None,
    routed_scale: Tensor | None,
    router: Tensor | None,
    group_size: int,
    activation_bits: int,
) -> Tensor:
    tokens, width = x.shape
    x = x.contiguous()
    smooth = None if smooth is None else smooth.float()  # where the whole model was cast
    group = summed_group(group_size, activation_bits)
    ranks = (0 if shared is None else shared.shape[0], 0 if routed is None else routed.shape[1])
    prepared = torch.empty(_prepared_bytes(tokens, width, group, activation_bits, sum(ranks)), dtype=torch.uint8)
    if tokens:
        library().qe_prepare(
            prepared.data_ptr(), _address(x), _address(smooth, torch.float32), _address(turned, torch.float32),
            _address(scale, torch.float32),
            *_adapter(shared, shared_scale, ranks[0]), *_adapter(routed, routed_scale, ranks[1]),
            _address(router), 0 if router is None else router.shape[0],
            tokens, width, group, activation_bits, torch.get_num_threads(),
        )  # fmt: skip
    return prepared


def _linear(
    prepared: Tensor,
    x: Tensor,
    blocks: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    shared_up: Tensor | None,
    shared_up_scale: Tensor | None,
    routed_up: Tensor | None,
    routed_up_scale: Tensor | None,
    group_size: int,
    activation_bits: int,
    parts: int,
    out_features: int,
) -> Tensor:
    tokens, width = x.shape
    y = torch.empty(tokens, out_features, dtype=torch.bfloat16)
    if tokens:
        library().qe_linear(
            y.data_ptr(), prepared.data_ptr(), blocks.data_ptr(), _address(scales), _address(bias),
            *_adapter(shared_up, shared_up_scale, 0 if shared_up is None else shared_up.shape[1]),
            *_adapter(routed_up, routed_up_scale, 0 if routed_up is None else routed_up.shape[2]),
            tokens, width, summed_group(group_size, activation_bits), group_size, activation_bits, parts, out_features,
            torch.get_num_threads(),
        )  # fmt: skip
    return y


_LIBRARY = torch.library.Library("quant_experts_kernels", "DEF")
_LIBRARY.define(
    "prepare(Tensor x, Tensor? smooth, Tensor? turned, Tensor? scale, Tensor? shared, Tensor? shared_scale, "
    "Tensor? routed, Tensor? routed_scale, Tensor? router, int group_size, int activation_bits) -> Tensor"
)
_LIBRARY.define(
    "linear(Tensor prepared, Tensor x, Tensor blocks, Tensor scales, Tensor? bias, Tensor? shared_up, "
    "Tensor? shared_up_scale, Tensor? routed_up, Tensor? routed_up_scale, int group_size, int activation_bits, "
    "int parts, SymInt out_features) -> Tensor"
)
_LIBRARY.impl("prepare", _prepare, "CPU")
_LIBRARY.impl("linear", _linear, "CPU")


@torch.library.register_fake("quant_experts_kernels::prepare", lib=_LIBRARY)
def _(x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


@torch.library.register_fake("quant_experts_kernels::linear", lib=_LIBRARY)
def _(prepared: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(x.shape[0], arguments[-1])

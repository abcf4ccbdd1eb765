"""The layer that runs: Quant Experts for transformers, in one file that needs nothing but torch and transformers.

The library runs this file, and every checkpoint carries a byte-for-byte copy of it, so that

    AutoModelForImageTextToText.from_pretrained(CHECKPOINT, trust_remote_code=True)

works where the package ``quant_experts`` is not installed. Importing it registers the quantization method
``quant_experts`` with transformers, once per process.

Forward of layer j of an input group (all layers that read the same activation x), method.md section 4:

    h   = x / s
    i*  = argmin_i (R |h|)_i
    y_j = W_q,j Q(T h) + up_s,j (down_s h) + up_{i*,j} (down_{i*} h) + bias_j

T is the identity or a rotation (:func:`rotate`). Everything left of W and up is computed once per group by
:class:`InputGroup` and shared by the group's layers.

A model that transformers has loaded multiplies bfloat16 tokens on a CPU with the packed integers themselves: by the
package ``quant-experts-kernels`` where that is installed, and few tokens by torch (:class:`CpuIntegers`) elsewhere.
``QE_KERNELS=torch`` passes the package over; ``QE_KERNELS=reference`` keeps the plain formula everywhere.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

QUANT_METHOD = "quant_experts"
FORMAT = 1
MIXTURE_FORMAT = 2
"""Of a checkpoint whose groups have ``members``, which the loaders of format 1 would pass over."""
ROTATED_FORMAT = 3
"""Of a checkpoint with groups that have a key of ``ACTIVATION_KEYS``, which the loaders of formats 1 and 2 would run
without."""
ACTIVATION_KEYS = ("rotation", "activation_clip")
UNQUANTIZED_BITS = 16
ADAPTER_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OFFLOADS_INTEGERS = (5, 13)
"""The transformers from which on tensors that are offloaded to disk keep their own dtype."""


# --- Packed integers -------------------------------------------------------------------------------------------------


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Signed integers from dense words, the ``pack-quantized`` layout of compressed-tensors.

    packed: (rows, ceil(columns * bits / 32)) int32, each row a stream of little-endian bit fields that hold the value
    plus 2^(bits-1); returns (rows, columns) int8.
    """
    rows = packed.shape[0]
    stream = packed.contiguous().view(torch.uint8)  # (rows, bytes); every platform of torch is little-endian
    mask, offset = 2**bits - 1, 2 ** (bits - 1)
    if bits == 8:
        codes: Tensor = (stream ^ offset)[:, :columns].view(torch.int8)
        return codes
    if bits == 4:
        # Each byte in two, its halves in the lower halves of both: 0x00ba to 0x0b0a, the lower byte first in memory.
        # 2.7 times as quick on a CPU as stacking both halves.
        pairs = stream.to(torch.int16)
        pairs = pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F)
        return pairs.view(torch.int8)[:, :columns].sub_(offset)
    # Eight fields fill exactly `bits` bytes. Sliced, not gathered by index: eight times quicker on a CPU.
    periods = -(-columns // 8)
    stream = F.pad(stream, (0, max(0, periods * bits - stream.shape[1])))[:, : periods * bits]
    stream = stream.reshape(rows, periods, bits)
    fields = torch.empty(rows, periods, 8, dtype=torch.uint8, device=packed.device)
    for field in range(8):
        byte, shift = divmod(field * bits, 8)
        value = stream[..., byte] >> shift
        if shift + bits > 8:
            value = value | (stream[..., byte + 1] << (8 - shift))
        fields[..., field] = value & mask
    return fields.reshape(rows, -1)[:, :columns].view(torch.int8).sub_(offset)


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """codes: (out, d) int8; scales: (out, d / g) float; returns (out, d) in ``dtype``, rounded once per weight."""
    out, d = codes.shape
    grouped = codes.reshape(out, scales.shape[1], -1).to(dtype)
    return grouped.mul_(scales.to(dtype).unsqueeze(-1)).reshape(out, d)


def quantize_tokens(x: Tensor, bits: int, clip: float | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric integers of every token under its own scale. x: (tokens, d) float; returns the integers (tokens, d) and
    the scales (tokens, 1), both float32. The largest integer stands for the token's largest magnitude, or for ``clip``
    times its root mean square where that is less; what lies beyond gets the largest integer too."""
    bound = 2 ** (bits - 1) - 1
    x = x.float()
    scale = token_scales(x, bits, clip)
    return (x / scale).round_().clamp_(-bound, bound), scale


def token_scales(x: Tensor, bits: int, clip: float | None = None) -> Tensor:
    """The scales of :func:`quantize_tokens`. x: (tokens, d) float32."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    if clip is not None:
        largest = torch.minimum(largest, clip * x.square().mean(dim=-1, keepdim=True).sqrt())
    scale = largest / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def fake_quantize_tokens(x: Tensor, bits: int, clip: float | None = None) -> Tensor:
    """Round every token to symmetric integers under its own scale, and back. x: (tokens, d) float; returns float32."""
    codes, scale = quantize_tokens(x, bits, clip)
    return codes.mul_(scale)


# --- Rotation --------------------------------------------------------------------------------------------------------

FACTOR = 64
"""A Hadamard matrix is multiplied in Kronecker factors of at most this order: on a CPU quicker than butterflies, which
pass over the memory once for every doubling."""


def rotate(x: Tensor, sizes: tuple[int, int]) -> Tensor:
    """T x for every token, T block-diagonal with blocks ``hartley(m) ⊗ hadamard(n)``, (m, n) = sizes.

    x: (..., d), m n divides d, n a power of two; returns the same shape and dtype. T is symmetric and its own inverse.
    Every entry of a block has a magnitude of at most sqrt(2 / (m n)), so that an outlier is spread over the block.
    """
    m, n = sizes
    inner = min(n, FACTOR)
    y = x.reshape(-1, inner) @ hadamard(inner, x.dtype, x.device)
    while inner < n:
        order = min(n // inner, FACTOR)
        y = hadamard(order, x.dtype, x.device) @ y.reshape(-1, order, inner)
        inner *= order
    if m > 1:
        y = hartley(m, x.dtype, x.device) @ y.reshape(-1, m, n)
    return y.reshape(x.shape)


@functools.lru_cache(maxsize=64)
def hadamard(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sylvester's matrix of order n, a power of two, divided by sqrt(n): symmetric and orthogonal."""
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < n:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        return matrix.div(n**0.5).to(device, dtype)


@functools.lru_cache(maxsize=64)
def hartley(m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Entries cos(a) + sin(a), a = 2 pi j k / m, divided by sqrt(m): symmetric and orthogonal for every m."""
    with torch.inference_mode(False):
        places = torch.arange(m, dtype=torch.float64)
        angles = torch.outer(places, places) * (2 * math.pi / m)
        return angles.cos().add(angles.sin()).div(m**0.5).to(device, dtype)


def project(x: Tensor, matrix: Tensor, scale: Tensor | None) -> Tensor:
    """x matrixᵀ. x: (tokens, d); matrix: (rows, d) in a float dtype, or int8 with scale (rows,)."""
    y = F.linear(x, matrix.to(x.dtype))
    return y if scale is None else y * scale.to(x.dtype)


def project_each(x: Tensor, matrices: Tensor, scales: Tensor | None, choice: Tensor) -> Tensor:
    """x_t matrices[choice_t]ᵀ for every token. x: (tokens, d); matrices: (N, rows, d); scales: (N, rows)."""
    y = torch.bmm(matrices[choice].to(x.dtype), x.unsqueeze(-1)).squeeze(-1)
    return y if scales is None else y * scales[choice].to(x.dtype)


# --- Integers as a CPU multiplies them --------------------------------------------------------------------------------

FEW_TOKENS = 32
"""Up to so many tokens the product with packed integers is quicker than dequantizing first, with AMX and without."""
KERNELS_API = 1
"""Of the package ``quant_experts_kernels``: what this file calls."""
_REPACKING = threading.Lock()


def chosen_kernels() -> str:
    """QE_KERNELS of the environment. Raises ValueError for one that is not known."""
    chosen = os.environ.get("QE_KERNELS", "auto")
    if chosen not in ("auto", "torch", "reference"):
        raise ValueError(f"QE_KERNELS is {chosen!r}: choose auto, torch or reference")
    return chosen


def find_kernels() -> Any:
    """The package ``quant_experts_kernels``; None where it is not installed, not wanted, or of another contract."""
    if chosen_kernels() != "auto":
        return None
    try:
        found = importlib.import_module("quant_experts_kernels")
    except ModuleNotFoundError:
        return None
    return found if found.API == KERNELS_API else None


kernels = functools.cache(find_kernels)


def product_group(group_size: int) -> int | None:
    """The largest group of torch's packed int4 product that divides ``group_size``."""
    return next((group for group in (256, 128, 64, 32) if group_size % group == 0), None)


@functools.cache
def kernel_rows() -> int:
    """Rows in a block of torch's packed int4 product on this processor; 0 where it has none worth using.

    The layout is private to torch and differs between processors: rows j and j + rows / 2 share a byte, columns follow
    one another. It is therefore compared with what torch itself packs. Raises ValueError for an unknown QE_KERNELS.
    """
    if chosen_kernels() == "reference" or not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return 0
    rows = {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 0)
    if rows:
        codes = torch.randint(-8, 8, (128, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
        by_torch = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).int(), 2)
        if not torch.equal(by_torch.flatten(), _blocks(codes, rows).flatten()):
            return 0
    return rows


def _blocks(codes: Tensor, rows: int) -> Tensor:
    """codes: (out, d) int8 in -8 to 7, ``out`` whole blocks; returns (out / rows, d, rows / 2) bytes."""
    halves = (codes + 8).view(torch.uint8).reshape(-1, 2, rows // 2, codes.shape[1])
    return (halves[:, 0] | (halves[:, 1] << 4)).transpose(1, 2).contiguous()


class CpuIntegers(nn.Module):
    """A layer's integers and scales as torch's packed int4 product reads them. They move and copy with the layer.

    An integer of 2 to 4 bits takes half a byte, one of 5 to 8 bits two halves: 16 high + low + 8, side by side along
    d, so that one product sums both. Half bytes, bfloat16 scales and activations that are whole numbers up to 127 are
    exact in it.

    blocks: (out / rows, parts d, rows / 2) uint8, ``out`` filled up to whole blocks with zeros ·
    scales: (parts d / group, out, 2) bfloat16, the scale and what is added to every weight.
    """

    blocks: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bits: int, rows: int) -> None:
        """codes: (out, d) int8; scales: (out, d / g) bfloat16, g a multiple of 32; rows: of a block."""
        super().__init__()
        self.out_features, d = codes.shape
        self.rows, self.parts = rows, 1 if bits <= 4 else 2
        group_size = d // scales.shape[1]
        group = product_group(group_size)
        assert group is not None
        self.group = group
        scales = scales.repeat_interleave(group_size // group, dim=1)
        added = torch.zeros_like(scales)
        if self.parts == 2:
            codes = torch.cat([codes >> 4, (codes & 15) - 8], dim=1)
            scales, added = torch.cat([scales * 16, scales], dim=1), torch.cat([added, scales * 8], dim=1)
        missing = -self.out_features % rows
        both = F.pad(torch.stack([scales, added], dim=-1), (0, 0, 0, 0, 0, missing))
        self.register_buffer("blocks", _blocks(F.pad(codes, (0, 0, 0, missing)), rows), persistent=False)
        self.register_buffer("scales", both.transpose(0, 1).contiguous(), persistent=False)

    def multiplies(self, x: Tensor) -> bool:
        """Whether :meth:`product` takes x here; a copy of this module may have come from another processor."""
        return x.dtype == self.scales.dtype == torch.bfloat16 and x.device.type == "cpu" and self.rows == kernel_rows()

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ, summed in float32. x: (tokens, d) bfloat16; returns (tokens, out) bfloat16. It has no gradient."""
        x = x if self.parts == 1 else torch.cat([x, x], dim=1)
        packed = self.blocks.view(-1, x.shape[1] // 2)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, self.group, self.scales)
        return y[:, : self.out_features]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x Wᵀ + bias with the weights dequantized first. x: (tokens, d); returns (tokens, out)."""
        biases = (None, None) if bias is None else self._in_halves(bias)
        halves = [F.linear(x, w.t(), b) for w, b in zip(self._dequantized(x.dtype), biases, strict=True)]
        blocks, _, rows = self.blocks.shape
        y = torch.stack([half.reshape(len(x), blocks, rows) for half in halves], dim=2)
        return y.flatten(1)[:, : self.out_features]

    def weight(self, dtype: torch.dtype) -> Tensor:
        """(out, d) in ``dtype``."""
        halves = self._dequantized(dtype)
        blocks, _, rows = self.blocks.shape
        in_order = halves.view(2, -1, blocks, rows).permute(2, 0, 3, 1)
        return in_order.flatten(0, 2)[: self.out_features]

    def _in_halves(self, bias: Tensor) -> Tensor:
        padded = F.pad(bias, (0, self.blocks.shape[0] * self.rows - len(bias)))
        return padded.view(-1, 2, self.rows // 2).transpose(0, 1).flatten(1)

    def _dequantized(self, dtype: torch.dtype) -> Tensor:
        """(2, d, out / 2): the first and the second half of every block. In this order each step runs over contiguous
        memory, which makes it as quick as from the packed words."""
        stored = self.blocks.transpose(0, 1).flatten(1)
        halves = torch.stack([stored & 15, stored >> 4])
        scales = self.scales[..., 0]
        if self.parts == 2:
            high, low = halves.chunk(2, dim=1)
            halves, scales = (high << 4) ^ low ^ 128, scales.chunk(2)[1]
            codes = halves.view(torch.int8)
        else:
            codes = halves.view(torch.int8).sub_(8)
        scales = scales.to(dtype).view(len(scales), -1, 2, self.rows // 2).permute(2, 0, 1, 3).flatten(2)
        grouped = codes.to(dtype).view(2, len(scales[0]), self.group, -1)
        return grouped.mul_(scales.unsqueeze(2)).flatten(1, 2)


# --- Routing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Routed:
    """The low-rank activations of the routed experts, one expert per token.

    Few tokens (decoding) gather their expert's matrices; many tokens (prefill) are sorted by expert and multiplied
    segment by segment. Neither walks over tokens.
    """

    low: Tensor
    """(tokens, r_r); in the order of ``order`` when the tokens are sorted."""
    choice: Tensor
    """(tokens,) int64: the expert of each token."""
    order: Tensor | None = None
    """(tokens,) int64: positions sorted by expert; None when the tokens are few."""
    counts: tuple[int, ...] = ()
    """Tokens per expert, when sorted."""
    only: int | None = None
    """The expert of a single token, where its matrices are used in place instead of gathered."""

    @classmethod
    def down(cls, h: Tensor, scores: Tensor, down: Tensor, scale: Tensor | None, *, in_place: bool = False) -> Routed:
        """h: (tokens, d); scores: (tokens, N_r), smaller is better; down: (N_r, r_r, d); scale: (N_r, r_r)."""
        choice = scores.argmin(dim=-1)
        if in_place and len(choice) == 1:
            only = int(choice)
            return cls(project(h, down[only], _of(scale, only)), choice, only=only)
        experts = down.shape[0]
        if len(choice) <= experts:
            return cls(project_each(h, down, scale, choice), choice)
        order = torch.argsort(choice, stable=True)
        counts = tuple(torch.bincount(choice, minlength=experts).tolist())
        segments = torch.split(h[order], list(counts))
        low = torch.cat([project(segment, down[i], _of(scale, i)) for i, segment in enumerate(segments)])
        return cls(low, choice, order, counts)

    def up(self, up: Tensor, scale: Tensor | None) -> Tensor:
        """up: (N_r, out, r_r); scale: (N_r, out); returns (tokens, out) in the original order."""
        if self.only is not None:
            return project(self.low, up[self.only], _of(scale, self.only))
        if self.order is None:
            return project_each(self.low, up, scale, self.choice)
        segments = torch.split(self.low, list(self.counts))
        sorted_output = torch.cat([project(segment, up[i], _of(scale, i)) for i, segment in enumerate(segments)])
        inverse = torch.empty_like(self.order)
        inverse[self.order] = torch.arange(len(self.order), device=self.order.device)
        return sorted_output[inverse]


def _of(scales: Tensor | None, expert: int) -> Tensor | None:
    return None if scales is None else scales[expert]


# --- Modules ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What the layers of one group share for one activation."""

    values: Tensor
    """(tokens, d) in the model's dtype: Q(T h), or T h when activations stay unquantized."""
    shared: Tensor | None
    """(tokens, r_s): down_s (x / s)."""
    routed: Routed | None
    scale: Tensor | None = None
    """(tokens, 1) float32, when ``values`` are only the whole numbers of Q."""
    few: bool = False
    """Whether layers are to multiply packed integers."""

    @property
    def quantized(self) -> Tensor:
        """Q(T h), whichever way it is held."""
        return self.values if self.scale is None else (self.values * self.scale).to(self.values.dtype)


@dataclass(frozen=True)
class _Pass:
    """One activation on its way through the layers of a group; ``version``: None for a tensor that has no counter."""

    input: Tensor
    version: int | None
    packed: int
    """The group size of weights for which :meth:`InputGroup.pack` has prepared; 0 for :meth:`InputGroup.prepare`."""
    prepared: Any
    read: set[str]
    """Layers that have had it."""


class InputGroup(nn.Module):
    """What sibling layers that read the same activation share: scaling, rotation, activation quantizer, "down" halves,
    router.

    ``rotation``: sizes for :func:`rotate`, or None; it goes before the quantizer, and only there. ``activation_clip``:
    see :func:`quantize_tokens`.
    smooth: (d,) float32, of either sign where a rotation follows · shared_down: (r_s, d) · routed_down: (N_r, r_r, d) ·
    router: (N_r, d); each None when the method does not use it. Adapters in int8 have a scale per row:
    shared_down_scale (r_s,), routed_down_scale (N_r, r_r). The result for one activation is kept until every layer of
    ``layers`` has read it once.
    """

    smooth: nn.Parameter | None
    shared_down: nn.Parameter | None
    shared_down_scale: nn.Parameter | None
    routed_down: nn.Parameter | None
    routed_down_scale: nn.Parameter | None
    router: nn.Parameter | None

    def __init__(
        self,
        width: int,
        layers: tuple[str, ...],
        *,
        activation_bits: int,
        smooth: bool,
        shared_rank: int,
        routed_rank: int,
        experts: int,
        int8_adapters: bool,
        adapter_dtype: torch.dtype,
        device: torch.device | str,
        rotation: tuple[int, int] | None = None,
        activation_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.width, self.layers, self.activation_bits = width, layers, activation_bits
        self.rotation, self.activation_clip = rotation, activation_clip
        routed = routed_rank > 0 and experts > 0

        # float32 whatever the model's dtype: the weights were scaled by exactly these numbers.
        self.register_parameter("smooth", _empty(width, dtype=torch.float32, device=device) if smooth else None)
        like = (adapter_dtype, device)
        _register_adapter(self, "shared_down", shared_rank > 0, int8_adapters, shared_rank, width, like=like)
        _register_adapter(self, "routed_down", routed, int8_adapters, experts, routed_rank, width, like=like)
        router = _empty(experts, width, dtype=adapter_dtype, device=device) if routed else None
        self.register_parameter("router", router)
        self._pass: _Pass | None = None
        self.accelerated = False

    def forward(self, x: Tensor, layer: str, kernels: Any = None) -> Any:
        """What ``layer`` needs of x: (..., d), by :meth:`prepare`, or by :meth:`pack` for a layer's ``PackedLinear``.
        Computed when the first layer of the group asks for it.

        A layer that asks twice begins a new pass: that keeps the result right for tensors made in inference mode, which
        carry no version counter to tell that they were written to.
        """
        version = None if torch.compiler.is_compiling() or x.is_inference() else x._version
        # Looked up once: another thread that runs the same model may put a pass of its own here at any moment.
        current = self._pass
        group_size = 0 if kernels is None else kernels.group_size
        same = current is not None and x is current.input and (version, group_size) == (current.version, current.packed)
        if current is None or not same or layer in current.read:
            prepared = self.prepare(x) if kernels is None else self.pack(x, kernels)
            self._pass = current = _Pass(x, version, group_size, prepared, set())
        current.read.add(layer)
        if len(current.read) == len(self.layers):
            self.release()
        return current.prepared

    def release(self) -> None:
        """Forget the activation and what was computed from it."""
        self._pass = None

    def prepare(self, x: Tensor) -> Prepared:
        """x: (..., d) in the model's dtype; tokens are the product of the leading dimensions."""
        h = x.reshape(-1, self.width)
        scaled = h if self.smooth is None else h.float() / self.smooth
        low = scaled.to(x.dtype)
        turned = scaled if self.rotation is None else rotate(scaled.float(), self.rotation)
        few = self.accelerated and 0 < len(h) <= FEW_TOKENS and not (x.requires_grad and torch.is_grad_enabled())
        values, scale = low if turned is scaled else turned.to(x.dtype), None
        if self.activation_bits != UNQUANTIZED_BITS:
            values, scale = quantize_tokens(turned, self.activation_bits, self.activation_clip)
            values, scale = (values.to(x.dtype), scale) if few else (values.mul_(scale).to(x.dtype), None)
        shared = None if self.shared_down is None else project(low, self.shared_down, self.shared_down_scale)
        routed = None
        if self.routed_down is not None and self.router is not None:
            scores = F.linear(scaled.float().abs(), self.router.float())
            routed = Routed.down(low, scores, self.routed_down, self.routed_down_scale, in_place=few)
        return Prepared(values, shared, routed, scale, few)

    def pack(self, x: Tensor, kernels: Any) -> Tensor:
        """As :meth:`prepare`, by the package's kernels and for them alone. x: (..., d) bfloat16."""
        h = x.reshape(-1, self.width)
        turned = scale = None
        if self.rotation is not None or self.activation_clip is not None:
            turned = h.float() if self.smooth is None else h.float() / self.smooth
            turned = turned if self.rotation is None else rotate(turned, self.rotation)
            if self.activation_clip is not None and self.activation_bits != UNQUANTIZED_BITS:
                scale = token_scales(turned, self.activation_bits, self.activation_clip)
        shared, routed = (self.shared_down, self.shared_down_scale), (self.routed_down, self.routed_down_scale)
        packed: Tensor = kernels.prepare(h, self.smooth, turned, scale, shared, routed, self.router)
        return packed

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, layers={list(self.layers)}, activation_bits={self.activation_bits}, "
            f"rotation={self.rotation}, activation_clip={self.activation_clip}"
        )


def _empty(*shape: int, dtype: torch.dtype, device: torch.device | str) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


def _register_adapter(
    module: nn.Module,
    name: str,
    present: bool,
    int8: bool,
    *shape: int,
    like: tuple[torch.dtype, torch.device | str],
) -> None:
    """``name`` of ``shape``, and in int8 ``name``_scale with one scale per row; None where there is none."""
    dtype, device = like
    matrix = _empty(*shape, dtype=torch.int8 if int8 else dtype, device=device) if present else None
    scale = _empty(*shape[:-1], dtype=dtype, device=device) if present and int8 else None
    module.register_parameter(name, matrix)
    module.register_parameter(f"{name}_scale", scale)


class QuantizedLinear(nn.Module):
    """A linear layer with packed integer weights and the "up" halves of its group's experts.

    After :meth:`accelerate`, the first bfloat16 activation on a CPU turns ``weight_packed`` and ``weight_scale`` into
    ``integers``, which then take their place: nothing is held twice. A ``PackedLinear``, of the package, takes
    the "up" halves too.

    weight_packed: (out, ceil(d * bits / 32)) int32 · weight_scale: (out, d / g) · weight_shape: (2,) int64, (out, d) ·
    bias: (out,) · shared_up: (out, r_s) · routed_up: (N_r, out, r_r); in int8 with shared_up_scale (out,) and
    routed_up_scale (N_r, out).
    """

    weight_packed: nn.Parameter | None
    weight_scale: nn.Parameter | None
    integers: Any
    bias: nn.Parameter | None
    shared_up: nn.Parameter | None
    shared_up_scale: nn.Parameter | None
    routed_up: nn.Parameter | None
    routed_up_scale: nn.Parameter | None

    def __init__(
        self,
        name: str,
        group: InputGroup,
        in_features: int,
        out_features: int,
        *,
        weight_bits: int,
        group_size: int,
        shared_rank: int,
        routed_rank: int,
        experts: int,
        int8_adapters: bool,
        adapter_dtype: torch.dtype,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        self.name, self.in_features, self.out_features = name, in_features, out_features
        self.weight_bits, self.group_size = weight_bits, group_size
        # In a tuple, so that the group is not a submodule here too: its tensors belong to the parent module, once.
        self._group = (group,)
        self._weight: Tensor | None = None
        self.keeps_weight = False
        self.accelerated = self.fused = False
        self.register_module("integers", None)

        words = -(-in_features * weight_bits // 32)
        self.weight_packed = _empty(out_features, words, dtype=torch.int32, device=device)
        self.weight_scale = _empty(out_features, in_features // group_size, dtype=dtype, device=device)
        self.weight_shape = _empty(2, dtype=torch.int64, device=device)
        self.register_parameter("bias", bias)
        routed, like = routed_rank > 0 and experts > 0, (adapter_dtype, device)
        _register_adapter(self, "shared_up", shared_rank > 0, int8_adapters, out_features, shared_rank, like=like)
        _register_adapter(self, "routed_up", routed, int8_adapters, experts, out_features, routed_rank, like=like)

    def accelerate(self) -> None:
        """Use packed integer products where this processor has them and the layer's numbers fit them."""
        group, package = self._group[0], kernels()
        if self.weight_scale is None or self.weight_scale.dtype != torch.bfloat16:
            return
        tensors = {**self._parameters, **group._parameters}
        others = [each for name, each in tensors.items() if name not in ("weight_packed", "weight_shape", "smooth")]
        if package is not None and package.takes(self.group_size, others):
            self.accelerated = self.fused = True
        elif product_group(self.group_size) and kernel_rows():
            self.accelerated = group.accelerated = True

    def base_weight(self, dtype: torch.dtype) -> Tensor:
        """The dequantized integers, (out, d); kept between calls only inside :func:`dequantized_weights`."""
        packed, scale, integers = self.weight_packed, self.weight_scale, self.integers
        if integers is not None:
            weight: Tensor = integers.weight(dtype)
            return weight
        assert packed is not None
        assert scale is not None
        if self._weight is not None and self._weight.dtype == dtype and self._weight.device == packed.device:
            return self._weight
        weight = dequantize(unpack(packed, self.weight_bits, self.in_features), scale, dtype)
        if self.keeps_weight:
            self._weight = weight
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d); returns (..., out) in the dtype of x."""
        integers = self._repacked(x) if self.accelerated else None
        if self.fused and integers is not None and integers.multiplies(x):
            return self._fused(x, integers)
        prepared: Prepared = self._group[0](x, self.name)
        if integers is None or self.fused:
            y = F.linear(prepared.quantized, self.base_weight(x.dtype), self.bias)
        elif prepared.few and integers.multiplies(x):
            return self._few(prepared, integers).to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        else:
            y = integers.linear(prepared.quantized, self.bias)
        ups = self._parameters if integers is None or not self.fused else integers.adapters()
        shared_up, scale = ups["shared_up"], ups["shared_up_scale"]
        if prepared.shared is not None and shared_up is not None:
            if scale is None:
                y = torch.addmm(y, prepared.shared, shared_up.to(y.dtype).t())
            else:
                y = y + project(prepared.shared, shared_up, scale)
        if prepared.routed is not None and ups["routed_up"] is not None:
            y = y + prepared.routed.up(ups["routed_up"], ups["routed_up_scale"])
        return y.reshape(*x.shape[:-1], self.out_features)

    def _fused(self, x: Tensor, integers: Any) -> Tensor:
        """As :meth:`forward`, by the package's kernels. ``integers``: the ``PackedLinear``."""
        # Not as modules: for a narrow layer their calls would cost as much as the product.
        packed = self._group[0].forward(x, self.name, integers)
        y: Tensor = integers.forward(packed, x.reshape(-1, self.in_features), self.bias)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _few(self, prepared: Prepared, integers: CpuIntegers) -> Tensor:
        """(tokens, out) float32, every part added to it unrounded."""
        y = integers.product(prepared.values)
        y = y.float() if prepared.scale is None else y * prepared.scale
        if self.bias is not None:
            y += self.bias
        if prepared.shared is not None and self.shared_up is not None:
            y += project(prepared.shared, self.shared_up, self.shared_up_scale)
        if prepared.routed is not None and self.routed_up is not None:
            y += prepared.routed.up(self.routed_up, self.routed_up_scale)
        return y

    def _repacked(self, x: Tensor) -> Any:
        """The integers as the CPU multiplies them, made when the first x comes that may be multiplied so."""
        if self.integers is not None:
            return self.integers
        # Offloaded by accelerate: its hooks bring the stored tensors for each call and take them away again.
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or hasattr(self, "_hf_hook"):
            return None
        return self.repack()

    def repack(self) -> Any:
        """Put ``integers`` in the place of the packed words, once, whichever thread comes first."""
        with _REPACKING:
            packed, scale = self.weight_packed, self.weight_scale
            if self.integers is None and packed is not None and scale is not None:
                codes = unpack(packed, self.weight_bits, self.in_features)
                if self.fused:
                    shared, routed = (self.shared_up, self.shared_up_scale), (self.routed_up, self.routed_up_scale)
                    bits = (self.weight_bits, self._group[0].activation_bits)
                    self.integers = kernels().PackedLinear(codes, scale, *bits, shared, routed)
                    self.shared_up = self.shared_up_scale = self.routed_up = self.routed_up_scale = None
                else:
                    self.integers = CpuIntegers(codes, scale, self.weight_bits, kernel_rows())
                self.weight_packed = self.weight_scale = None
        assert self.integers is not None
        return self.integers


@contextmanager
def dequantized_weights(module: nn.Module) -> Iterator[None]:
    """While open, quantized layers below ``module`` dequantize once and keep the result: memory for time."""
    layers = [child for child in module.modules() if isinstance(child, QuantizedLinear)]
    for layer in layers:
        layer.keeps_weight = True
    try:
        yield
    finally:
        for layer in layers:
            layer.keeps_weight, layer._weight = False, None


# --- Mixtures of experts ---------------------------------------------------------------------------------------------

STACKS = (("gate_up_proj", "down_proj"), ("up_proj", "down_proj"))
"""Names of the parameters (experts, …, …) in which transformers keeps the experts of a mixture."""


class MixtureExperts(nn.Module):
    """The experts of a mixture with a linear layer for each matrix of each expert, in the place of transformers' module
    that stacks them in parameters of three dimensions.

    ``gate_up_proj`` or ``up_proj``, and ``down_proj``: lists of layers, which can be quantized one by one. Gate,
    activation, biases, norm and every other attribute are those of the module that it replaces. Only the experts that
    the router has chosen run, and only their matrices are dequantized, one after the other.
    """

    def __init__(self, stacked: nn.Module) -> None:
        """``stacked``: see :func:`stacks_of`; its stacked parameters may be on the meta device."""
        super().__init__()
        for name, value in vars(stacked).items():
            self.__dict__.setdefault(name, value)
        self.kind: Any = type(stacked)
        self.first, self.last = stacks_of(stacked) or STACKS[0]
        self.takes_all = _takes_all(self.kind)
        for name, parameter in stacked._parameters.items():
            if name not in (self.first, self.last):
                self.register_parameter(name, parameter)
        for name, module in stacked._modules.items():
            self.add_module(name, module)
        for name in (self.first, self.last):
            stack = stacked.get_parameter(name)
            outs, width = stack.shape[:0:-1] if is_transposed(stacked) else stack.shape[1:]
            layers = (nn.Linear(width, outs, False, stack.device, stack.dtype) for _ in range(experts_of(stacked)))
            self.add_module(name, nn.ModuleList(layers).requires_grad_(False))
        self.train(stacked.training)

    def __len__(self) -> int:
        return len(self.get_submodule(self.last)._modules)

    def forward(self, hidden_states: Tensor, *routing: Tensor) -> Tensor:
        """hidden_states: (tokens, d); routing: the chosen experts and their weights, both (tokens, k). Or, where the
        model scales the tokens itself, hidden_states alone: (experts * tokens, d), every expert's tokens in a row, with
        zeros for those that it does not get."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights = routing[1] if routing else x.new_ones(len(x), 1)
        y = x.new_zeros(x.shape, dtype=torch.promote_types(x.dtype, weights.dtype))
        for expert, rows, places in self.assigned(x, *routing):
            y.index_add_(0, rows, (self.run(expert, x[rows]) * weights[rows, places, None]).to(y.dtype))
        if routing and has_identities(self):
            y += x * weights.masked_fill(routing[0] < len(self), 0).sum(-1, keepdim=True)
        return y.to(x.dtype).view(hidden_states.shape)

    def assigned(self, x: Tensor, *routing: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Arguments as for :meth:`forward`; of each expert that runs: its number, its rows of x, their places in k."""
        if not routing:
            size = len(x) // len(self)
            for expert in range(len(self)):
                rows = expert * size + x[expert * size : (expert + 1) * size].any(-1).nonzero().flatten()
                if len(rows):
                    yield expert, rows, torch.zeros_like(rows)
            return
        chosen = routing[0]
        experts = torch.arange(len(self), device=chosen.device)
        for expert in (chosen.reshape(-1, 1) == experts).any(0).nonzero().flatten().tolist():
            yield expert, *torch.where(chosen == expert)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """x: (tokens, d), of this expert; returns (tokens, d) before routing weights."""
        y = self._multiply(self.first, expert, x)
        gates = self.first == "gate_up_proj" and hasattr(self.kind, "_apply_gate") and not self.takes_all
        y = self.kind._apply_gate(self, y) if gates else self._activate(y)
        y = self._multiply(self.last, expert, y)
        norm = getattr(self, "post_expert_norm", None)
        return y if norm is None else norm(y)

    def _activate(self, y: Tensor) -> Tensor:
        act_fn: Any = self.act_fn
        gate, up = (y, 1.0) if self.first == "up_proj" else y.chunk(2, dim=-1)
        activated: Tensor = up * act_fn(gate)
        return activated

    def _multiply(self, stack: str, expert: int, x: Tensor) -> Tensor:
        y: Tensor = self.get_submodule(f"{stack}.{expert}")(x)
        bias = self._parameters.get(f"{stack}_bias")
        return y if bias is None else y + bias[expert]


def stacks_of(module: nn.Module) -> tuple[str, str] | None:
    """Names of the parameters in which ``module`` stacks the matrices of a mixture's experts; None for any other module
    and for one whose forward is not known."""
    stacked = tuple(name for name, each in module._parameters.items() if each is not None and each.dim() == 3)
    kind = type(module)
    is_known = hasattr(kind, "_apply_gate") or _takes_all(kind) or has_identities(module)
    return next((names for names in STACKS if set(names) == set(stacked) and is_known), None)


def has_identities(module: nn.Module) -> bool:
    """Whether the numbers behind the last expert stand for one that returns what it gets, as LongCat-Flash's do."""
    return isinstance(module._modules.get("identity_expert"), nn.Identity)


def experts_of(stacked: nn.Module) -> int:
    """How many experts a module that stacks them has; LongCat-Flash's stack of ``gate_up_proj`` is longer."""
    return len(stacked.get_parameter((stacks_of(stacked) or STACKS[0])[1]))


def is_transposed(stacked: nn.Module) -> bool:
    """Whether a stack is (experts, in, out)."""
    return _takes_all(type(stacked)) or bool(getattr(stacked, "is_transposed", False))


def _takes_all(kind: type[nn.Module]) -> bool:
    """Whether the forward takes the tokens of all experts and no routing, as Llama 4's."""
    return list(inspect.signature(kind.forward).parameters) == ["self", "hidden_states"]


def unstack(model: nn.Module, path: str) -> MixtureExperts:
    """Put :class:`MixtureExperts` in the place of the module ``path``, unless it is there already."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(path)
    if not isinstance(module, MixtureExperts):
        module = MixtureExperts(module)
        setattr(model.get_submodule(owner), name, module)
    return module


def each_member(entries: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Entries of ``quantization_config["groups"]``, one that stands for several experts as one entry for each."""
    for entry in entries:
        for member in range(*entry["members"]) if "members" in entry else ():
            yield {
                **{key: value for key, value in entry.items() if key != "members"},
                "name": f"{entry['name']}_{member}",
                "label": f"{entry['label']}_{member}",
                "layers": [f"{layer}.{member}" for layer in entry["layers"]],
            }
        if "members" not in entry:
            yield dict(entry)


# --- Placing the layers in a model -----------------------------------------------------------------------------------


def place_group(model: nn.Module, entry: Mapping[str, Any]) -> tuple[InputGroup, dict[str, QuantizedLinear]]:
    """Replace the linear layers of one group by empty quantized ones, on the device and in the dtype of the old.

    ``entry``: one element of ``quantization_config["groups"]``. Returns the new modules, their tensors not yet filled.
    Raises ValueError when the model has no such layers.
    """
    try:
        parent = model.get_submodule(entry["parent"])
    except AttributeError as error:
        raise ValueError(f"{entry['name']}: {type(model).__name__} has no module {entry['parent']}") from error
    names = tuple(entry["layers"])
    linears = [as_linear(_below(parent, name)) for name in names]
    if not all(isinstance(linear, nn.Linear) for linear in linears):
        raise ValueError(f"{entry['name']}: {', '.join(names)} are not all linear layers of {entry['parent']}")
    first = linears[0]
    assert isinstance(first, nn.Linear)
    ranks: dict[str, Any] = {key: int(entry[key]) for key in ("shared_rank", "routed_rank", "experts")}
    int8_adapters = entry.get("adapter_dtype") == "int8"
    dtype, device = first.weight.dtype, first.weight.device
    # As they are stored, whatever the model's dtype: of a float32 model they would take twice the memory, and float16
    # does not hold all that bfloat16 does. Checkpoints that do not say it have them converted.
    adapter_dtype = ADAPTER_DTYPES.get(entry.get("adapter_float", ""), dtype)
    group = InputGroup(
        first.in_features,
        names,
        **activation_of(entry, first.in_features),
        int8_adapters=int8_adapters,
        adapter_dtype=adapter_dtype,
        device=device,
        **ranks,
    )
    placed = {}
    for name, linear in zip(names, linears, strict=True):
        assert isinstance(linear, nn.Linear)
        placed[name] = QuantizedLinear(
            name,
            group,
            linear.in_features,
            linear.out_features,
            weight_bits=int(entry["weight_bits"]),
            group_size=int(entry["group_size"]),
            int8_adapters=int8_adapters,
            adapter_dtype=adapter_dtype,
            bias=linear.bias,
            dtype=dtype,
            device=device,
            **ranks,
        )
        placed[name].train(linear.training)
        owner, _, last = name.rpartition(".")  # "mlp.0": a list of modules has no place for the group itself
        module = parent.get_submodule(owner)
        setattr(module, last, placed[name])
        if not module._non_persistent_buffers_set:  # GPT-2 and Mamba would draw weights of their layers anew
            module._is_hf_initialized = True  # type: ignore[assignment]  # a flag of transformers
    setattr(parent, f"{entry['label']}_input_group", group.train(first.training))
    return group, placed


def activation_of(entry: Mapping[str, Any], width: int) -> dict[str, Any]:
    """What an entry of ``quantization_config["groups"]`` says of the activation, as arguments of :class:`InputGroup`.

    Raises ValueError for a rotation that the width does not allow.
    """
    rotation = None
    if "rotation" in entry:
        m, n = rotation = (int(entry["rotation"][0]), int(entry["rotation"][1]))
        if m < 1 or n < 1 or n & (n - 1) or width % (m * n):
            raise ValueError(f"{entry['name']}: no rotation of {m} x {n} channels for {width}; download it again")
    return {
        "activation_bits": int(entry["activation_bits"]),
        "smooth": bool(entry["smooth"]),
        "rotation": rotation,
        "activation_clip": float(entry["activation_clip"]) if "activation_clip" in entry else None,
    }


def as_linear(module: nn.Module | None) -> nn.Module | None:
    """A ``Conv1D`` of GPT-2, whose weight is (in, out), as an empty linear layer; any other module as it is."""
    if type(module).__name__ != "Conv1D":
        return module
    assert module is not None
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    width, outs = weight.shape
    linear = nn.Linear(width, outs, device="meta", dtype=weight.dtype).to_empty(device=weight.device)
    linear.bias = bias
    return linear.train(module.training)


def marks_of(entry: Mapping[str, Any]) -> Iterator[str]:
    """Names of the empty tensors that a checkpoint holds where a stock model has the weights of a group's layers.

    A process that does not know the method would fill those layers at random and only warn. A tensor of another shape
    ends its load with an error.
    """
    for layer in entry["layers"]:
        yield f"{entry['parent']}.{layer}" if "members" in entry else f"{entry['parent']}.{layer}.weight"


def _below(parent: nn.Module, name: str) -> nn.Module | None:
    try:
        return parent.get_submodule(name)
    except AttributeError:
        return None


# --- transformers ----------------------------------------------------------------------------------------------------


class QuantExpertsConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
    """``quantization_config`` of a checkpoint. It keeps every key that it is given, known or not."""

    def __init__(self, **entries: Any) -> None:
        self.quant_method = QUANT_METHOD
        self.format = FORMAT
        self.groups: list[dict[str, Any]] = []
        self.__dict__.update(entries)


class QuantExpertsQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is untyped
    """Builds the quantized layers on the empty model, so that transformers fills them like any other tensor.

    Uses only the hooks that all of transformers 5.x has.
    """

    requires_calibration = True
    names: Set[str] = frozenset()
    """Of the tensors in a checkpoint, where its model is as this transformers has it."""

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError when the checkpoint was written in a newer format than this file reads, or says nothing of
        what is quantized."""
        found = self.quantization_config.format
        if found not in (FORMAT, MIXTURE_FORMAT, ROTATED_FORMAT):
            raise ValueError(
                f"this checkpoint has Quant Experts format {found}, this loader reads formats up to {ROTATED_FORMAT}: "
                "install a newer quant-experts, or do not import it and load with trust_remote_code=True"
            )
        if not self.quantization_config.groups:
            raise ValueError(
                "config.json: quantization_config lists no groups, so that every quantized layer would stay random; "
                "download the checkpoint again"
            )

    def update_dtype(self, dtype: torch.dtype | None) -> torch.dtype | None:
        return dtype

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Raises ValueError when the model is not of the class that was quantized.

        The body alone would load with its vision tower left random: transformers 5.23 does not find those tensors.
        """
        expected = getattr(model.config, "architectures", None) or []
        if expected and not {kind.__name__ for kind in type(model).__mro__} & set(expected):
            raise ValueError(f"load this checkpoint as a {expected[0]}, not as a {type(model).__name__}")
        for entry in self.quantization_config.groups:
            try:
                if "members" in entry:
                    unstack(model, entry["parent"])
                for each in each_member([entry]):
                    place_group(model, each)
            except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
                raise ValueError(
                    f"config.json: a group of quantization_config is damaged ({type(error).__name__}: {error}); "
                    f"download the checkpoint again: {str(entry)[:200]}"
                ) from error
        loading: Any = model
        ignored = loading._keys_to_ignore_on_load_unexpected  # a list in 5.0, a set later
        names = [name for entry in self.quantization_config.groups for name in marks_of(entry)]
        self.names = {*names, *model.state_dict()}
        marks = [f"{re.escape(name)}$" for name in names]
        loading._keys_to_ignore_on_load_unexpected = marks if ignored is None else type(ignored)([*ignored, *marks])
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        """Raises ValueError when a layer did not get its tensors; transformers itself would only warn. And when layers
        are to be read from disk whenever they run, which transformers before 5.13 does through the model's dtype."""
        for name, module in model.named_modules():
            if not isinstance(module, QuantizedLinear):
                continue
            if module.weight_shape.device.type == "meta":  # offloaded to disk, filled when it runs
                _check_offloads_integers(name)
                continue
            if module.weight_shape.tolist() != [module.out_features, module.in_features]:
                raise ValueError(f"{name}: its tensors are missing from the checkpoint, or belong to another layer")
        for entry in each_member(self.quantization_config.groups):
            missing = _left_random(model, entry)
            if missing:
                raise ValueError(f"{missing[0]}: the tensor is missing from the checkpoint")
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                module.accelerate()
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Without those that make stacks of experts, whose packed matrices have the names of modules in memory; those
        that rename leave such names alone."""
        kept = [_sparing(each, self.names) for each in weight_conversions]
        if not any("members" in entry for entry in self.quantization_config.groups):
            return kept
        return [each for each in kept if not _makes_stacks(each)]

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """No: ``save_pretrained`` writes names that loading would not find again. Copy the checkpoint directory."""
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _makes_stacks(conversion: Any) -> bool:
    made = {target.rpartition(".")[2] for target in conversion.target_patterns}
    return hasattr(conversion, "operations") and bool(made & {name for names in STACKS for name in names})


def _sparing(conversion: Any, names: Set[str]) -> Any:
    """``conversion``, which from now on renames no tensor of ``names``.

    Of Laguna and Mistral Large 4 the patterns for names on disk match names in memory too: ``mlp.shared_expert.``
    becomes ``mlp.shared_experts.`` once more.
    """
    kind: Any = type(conversion)
    if hasattr(conversion, "operations") or not hasattr(kind, "rename_source_key"):
        return conversion

    def rename(self: Any, key: str) -> Any:
        return (key, None) if key in names else kind.rename_source_key(self, key)

    conversion.__class__ = type(kind.__name__, (kind,), {"__slots__": (), "rename_source_key": rename})
    return conversion


def _check_offloads_integers(name: str) -> None:
    import transformers

    if tuple(map(int, transformers.__version__.split(".")[:2])) < OFFLOADS_INTEGERS:
        raise ValueError(
            f"{name} would be offloaded to disk, where transformers {transformers.__version__} spoils packed integers: "
            "install transformers 5.13 or later, or choose a device_map without disk"
        )


def _left_random(model: nn.Module, entry: Mapping[str, Any]) -> list[str]:
    """Full names of a group's tensors that no file had, by the mark that transformers puts on those that it has read.

    Empty where nothing has the mark: then something has moved them since, such as accelerate between devices.
    """
    modules = (*entry["layers"], f"{entry['label']}_input_group")
    tensors = {
        f"{entry['parent']}.{module}.{name}": tensor
        for module in modules
        for name, tensor in model.get_submodule(f"{entry['parent']}.{module}").named_parameters()
        if not tensor.is_meta
    }
    unmarked = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
    return [] if len(unmarked) == len(tensors) else unmarked


def register() -> None:
    """Make transformers know the method. The first copy of this file in a process wins; the others do nothing."""
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(QUANT_METHOD, QuantExpertsConfig)
    AUTO_QUANTIZER_MAPPING.setdefault(QUANT_METHOD, QuantExpertsQuantizer)


register()


def __getattr__(name: str) -> Any:
    """Model classes of transformers, so that ``auto_map`` in config.json can name them in this file."""
    if name.startswith("__"):
        raise AttributeError(name)
    import transformers

    stock = getattr(transformers, name)
    is_model = isinstance(stock, type) and issubclass(stock, transformers.PreTrainedModel)
    return _standing_for(stock) if is_model else stock


def _standing_for(stock: Any) -> Any:
    """A subclass that loads as ``stock`` and stays unmarked.

    transformers marks the class that ``auto_map`` names as custom code, and 5.0 takes it for every model of the same
    configuration. Of a marked class, 5.19 and later read no old key names: the next base model of the process would
    come up with random layers.
    """

    class Standing(stock):  # type: ignore[misc]
        @classmethod
        def register_for_auto_class(cls, auto_class: Any = None) -> None:
            """Nothing: the mark would outlive this load."""

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return stock.from_pretrained(*args, **kwargs)

        @classmethod
        def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
            return stock._from_config(*args, **kwargs)

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(Standing, attribute, getattr(stock, attribute))
    return Standing

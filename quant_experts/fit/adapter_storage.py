"""Round experts to their stored form: 16 bits, or int8 with one scale per row (method.md, section 4, storage).

The fit returns exactly the stored values, so that the measured errors are those of the checkpoint.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quant_experts.errors import NumericalFailure
from quant_experts.fit.experts.router import normalised
from quant_experts.fit.fitted import FittedGroup
from quant_experts.fit.reconstruction import Adapters

LARGEST_CODE = 127


def with_adapters(fitted: FittedGroup, adapters: Adapters, dtype: torch.dtype) -> FittedGroup:
    """``fitted`` with adapters rounded to ``dtype``, and up and down of equal size, so that float16 loses neither to
    underflow.

    Raises NumericalFailure naming the group when a value is not finite.
    """
    shared_up, shared_down = _balanced(adapters.shared_up, adapters.shared_down)
    routed_up, routed_down = _balanced(adapters.routed_up, adapters.routed_down)
    router = None if adapters.router is None else normalised(adapters.router)
    return replace(
        fitted,
        shared_down=_rounded(fitted.name, shared_down, dtype),
        shared_up=_per_layer(fitted, _rounded(fitted.name, shared_up, dtype), dim=0),
        routed_down=_rounded(fitted.name, routed_down, dtype),
        routed_up=_per_layer(fitted, _rounded(fitted.name, routed_up, dtype), dim=1),
        router=_rounded(fitted.name, router, dtype),
    )


def with_int8_adapters(fitted: FittedGroup, adapters: Adapters, dtype: torch.dtype) -> FittedGroup:
    """``fitted``, which has its adapters in 16 bits, with the same in int8; the scales are stored in ``dtype``.

    The magnitude of a rank moves into its row of "down", which has a scale of its own. All columns of "up" then have
    the same magnitude, so that one scale per output loses none of them. The router stays in 16 bits: it is small, and
    it decides near ties.
    """
    shared_up, shared_down = _balanced(adapters.shared_up, adapters.shared_down, even_up=True)
    routed_up, routed_down = _balanced(adapters.routed_up, adapters.routed_down, even_up=True)
    down, down_scale = _int8_rows(fitted.name, shared_down, dtype)
    up, up_scale = _int8_rows(fitted.name, shared_up, dtype)
    downs, downs_scale = _int8_rows(fitted.name, routed_down, dtype)
    ups, ups_scale = _int8_rows(fitted.name, routed_up, dtype)
    return replace(
        fitted,
        shared_down=down,
        shared_down_scale=down_scale,
        shared_up=_per_layer(fitted, up, dim=0),
        shared_up_scale=_per_layer(fitted, up_scale, dim=0),
        routed_down=downs,
        routed_down_scale=downs_scale,
        routed_up=_per_layer(fitted, ups, dim=1),
        routed_up_scale=_per_layer(fitted, ups_scale, dim=1),
        in_bf16=fitted,
    )


def _int8_rows(name: str, matrix: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """matrix: (..., rows, columns); returns whole multiples of a scale per row, and the scales (..., rows)."""
    if matrix is None:
        return None, None
    scale = _rounded(name, matrix.abs().amax(-1) / LARGEST_CODE, dtype)
    assert scale is not None
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    codes = (matrix / scale.unsqueeze(-1)).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    return codes * scale.unsqueeze(-1), scale


def _rounded(name: str, part: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if part is None:
        return None
    rounded = part.to(dtype).float()
    if not bool(torch.isfinite(rounded).all()):
        raise NumericalFailure(
            f"input group {name}: an expert holds a value that is not finite in {dtype}; "
            "raise `damping` or use more calibration samples"
        )
    return rounded


def _per_layer(fitted: FittedGroup, stacked: Tensor | None, *, dim: int) -> tuple[Tensor, ...]:
    if stacked is None:
        return ()
    return torch.split(stacked, [codes.shape[0] for codes in fitted.codes], dim=dim)


def _balanced(up: Tensor | None, down: Tensor | None, *, even_up: bool = False) -> tuple[Tensor | None, Tensor | None]:
    """up (..., out, r) and down (..., r, d) with the same product and, rank by rank, the same root mean square; with
    ``even_up``, every column of "up" has that of the largest rank."""
    if up is None or down is None:
        return None, None
    up_size = up.square().mean(-2).sqrt()
    down_size = down.square().mean(-1).sqrt()
    alive = (up_size > 0) & (down_size > 0)
    size = (up_size * down_size).sqrt()
    if even_up:
        size = size.amax(-1, keepdim=True)
    ratio = torch.where(alive, size / up_size.clamp_min(1e-30), torch.ones_like(up_size))
    return up * ratio.unsqueeze(-2), down / ratio.unsqueeze(-1)

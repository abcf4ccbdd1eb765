"""A forward of a model without weights: what depends on parameters has a shape only, everything else has values.

A model on the meta device cannot build a mask whose code asks for a value. Here position ids, masks and index tables
are computed on the CPU as usual; an operation that meets a meta tensor runs on the meta device. No weight is allocated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

LARGEST_VALUE = 1 << 24
"""Elements of the largest tensor that is given values."""

DATA_DEPENDENT = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.bincount.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.unique_dim.default,
    torch.ops.aten.unique_consecutive.default,
    torch.ops.aten.repeat_interleave.Tensor,
}
"""Operations whose result has no shape without values. They see ones in place of what has none."""


class ShapePass(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """While active, operations on meta tensors and on CPU tensors mix, and ``origins_of`` says of a tensor which marked
    ones it was computed from."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = tensors_in((args, kwargs))
        result = self._run(func, args, kwargs, tensors)
        origins = frozenset[Any]().union(*map(origins_of, tensors))
        if origins:
            for each in tensors_in(result):
                each._origins = origins | origins_of(each)  # type: ignore[attr-defined]
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        if any(tensor.is_meta for tensor in tensors):
            return self._of_shapes(func, args, kwargs, tensors)
        if _is_meta(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)

    def _of_shapes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        if func in DATA_DEPENDENT or (func is torch.ops.aten.index.Tensor and _has_mask(args)):
            args, kwargs = tree_map(_with_ones, (args, kwargs))
            return _on_meta(func(*args, **kwargs)) if func not in DATA_DEPENDENT else func(*args, **kwargs)
        if func is torch.ops.aten.histc.default:  # has no version for the meta device: counts of a router's choices
            return torch.zeros(args[1], dtype=args[0].dtype)
        if func is torch.ops.aten._grouped_mm.default and args[1].dim() == 3:  # of bfloat16 alone on the meta device
            return args[0].new_empty((*args[0].shape[:-1], args[1].shape[-1]), device="meta")
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("meta")
        by_id = {id(tensor): tensor.to("meta") for tensor in tensors if not tensor.is_meta}
        result = func(*tree_map(lambda x: by_id.get(id(x), x), args), **tree_map(lambda x: by_id.get(id(x), x), kwargs))
        originals = {id(copy): tensor for tensor in tensors if (copy := by_id.get(id(tensor))) is not None}
        return tree_map(lambda x: originals.get(id(x), x), result)  # written in place: the caller keeps his own


def tensors_in(value: Any) -> list[Tensor]:
    """Those in a structure of lists, tuples and dictionaries."""
    return [each for each in tree_flatten(value)[0] if isinstance(each, Tensor)]


def mark_all(value: Any, origin: Any) -> None:
    """Mark the tensors in a structure with ``origin`` alone."""
    for each in tensors_in(value):
        each._origins = frozenset([origin])  # type: ignore[attr-defined]


def origins_of(tensor: Any) -> frozenset[Any]:
    """What the tensor, or one that it was computed from in a ShapePass, was marked with."""
    origins: frozenset[Any] = getattr(tensor, "_origins", frozenset())
    return origins


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


def _has_mask(args: tuple[Any, ...]) -> bool:
    return any(isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1])


def _with_ones(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_meta:
        return value
    if value.numel() > LARGEST_VALUE:
        raise RuntimeError(f"a tensor of shape {list(value.shape)} would have to be known by value")
    return torch.ones(value.shape, dtype=value.dtype, device="cpu")


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value

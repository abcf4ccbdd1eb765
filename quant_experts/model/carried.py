"""What blocks hand on beside their states, stored behind them in one tensor.

A block may return more than states that the next one reads (a router's states, the tokens that an indexer chose), or
leave something in a mapping that later blocks read (keys and values that Gemma 3n and 4 share). All of it has values
per token, so that it lies behind the states of each, in one dtype. What a row does not have (yet) is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from quant_experts.model.families.stack import Carried, State, width_of


def together(states: Tensor, output: Any, arguments: Mapping[str, Any], state: State) -> Tensor:
    """(1, tokens, d + carried). ``output``, ``arguments``: of the block that returned ``states``."""
    tokens = states.shape[state.shape.index(0)]
    dtype = getattr(torch, state.stored(tokens)[0])
    parts = [_by_token(states, state.shape).to(dtype)]
    for piece in state.carried:
        value = _find(piece, output, arguments)
        part = parts[0].new_full((1, tokens, width_of(piece.shape, tokens)), torch.nan)
        if value is not None:
            flat = _by_token(value, piece.shape).to(dtype)
            part = torch.cat([flat, part[..., flat.shape[-1] :]], dim=-1)
        parts.append(part)
    return torch.cat(parts, dim=-1)


def apart(stored: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
    """``together`` undone: the states, and ``where`` → what is carried, of what is there."""
    tokens = stored.shape[1]
    widths = [width_of(shape, tokens) for shape in (state.shape, *(piece.shape for piece in state.carried))]
    states, *parts = torch.split(stored, widths, dim=-1)
    carried = {}
    for piece, part in zip(state.carried, parts, strict=True):
        count = int((~part[0, 0].isnan()).sum())
        if count:
            carried[piece.where] = _as_it_was(part[..., :count], piece.shape, piece.dtype)
    return _as_it_was(states, state.shape, state.dtype), carried


def hand_on(carried: Mapping[str, Tensor], arguments: Mapping[str, Any], others: list[Any]) -> None:
    """Put everything where the next block finds it: into ``others``, what the block returns behind its states, or into
    the mapping that is among its ``arguments``."""
    shared: dict[tuple[str, str], list[Tensor]] = {}
    for where, value in carried.items():
        name, _, rest = where.partition(".")
        if rest:
            shared.setdefault((name, rest.rpartition(".")[0]), []).append(value)
        else:
            others[int(name) - 1] = value
    for (name, key), values in shared.items():
        arguments[name][key] = tuple(values)


def shared_tensors(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """``where`` and the tensor, of all that lie in mappings among the arguments of a block: name → tuple of tensors."""
    for name, mapping in arguments.items():
        if isinstance(mapping, MutableMapping):
            for key, values in mapping.items():
                for index, value in enumerate(values if isinstance(values, tuple) else ()):
                    if isinstance(value, Tensor) and isinstance(key, str):
                        yield f"{name}.{key}.{index}", value


def _find(piece: Carried, output: Any, arguments: Mapping[str, Any]) -> Tensor | None:
    if "." not in piece.where:
        value: Tensor | None = output[int(piece.where)]
        return value
    return dict(shared_tensors(arguments)).get(piece.where)


def _by_token(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, tokens, the rest). ``shape``: with 0 for the tokens."""
    return value.movedim(shape.index(0), 0).flatten(1).unsqueeze(0)


def _as_it_was(stored: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    axis = shape.index(0)
    others = [side or stored.shape[2] for place, side in enumerate(shape) if place != axis]
    return stored[0].reshape(-1, *others).movedim(0, axis).to(getattr(torch, dtype))

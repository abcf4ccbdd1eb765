"""What files call the tensors of a block, and what the model in memory calls them.

transformers renames tensors while it loads a model, and puts several into one or cuts one into several. Its own
patterns for that, as far as they are about blocks, are in ``known_types.RENAMED``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quant_experts.planning.errors import Unreadable
from quant_experts.planning.headers import Tensor

Rules = tuple[tuple[str, ...], ...]
"""(pattern, what stands in its place), in the order in which they are applied to ``.name``. Where several names stand
in its place, the tensor is cut; tensors that get the same name are joined."""

INTERNLM2: Rules = (
    (r"\.attention\.wqkv\.", ".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
)
"""A layout of InternVL that transformers does not read."""


def in_memory_names(tensors: Mapping[str, Tensor], rules: Rules, text: Mapping[str, Any]) -> dict[str, Tensor]:
    """``tensors``: of one block, under their names within it, as the files have them; with names and shapes (out, in)
    as the model has them. ``text``: the configuration of the language model.

    Raises Unreadable for a tensor that cannot be cut as the model needs it.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = _renamed(f".{name}", rules)
        parts = [tensor] if len(names) == 1 else _cut(name, tensor, len(names), text)
        for each, part in zip(names, parts, strict=True):
            renamed[each[1:]] = _joined(renamed[each[1:]], part) if each[1:] in renamed else part
    return {name: _straight(name, tensor, renamed) for name, tensor in renamed.items()}


def _renamed(name: str, rules: Rules) -> list[str]:
    """Every rule that is met is applied, in turn; one that cuts ends it."""
    for pattern, *targets in rules:
        if re.search(pattern, name):
            if len(targets) > 1:
                return [re.sub(pattern, target, name, count=1) for target in targets]
            name = re.sub(pattern, targets[0], name, count=1)
    return [name]


def _cut(name: str, tensor: Tensor, parts: int, text: Mapping[str, Any]) -> list[Tensor]:
    """A tensor of rows cut into queries, keys and values where ``parts`` is 3, else into equal parts.

    Raises Unreadable when its rows do not divide so.
    """
    queries: Any = text.get("num_attention_heads")
    heads = text.get("num_key_value_heads") or queries
    shares = [queries, heads, heads] if parts == 3 else [1] * parts
    rows, *rest = tensor.shape or (0,)
    if not all(isinstance(share, int) and share > 0 for share in shares) or rows % sum(shares):
        raise Unreadable("invalid_model", f"{name} of shape {list(tensor.shape)} does not divide into heads")
    return [Tensor(tensor.dtype, (rows // sum(shares) * share, *rest)) for share in shares]


def _joined(one: Tensor, other: Tensor) -> Tensor:
    """Two tensors of the files that are one in memory, by their rows; in stacks by those of each."""
    dim = 1 if len(one.shape) == 3 else 0
    shape = (*one.shape[:dim], one.shape[dim] + other.shape[dim], *one.shape[dim + 1 :])
    return Tensor(one.dtype, shape)


def _straight(name: str, tensor: Tensor, beside: Mapping[str, Tensor]) -> Tensor:
    """A weight that is (in, out) in the files, as GPT-2's are, is told by its bias, which has as many values as it has
    outputs."""
    bias = beside.get(f"{name.removesuffix('.weight')}.bias")
    if bias is None or len(tensor.shape) != 2 or not name.endswith(".weight") or len(bias.shape) != 1:
        return tensor
    rows, columns = tensor.shape
    return Tensor(tensor.dtype, (columns, rows)) if bias.shape[0] == columns != rows else tensor

"""The input groups of a block, told from the names and shapes of its tensors.

Names do not say which layers read the same tensor; these rules say it for the types that
``tests/planning/test_found_groups.py`` holds to the manifest, and for no others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from quant_experts.planning.headers import Tensor
from quant_experts.planning.layer_rules import ELSEWHERE, labelled, reason_to_skip
from quant_experts.planning.mixtures import MEMBER, groups_of_experts
from quant_experts.planning.stacks import Groups

TOGETHER = (
    ("q_proj", "k_proj", "v_proj", "gate_proj", "g_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("query", "key", "value"),
    ("qkv_proj", "output_gate"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("wi_0", "wi_1"),
    ("c_fc_0", "c_fc_1"),
)
"""Last names of layers of one parent that read the same tensor, where the parent has the first of them."""
IN_PARALLEL = (
    (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
    (("q_proj", "k_proj", "v_proj"), ("fc1",)),
    (("q_proj", "k_proj", "v_proj"), ("fc_in",)),
    (("qkv_proj",), ("fc_in",)),
    (("query_key_value",), ("dense_h_to_4h",)),
)
"""Groups of attention and of MLP that are one group where a block has one norm."""
NORM = re.compile(r"(^|_)(norm|layernorm|ln)(_|$|\d)|layernorm|layer_norm")
ATTENTION = re.compile(r"attn|attention|conv|mixer|mamba|recurrent|temporal", re.IGNORECASE)
UNCALLED = re.compile(r"(^|\.)encoder_attn\.")
"""Layers that a decoder without its encoder, as BART's, has and does not call."""
BLOCK = re.compile(r"(.*?)\.?\b(\d+)\.(.+)")


def decoder_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """What stands before the number of a decoder block in the names: of the largest list that is not a tower's."""
    sizes: dict[str, int] = {}
    for key, tensor in tensors.items():
        match = BLOCK.fullmatch(key)
        if match and not ELSEWHERE.search(match[1]):
            sizes[match[1]] = sizes.get(match[1], 0) + tensor.bytes
    return max(sizes, key=lambda prefix: sizes[prefix]) if sizes else None


def groups_in(tensors: Mapping[str, Tensor]) -> Groups:
    """``tensors``: of one block, under their names within it; those of experts as ``mixtures.py`` has them."""
    layers = {
        key.removesuffix(".weight"): tensor
        for key, tensor in tensors.items()
        if key.endswith(".weight") and len(tensor.shape) == 2 and not MEMBER.fullmatch(key)
    }
    layers = {
        name: tensor
        for name, tensor in layers.items()
        if not NORM.search(name.rpartition(".")[2]) and reason_to_skip(name, tensor.shape[1], tensor.shape[0]) is None
    }
    groups: list[tuple[str, tuple[str, ...]]] = []
    for parent in sorted({name.rpartition(".")[0] for name in layers if not UNCALLED.search(name)}, key=_order):
        inside = [name for name in layers if name.rpartition(".")[0] == parent]
        groups += [(parent, each) for each in _of_parent([name.rpartition(".")[2] for name in inside])]
    return labelled(_in_parallel(groups) if _has_one_norm(tensors) else groups) + groups_of_experts(tensors)


def _order(parent: str) -> tuple[bool, str]:
    return (ATTENTION.search(parent) is None, parent)


def _of_parent(names: Collection[str]) -> list[tuple[str, ...]]:
    """Those that others of the parent read the output of come last: ``o_proj``, ``down_proj``."""
    rest = list(names)
    together = []
    for each in TOGETHER:
        if each[0] in rest:
            together.append(tuple(name for name in each if name in rest))
            rest = [name for name in rest if name not in each]
    return [*together, *((name,) for name in sorted(rest))]


def _has_one_norm(tensors: Mapping[str, Tensor]) -> bool:
    norms = {key.rpartition(".")[0] for key, tensor in tensors.items() if len(tensor.shape) == 1}
    return len({name for name in norms if "." not in name and NORM.search(name)}) == 1


def _in_parallel(groups: list[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    for attention, mlp in IN_PARALLEL:
        first = next((group for group in groups if group[1] == attention), None)
        second = next((group for group in groups if group[1] == mlp), None)
        if first and second:
            layers = tuple(f"{parent}.{name}" for parent, names in (first, second) for name in names)
            return [("", layers), *(group for group in groups if group not in (first, second))]
    return groups

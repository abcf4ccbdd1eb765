"""The experts of mixtures among the names on disk, as the model in memory has them.

Files hold a matrix of each expert on its own, or stacks of three dimensions; gate and up apart, or as one. In memory
every expert has one ``gate_up_proj`` (or ``up_proj``) and one ``down_proj`` (``model/mixtures.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from quant_experts.planning.headers import Tensor
from quant_experts.planning.layer_rules import ELSEWHERE
from quant_experts.planning.stacks import Groups

EACH = re.compile(r"(?P<parent>(?:.*\.)?experts)\.(?P<expert>\d+)\.(?P<matrix>\w+)\.weight")
STACKED = re.compile(r"(?P<parent>(?:.*\.)?(?:experts|block_sparse_moe))\.(?P<matrix>\w+)(?:\.weight)?")
MEMBER = re.compile(r"(?P<parent>(?:.*\.)?experts)\.(?P<layer>\w+\.\d+)\.weight")
GATE, UP, DOWN = ("gate_proj", "w1", "fc1"), ("up_proj", "w3", "fc3"), ("down_proj", "w2", "fc2")
ONE = {**dict.fromkeys(("gate_up_proj", "w13_weight", "fc1", "input_linear"), "gate_up_proj"), "up_proj": "up_proj"}
OTHER = dict.fromkeys(("down_proj", "w2_weight", "fc2", "output_linear"), "down_proj")
HALVES = {"ernie4_5_vl_moe": ("text_moe", "vision_moe")}
"""``model_type`` → two mixtures whose experts are one list in the files: those of tokens, and those of patches."""
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "top_k_experts")


def experts_apart(tensors: Mapping[str, Tensor], kind: str = "") -> dict[str, Tensor]:
    """``tensors``: of one block, under their names within it. With a matrix (out, in) for each that every expert has in
    memory, ``….experts.gate_up_proj.3.weight``, in the place of those that the files hold of it. ``kind``: the
    ``model_type``."""
    if kind in HALVES:
        tensors = _halved(tensors, HALVES[kind])
    rest = {name: tensor for name, tensor in tensors.items() if not EACH.fullmatch(name)}
    for parent, experts in _each(tensors).items():
        for expert, matrices in experts.items():
            in_memory = _in_memory(matrices)
            if "down_proj" in in_memory:  # LongCat-Flash's files hold more, which stand for nothing
                rest |= {f"{parent}.{matrix}.{expert}.weight": tensor for matrix, tensor in in_memory.items()}
    for parent, stacks in _stacks(rest).items():
        for name in stacks.values():
            del rest[name[0]]
        is_transposed = _is_transposed({matrix: tensor.shape for matrix, (_, tensor) in stacks.items()})
        for matrix, (_, tensor) in stacks.items():
            count, first, second = tensor.shape
            shape = (second, first) if is_transposed else (first, second)
            rest |= {f"{parent}.{matrix}.{expert}.weight": Tensor(tensor.dtype, shape) for expert in range(count)}
    return rest


def groups_of_experts(tensors: Mapping[str, Tensor]) -> Groups:
    """``tensors``: as ``experts_apart`` gives them. Each matrix of an expert reads a tensor of its own."""
    matches = [match for name in tensors if (match := MEMBER.fullmatch(name)) and not ELSEWHERE.search(match["parent"])]
    return tuple((match["parent"], match["layer"].replace(".", "_"), (match["layer"],)) for match in matches)


def share_of_tokens(text: Mapping[str, Any], experts: int) -> float:
    """Of a block's tokens that one of its ``experts`` gets, in the mean. ``text``: the text model's configuration."""
    active = next((text[name] for name in CHOSEN if type(text.get(name)) is int), 1)
    return min(1.0, max(1, active) / max(experts, 1))


def _each(tensors: Mapping[str, Tensor]) -> dict[str, dict[int, dict[str, Tensor]]]:
    by_parent: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if match := EACH.fullmatch(name):
            experts = by_parent.setdefault(match["parent"], {})
            experts.setdefault(int(match["expert"]), {})[match["matrix"]] = tensor
    return by_parent


def _halved(tensors: Mapping[str, Tensor], halves: tuple[str, str]) -> dict[str, Tensor]:
    """``mlp.experts.5`` of 8 → ``mlp.vision_moe.experts.1``."""
    matches = {name: match for name in tensors if (match := EACH.fullmatch(name))}
    half = -(-(1 + max((int(match["expert"]) for match in matches.values()), default=0)) // 2)
    renamed = dict(tensors)
    for name, match in matches.items():
        which, number = divmod(int(match["expert"]), half)
        parent = match["parent"].replace("experts", f"{halves[which]}.experts")
        renamed[f"{parent}.{number}.{match['matrix']}.weight"] = renamed.pop(name)
    return renamed


def _in_memory(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    gate, up, down = (next((matrices[name] for name in names if name in matrices), None) for names in (GATE, UP, DOWN))
    tensors = {"up_proj": up if up is not None else gate, "down_proj": down}
    if gate is not None and up is not None:
        joint = Tensor(gate.dtype, (gate.shape[0] + up.shape[0], *gate.shape[1:]))
        tensors = {"gate_up_proj": joint, "down_proj": down}
    return {matrix: tensor for matrix, tensor in tensors.items() if tensor is not None}


def _stacks(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[str, Tensor]]]:
    """Parent → matrix in memory → name and tensor on disk."""
    by_parent: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        match = STACKED.fullmatch(name)
        matrix = (ONE | OTHER).get(match["matrix"]) if match else None
        if match and matrix and len(tensor.shape) == 3:
            parent = match["parent"] if match["parent"].endswith("experts") else f"{match['parent']}.experts"
            by_parent.setdefault(parent, {})[matrix] = (name, tensor)
    return by_parent


def _is_transposed(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the stacks are (experts, in, out). Gate and up together put out twice what ``down_proj`` reads."""
    first, down = shapes.get("gate_up_proj"), shapes.get("down_proj")
    return first is not None and down is not None and first[2] == 2 * down[1] and first[1] == down[2]

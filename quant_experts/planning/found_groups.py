"""The input groups of a block, told from the names and shapes of its tensors.

Names do not say which layers read the same tensor; these rules say it for the types that
``tests/planning/test_found_groups.py`` holds to the manifest, and for no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quant_experts.planning.headers import Tensor
from quant_experts.planning.layer_rules import ELSEWHERE, labelled, reason_to_skip
from quant_experts.planning.mixtures import MEMBER, groups_of_experts
from quant_experts.planning.stacks import Groups

Joint = tuple[str, ...]
"""Layers of one parent that read the same tensor where the parent has the first of them: paths within the parent."""

TOGETHER: tuple[Joint, ...] = (
    ("laurel.linear_left", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("indexer.index_qk_proj", "q_proj", "k_proj", "v_proj"),
    (
        *("q_proj", "k_proj", "v_proj", "v_proj_current", "kv_a_proj_with_mqa", "indexer.wk", "r_proj"),
        *("forget_gate.f_a_proj", "forget_gate.f_proj", "gate_proj", "g_proj", "g_a_proj", "sink_proj"),
    ),
    ("q_proj.linear", "k_proj.linear", "v_proj.linear"),
    (
        *("q_a_proj", "kv_a_proj_with_mqa", "kv_proj", "indexer.wk", "compressor.kv_proj", "compressor.gate_proj"),
        *(f"compressor.indexer.{name}_proj" for name in ("kv", "gate", "scorer.weights")),
    ),
    ("q_b_proj", "indexer.wq_b", "compressor.indexer.q_b_proj"),
    ("in_proj_qkv", "in_proj_z"),
    ("query", "key", "value"),
    ("project_q", "project_k", "project_v"),
    ("Wq", "Wk", "Wv"),
    ("q", "k", "v", "ogate_preact"),
    ("proj_up_gate", "proj_up"),
    ("qkv_proj", "output_gate"),
    ("linear_y", "linear_x"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("w_0", "w_1"),
    ("wi_0", "wi_1"),
    ("c_fc_0", "c_fc_1"),
)
OTHERWISE: dict[str, tuple[Joint, ...]] = {
    "falcon_h1": (("up_proj", "gate_proj"),),
    "hy_v4": (("gate_proj", "q_a_proj", "kv_a_proj_with_mqa", "indexer.wk"),),
    "kosmos-2.5": (("k_proj", "v_proj", "q_proj"),),
}
"""``model_type`` → what goes before: they have the names of others, and call them in another order."""
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
KEPT = re.compile(r"(^|\.)(encoder_attn\.|crossattention\.|indexer\.weights_proj$)")
"""Layers that a decoder without its encoder, as BART's, does not call, and a layer whose weight others read."""
KEPT_IN = {"rwkv": re.compile(r"attention\.output|feed_forward\.value")}
"""The same, by ``model_type``: RWKV divides these weights while it runs."""
NORMED = re.compile(r"([kv])_input_(layer)?norm\.weight")
"""In a block that norms the inputs of its keys or values apart, they read another tensor than the queries."""
TOWER = re.compile(rf"{ELSEWHERE.pattern}|(^|\.)(sam_model|(spatial|layerwise)_projectors|mlp1)(\.|$)")
"""Lists that are not the decoder's, as files call them."""
BLOCK = re.compile(r"(.*?)\.?\b(\d+)\.(.+)")


def decoder_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """What stands before the number of a decoder block in the names: of the largest list that is not a tower's."""
    sizes: dict[str, int] = {}
    for key, tensor in tensors.items():
        match = BLOCK.fullmatch(key)
        if match and not TOWER.search(match[1]):
            sizes[match[1]] = sizes.get(match[1], 0) + tensor.bytes
    return max(sizes, key=lambda prefix: sizes[prefix]) if sizes else None


def groups_in(tensors: Mapping[str, Tensor], kind: str = "") -> Groups:
    """``tensors``: of one block, under their names within it; those of experts as ``mixtures.py`` has them. ``kind``:
    the ``model_type``."""
    rest = [
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and not MEMBER.fullmatch(name)
    ]
    rest = [name for name in rest if not _is_kept(name, tensors[f"{name}.weight"], kind)]
    parents = sorted({outer for name in rest for outer in _around(name)}, key=_order)
    alone = {f"{match[1]}_proj" for name in tensors if (match := NORMED.fullmatch(name))}
    groups: list[tuple[str, tuple[str, ...]]] = []
    for joint in (*OTHERWISE.get(kind, ()), *TOGETHER):
        for parent in parents:
            before = f"{parent}." if parent else ""
            layers = tuple(name for name in joint if before + name in rest and name not in alone)
            if len(layers) > 1 and layers[0] == joint[0]:
                groups.append((parent, layers))
                rest = [name for name in rest if name.removeprefix(before) not in layers or not name.startswith(before)]
    # Those that others of the parent read the output of come last: ``o_proj``, ``down_proj``.
    groups += [_placed(name) for name in sorted(rest)]
    groups.sort(key=lambda group: _order(group[0]))
    return labelled(_in_parallel(groups) if _has_one_norm(tensors) else groups) + groups_of_experts(tensors)


def _around(name: str) -> list[str]:
    """Paths of the modules that a layer is in, within the block."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts))]


def _is_kept(name: str, tensor: Tensor, kind: str) -> bool:
    return (
        NORM.search(name.rpartition(".")[2]) is not None
        or KEPT.search(name) is not None
        or (kind in KEPT_IN and KEPT_IN[kind].match(name) is not None)
        or reason_to_skip(name, tensor.shape[1], tensor.shape[0]) is not None
    )


def _placed(name: str) -> tuple[str, tuple[str, ...]]:
    """(parent, the layer within it). The parent is no list of modules, whose entries have numbers."""
    parts = name.split(".")
    cut = next(end for end in range(len(parts) - 1, -1, -1) if not parts[end].isdigit())
    return ".".join(parts[:cut]), (".".join(parts[cut:]),)


def _order(parent: str) -> tuple[bool, str]:
    return (ATTENTION.search(parent) is None, parent)


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

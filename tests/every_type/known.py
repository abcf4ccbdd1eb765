"""python -m tests.every_type.known [TYPE …]: write the list of types that the planner knows by their tensors' names.

Only types whose checkpoints load (``make models``) are in it. With types, these are looked at and the others stay.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightConverter, revert_weight_conversion
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from quant_experts.model.blueprint import keep_wide
from quant_experts.model.groups import plan_groups
from quant_experts.model.manifest import Manifest, manifest_of
from quant_experts.model.mixtures import straighten, unstack_mixtures
from quant_experts.planning import families
from quant_experts.planning.blocks import numbered
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.families import Family
from quant_experts.planning.found_groups import BLOCK, decoder_prefix
from quant_experts.planning.headers import EMBEDDINGS, HEADS, ModelHeaders, Tensor
from quant_experts.planning.known_types import KNOWN_TYPES, RENAMED, WIDE
from quant_experts.planning.layer_names import Rules, in_memory_names
from quant_experts.planning.layer_rules import ELSEWHERE
from quant_experts.planning.shapes import shapes_of
from tests.every_type.__main__ import RESULTS
from tests.every_type.check import CAUSAL, TYPES, VLMS, auto_class, group_of
from tests.every_type.table import read_results
from tests.every_type.tiny import tiny_config

FILE = Path("quant_experts/planning/known_types.py")
BESIDE = re.compile(r"lm_head|embed|_scale")
"""In patterns that are about the head, the embeddings, or weights that are quantized already."""
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


class NotBuilt(Exception):
    """transformers itself does not build the tiny model, or the walk does not take it."""


def built(kind: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The type's tiny model on the meta device. ``changes``: of its language model's configuration. Raises NotBuilt."""
    try:
        config = tiny_config(kind)
        for name, value in changes.items():
            setattr(config.get_text_config(), name, value)
        with torch.device("meta"):
            model = auto_class(group_of(kind)).from_config(config, dtype=torch.bfloat16).eval()
        keep_wide(model, torch.bfloat16)
        return model
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}") from error


def difference(kind: str, changes: Mapping[str, Any] = MappingProxyType({})) -> str | None:
    """What the planner says otherwise than the manifest of the type's tiny model; None for nothing. ``changes``: of its
    language model's configuration. Raises NotBuilt.
    """
    model = built(kind, changes)
    headers, manifest = headers_of(model), found_in(model)
    tensors = model.state_dict()
    try:
        shapes = shapes_of(headers)
    except Unreadable as error:
        return str(error)
    found = sorted((g.name, g.label, g.layers, g.width, g.outs) for g in shapes.groups)
    wanted = sorted((g.name, g.label, g.layers, g.width, g.outs) for b in plan_groups(model, manifest) for g in b)
    if found != wanted:
        said, meant = ([each for each in one if each not in other] for one, other in ((found, wanted), (wanted, found)))
        return f"{said[:2]} for {meant[:2]}"
    tied = set(model.all_tied_weights_keys)
    quantized = sum(plan.weights for b in plan_groups(model, manifest) for plan in b)
    everything = sum(tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if name not in tied)
    kept = everything - quantized * torch.bfloat16.itemsize
    planned = shapes.others + sum(block.other_bytes for block in shapes.blocks)
    return None if planned == kept else f"{planned} bytes stay as they are, in the model {kept}"


def headers_of(model: Any) -> ModelHeaders:
    """As ``save_pretrained`` would write them."""
    tied = set(model.all_tied_weights_keys)
    stored = revert_weight_conversion(model, {k: v for k, v in model.state_dict().items() if k not in tied})
    tensors = {name: Tensor(NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in stored.items()}
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    assert all(math.prod(tensor.shape) >= 0 for tensor in tensors.values())
    own_head = any(name in tensors for name in HEADS) and any(name.endswith(EMBEDDINGS) for name in tensors)
    return ModelHeaders(config, tensors, 1, {}, own_head=own_head)


def found_in(model: Any) -> Manifest:
    """As a run finds it; the model is changed. Raises NotBuilt."""
    try:
        unstack_mixtures(model)
        straighten(model)
        return manifest_of(model)
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}") from error


def renaming_rules(kind: str) -> Rules:
    """Those of transformers' conversions that change the name of a weight within a block of the decoder, and those that
    might in a block that the tiny model lacks. Stacks of experts are left out: ``planning/mixtures.py`` has them."""
    model = built(kind)
    stored = headers_of(model).tensors
    prefix = decoder_prefix(stored)
    inside = {key: f".{match[3]}" for key in stored if (match := BLOCK.fullmatch(key)) and match[1] == prefix}
    weights = {name for key, name in inside.items() if len(stored[key].shape) in (2, 3) and 1 not in stored[key].shape}
    transforms = [each for each in get_model_conversion_mapping(model, add_legacy=False) if _is_about_blocks(each)]
    transforms.sort(key=lambda each: isinstance(each, WeightConverter))
    rules: list[tuple[str, ...]] = []
    for each in transforms:
        for source in each.source_patterns:
            pattern = source + (r"(?!\w)" if re.search(r"[a-zA-Z0-9]$", source) else "")
            rule = (pattern, *each.target_patterns)
            met = any(re.search(pattern, name) for name in weights)
            is_unseen = not any(re.search(pattern, key) for key in stored)
            if (met or is_unseen) and rule not in rules and source != each.target_patterns[0]:
                rules.append(rule)
                weights = {re.sub(pattern, each.target_patterns[0], name, count=1) for name in weights}
    return tuple(rules)


def _is_about_blocks(transform: Any) -> bool:
    operations = {type(each).__name__ for each in getattr(transform, "operations", ())}
    patterns = transform.source_patterns
    return (
        not isinstance(transform, PrefixChange)
        and not operations & {"MergeModulelist", "ErnieFuseAndSplitTextVisionExperts"}
        and not any(pattern.startswith("^") or "*" in pattern or BESIDE.search(pattern) for pattern in patterns)
        and not any(ELSEWHERE.search(text) for text in (transform.scope_prefix or "", *patterns))
    )


def wide_ends(kind: str) -> tuple[str, ...]:
    """Ends of the names, as the planner has them, of float32 tensors in a model of 16 bits. Raises NotBuilt."""
    ends = set()
    for key, tensor in headers_of(built(kind)).tensors.items():
        if tensor.dtype == "F32":
            for name in in_memory_names({key: tensor}, RENAMED.get(kind, ()), {}):
                parts = numbered(name).split(".")
                ends.add("." + ".".join(parts[-2:] if parts[-1] in ("weight", "bias", "*") else parts[-1:]))
    return tuple(sorted(ends))


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    loaded = {kind for (_, kind), outcome in read_results(RESULTS).items() if "loaded" in outcome.reached}
    written_by_hand = {kind for kind, family in families.FAMILIES.items() if not family.is_found}
    everything = [kind for kind in dict.fromkeys(kind for _, kind in TYPES) if kind in loaded - written_by_hand]
    known = {row[0]: row for row in KNOWN_TYPES}
    for kind in names or everything:
        known.pop(kind, None)
        if kind not in loaded:
            print(f"{kind}: its checkpoint does not load", flush=True)
            continue
        names_of = VLMS.get(kind) or CAUSAL[kind]
        name = names_of if isinstance(names_of, str) else names_of[0]
        try:
            tied = bool(getattr(CONFIG_MAPPING[kind](), "tie_word_embeddings", False))
            decoder, RENAMED[kind] = found_in(built(kind)).decoder, renaming_rules(kind)
            blocks = f"{decoder.module}.{decoder.layers}"
            families.FAMILIES[kind] = Family(name, blocks, vision=kind in VLMS, tied=tied, is_found=True)
            WIDE[kind] = wide_ends(kind)
            reason = difference(kind)
        except NotBuilt as error:
            reason = f"not built: {error}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        print(f"{kind}: {reason or 'same'}"[:400], flush=True)
        if reason is None:
            known[kind] = (kind, name, blocks, kind in VLMS, tied)
    _write([known[kind] for kind in everything if kind in known])


def _write(rows: list[tuple[str, str, str, bool, bool]]) -> None:
    kinds = sorted(row[0] for row in rows)
    tables = {
        "KNOWN_TYPES: tuple[tuple[str, str, str, bool, bool], ...]": tuple(rows),
        "RENAMED: dict[str, tuple[tuple[str, ...], ...]]": {kind: RENAMED[kind] for kind in kinds if RENAMED.get(kind)},
        "WIDE: dict[str, tuple[str, ...]]": {kind: WIDE[kind] for kind in kinds if WIDE.get(kind)},
    }
    head = FILE.read_text().partition("KNOWN_TYPES:")[0]
    FILE.write_text(head + "\n\n".join(f"{name} = {table!r}" for name, table in tables.items()) + "\n")
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(FILE)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""python -m tests.every_type.known [TYPE …]: write the list of types that the planner knows by their tensors' names.

With types, only these are looked at; the others stay as they are.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from quant_experts.model.blueprint import keep_wide
from quant_experts.model.groups import plan_groups
from quant_experts.model.manifest import manifest_of
from quant_experts.model.mixtures import straighten, unstack_mixtures
from quant_experts.planning import families
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.families import Family
from quant_experts.planning.headers import ModelHeaders, Tensor
from quant_experts.planning.known_types import KNOWN_TYPES, WIDE
from quant_experts.planning.shapes import shapes_of
from tests.every_type.check import CAUSAL, TYPES, VLMS, auto_class, group_of
from tests.every_type.tiny import tiny_config

FILE = Path("quant_experts/planning/known_types.py")
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


class NotBuilt(Exception):
    """transformers itself does not build the tiny model, or the walk does not take it."""


def built(kind: str) -> Any:
    """The type's tiny model on the meta device. Raises NotBuilt."""
    try:
        with torch.device("meta"):
            model = auto_class(group_of(kind)).from_config(tiny_config(kind), dtype=torch.bfloat16).eval()
        keep_wide(model, torch.bfloat16)
        return model
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}") from error


def difference(kind: str) -> str | None:
    """What the planner says otherwise than the manifest of the type's tiny model; None for nothing.

    Raises NotBuilt.
    """
    model = built(kind)
    try:
        headers, tensors = headers_of(model), dict(model.state_dict())
        unstack_mixtures(model)
        straighten(model)
        manifest = manifest_of(model)
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {error}") from error
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
    return ModelHeaders(config, tensors, 1, {})


def wide_ends(kind: str) -> tuple[str, ...]:
    """Ends of the names of tensors that are float32 in a model of 16 bits. Raises NotBuilt."""
    wide = [name.split(".") for name, tensor in headers_of(built(kind)).tensors.items() if tensor.dtype == "F32"]
    ends = {"." + ".".join(name[-2:] if name[-1] in ("weight", "bias") else name[-1:]) for name in wide}
    return tuple(sorted(ends))


def main(names: list[str]) -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    written_by_hand = {kind for kind, family in families.FAMILIES.items() if not family.is_found}
    everything = [kind for kind in dict.fromkeys(kind for _, kind in TYPES) if kind not in written_by_hand]
    known = {row[0]: row for row in KNOWN_TYPES}
    for kind in names or everything:
        known.pop(kind, None)
        names_of = VLMS.get(kind) or CAUSAL[kind]
        name = names_of if isinstance(names_of, str) else names_of[0]
        try:
            tied = bool(getattr(CONFIG_MAPPING[kind](), "tie_word_embeddings", False))
            stack = families.MULTIMODAL if kind in VLMS else "model"
            families.FAMILIES[kind] = Family(name, stack, vision=kind in VLMS, tied=tied, is_found=True)
            WIDE[kind] = wide_ends(kind)
            reason = difference(kind)
        except NotBuilt as error:
            reason = f"not built: {error}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        print(f"{kind}: {reason or 'same'}"[:400], flush=True)
        if reason is None:
            known[kind] = (kind, name, kind in VLMS, tied)
    _write([known[kind] for kind in everything if kind in known])


def _write(rows: list[tuple[str, str, bool, bool]]) -> None:
    text = FILE.read_text()
    types = "".join(f"    ({json.dumps(row[0])}, {json.dumps(row[1])}, {row[2]}, {row[3]}),\n" for row in rows)
    wide = {row[0]: WIDE[row[0]] for row in rows if WIDE.get(row[0])}
    ends = "".join(f"    {json.dumps(kind)}: ({json.dumps(wide[kind])[1:-1]},),\n" for kind in sorted(wide))
    FILE.write_text(
        text[: text.index("KNOWN_TYPES:")]
        + f"KNOWN_TYPES: tuple[tuple[str, str, bool, bool], ...] = (\n{types})\n\n"
        + f"WIDE: dict[str, tuple[str, ...]] = {{\n{ends}}}\n"
    )
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", str(FILE)], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

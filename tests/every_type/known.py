"""python -m tests.every_type.known: write the list of types that the planner knows by their tensors' names."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from quant_experts.errors import UnsupportedModel
from quant_experts.model.groups import plan_groups
from quant_experts.model.manifest import manifest_of
from quant_experts.model.mixtures import unstack_mixtures
from quant_experts.planning import families
from quant_experts.planning.errors import Unreadable
from quant_experts.planning.families import Family
from quant_experts.planning.headers import ModelHeaders, Tensor
from quant_experts.planning.shapes import shapes_of
from tests.every_type.check import CAUSAL, VLMS
from tests.every_type.tiny import tiny_config

FILE = Path("quant_experts/planning/known_types.py")
NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


class NotBuilt(Exception):
    """transformers itself does not build the tiny model, or the walk does not take it."""


def difference(kind: str) -> str | None:
    """What the planner says otherwise than the manifest of the type's tiny model; None for nothing.

    Raises NotBuilt.
    """
    auto_class = transformers.AutoModelForImageTextToText if kind in VLMS else transformers.AutoModelForCausalLM
    try:
        config = tiny_config(kind)
        with torch.device("meta"):
            model = auto_class.from_config(config, dtype=torch.bfloat16).eval()
        headers, tensors = headers_of(model), dict(model.state_dict())
        unstack_mixtures(model)
        manifest = manifest_of(model)
    except UnsupportedModel as error:
        raise NotBuilt(str(error)) from error
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


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    written_by_hand = {kind for kind, family in families.FAMILIES.items() if not family.is_found}
    lines = []
    for kind in dict.fromkeys([*sorted(VLMS), *sorted(CAUSAL)]):
        names = VLMS.get(kind) or CAUSAL[kind]
        name = names if isinstance(names, str) else names[0]
        if kind in written_by_hand:
            continue
        try:
            tied = bool(getattr(CONFIG_MAPPING[kind](), "tie_word_embeddings", False))
            stack = families.MULTIMODAL if kind in VLMS else "model"
            families.FAMILIES[kind] = Family(name, stack, vision=kind in VLMS, tied=tied, is_found=True)
            reason = difference(kind)
        except NotBuilt as error:
            reason = f"not built: {error}"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        print(f"{kind}: {reason or 'same'}"[:400], flush=True)
        if reason is None:
            lines.append(f'    ("{kind}", "{name}", {kind in VLMS}, {tied}),')
    text = FILE.read_text()
    before = text[: text.index("KNOWN_TYPES:")]
    FILE.write_text(f"{before}KNOWN_TYPES: tuple[tuple[str, str, bool, bool], ...] = (\n" + "\n".join(lines) + "\n)\n")


if __name__ == "__main__":
    sys.exit(main())

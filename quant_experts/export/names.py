"""Names of tensors as models on the hub have them: transformers renames some when it loads a model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion


def hub_names(model: PreTrainedModel) -> Callable[[str], str]:
    """A function from the name of a tensor in memory to the one in files, as ``save_pretrained`` has it.

    A tensor that transformers would split or merge keeps its name in memory, under which transformers loads it too.
    """
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    model._weight_conversions = [each for each in conversions if not isinstance(each, PrefixChange)] or None
    nothing = torch.empty(0, device="meta")

    def renamed(name: str) -> str:
        names = list(revert_weight_conversion(model, {name: nothing}))
        return str(names[0]) if len(names) == 1 else name

    return renamed

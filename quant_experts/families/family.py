"""One model family: where its language model sits and which layers of a decoder block read the same activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Groups = tuple[tuple[str, str, tuple[str, ...]], ...]
"""(parent within the block, label, layers), in the order in which a block runs them. An empty parent is the block."""

DECODER_GROUPS: Groups = (
    ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", "o", ("o_proj",)),
    ("mlp", "gate_up", ("gate_proj", "up_proj")),
    ("mlp", "down", ("down_proj",)),
)

Refusal = Callable[[dict[str, Any]], str | None]
"""config.json → why a model of the family cannot be walked, or None."""


@dataclass(frozen=True)
class Family:
    """One ``model_type``.

    ``language_model``: module path of the decoder stack; its blocks are ``<path>.layers``. ``vision``: of the vision
    tower. ``between``: modules and parameters between the tower and the embeddings, such as the projector.
    ``soft_cap``: the model squashes its logits by ``final_logit_softcapping``. ``text_model``: for families that take
    any language model, the ``model_type`` of the one that is meant when config.json names none.
    """

    model_class: str
    language_model: str
    vision: str | None = None
    between: tuple[str, ...] = ()
    groups: Groups = DECODER_GROUPS
    soft_cap: bool = False
    text_model: str | None = None
    refusal: Refusal | None = None

    @property
    def before_blocks(self) -> tuple[str, ...]:
        """Everything that runs before the first decoder block."""
        tower = () if self.vision is None else (self.vision,)
        return (*tower, *self.between, f"{self.language_model}.embed_tokens")

"""One model family: the stacks of blocks that the walk goes through, and what runs before and behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from quant_experts.model.families.stack import DECODER_GROUPS, Groups, Stack

Vision = Literal["keep", "quantize"]

Refusal = Callable[[dict[str, Any]], str | None]
"""config.json → why a model of the family cannot be walked, or None."""


@dataclass(frozen=True)
class Family:
    """One ``model_type``.

    ``language_model``: module path of the decoder stack; its blocks are ``<path>.layers``. ``vision``: of the vision
    tower. ``between``: modules and parameters between the tower and the embeddings, such as the projector.
    ``tower``: the vision tower as a stack, for families in which it can be quantized. ``encoder``: a stack whose output
    the decoder reads; always walked. ``memory``: see :class:`Stack`, of the decoder.
    ``soft_cap``: the model squashes its logits by ``final_logit_softcapping``. ``text_model``: for families that take
    any language model, the ``model_type`` of the one that is meant when config.json names none.
    ``head``: module path of the output head.
    """

    model_class: str
    language_model: str
    vision: str | None = None
    between: tuple[str, ...] = ()
    groups: Groups = DECODER_GROUPS
    tower: Stack | None = None
    encoder: Stack | None = None
    memory: tuple[str, ...] = ()
    soft_cap: bool = False
    text_model: str | None = None
    refusal: Refusal | None = None
    head: str = "lm_head"

    @property
    def decoder(self) -> Stack:
        """The last stack: the one that foretells tokens."""
        name = "language model" if self.encoder is None else "decoder"
        return Stack(name, self.language_model, self.groups, memory=self.memory)

    def stacks(self, vision: Vision = "keep") -> tuple[Stack, ...]:
        """The stacks that are walked, in the order in which the model runs them; the decoder is the last."""
        tower = self.tower if vision == "quantize" else None
        return (*(stack for stack in (tower, self.encoder) if stack is not None), self.decoder)

    @property
    def before_blocks(self) -> tuple[str, ...]:
        """Everything that runs before the first decoder block, where the walk has that stack only."""
        tower = () if self.vision is None else (self.vision,)
        return (*tower, *self.between, f"{self.language_model}.embed_tokens")

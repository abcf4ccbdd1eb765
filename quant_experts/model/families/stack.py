"""One stack of blocks inside a model: where its blocks are, what runs them, which input groups a block has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quant_experts.planning.families import DECODER
from quant_experts.planning.stacks import Groups, Media


@dataclass(frozen=True)
class State:
    """What a block hands to the next: ``shape``, with 0 for the number of tokens, and ``dtype``, as torch names it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after another, inside the forward of ``module``.

    ``name``: for people. ``layers``: path of the list of blocks, within the module. ``behind``: input groups behind the
    blocks and before the next stack, with parents from the model's root; ``*`` stands for each entry of a list. They
    are walked as one more block, which ``part`` names as the family does: ``merger``, ``projector``.
    ``embeds``: the module's argument that takes the states of the first block; None: they are handed to that block.
    ``read_again``: the model's configuration → numbers of the blocks, other than the last, whose output the module
    reads once more behind its blocks.
    ``media``: what every token of the stack is a piece of; None for tokens of text among which image tokens may be.
    ``memory``: ``parent.label`` of the groups that read what the stack before this one has put out.
    ``each``: the groups of each block, where they were found and not written down; ``groups`` is not looked at then.
    ``embedding``: path of the table of token embeddings, within the module. ``state``: what blocks hand
    on, where it is not shaped as the embeddings: models project these, or have several streams of states.
    ``others``: how many values a block returns behind its states in a tuple; None where it returns the states alone.
    """

    name: str
    module: str
    groups: Groups = DECODER
    layers: str = "layers"
    behind: Groups = ()
    part: str | None = None
    embeds: str | None = "inputs_embeds"
    read_again: Callable[[Any], tuple[int, ...]] = lambda config: ()
    media: Media | None = None
    memory: tuple[str, ...] = ()
    each: tuple[Groups, ...] = ()
    embedding: str = "embed_tokens"
    state: State | None = None
    others: int | None = None

    def groups_of(self, index: int) -> Groups:
        """The input groups of a block."""
        return self.each[index] if self.each else self.groups

    def block(self, index: int) -> str:
        """Module path of a block."""
        return f"{self.module}.{self.layers}.{index}"


LANGUAGE = Stack("language model", "model")
"""Of a text-only model; others differ in the path."""

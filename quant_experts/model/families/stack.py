"""One stack of blocks inside a model: where its blocks are, what runs them, which input groups a block has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quant_experts.planning.families import DECODER
from quant_experts.planning.stacks import Groups, Media


@dataclass(frozen=True)
class Carried:
    """A tensor that blocks hand on beside their states. ``where``: its place in the tuple that a block returns, or
    ``argument.key.place`` in a mapping that all blocks are handed. ``shape``: with 0 for the number of tokens; of two
    such sides the second is at most that."""

    where: str
    shape: tuple[int, ...]
    dtype: str


def width_of(shape: tuple[int, ...], tokens: int) -> int:
    """Values per token of a tensor of ``shape``, at most: all sides but the one along which tokens follow one
    another."""
    axis = shape.index(0)
    return math.prod(side or tokens for place, side in enumerate(shape) if place != axis)


@dataclass(frozen=True)
class State:
    """What a block hands to the next: ``shape``, with 0 for the number of tokens and -k for k times that number, and
    ``dtype``, as torch names it. ``carried``: what it hands on beside that; stored as ``model/carried.py`` says."""

    shape: tuple[int, ...]
    dtype: str
    carried: tuple[Carried, ...] = ()

    def stored(self, tokens: int) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape on disk, of a row of ``tokens``."""
        if not self.carried:
            return self.dtype, tuple(side if side > 0 else (-side or 1) * tokens for side in self.shape)
        shapes = (self.shape, *(piece.shape for piece in self.carried))
        dtypes = {self.dtype, *(piece.dtype for piece in self.carried)}
        dtype = self.dtype if len(dtypes) == 1 else "float32"  # which holds positions up to 2^24 exactly
        return dtype, (1, tokens, sum(width_of(shape, tokens) for shape in shapes))


def state_from(record: Mapping[str, Any]) -> State:
    """A state that was stored as JSON."""
    carried = (Carried(each["where"], tuple(each["shape"]), each["dtype"]) for each in record.get("carried", ()))
    return State(tuple(record["shape"]), record["dtype"], tuple(carried))


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
    ``takes_ids``: the module has to be given the tokens, since it takes no embeddings or its blocks read the tokens.
    ``runs_towers``: it runs a vision tower too, which may look up embeddings of its own.
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
    takes_ids: bool = False
    runs_towers: bool = False

    def groups_of(self, index: int) -> Groups:
        """The input groups of a block."""
        return self.each[index] if self.each else self.groups

    def block(self, index: int) -> str:
        """Module path of a block."""
        return f"{self.module}.{self.layers}.{index}"


LANGUAGE = Stack("language model", "model")
"""Of a text-only model; others differ in the path."""

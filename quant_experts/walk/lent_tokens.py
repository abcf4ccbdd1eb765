"""Tokens for the experts of a mixture that get few: what its router sends to others is lent to them.

An expert that the calibration rows hardly reach would be fitted to a handful of tokens, or to none. It is then run on a
sample of its layer's tokens too, so that both of its matrices see what they would see of those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quant_experts.fit.statistics import TokenReservoir
from quant_experts.forward.modeling_quant_experts import MixtureExperts
from quant_experts.seeding import generator

LEAST_TOKENS = 512
"""With fewer of its own, an expert is lent what is missing."""
LEAST_HELD_OUT = 32
"""The same of held-out tokens, on which errors are measured."""


class Observer(Protocol):
    """Takes in the inputs of one input group of an expert."""

    rows: Tensor | None
    vision: Tensor | None
    held_out: bool
    lent: bool
    own: int
    own_held_out: int


@dataclass
class Lender:
    """A hook in front of the experts of one mixture. ``observers``: of each expert's groups. ``vision``, ``held_out``:
    of the current row."""

    name: str
    experts: MixtureExperts
    observers: Mapping[int, Sequence[Observer]]
    seed: int
    vision: Tensor | None = None
    held_out: bool = False
    samples: dict[bool, TokenReservoir] = field(init=False)

    def __post_init__(self) -> None:
        self.samples = {
            held_out: TokenReservoir(size, seed=self.seed, name=f"{self.name}.lent.{held_out}")
            for held_out, size in ((False, LEAST_TOKENS), (True, LEAST_HELD_OUT))
        }

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Tell the observers which tokens of the row their expert gets."""
        assert self.vision is not None
        x = args[0].detach().reshape(-1, args[0].shape[-1])
        by_expert = {expert: rows for expert, rows, _ in self.experts.assigned(x, *args[1:])}
        for expert, rows in by_expert.items():
            for observer in self.observers.get(expert, ()):
                observer.rows = rows % len(self.vision)
        routed = torch.cat([torch.arange(len(x) if args[1:] else 0), *(rows.cpu() for rows in by_expert.values())])
        own_tokens = routed.unique().to(x.device)  # type: ignore[no-untyped-call]  # torch's own
        self.samples[self.held_out].update(x[own_tokens], self.vision[own_tokens % len(self.vision)])

    @torch.no_grad()
    def lend(self) -> None:
        """Run each expert that had few tokens on those that it lacks, while its observers listen."""
        for held_out, least in ((False, LEAST_TOKENS), (True, LEAST_HELD_OUT)):
            tokens, vision = self.samples[held_out].finish()
            for expert, observers in self.observers.items():
                own = max(each.own_held_out if held_out else each.own for each in observers)
                source = generator(self.seed, self.name, f"lent to {expert}, {held_out}")
                sample = torch.randperm(len(tokens), generator=source)[: max(0, least - own)]
                if not len(sample):
                    continue
                for observer in observers:
                    observer.rows, observer.vision = None, vision[sample]
                    observer.held_out, observer.lent = held_out, True
                self.experts.run(expert, tokens[sample.to(tokens.device)])

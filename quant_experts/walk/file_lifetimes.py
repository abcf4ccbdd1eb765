"""Which files each walked block leaves for those after it, and when nobody needs them any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_experts.model.groups import GroupPlan
from quant_experts.walk.resume_files import chain_file
from quant_experts.walk.stack_transition import files_at

KEPT_CHAINS = 2
"""Hidden states of this many blocks stay on disk: should the newest be damaged, the walk goes back one block, not to
the beginning."""


@dataclass(frozen=True)
class Route:
    """For each walked block, by its number.

    ``first_of``: number of the first block of its stack. ``states``: the files with which the walk goes on behind it.
    """

    first_of: tuple[int, ...]
    states: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, plans: Sequence[Sequence[GroupPlan]], config: Any) -> Route:
        """``config``: the model's."""
        first_of: list[int] = []
        states: list[tuple[str, ...]] = []
        for number, (plan, *_) in enumerate(plans):
            is_new = number == 0 or plan.stack != plans[number - 1][0].stack
            first = number if is_new else first_of[-1]
            first_of.append(first)
            if plan.index is None:  # it leaves the next stack's calls and no hidden states
                states.append(files_at(number + 1))
                continue
            again = [first + index for index in plan.stack.read_again(config) if first + index < number]
            states.append((*map(chain_file, (*again, number)), *files_at(first)))
        return cls(tuple(first_of), tuple(states))

    @property
    def is_single(self) -> bool:
        return self.first_of[-1] == 0

    def superseded(self, work: Path, number: int) -> tuple[str, ...]:
        """Hidden states in ``work`` that no resume needs once block ``number`` is finished."""
        kept = {name for block in range(max(0, number - KEPT_CHAINS + 1), number + 1) for name in self.states[block]}
        old = (chain_file(block) for block in range(number + 1))
        return tuple(name for name in old if name not in kept and (work / name).is_file())

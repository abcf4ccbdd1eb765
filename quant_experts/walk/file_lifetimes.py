"""Which files each walked block leaves for the blocks after it, and from when on nobody needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant_experts.model.groups import GroupPlan
from quant_experts.planning.disk import RETAINED_STATES
from quant_experts.walk.resume_files import states_file
from quant_experts.walk.stack_transition import stack_files


@dataclass(frozen=True)
class FileLifetimes:
    """For each walked block, by its number.

    ``first_of``: number of the first block of its stack. ``states``: the files from which the walk continues behind it.
    """

    first_of: tuple[int, ...]
    states: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, plans: Sequence[Sequence[GroupPlan]], config: Any) -> FileLifetimes:
        """``config``: the model's."""
        first_of: list[int] = []
        states: list[tuple[str, ...]] = []
        for number, (plan, *_) in enumerate(plans):
            is_new = number == 0 or plan.stack != plans[number - 1][0].stack
            first = number if is_new else first_of[-1]
            first_of.append(first)
            if plan.index is None:  # it leaves the inputs of the next stack, and no hidden states
                states.append(stack_files(number + 1))
                continue
            again = [first + index for index in plan.stack.read_again(config) if first + index < number]
            states.append((*map(states_file, (*again, number)), *stack_files(first)))
        return cls(tuple(first_of), tuple(states))

    @property
    def is_single(self) -> bool:
        """Whether the walk goes through one stack only."""
        return self.first_of[-1] == 0

    def superseded(self, work: Path, number: int) -> tuple[str, ...]:
        """Hidden states in ``work`` that no resume needs once block ``number`` is finished."""
        newest = range(max(0, number - RETAINED_STATES + 1), number + 1)
        names = {name for block in newest for name in self.states[block]}
        older = (states_file(block) for block in range(number + 1))
        return tuple(name for name in older if name not in names and (work / name).is_file())

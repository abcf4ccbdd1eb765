"""What every phase of a run is handed: the model, its input groups, the work directory and the caller's callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quant_experts.model.blueprint import Blueprint
from quant_experts.model.groups import GroupPlan
from quant_experts.progress import OnEvent, ShouldStop


@dataclass(frozen=True)
class RunContext:
    """``plans``: the input groups of each walked block. ``work``: the directory of files that a later run resumes from.

    ``fingerprint``: a file of ``work`` counts only when it was written under the same one.
    """

    blueprint: Blueprint
    plans: Sequence[Sequence[GroupPlan]]
    work: Path
    fingerprint: str
    on_event: OnEvent
    should_stop: ShouldStop

"""The events of a run. A caller passes ``on_event`` and receives them in order, on the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from quant_experts.errors import Stopped
from quant_experts.report.data import GroupReport

Phase = Literal[
    "preparing",
    "calibrating",
    "fitting",
    "evaluating",
    "packing",
    "verifying",
    "generating",
    "exporting",
    "publishing",
]
"""``generating``, ``exporting``: only in a run that was asked for an evaluation or for exports."""


@dataclass(frozen=True)
class PhaseStarted:
    phase: Phase
    total: int | None = None
    """Units of the phase: samples when calibrating, blocks when fitting, replies when generating."""


@dataclass(frozen=True)
class Advanced:
    """``done`` of ``total`` units of the current phase are finished. ``tokens``: where rows are calibrated, of the
    ``done`` rows, and how many of them are images'."""

    phase: Phase
    done: int
    total: int
    tokens: tuple[int, int] | None = None


@dataclass(frozen=True)
class GroupFitted:
    """One input group is fitted; its held-out errors are final."""

    block: int
    blocks: int
    group: GroupReport
    stack: str | None = None
    index: int | None = None
    part: str | None = None
    """As in ``quant_experts.report.data.BlockReport``."""


@dataclass(frozen=True)
class WrittenFile:
    """One immutable file of the work directory: ``name`` is relative to it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BlockFinished:
    """A block is fitted and durable. ``files`` are what a resume on another machine needs of this block;
    ``superseded`` are files of earlier blocks that no resume needs any more."""

    block: int
    blocks: int
    seconds: float
    seconds_by_phase: dict[str, float]
    groups: tuple[GroupReport, ...]
    files: tuple[WrittenFile, ...]
    superseded: tuple[str, ...] = ()
    resumed: bool = False
    """True when the block was found finished on disk and not computed again."""
    stack: str | None = None
    index: int | None = None
    part: str | None = None
    """As in ``quant_experts.report.data.BlockReport``."""


@dataclass(frozen=True)
class Warned:
    """A warning that does not end the run; the report has it too."""

    message: str


@dataclass(frozen=True)
class Forecast:
    """The whole run in seconds, all phases together: ``done`` so far, earlier runs' finished blocks included, and
    ``left`` as predicted. It comes before the event that it goes with."""

    done: float
    left: float

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return self.done / max(self.done + self.left, 1e-9)


@dataclass(frozen=True)
class ExportOutcome:
    """An export that the run was asked for. ``losses``: what the checkpoint has and the export has not. ``loaded``:
    whether a fresh process loaded it, which needs the package that reads the format. ``problem``: why it was not made.
    """

    format: str
    bytes: int = 0
    losses: tuple[str, ...] = ()
    loaded: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Finished:
    output: Path
    files: tuple[WrittenFile, ...] = field(default_factory=tuple)
    """Every file of the checkpoint directory, those of exports included; ``name`` relative to ``output``."""
    exports: tuple[ExportOutcome, ...] = ()


Event = PhaseStarted | Advanced | GroupFitted | BlockFinished | Warned | Forecast | Finished
OnEvent = Callable[[Event], None]
ShouldStop = Callable[[], bool]


def ignore(event: Event) -> None:
    """An ``on_event`` that drops everything."""


def never() -> bool:
    """A ``should_stop`` that never stops."""
    return False


def stop_if(
    should_stop: ShouldStop,
    where: str = "between rows; finished blocks are on disk and a later run goes on from them",
) -> None:
    """Raises Stopped that says ``where`` the run stopped and what a later one does, when the caller asks to stop."""
    if should_stop():
        raise Stopped(f"stopped {where}")

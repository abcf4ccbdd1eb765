"""The lines between supervisor and runner: JSON objects, one per line, typed on both sides.

Up, on the runner's own copy of stdout: what the library's progress events say, then one last word, ``finished``,
``stopped`` or ``error``. Down, on stdin: ``kept N`` when block N is in the ledger and its files are in storage; the
runner waits for it before the next block. ``stop``, and the end of the stream, ask the runner to stop. This file
imports nothing of the library, so that the supervisor reads its events without loading torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

STOP = b"stop\n"
STORED = b"kept "
"""The word on the wire. It stays: after an upgrade in place a running supervisor starts the new runner."""
MAX_LINE = 64 * 1024 * 1024
"""Bytes. A block's report is some kilobytes; a line beyond this is not ours."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunnerJob(_Message):
    """The job file that the runner reads: local paths and the method's options, no address and no secret."""

    model: str
    model_id: str
    model_commit: str | None
    calibration: str
    split: str
    output: str
    work: str
    scheme: str
    method: str
    options: dict[str, Any]
    target: dict[str, Any] | None = None
    """What scheme ``auto`` searches for."""
    confinement: Literal["required", "best-effort", "off"] = "best-effort"
    """Which walls the runner raises around itself before it reads anything else."""
    accept_if: dict[str, Any] | None = None
    """Limits that the finished checkpoint is held against."""
    exports: list[str] = []
    """Formats that it is written in too."""
    evaluation: dict[str, Any] | None = None
    """The user's own task; its ``dataset`` is a local path."""


class File(_Message):
    """A file of the work or output directory: ``name`` is relative to it."""

    name: str
    bytes: int
    sha256: str


class PhaseLine(_Message):
    type: Literal["phase"] = "phase"
    phase: str
    total: int | None = None
    at: float | None = None
    """Unix seconds at the runner; the supervisor may read the line later."""


class AdvancedLine(_Message):
    type: Literal["advanced"] = "advanced"
    phase: str
    done: int
    total: int


class GroupLine(_Message):
    type: Literal["group"] = "group"
    block: int
    blocks: int
    group: dict[str, Any]


class BlockLine(_Message):
    type: Literal["block"] = "block"
    block: int
    blocks: int
    seconds: float
    seconds_by_phase: dict[str, float]
    groups: list[dict[str, Any]]
    files: list[File]
    superseded: list[str] = Field(default_factory=list)
    resumed: bool = False
    stack: str | None = None
    index: int | None = None
    part: str | None = None
    """Only of models with several stacks of blocks. ``stack``: the one that this block belongs to; ``index``: its
    number there. A part behind the stack's blocks has no index, and its name is ``part``: ``merger``, ``projector``."""
    at: float | None = None
    """When the block was finished, as above."""


class ForecastLine(_Message):
    """The whole run in seconds; it comes before the line that it goes with."""

    type: Literal["forecast"] = "forecast"
    done: float
    left: float


class WarningLine(_Message):
    type: Literal["warning"] = "warning"
    message: str


class FinishedLine(_Message):
    type: Literal["finished"] = "finished"
    output: str
    files: list[File]
    exports: list[dict[str, Any]] = []
    """What came of each export, as in ``quant_experts.progress.ExportOutcome``."""


class StoppedLine(_Message):
    """The runner was asked to stop and did; every finished block has been announced."""

    type: Literal["stopped"] = "stopped"


class ErrorLine(_Message):
    """The run ended with an error; ``code`` is one of ``core.contract.errors.FailureCode``."""

    type: Literal["error"] = "error"
    code: str
    message: str


Line = (
    PhaseLine
    | AdvancedLine
    | GroupLine
    | BlockLine
    | ForecastLine
    | WarningLine
    | FinishedLine
    | StoppedLine
    | ErrorLine
)
LastWord = FinishedLine | StoppedLine | ErrorLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="type")])


class NotOurs(Exception):
    """A line on the runner's channel that is not a message of this protocol."""


def stored(block: int) -> bytes:
    """What tells the runner that nothing of ``block`` can be lost any more."""
    return b"%s%d\n" % (STORED, block)


def decode(line: bytes) -> Line:
    """Raises NotOurs."""
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        raise NotOurs(f"{line[:200]!r}: {error.errors(include_url=False)[0]['msg']}") from error


def encode(message: Line) -> bytes:
    """One line of JSON. A figure that is not finite becomes null: neither JSON nor the ledger has a word for it."""
    return message.model_dump_json().encode() + b"\n"

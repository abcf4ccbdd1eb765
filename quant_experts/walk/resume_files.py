"""The work directory of a run: immutable files per walked block, from which a later run resumes.

    fingerprint.json           what this run is: spec, model, rows
    calls.safetensors/.json    inputs of the first stack, of all rows (calibration/captured_inputs.py); a later stack
                               has ``calls-<number of its first block>``
    blocks/00007.safetensors   every tensor of the quantized block, under in-memory names
    blocks/00007.json          its report and configuration, and the digests of all its files; written last
    chain/00007.safetensors    hidden states after the block, (1, tokens, d): ``quantized.<row>`` of all rows,
                               ``full.<row>`` of held-out ones and their variants in full precision,
                               ``baseline.<row>`` of held-out ones with every block so far rounded to nearest

Hidden states are stored verbatim: another machine would not compute them bit-identically.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow, Stream
from quant_experts.errors import InvalidSpec
from quant_experts.files import file_digest
from quant_experts.model.tensor_file import TensorFile, TensorWriter, write_text
from quant_experts.progress import WrittenFile
from quant_experts.report.data import BlockReport

FINGERPRINT = "fingerprint.json"

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class FinishedBlock:
    """A durable block. ``groups``: entries for quantization_config; ``files``: relative to the work directory, the
    block's JSON included; ``bits``: (all, base alone) stored for its quantized weights."""

    block: int
    report: BlockReport
    groups: list[dict[str, Any]]
    bits: tuple[int, int]
    files: tuple[WrittenFile, ...]


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let only one process at a time run ``function`` on a work directory, its argument ``work``.

    Raises InvalidSpec that names the other process. The lock ends with the process, however that ends.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        work = cast(Path, kwargs["work"])
        new = not work.exists()
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidSpec(
                    f"{_holder(work)} works in {work}: wait until it has ended, or choose another work directory"
                ) from None
            return function(*args, **kwargs)
        finally:
            if new:
                with contextlib.suppress(OSError):  # not empty: a later run resumes from it
                    work.rmdir()
            os.close(descriptor)

    return run


def _holder(work: Path) -> str:
    """The process that holds the lock on the directory, as far as the system tells."""
    inode = str(work.stat().st_ino)
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        pid = next(int(fields[4]) for fields in locks if fields[5].rpartition(":")[2] == inode)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, StopIteration, IndexError, ValueError):
        return "another process"
    return f"process {pid} ({command[:80]})"


def block_file(block: int) -> str:
    return f"blocks/{block:05d}.safetensors"


def block_record(block: int) -> str:
    return f"blocks/{block:05d}.json"


def states_file(block: int) -> str:
    return f"chain/{block:05d}.safetensors"


def claim_directory(work: Path, parts: dict[str, str]) -> None:
    """Make ``work`` the directory of the run that ``parts`` (name → digest) tell from others.

    Raises InvalidSpec when it belongs to another run: resuming it would mix two.
    """
    for folder in ("blocks", "chain"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    path = work / FINGERPRINT
    if path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            record = {}
        different = [name for name, digest in parts.items() if record.get(name) != digest]
        if different:
            raise InvalidSpec(
                f"the work directory {work} holds a run with another {' and '.join(different)}; "
                "remove it or choose another one"
            )
        return
    write_text(path, json.dumps(parts, indent=1))


class HiddenStates:
    """The inputs of a walked block: the states that the block before left, or those that its stack receives."""

    def __init__(self, work: Path, inputs: CapturedInputs, block: int) -> None:
        self._inputs = inputs
        self._file = TensorFile(work / states_file(block - 1)) if block > inputs.first else None

    def read(self, stream: Stream, row: CapturedRow) -> Tensor:
        """(1, tokens, d), on the CPU.

        Raises KeyError for a stream that the row does not travel in: ``full`` has held-out rows and variants only,
        ``baseline`` held-out rows only, and no row where the method is itself rounding to nearest.
        """
        if self._file is None:
            return self._inputs.embeddings(row, stream)
        return self._file.read(f"{stream}.{row.index}")


class StatesWriter:
    """Writes the hidden states behind a block, row by row. Nothing is visible until ``finish``."""

    def __init__(
        self, work: Path, block: int, inputs: CapturedInputs, rows: Mapping[Stream, Sequence[CapturedRow]]
    ) -> None:
        """``rows``: of each stream, in the order in which they are added."""
        self._block = block
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for stream, of_stream in rows.items():
            for row in of_stream:
                layout[f"{stream}.{row.index}"] = inputs.state_of(row)
        self._writer = TensorWriter(work / states_file(block), layout)

    def add(self, stream: Stream, row: CapturedRow, state: Tensor) -> None:
        self._writer.add(f"{stream}.{row.index}", state)

    def finish(self) -> WrittenFile:
        return replace(self._writer.finish(), name=states_file(self._block))

    def discard(self) -> None:
        self._writer.discard()


def commit_block(
    work: Path,
    *,
    report: BlockReport,
    groups: list[dict[str, Any]],
    bits: tuple[int, int],
    files: tuple[WrittenFile, ...],
    fingerprint: str,
) -> FinishedBlock:
    """Write the block's record, which makes the block finished. Its other files are durable already."""
    record = {
        "fingerprint": fingerprint,
        "report": report.model_dump(mode="json"),
        "groups": groups,
        "bits": bits,
        "files": [asdict(file) for file in files],
    }
    name = block_record(report.block)
    record_file = replace(write_text(work / name, json.dumps(record, indent=1)), name=name)
    return FinishedBlock(report.block, report, groups, bits, (*files, record_file))


def finished_prefix(work: Path, states: Sequence[Sequence[str]], fingerprint: str) -> list[FinishedBlock]:
    """The finished blocks from the first on, up to the last one from which the walk can continue.

    ``states``: for each block the files from which the walk continues behind it. Only the last block needs its hidden
    states; older ones are deleted by design.
    """
    prefix: list[FinishedBlock] = []
    for block in range(len(states)):
        block_record = _read_block(work, block, fingerprint)
        if block_record is None:
            break
        prefix.append(block_record)
    while prefix and not all(_is_whole(work, prefix, name) for name in states[prefix[-1].block]):
        prefix.pop()
    return prefix


def _read_block(work: Path, block: int, fingerprint: str) -> FinishedBlock | None:
    name = block_record(block)
    try:
        text = (work / name).read_bytes()
        record = json.loads(text)
        if record["fingerprint"] != fingerprint:
            return None
        files = tuple(WrittenFile(**file) for file in record["files"])
        itself = WrittenFile(name, len(text), file_digest(work / name))
        finished = FinishedBlock(
            block,
            BlockReport.model_validate(record["report"]),
            record["groups"],
            tuple(record["bits"]),
            (*files, itself),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return finished if _is_whole(work, [finished], block_file(block)) else None


def _is_whole(work: Path, blocks: Sequence[FinishedBlock], name: str) -> bool:
    original = next((file for block in blocks for file in block.files if file.name == name), None)
    path = work / name
    return original is not None and path.is_file() and file_digest(path) == original.sha256

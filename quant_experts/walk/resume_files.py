"""The work directory of a run: immutable files per walked block, and how much of them a later run may take over.

    fingerprint.json           what this run is: spec, model, rows
    calls.safetensors/.json    calls of the first stack, of all rows (calls.py); of a model with one stack that is the
                               language model, of others the next stack has ``calls-<number of its first block>``
    blocks/00007.safetensors   every tensor of the quantized block, under in-memory names
    blocks/00007.json          its report and configuration, and the digests of all its files; written last
    chain/00007.safetensors    hidden states after the block, (1, tokens, d): ``quantized.<row>`` of all rows,
                               ``full.<row>`` of held-out ones and their variants in full precision,
                               ``baseline.<row>`` of held-out ones with every block so far rounded to nearest

Hidden states are kept verbatim: computing them again would not be bit-identical on another machine.
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

from quant_experts.calibration.captured_inputs import Call, Calls, Stream
from quant_experts.errors import InvalidSpec
from quant_experts.model.tensor_file import TensorFile, TensorWriter, file_digest, write_text
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
    """``function`` for one caller of a work directory, its argument ``work``, at a time.

    Raises InvalidSpec that names the other process. The lock goes with the process, however it ends.
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
                with contextlib.suppress(OSError):  # it holds something: a later run goes on from there
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


def chain_file(block: int) -> str:
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
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        different = [name for name, digest in parts.items() if found.get(name) != digest]
        if different:
            raise InvalidSpec(
                f"the work directory {work} holds a run with another {' and '.join(different)}; "
                "remove it or choose another one"
            )
        return
    write_text(path, json.dumps(parts, indent=1))


class HiddenStates:
    """The inputs of a block: what the block before left, or what its stack begins with. ``block``: among all that are
    walked."""

    def __init__(self, work: Path, calls: Calls, block: int) -> None:
        self._calls = calls
        self._file = TensorFile(work / chain_file(block - 1)) if block > calls.first else None

    def quantized(self, call: Call) -> Tensor:
        """(1, tokens, d), CPU: behind the quantized prefix."""
        return self.of_stream("quantized", call)

    def full(self, call: Call) -> Tensor:
        """(1, tokens, d), CPU: of the full-precision model; held-out rows and variants only."""
        return self.of_stream("full", call)

    def baseline(self, call: Call) -> Tensor:
        """(1, tokens, d), CPU: behind the prefix rounded to nearest; held-out rows only.

        Raises KeyError for a method that is itself rounding to nearest, whose baseline is the quantized stream.
        """
        return self.of_stream("baseline", call)

    def of_stream(self, stream: Stream, call: Call) -> Tensor:
        if self._file is None:
            return self._calls.embeddings(call, stream)
        return self._file.read(f"{stream}.{call.index}")


class ChainWriter:
    """The hidden states after a block, row by row as they are computed; nothing is visible until it is finished."""

    def __init__(self, work: Path, block: int, calls: Calls, rows: Mapping[Stream, Sequence[Call]]) -> None:
        """``rows``: of each stream, in the order in which they will come."""
        self._block = block
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for stream, of_stream in rows.items():
            for call in of_stream:
                entry = calls.tensors.entries[f"{call.index}.embeddings"]
                layout[f"{stream}.{call.index}"] = (entry.dtype, entry.shape)
        self._writer = TensorWriter(work / chain_file(block), layout)

    def add(self, stream: Stream, call: Call, state: Tensor) -> None:
        self._writer.add(f"{stream}.{call.index}", state)

    def finish(self) -> WrittenFile:
        return replace(self._writer.finish(), name=chain_file(self._block))

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
    """Write the block's record, which makes it finished: its other files are durable already."""
    record = {
        "fingerprint": fingerprint,
        "report": report.model_dump(mode="json"),
        "groups": groups,
        "bits": bits,
        "files": [asdict(file) for file in files],
    }
    name = block_record(report.block)
    written = replace(write_text(work / name, json.dumps(record, indent=1)), name=name)
    return FinishedBlock(report.block, report, groups, bits, (*files, written))


def finished_prefix(work: Path, states: Sequence[Sequence[str]], fingerprint: str) -> list[FinishedBlock]:
    """The longest run of blocks from the first on whose files are whole, and after which the walk can go on.

    ``states``: for each block the files with which the walk goes on behind it. Of hidden states only those after the
    last block are needed, and older ones are gone by design.
    """
    prefix: list[FinishedBlock] = []
    for block in range(len(states)):
        finished = _read_block(work, block, fingerprint)
        if finished is None:
            break
        prefix.append(finished)
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
    wanted = next((file for block in blocks for file in block.files if file.name == name), None)
    path = work / name
    return wanted is not None and path.is_file() and file_digest(path) == wanted.sha256

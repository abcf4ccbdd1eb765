"""Hidden states of many streams on disk, each in a place of its own that is written again after every block."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from quant_experts.calibration.captured_inputs import CapturedInputs, CapturedRow
from quant_experts.model.tensor_file import tensor_bytes


class StateFile:
    """States of ``streams`` x ``rows``: each is shaped as the row's embeddings or as its states behind a block.

    The file has its full size at once: streams x (tokens of all rows) x d x bytes per value. Nothing in it outlives
    the program, so nothing is synchronised.
    """

    def __init__(
        self, path: Path, streams: Iterable[str], inputs: CapturedInputs, rows: Collection[CapturedRow]
    ) -> None:
        entries = {row.index: inputs.tensors.entries[f"{row.index}.embeddings"] for row in rows}
        self._forms = {
            row.index: ((entries[row.index].dtype, entries[row.index].shape), inputs.state_of(row)) for row in rows
        }
        self._form: dict[tuple[str, int], tuple[torch.dtype, tuple[int, ...]]] = {}
        self._start: dict[tuple[str, int], int] = {}
        end = 0
        for stream in streams:
            for index, forms in self._forms.items():
                self._start[stream, index] = end
                end += max(dtype.itemsize * math.prod(shape) for dtype, shape in forms)
        self._file = path.open("w+b", buffering=0)
        self._file.truncate(end)

    def write(self, stream: str, row: CapturedRow, state: Tensor) -> None:
        """Raises ValueError when the state has not the dtype and shape of the row's embeddings or states."""
        index = row.index
        form = (state.dtype, tuple(state.shape))
        if form not in self._forms[index]:
            raise ValueError(f"{stream}, row {row.number}: a state of {state.dtype} {tuple(state.shape)} does not fit")
        self._form[stream, index] = form
        view = tensor_bytes(state.detach().cpu().contiguous())
        self._file.seek(self._start[stream, index])
        while view:
            view = view[self._file.write(view) :]

    def read(self, stream: str, row: CapturedRow) -> Tensor:
        """What was written last, on the CPU, in memory of its own."""
        index = row.index
        dtype, shape = self._form[stream, index]
        state = torch.empty(shape, dtype=dtype)
        self._file.seek(self._start[stream, index])
        view = tensor_bytes(state)
        while view:
            count = self._file.readinto(view)
            if not count:
                raise OSError(f"{self._file.name}: ended {len(view)} bytes early")
            view = view[count:]
        return state

    def close(self) -> None:
        self._file.close()


@contextmanager
def temporary_states(
    path: Path, streams: Iterable[str], inputs: CapturedInputs, rows: Collection[CapturedRow]
) -> Iterator[StateFile]:
    """A state file that is gone afterwards."""
    states = StateFile(path, streams, inputs, rows)
    try:
        yield states
    finally:
        states.close()
        path.unlink(missing_ok=True)

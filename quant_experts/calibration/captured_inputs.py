"""The arguments that a stack of blocks receives for every calibration row, on disk.

Everything in front of the blocks runs once per row. Every block of the walk then replays the captured arguments.
``calls.safetensors`` holds the tensors; ``calls.json`` says how they make up the arguments. A stack behind another one
has files of its own, in which each stream of hidden states has its own arguments (``walk/stack_transition.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from quant_experts.calibration.collate import Sample
from quant_experts.calibration.image_variants import Change, Variant
from quant_experts.files import file_digest
from quant_experts.model.block_runner import Arguments
from quant_experts.model.families.stack import State, state_from
from quant_experts.model.tensor_file import TensorFile, TensorSpool, write_text
from quant_experts.progress import WrittenFile

FIRST = "calls"
"""Stem of the first stack's files."""
PROBES = 1
"""Held-out rows whose model inputs are stored. The written checkpoint must reproduce their logits."""

Stream = str
"""Which blocks the hidden states have passed: ``quantized`` ones, ``full``-precision ones, or ones rounded to nearest
(``baseline``). While sensitivity is measured, each input group has a stream of its own name."""


@dataclass(frozen=True)
class CapturedRow:
    """One calibration row, as one stack receives it.

    ``number``: of the calibration row. ``tree``: the arguments with tensor names in place of tensors; None when the
    model does not call the stack for this row. ``digest``: of the model inputs; rows with the same text and images have
    the same one. ``tokens``, ``tokens_vision``: counted in the last stack, whichever stack this is.
    """

    index: int
    number: int
    held_out: bool
    tokens: int
    tokens_vision: int
    tree: Any
    digest: str
    probe: dict[str, str] | None = None
    """Model input → tensor name. Stored for the first held-out rows, and for all rows where another stack follows."""
    variant_of: int | None = None
    """Index of the held-out row from which this one differs in its images alone."""
    change: Change | None = None
    streams: dict[str, Any] | None = None
    """Stream → arguments, for a stack behind another one. ``tree`` then belongs to the quantized stream."""
    question: str = ""
    reply: int = 0
    """As in Sample."""


@dataclass(frozen=True)
class CapturedInputs:
    """What one stack receives for all rows of a run. The held-out rows come first.

    ``first``: number of the walked block with which the stack begins. ``variants``: held-out rows with other images;
    they only measure how the model reacts to images.
    """

    rows: tuple[CapturedRow, ...]
    skipped: dict[str, int]
    resized: int
    tensors: TensorFile
    files: tuple[WrittenFile, ...]
    variants: tuple[CapturedRow, ...] = ()
    first: int = 0
    state: State | None = None
    """Of the stack."""

    @property
    def running(self) -> CapturedInputs:
        """Only the rows for which the model calls the stack."""
        rows, variants = (tuple(c for c in inputs if c.tree is not None) for inputs in (self.rows, self.variants))
        return replace(self, rows=rows, variants=variants)

    @property
    def fit(self) -> tuple[CapturedRow, ...]:
        return tuple(row for row in self.rows if not row.held_out)

    @property
    def held_out(self) -> tuple[CapturedRow, ...]:
        return tuple(row for row in self.rows if row.held_out)

    @property
    def fit_positions(self) -> int:
        """Positions of the stack over all rows to fit, each of which must reach it."""
        shapes = (self.tensors.entries[f"{row.index}.embeddings"].shape for row in self.fit)
        return sum(shape[0] * shape[1] for shape in shapes)

    def arguments(self, row: CapturedRow, device: torch.device, stream: Stream = "quantized") -> Arguments:
        tree = row.tree if row.streams is None or stream == "quantized" else row.streams[stream]
        arguments: Arguments = self._build(tree, device)
        return arguments

    def embeddings(self, row: CapturedRow, stream: Stream = "quantized") -> Tensor:
        """What the first block receives, (1, tokens, d) in the model's dtype, on the CPU.

        Raises KeyError for a stream that the row does not have.
        """
        return self.tensors.read(f"{stream_prefix(row, stream)}{row.index}.embeddings")

    def state_of(self, row: CapturedRow) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of the row's states behind a block: (1, tokens, d), or what the model has instead of d."""
        entry = self.tensors.entries[f"{row.index}.embeddings"]
        if self.state is None:
            return entry.dtype, entry.shape
        dtype, shape = self.state.stored(entry.shape[1])
        return getattr(torch, dtype), shape

    def vision(self, row: CapturedRow) -> Tensor:
        """(tokens,) bool: which tokens of the last stack are image placeholders."""
        return self.tensors.read(f"{row.index}.vision")

    def input_ids(self, row: CapturedRow) -> Tensor:
        """(tokens,) int64."""
        return self.tensors.read(f"{row.index}.input_ids")

    def probe(self, row: CapturedRow) -> dict[str, Tensor] | None:
        """The inputs of the whole model for this row, where they were stored."""
        if row.probe is None:
            return None
        return {name: self.tensors.read(key) for name, key in row.probe.items()}

    def _build(self, tree: Any, device: torch.device) -> Any:
        kind, value = next(iter(tree.items()))
        if kind == "tensor":
            return self.tensors.read(value).to(device)
        if kind == "list":
            return [self._build(element, device) for element in value]
        if kind == "dict":
            return {name: self._build(element, device) for name, element in value.items()}
        return value


class CapturedInputsWriter:
    """Collects the inputs of the first stack. Nothing is visible until ``finish``."""

    def __init__(self, directory: Path, *, keep_inputs: bool = False, state: State | None = None) -> None:
        """``keep_inputs``: store the model inputs of every row, because another stack follows. ``state``: as in
        CapturedInputs."""
        self._directory = directory
        self._spool = TensorSpool(directory / captured_files(FIRST)[0])
        self._keep_inputs, self._state = keep_inputs, state
        self.rows: list[CapturedRow] = []
        self.variants: list[CapturedRow] = []

    def add(self, sample: Sample, call: tuple[Arguments, Tensor] | None, *, held_out: bool) -> None:
        """Add one row; all rows come before the first variant.

        ``call``: arguments and embeddings; None when the model does not call the stack for this row.
        """
        index = len(self.rows)
        assert not self.variants, "rows come first, so that variants have the indices behind them"
        probe = self._probe(index, sample.inputs) if (held_out and index < PROBES) or self._keep_inputs else None
        self.rows.append(replace(self._captured(index, sample, call), held_out=held_out, probe=probe))

    def add_variant(self, sample: Sample, call: tuple[Arguments, Tensor] | None, variant: Variant) -> None:
        index = len(self.rows) + len(self.variants)
        probe = self._probe(index, sample.inputs) if self._keep_inputs else None
        row = replace(self._captured(index, sample, call), probe=probe)
        self.variants.append(replace(row, variant_of=variant.original, change=variant.change))

    def _captured(self, index: int, sample: Sample, call: tuple[Arguments, Tensor] | None) -> CapturedRow:
        self._spool.add(f"{index}.vision", sample.vision)
        self._spool.add(f"{index}.input_ids", sample.input_ids[0])
        tree = None if call is None else store_call(self._spool, f"{index}.", *call)
        vision = int(sample.vision.sum())
        row = CapturedRow(index, sample.row, False, sample.tokens, vision, tree, _digest(sample.inputs))
        return replace(row, question=sample.question, reply=sample.reply)

    def finish(self, *, fingerprint: str, skipped: Mapping[str, int], resized: int) -> CapturedInputs:
        return store_captured_inputs(
            self._directory,
            FIRST,
            self._spool,
            rows=self.rows,
            variants=self.variants,
            skipped=skipped,
            resized=resized,
            fingerprint=fingerprint,
            state=self._state,
        )

    def discard(self) -> None:
        self._spool.discard()

    def _probe(self, index: int, model_inputs: Mapping[str, Tensor]) -> dict[str, str]:
        names = {name: f"{index}.probe.{name}" for name in model_inputs}
        for name, key in names.items():
            self._spool.add(key, model_inputs[name])
        return names


def count_tokens(rows: Sequence[CapturedRow]) -> tuple[int, int]:
    """Tokens of all rows together, and how many of them are image tokens."""
    return sum(row.tokens for row in rows), sum(row.tokens_vision for row in rows)


def captured_files(stem: str) -> tuple[str, str]:
    """Names of the tensor file and of its description, within the work directory."""
    return f"{stem}.safetensors", f"{stem}.json"


def stream_prefix(row: CapturedRow, stream: Stream) -> str:
    """What the tensor names of a stream begin with. All streams of a first stack share one set of tensors."""
    return "" if row.streams is None or stream == "quantized" else f"{stream}."


def store_call(spool: TensorSpool, prefix: str, arguments: Arguments, embeddings: Tensor) -> Any:
    """Put what a stack is called with into ``spool``; returns the arguments as JSON. Those that are the embeddings are
    stored once."""
    spool.add(f"{prefix}embeddings", embeddings)
    return store_arguments(spool, f"{prefix}arguments", arguments, {id(embeddings): f"{prefix}embeddings"})


def store_arguments(spool: TensorSpool, name: str, value: Any, stored: Mapping[int, str] = MappingProxyType({})) -> Any:
    """Describe ``value`` as JSON, and put its tensors into ``spool`` under names that begin with ``name``. ``stored``:
    identity of a tensor that is there already → its name."""
    if isinstance(value, Tensor) and id(value) in stored:
        return {"tensor": stored[id(value)]}
    if isinstance(value, Tensor):
        spool.add(name, value)
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return {"list": [store_arguments(spool, f"{name}.{i}", element, stored) for i, element in enumerate(value)]}
    if isinstance(value, dict):
        return {
            "dict": {key: store_arguments(spool, f"{name}.{key}", element, stored) for key, element in value.items()}
        }
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"{name}: an argument of type {type(value).__name__} cannot be stored")


def store_captured_inputs(
    directory: Path,
    stem: str,
    spool: TensorSpool,
    *,
    rows: Sequence[CapturedRow],
    variants: Sequence[CapturedRow],
    skipped: Mapping[str, int],
    resized: int,
    fingerprint: str,
    first: int = 0,
    state: State | None = None,
) -> CapturedInputs:
    """Make the spooled tensors durable; the description is written last."""
    tensors = spool.finish()
    description = {
        "fingerprint": fingerprint,
        "tensors": asdict(tensors),
        "rows": [asdict(row) for row in rows],
        "variants": [asdict(row) for row in variants],
        "skipped": dict(skipped),
        "resized": resized,
        "state": asdict(state) if state else None,
    }
    names = captured_files(stem)
    tree = write_text(directory / names[1], json.dumps(description, indent=1))
    file = TensorFile(directory / names[0])
    return CapturedInputs(tuple(rows), dict(skipped), resized, file, (tensors, tree), tuple(variants), first, state)


def read_captured_inputs(
    directory: Path, fingerprint: str, *, stem: str = FIRST, first: int = 0
) -> CapturedInputs | None:
    """What an earlier run captured; None when it is not whole or belongs to another run."""
    tensors_name, tree_name = captured_files(stem)
    try:
        text = (directory / tree_name).read_bytes()
        description = json.loads(text)
    except (FileNotFoundError, ValueError):
        return None
    tensors = WrittenFile(**description["tensors"])
    path = directory / tensors_name
    if description["fingerprint"] != fingerprint or not path.is_file() or file_digest(path) != tensors.sha256:
        return None
    rows, variants = (tuple(CapturedRow(**row) for row in description[kind]) for kind in ("rows", "variants"))
    tree = WrittenFile(tree_name, len(text), file_digest(directory / tree_name))
    files = (tensors, tree)
    shaped = description.get("state")
    state = state_from(shaped) if shaped else None
    return CapturedInputs(
        rows, description["skipped"], description["resized"], TensorFile(path), files, variants, first, state
    )


def _digest(model_inputs: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model_inputs.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

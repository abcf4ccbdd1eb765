"""What the language model is called with for every calibration row, on disk.

The vision tower and the embeddings run once per row; afterwards every block of the walk replays these calls.
``calls.safetensors`` holds the tensors, ``calls.json`` how they make up the arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quant_experts.calibration.collate import Sample
from quant_experts.glue import Arguments
from quant_experts.image_variants import Change, Variant
from quant_experts.progress import WrittenFile
from quant_experts.tensor_file import TensorFile, TensorSpool, file_digest, write_text

TENSORS, TREE = "calls.safetensors", "calls.json"
PROBES = 1
"""Held-out rows whose model inputs are kept, to try the written checkpoint with."""


@dataclass(frozen=True)
class Call:
    """One row. ``number``: of the calibration row; ``tree``: the arguments, with names in place of tensors; ``digest``:
    of the model inputs, equal for rows with the same text and images."""

    index: int
    number: int
    held_out: bool
    tokens: int
    tokens_vision: int
    tree: Any
    digest: str
    probe: dict[str, str] | None = None
    """Model input → tensor name, for the first held-out rows."""
    variant_of: int | None = None
    """Index of the held-out row that this one is, but for its images."""
    change: Change | None = None


@dataclass(frozen=True)
class Calls:
    """All rows of a run. The held-out ones come first.

    ``variants`` are no rows: held-out rows with other images, which nothing is fitted or measured on but how the model
    reacts to images.
    """

    rows: tuple[Call, ...]
    skipped: dict[str, int]
    resized: int
    tensors: TensorFile
    files: tuple[WrittenFile, ...]
    variants: tuple[Call, ...] = ()

    @property
    def fit(self) -> tuple[Call, ...]:
        return tuple(call for call in self.rows if not call.held_out)

    @property
    def held_out(self) -> tuple[Call, ...]:
        return tuple(call for call in self.rows if call.held_out)

    def arguments(self, call: Call, device: torch.device) -> Arguments:
        built: Arguments = self._build(call.tree, device)
        return built

    def embeddings(self, call: Call) -> Tensor:
        """(1, tokens, d) in the model's dtype, on the CPU."""
        return self.tensors.read(f"{call.index}.embeddings")

    def vision(self, call: Call) -> Tensor:
        """(tokens,) bool: the image placeholders."""
        return self.tensors.read(f"{call.index}.vision")

    def input_ids(self, call: Call) -> Tensor:
        """(tokens,) int64."""
        return self.tensors.read(f"{call.index}.input_ids")

    def probe(self, call: Call) -> dict[str, Tensor] | None:
        """What the whole model is called with for this row, where it was kept."""
        if call.probe is None:
            return None
        return {name: self.tensors.read(stored) for name, stored in call.probe.items()}

    def _build(self, tree: Any, device: torch.device) -> Any:
        kind, value = next(iter(tree.items()))
        if kind == "tensor":
            return self.tensors.read(value).to(device)
        if kind == "list":
            return [self._build(element, device) for element in value]
        if kind == "dict":
            return {name: self._build(element, device) for name, element in value.items()}
        return value


class CallWriter:
    """Collects the calls of a run; nothing is visible until :meth:`finish`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._spool = TensorSpool(directory / TENSORS)
        self.rows: list[Call] = []
        self.variants: list[Call] = []

    def add(self, sample: Sample, arguments: Arguments, embeddings: Tensor, *, held_out: bool) -> None:
        """One row; all rows come before the first variant."""
        index = len(self.rows)
        assert not self.variants, "rows come first, so that variants have the indices behind them"
        probe = self._probe(index, sample.inputs) if held_out and index < PROBES else None
        self.rows.append(replace(self._call(index, sample, arguments, embeddings), held_out=held_out, probe=probe))

    def add_variant(self, sample: Sample, arguments: Arguments, embeddings: Tensor, variant: Variant) -> None:
        index = len(self.rows) + len(self.variants)
        call = self._call(index, sample, arguments, embeddings)
        self.variants.append(replace(call, variant_of=variant.original, change=variant.change))

    def _call(self, index: int, sample: Sample, arguments: Arguments, embeddings: Tensor) -> Call:
        self._spool.add(f"{index}.embeddings", embeddings)
        self._spool.add(f"{index}.vision", sample.vision)
        self._spool.add(f"{index}.input_ids", sample.inputs["input_ids"][0])
        tree = self._dismantle(f"{index}.arguments", arguments)
        vision = int(sample.vision.sum())
        return Call(index, sample.row, False, sample.tokens, vision, tree, _digest(sample.inputs))

    def finish(self, *, fingerprint: str, skipped: Mapping[str, int], resized: int) -> Calls:
        tensors = self._spool.finish()
        description = {
            "fingerprint": fingerprint,
            "tensors": asdict(tensors),
            "rows": [asdict(call) for call in self.rows],
            "variants": [asdict(call) for call in self.variants],
            "skipped": dict(skipped),
            "resized": resized,
        }
        tree = write_text(self._directory / TREE, json.dumps(description, indent=1))
        file = TensorFile(self._directory / TENSORS)
        return Calls(tuple(self.rows), dict(skipped), resized, file, (tensors, tree), tuple(self.variants))

    def discard(self) -> None:
        self._spool.discard()

    def _probe(self, index: int, inputs: Mapping[str, Tensor]) -> dict[str, str]:
        names = {name: f"{index}.probe.{name}" for name in inputs}
        for name, stored in names.items():
            self._spool.add(stored, inputs[name])
        return names

    def _dismantle(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._spool.add(name, value)
            return {"tensor": name}
        if isinstance(value, list | tuple):
            return {"list": [self._dismantle(f"{name}.{i}", element) for i, element in enumerate(value)]}
        if isinstance(value, dict):
            return {"dict": {key: self._dismantle(f"{name}.{key}", element) for key, element in value.items()}}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        raise TypeError(f"{name}: a language model argument of type {type(value).__name__} cannot be kept")


def read_calls(directory: Path, fingerprint: str) -> Calls | None:
    """The calls that an earlier run left, or None when they are not whole or belong to another run."""
    try:
        text = (directory / TREE).read_bytes()
        description = json.loads(text)
    except (FileNotFoundError, ValueError):
        return None
    tensors = WrittenFile(**description["tensors"])
    path = directory / TENSORS
    if description["fingerprint"] != fingerprint or not path.is_file() or file_digest(path) != tensors.sha256:
        return None
    rows, variants = (tuple(Call(**row) for row in description[kind]) for kind in ("rows", "variants"))
    tree = WrittenFile(TREE, len(text), file_digest(directory / TREE))
    files = (tensors, tree)
    return Calls(rows, description["skipped"], description["resized"], TensorFile(path), files, variants)


def _digest(inputs: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(inputs.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

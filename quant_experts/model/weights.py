"""The tensors of a model directory under their in-memory names, read one by one.

Keys on disk are not module names; transformers renames (and for some families converts) while it loads. The same
ordered list of transforms is applied here, through the library's own functions, so that there is one truth about names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from quant_experts.errors import InvalidModel
from quant_experts.model.families.internvl_chat_weights import MARK, Cut, native_parts
from quant_experts.model.shards import Shards
from quant_experts.planning.headers import INDEX, SINGLE


@dataclass
class _Source:
    """How one or several parameters come from keys on disk."""

    converter: WeightConverter | None
    keys: list[tuple[str, str]] = field(default_factory=list)
    """(key on disk, the converter's pattern that it matched)."""
    cut: Cut | None = None
    """Takes the parameter out of the tensor on disk, where that holds more than one."""

    @property
    def is_whole(self) -> bool:
        """One tensor on disk, taken as it is."""
        return self.converter is None and self.cut is None


@dataclass(frozen=True)
class Stack:
    """A parameter that the model has in pieces: one matrix for each expert of a mixture.

    ``whole``: of its shape and dtype, on the meta device. ``pieces``: number → name of the piece. ``is_transposed``:
    the stack has them as (in, out).
    """

    whole: Tensor
    pieces: tuple[tuple[int, str], ...]
    is_transposed: bool


class Weights:
    """The tensors of a model under their in-memory names, read when asked for.

    ``tied``: parameter → the one that it is. ``untied``: the same, of pairs that the configuration ties although the
    files hold both with different values; as in transformers, both count.
    """

    def __init__(
        self,
        shards: Shards,
        model: nn.Module,
        stacks: Mapping[str, Stack] = MappingProxyType({}),
        transposed: Collection[str] = (),
    ) -> None:
        """``model``: the model on the meta device. ``stacks``: parameter → how the model has it in pieces.
        ``transposed``: parameters that are (in, out) in the files and (out, in) in the model.

        Raises InvalidModel when a parameter has no tensor in the files.
        """
        self.shards = shards
        self._model: Any = model
        self._pieces = {piece: (name, number) for name, stack in stacks.items() for number, piece in stack.pieces}
        self._stacks = stacks
        self._last: tuple[str, Tensor] | None = None
        self._transposed = transposed
        state = {name: tensor.t() if name in transposed else tensor for name, tensor in model.state_dict().items()}
        own = {name: tensor for name, tensor in state.items() if name not in self._pieces}
        self._tensors: dict[str, Tensor] = own | {name: stack.whole for name, stack in stacks.items()}
        self._sources, self.unused = _map_sources(shards, self._model, self._tensors)
        self.tied: dict[str, str] = {}
        self.untied: dict[str, str] = {}
        self._tie(getattr(model, "all_tied_weights_keys", {}))
        self._check_complete()
        self._check_shapes()

    @property
    def names(self) -> list[str]:
        """Every parameter and persistent buffer of the model; of tied ones only the one that the others follow."""
        return [
            each
            for name in self._whole_names
            for each in ([piece for _, piece in self._stacks[name].pieces] if name in self._stacks else [name])
        ]

    @property
    def _whole_names(self) -> list[str]:
        return [name for name in self._tensors if name not in self.tied]

    def names_under(self, prefix: str) -> list[str]:
        return [name for name in self.names if name.startswith(prefix + ".")]

    def bytes(self, name: str) -> int:
        """Bytes of the tensor in the model's own dtype."""
        if name in self._pieces:
            stack, _ = self._pieces[name]
            return self.bytes(stack) // len(self._tensors[stack])
        expected = self._tensors[name]
        return expected.numel() * expected.element_size()

    def read(self, name: str) -> Tensor:
        """The tensor in the model's own dtype, on the CPU.

        Raises InvalidModel when it holds a value that is not finite, or cannot be converted.
        """
        if name in self._pieces:
            return self._read_piece(*self._pieces[name])
        name = self.tied.get(name, name)
        expected = self._tensors[name]
        tensor = self._realize(name)
        if tensor.shape != expected.shape:
            raise InvalidModel(f"{name} has shape {list(tensor.shape)}, the configuration says {list(expected.shape)}")
        if tensor.is_floating_point():
            tensor = tensor.to(expected.dtype)
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                dtype = str(expected.dtype).removeprefix("torch.")
                raise InvalidModel(f"{name}: {bad} of {tensor.numel()} weights are not finite in {dtype}")
        return tensor.t().contiguous() if name in self._transposed else tensor

    def _read_piece(self, name: str, number: int) -> Tensor:
        if self._last is None or self._last[0] != name:
            self._last = (name, self.read(name))
        piece = self._last[1][number]
        return piece.t().contiguous() if self._stacks[name].is_transposed else piece

    def release(self) -> None:
        """Forget the stack that the last piece was read from; pieces that were read stay."""
        self._last = None

    def _tie(self, pairs: Mapping[str, str]) -> None:
        for target, source in pairs.items():
            if target not in self._tensors:
                continue
            if target in self._sources and source not in self._sources:
                self._sources[source] = self._sources.pop(target)
            elif target in self._sources and not self._is_equal(target, source):
                self.untied[target] = source
                continue
            self.tied[target] = source

    def _is_equal(self, one: str, other: str) -> bool:
        """Whether both parameters hold the same values in the model's dtype."""
        first, second = self._sources[one], self._sources[other]
        if first.is_whole and second.is_whole:
            (key, _), (other_key, _) = first.keys[0], second.keys[0]
            files = self.shards.where
            if files[key].holds_same(key, files[other_key], other_key):
                return True
            if files[key].entries[key].dtype == files[other_key].entries[other_key].dtype == self._tensors[one].dtype:
                return False
        return torch.equal(self._in_own_dtype(one), self._in_own_dtype(other))

    def _in_own_dtype(self, name: str) -> Tensor:
        return self._realize(name).to(self._tensors[name].dtype)

    def _realize(self, name: str) -> Tensor:
        source = self._sources[name]
        if source.converter is None:
            tensor = self.shards.read(source.keys[0][0])
            return tensor if source.cut is None else source.cut(tensor)
        # The library's own conversion object is asked, so that splits and merges stay its business.
        converter = deepcopy(source.converter)
        first = next(target for target, other in self._sources.items() if other is source)
        for key, pattern in source.keys:
            converter.add_tensor(first, key, pattern, self.shards.read(key))
        tensors = converter.convert(first, model=_Whole(self._model, self._stacks), config=self._model.config)
        value: Tensor | list[Tensor] = tensors[name]
        return value[0] if isinstance(value, list) else value

    def _check_complete(self) -> None:
        missing = [name for name in self._whole_names if name not in self._sources]
        if missing:
            raise InvalidModel(
                f"{len(missing)} tensors of the model are missing from its files, the first is {missing[0]}; "
                f"{len(self.unused)} tensors in the files belong to no part of the model"
                + (f", the first is {self.unused[0]}" if self.unused else "")
                + self._stale_single()
            )

    def _stale_single(self) -> str:
        if self.shards.files[0].path.name != SINGLE or not (self.shards.directory / INDEX).is_file():
            return ""
        return f". {SINGLE} was read and not {INDEX}, as in transformers: remove the one that does not belong there"

    def _check_shapes(self) -> None:
        """Before hours of work: each tensor that is taken as it is must already have the shape that the model wants."""
        for name in self._whole_names:
            source = self._sources[name]
            if source.converter is not None:
                continue
            key = source.keys[0][0]
            on_disk, expected = self.shards.where[key].entries[key].shape, tuple(self._tensors[name].shape)
            if _shape(on_disk, source.cut) != expected:
                raise InvalidModel(
                    f"{key} has shape {list(on_disk)}, the configuration says {list(expected)} for {name}"
                )


class _Whole:
    """A model with its stacks in one piece, as a conversion asks for them."""

    def __init__(self, model: Any, stacks: Mapping[str, Stack]) -> None:
        self._model, self._stacks = model, stacks

    def get_parameter(self, name: str) -> Tensor:
        parameter: Tensor = self._stacks[name].whole if name in self._stacks else self._model.get_parameter(name)
        return parameter

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)


def _shape(on_disk: tuple[int, ...], cut: Cut | None) -> tuple[int, ...] | None:
    """Of what is taken out of a tensor of shape ``stored``; None when it cannot be taken out."""
    if cut is None:
        return on_disk
    try:
        return tuple(cut(torch.empty(on_disk, device="meta")).shape)
    except RuntimeError:
        return None


def _map_sources(shards: Shards, model: Any, expected: dict[str, Tensor]) -> tuple[dict[str, _Source], list[str]]:
    if MARK in shards.where and model.config.model_type == "internvl":  # other types have tensors of the name
        return _map_parts(shards, model, expected)
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = model.base_model_prefix
    sources: dict[str, _Source] = {}
    unused: list[str] = []
    for key in sorted(shards.where, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, expected)
        if name not in expected and key in expected:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=expected)
        if name not in expected:
            unused.append(key)
            continue
        if pattern is None:
            sources[name] = _Source(None, [(key, key)])
            continue
        converter = by_pattern[pattern]
        source = sources.setdefault(name, _Source(converter))
        source.keys.append((key, pattern))
        for target in converter.target_patterns[1:]:  # one tensor on disk, several parameters in memory
            sources[name.replace(converter.target_patterns[0], target)] = source
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    return sources, [key for key in unused if not any(re.search(pattern, key) for pattern in ignored)]


def _map_parts(shards: Shards, model: Any, expected: dict[str, Tensor]) -> tuple[dict[str, _Source], list[str]]:
    """For a layout that transformers does not know and that is read through a mapping of ours."""
    sources: dict[str, _Source] = {}
    unused: list[str] = []
    for key, name, cut in native_parts(sorted(shards.where, key=dot_natural_key), model.config):
        if name in expected:
            sources[name] = _Source(None, [(key, key)], cut)
        else:
            unused.append(key)
    return sources, unused


def stream(weights: Weights, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        yield name, weights.read(name)

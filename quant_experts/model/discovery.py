"""The structure of a model, found in the model itself: its stack of decoder blocks, and each block's input groups.

1. The stack: the list of modules with the most parameters, inside what transformers calls the decoder.
2. One forward on a few tokens, without weights (``shape_pass.py``), notes which tensor each linear layer reads, and in
   what order. Layers of a block that read the same tensor are an input group.
3. A layer that cannot be quantized, or must not be, is skipped with a reason.

Every block is looked at, because blocks of one model differ: dense ones before mixtures, windows, shared keys.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from quant_experts.errors import UnsupportedModel
from quant_experts.model.carried import shared_tensors
from quant_experts.model.families.overrides import PLAIN
from quant_experts.model.families.stack import Carried, State
from quant_experts.model.put_out import putting_out
from quant_experts.model.shape_pass import ShapePass, mark_all, origins_of, tensors_in
from quant_experts.planning.layer_rules import ELSEWHERE, WIDTH_STEP, labelled, reason_to_skip
from quant_experts.planning.stacks import Groups

TOKENS = 11
"""Of the row that the forward without weights sees. A prime, so that a side of a tensor says whether it counts them."""


PIXELS = re.compile(r"pixel_values|image_embeds|flattened_patches")
"""In the error of a model that has to be given an image."""
FIRST_STATES = -1
"""In the place of a block's number: what the first block is handed, which may be read again."""


@dataclass(frozen=True)
class FoundStack:
    """``module`` runs the blocks of the list ``layers``, and of a decoder looks tokens up in ``embedding`` before: both
    are paths within it. ``blocks``: the input groups of each.
    ``memory``: ``parent.label`` of groups that read what an encoder puts out. ``skipped``: linear layer or
    parameter → why it stays as it is. ``state``: as in Stack, of every model.
    ``others``, ``takes_ids``, ``runs_towers``: as in Stack. ``after``: modules and tensors that run behind the
    decoder, the output head among them."""

    module: str
    layers: str
    embedding: str | None
    blocks: tuple[Groups, ...]
    memory: tuple[str, ...]
    skipped: dict[str, str]
    state: State | None
    others: int | None
    takes_ids: bool = False
    runs_towers: bool = False
    after: tuple[str, ...] = ()


def discover(model: Any) -> tuple[FoundStack, ...]:
    """The stacks of a model on the meta device, in the order in which they run; the decoder is the last.

    Raises UnsupportedModel that names what was not found or cannot be walked.
    """
    paths = [_stack(model, _path_of(model, model.get_decoder))]
    if model.config.is_encoder_decoder:
        if model.main_input_name != "input_features":
            raise UnsupportedModel(
                f"{type(model).__name__} has an encoder and a decoder: a row would have to say what each of them "
                "reads; of such models those of speech are taken"
            )
        paths.insert(0, _stack(model, _path_of(model, model.get_encoder)))
    named = _embeddings(model)
    embedding = next((name for name, module in model.named_modules() if module is named), "")
    if not embedding:
        raise UnsupportedModel(f"{type(model).__name__} has no token embeddings that transformers names")
    modules = {path: path.rpartition(".")[0] for path in paths[:-1]} | {paths[-1]: _around(model, paths[-1], embedding)}
    blocks = {path: _blocks(model, path) for path in paths}
    inputs, decoder = _few_inputs(model), model.get_submodule(modules[paths[-1]])
    reads = _Reads(list(inputs.values())[-1])
    encoders = [model.get_submodule(modules[path]) for path in paths[:-1]]
    with reads.watching([block for of_stack in blocks.values() for block in of_stack], encoders, named):
        after = _run(model, modules[paths[-1]], paths[-1], inputs)
    *encoding, decoding = (reads.of_stack(modules[path], path, embedding, blocks[path]) for path in paths)
    if decoding.state is not None and min(decoding.state.shape) > 0:
        raise UnsupportedModel(
            f"{paths[-1]}: its blocks run on states of shape {list(decoding.state.shape)} whatever the row's tokens "
            "are, as a model that generates by diffusion: the walk follows a row's tokens"
        )
    takes_embeds = "inputs_embeds" in inspect.signature(decoder.forward).parameters
    runs_towers = _runs_towers(decoder)
    takes_ids = not takes_embeds or paths[-1] in reads.read_ids or runs_towers
    return (*encoding, replace(decoding, after=after, takes_ids=takes_ids, runs_towers=runs_towers))


def _embeddings(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _around(model: nn.Module, path: str, embedding: str) -> str:
    """Path of the smallest module that holds the list of blocks and the token embeddings."""
    module = common_path(path, embedding)
    if not module:
        raise UnsupportedModel(
            f"the blocks {path} and the token embeddings {embedding} are run by {type(model).__name__}, which runs the "
            "output head too: the walk needs a module without it"
        )
    return module


def _runs_towers(module: nn.Module) -> bool:
    """Whether the module that runs the decoder's blocks runs a tower too, as Chameleon's: it has to see the tokens,
    among which the placeholders of images are."""
    return any(ELSEWHERE.search(name) for name, _ in module.named_children())


def common_path(one: str, other: str) -> str:
    """Of the smallest module that holds both modules."""
    common = []
    for here, there in zip(one.split(".")[:-1], other.split(".")[:-1], strict=False):
        if here != there:
            break
        common.append(here)
    return ".".join(common)


def _blocks(model: Any, path: str) -> list[tuple[str, nn.Module]]:
    blocks = [(f"{path}.{name}", block) for name, block in model.get_submodule(path).named_children()]
    _refuse_shared(path, [block for _, block in blocks])
    return blocks


def _stack(model: Any, within: str) -> str:
    """Path of the largest list of blocks below ``within``."""
    lists = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.startswith(within)
    }
    outer = {name: size for name, size in lists.items() if not any(name.startswith(f"{each}.") for each in lists)}
    language = {name: size for name, size in outer.items() if size and not ELSEWHERE.search(name.removeprefix(within))}
    if not language:
        raise UnsupportedModel(f"{type(model).__name__} has no list of decoder blocks that could be walked")
    path: str = max(language, key=lambda name: language[name])
    if "." not in path:
        raise UnsupportedModel(
            f"{type(model).__name__} runs its blocks itself, without a module for its language model"
        )
    return path


def _path_of(model: Any, part: Callable[[], Any]) -> str:
    """Of what transformers calls the decoder or the encoder, with a dot at its end; empty where it calls nothing so, or
    a part without lists of blocks, such as ModernBERT's output head."""
    try:
        named = part()
    except (AttributeError, NotImplementedError):
        return ""
    name = next((name for name, module in model.named_modules() if module is named), "")
    return f"{name}." if name and any(isinstance(each, nn.ModuleList) for each in named.modules()) else ""


def _refuse_shared(path: str, blocks: list[nn.Module]) -> None:
    """The walk holds one block: a module that two of them have would be quantized under the other's feet."""
    seen: dict[int, int] = {}
    for number, block in enumerate(blocks):
        for name, module in block.named_modules():
            if next(module.parameters(), None) is not None and seen.setdefault(id(module), number) != number:
                raise UnsupportedModel(
                    f"{path}.{number}.{name} is also a module of block {seen[id(module)]}: blocks that share modules "
                    "cannot be walked one by one"
                )


def _run(model: Any, decoder: str, stack: str, inputs: dict[str, Tensor]) -> tuple[str, ...]:
    """One forward; returns paths of the modules that run behind the decoder.

    Raises UnsupportedModel when it fails, or does something behind the decoder that the walk, which ends with the
    decoder's output, would leave out.
    """
    outputs: dict[str, Any] = {}
    outer = common_path(decoder, head_of(model, decoder))
    around = modules_to(decoder, outer)
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name in around
    ]
    after: list[str] = []
    hooks += _noting_calls(model, decoder, after, lambda: decoder in outputs)
    try:
        with _without_weights(model, "a forward"):
            model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    states = {name: getattr(output, "last_hidden_state", None) for name, output in outputs.items()}
    last = states.get(decoder)
    if last is None:
        raise UnsupportedModel(f"{decoder}, which runs the blocks, returns no last_hidden_state")
    changed = next((name for name, state in states.items() if state is not last), None)
    if changed is not None:
        raise UnsupportedModel(f"{changed} changes what {decoder} puts out, before the output head reads it")
    _refuse_skips(stack, len(model.get_submodule(stack)), f"what runs behind {decoder}", last)
    ids = {name: tensor for name, tensor in inputs.items() if name.endswith("input_ids")}
    with _without_weights(model, "the output head"), putting_out(model, around, last):
        model.get_submodule(outer)(**ids, use_cache=False)
    return tuple(dict.fromkeys(after))


@contextmanager
def _without_weights(model: Any, what: str) -> Iterator[None]:
    """Whatever the code of a model raises inside is an UnsupportedModel that names it; nothing is guessed."""
    try:
        with torch.no_grad(), ShapePass():  # type: ignore[no-untyped-call]
            yield
    except UnsupportedModel:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        if PIXELS.search(reason):
            raise UnsupportedModel(
                f"{type(model).__name__} does not run on text alone, as the walk's first forward does: {reason}"
            ) from error
        raise UnsupportedModel(
            f"{type(model).__name__}: {what} of {TOKENS} tokens without weights fails "
            f"({type(error).__name__}: {reason}), so that its input groups are not known"
        ) from error


def _noting_calls(
    model: nn.Module, without: str, called: list[str], is_on: Callable[[], bool]
) -> Iterator[RemovableHandle]:
    """Hooks that add to ``called`` what a module has of its own, when it is called while ``is_on``."""
    for name, module in model.named_modules():
        own = [*module._parameters, *module._buffers]
        if own and not f"{name}.".startswith(f"{without}."):
            paths = [f"{name}.{tensor}" for tensor in own] if module._modules else [name]
            yield module.register_forward_pre_hook(lambda *_, paths=paths: called.extend(paths) if is_on() else None)


def head_of(model: Any, decoder: str) -> str:
    """Path of the output head, as the model names it or the first module around ``decoder`` that does.

    Raises UnsupportedModel where none does.
    """
    for path in ("", *modules_to(decoder, "")):
        module = model.get_submodule(path)
        if isinstance(module, PreTrainedModel) and (head := module.get_output_embeddings()) is not None:
            return str(next(name for name, each in model.named_modules() if each is head))
    raise UnsupportedModel(f"{type(model).__name__} has no output head that transformers names")


def modules_to(path: str, outer: str) -> list[str]:
    """Paths of the module ``path`` and those around it, inside ``outer``; from the outermost."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(outer.count(".") + 2 if outer else 1, len(parts) + 1)]


def _few_inputs(model: Any) -> dict[str, Tensor]:
    tokens = torch.arange(1, TOKENS + 1).unsqueeze(0)
    if model.main_input_name != "input_features":
        return {"input_ids": tokens}
    sounds = torch.zeros(1, model.config.num_mel_bins, 2 * model.config.max_source_positions, dtype=model.dtype)
    return {"input_features": sounds, "decoder_input_ids": tokens}


@dataclass
class _Reads:
    """What the linear layers of blocks read. Tensors are kept, so that no identity is given twice. ``ids``: the tokens;
    ``read_ids``: the stacks whose blocks are handed them. ``places``: identity of a tensor that a block returned behind
    its states → its place; ``carried``: stack → what its blocks hand on to one another, as in State."""

    ids: Tensor
    inputs: dict[str, list[int]] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)
    direct: set[str] = field(default_factory=set)
    states: dict[str, State] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    encoded: set[int] = field(default_factory=set)
    read_ids: set[str] = field(default_factory=set)
    places: dict[int, int] = field(default_factory=dict)
    carried: dict[str, dict[str, Carried]] = field(default_factory=dict)
    tokens: int = TOKENS

    @contextmanager
    def watching(
        self, blocks: list[tuple[str, nn.Module]], encoders: list[nn.Module], embedding: nn.Module
    ) -> Iterator[None]:
        hooks: list[RemovableHandle] = [encoder.register_forward_hook(self._note_encoded) for encoder in encoders]
        hooks.append(embedding.register_forward_hook(self._note_embedded))
        kinds = []
        for path, block in blocks:
            stack = path.rpartition(".")[0]
            number = int(path.rpartition(".")[2])
            hooks.append(block.register_forward_pre_hook(self._noting_arguments(stack, number), with_kwargs=True))
            hooks.append(block.register_forward_hook(self._noting_output(stack, number)))
            for name, module in _linears(block):
                full = f"{path}.{name}"
                hooks.append(module.register_forward_pre_hook(self._noting(full), with_kwargs=True))
                kinds.append((module, type(module)))
                module.__class__ = self._noticing(full, type(module))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module, kind in kinds:
                module.__class__ = kind

    def _note_encoded(self, encoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.encoded.add(id(output[0]))
        self.kept.append(output[0])

    def _note_embedded(self, embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if output.dim() == 3:  # more than the row's, where a model puts a prompt of its own before them
            self.tokens = output.shape[1]

    def _noting_arguments(self, stack: str, number: int) -> Any:
        def note(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(value is self.ids for value in (*args[1:], *kwargs.values())):
                self.read_ids.add(stack)
            handed = [*args[1:], *kwargs.values()]
            shared = {where: each for where, each in shared_tensors(kwargs) if _is_from(stack, each)}
            places = {str(self.places[id(each)]): each for each in handed if id(each) in self.places}
            for where, each in (shared | places).items():
                self._carry(stack, where, each)
            known = {id(each) for each in (*shared.values(), *places.values())}
            within = tensors_in([dict(each) if isinstance(each, Mapping) else each for each in handed])
            others = [each for each in within if id(each) not in known]
            _refuse_skips(stack, number, f"block {number}", [*args[:1], *others])
            if not number:
                mark_all(args[:1], (stack, FIRST_STATES))

        return note

    def _carry(self, stack: str, where: str, value: Tensor) -> None:
        shape = tuple(self._side(side) for side in value.shape)
        if 0 not in shape or value.shape[0] != 1 or min(shape) < 0:
            raise UnsupportedModel(
                f"{stack}: its blocks hand on a tensor of shape {list(value.shape)} ({where}): the walk stores values "
                "per token"
            )
        piece = Carried(where, shape, str(value.dtype).removeprefix("torch."))
        self.carried.setdefault(stack, {}).setdefault(where, piece)

    def _side(self, side: int) -> int:
        """As in State."""
        times, rest = divmod(side, self.tokens)
        return side if rest or not times else 0 if times == 1 else -times

    def _noting_output(self, stack: str, number: int) -> Any:
        def note(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            mark_all(output, (stack, number))
            state = output
            if isinstance(output, (tuple, list)):
                self.others.setdefault(stack, len(output) - 1)
                state = output[0]
                others = [(place, other) for place, other in enumerate(output) if place and isinstance(other, Tensor)]
                self.kept += [other for _, other in others]
                self.places.update({id(other): place for place, other in others})
            if isinstance(state, Tensor):
                shape = tuple(self._side(side) for side in state.shape[:-1])
                dtype = str(state.dtype).removeprefix("torch.")
                self.states.setdefault(stack, State((*shape, state.shape[-1]), dtype))

        return note

    def _noting(self, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = args[0] if args else next(iter(kwargs.values()))
            self.inputs.setdefault(name, []).append(id(read))
            self.kept.append(read)

        return note

    def _noticing(self, name: str, kind: Any) -> Any:
        """The same class, which notices when somebody other than its own forward asks for its weight."""
        direct, inside = self.direct, [0]

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            inside[0] += 1
            try:
                return kind.forward(module, *args, **kwargs)
            finally:
                inside[0] -= 1

        def look_up(module: Any, attribute: str) -> Any:
            if attribute == "weight" and not inside[0]:
                direct.add(name)
            return kind.__getattr__(module, attribute)

        return type(kind.__name__, (kind,), {"forward": forward, "__getattr__": look_up, "__qualname__": kind.__name__})

    def of_stack(self, module: str, stack: str, embedding: str, blocks: list[tuple[str, nn.Module]]) -> FoundStack:
        skipped: dict[str, str] = {}
        memory: dict[str, None] = {}
        groups_of_blocks = []
        for path, block in blocks:
            skipped |= self._skipped(path, block)
            taken = self._layers_by_input(path, skipped)
            groups = _named(block, list(taken.values()))
            groups_of_blocks.append(groups)
            for (parent, label, _), inputs in zip(groups, taken, strict=True):
                if self.encoded & set(inputs):
                    memory[f"{parent}.{label}".removeprefix(".")] = None
        layers = stack.removeprefix(f"{module}.")
        inside = embedding.removeprefix(f"{module}.") if embedding.startswith(f"{module}.") else None
        state = self.states.get(stack)
        if stack in self.carried and state is not None:
            if 0 not in state.shape:
                raise UnsupportedModel(
                    f"{stack}: its blocks hand on more than states, which are of shape {state.shape}"
                )
            state = replace(state, carried=tuple(self.carried[stack].values()))
        return FoundStack(
            module,
            layers,
            inside,
            tuple(groups_of_blocks),
            tuple(memory),
            skipped,
            state,
            self.others.get(stack),
        )

    def _skipped(self, path: str, block: nn.Module) -> dict[str, str]:
        """Linear layer or parameter of a block that stays as it is → why."""
        reasons = {f"{path}.{name}": self._reason(f"{path}.{name}", linear) for name, linear in _linears(block)}
        return {name: reason for name, reason in reasons.items() if reason} | _large_parameters(path, block)

    def _layers_by_input(self, path: str, skipped: Mapping[str, str]) -> dict[tuple[int, ...], list[str]]:
        """The tensors that layers of a block read → those layers, by their names within the block."""
        layers: dict[tuple[int, ...], list[str]] = {}
        for name, tensors in self.inputs.items():
            if name.startswith(f"{path}.") and name not in skipped:
                layers.setdefault(tuple(dict.fromkeys(tensors)), []).append(name.removeprefix(f"{path}."))
        return layers

    def _reason(self, name: str, linear: nn.Linear) -> str | None:
        if type(linear) is not nn.Linear and type(linear).__name__ not in PLAIN:
            return f"a {type(linear).__name__}, not a plain linear layer"
        if name in self.direct:
            return "the model's code reads its weight itself"
        if name not in self.inputs:
            return "a forward does not call it"
        return reason_to_skip(name, linear.in_features, linear.out_features)


def _is_from(stack: str, tensor: Tensor) -> bool:
    return any(where == stack for where, _ in origins_of(tensor))


def _refuse_skips(stack: str, number: int, reader: str, value: Any) -> None:
    """The walk hands a block what the block before it has put out, and nothing of earlier ones.

    ``value``: what ``reader``, behind block ``number`` - 1, gets. Raises UnsupportedModel.
    """
    origins = {index for each in tensors_in(value) for where, index in origins_of(each) if where == stack}
    skipped = sorted(origins - {number - 1, FIRST_STATES})
    if skipped:
        raise UnsupportedModel(
            f"{stack}: {reader} reads what block {skipped[0]} has put out, not what block {number - 1} has alone: the "
            "walk holds one block at a time and cannot follow it"
        )


def _linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def _large_parameters(path: str, block: nn.Module) -> dict[str, str]:
    """Matrices that are no linear layers: experts in one tensor, transposed layers."""
    return {
        f"{path}.{name}.{key}".replace("..", "."): (
            f"a parameter of {len(parameter.shape)} dimensions of a {type(module).__name__}, not a linear layer"
        )
        for name, module in block.named_modules()
        if not isinstance(module, (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd))
        for key, parameter in module._parameters.items()
        if parameter is not None
        and sum(side > 1 for side in parameter.shape) > 1
        and min(parameter.shape[-2:]) >= WIDTH_STEP
    }


def _named(block: nn.Module, groups: list[list[str]]) -> Groups:
    """Each list of layers as (parent, label, layers within the parent)."""
    placed = []
    for layers in groups:
        parent = _common_parent(block, layers)
        placed.append((parent, tuple(layer.removeprefix(f"{parent}.") if parent else layer for layer in layers)))
    return labelled(placed)


def _common_parent(block: nn.Module, layers: list[str]) -> str:
    """Path of the innermost module that has them all and is no container of modules, which would call the group."""
    parts = [layer.split(".")[:-1] for layer in layers]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) != 1:
            break
        common.append(names[0])
    while common and isinstance(block.get_submodule(".".join(common)), (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        common.pop()
    return ".".join(common)

"""One block of a stack, run with everything that the model itself does around it.

Models do things between their blocks: Qwen3-VL adds vision features after the first ones, masks and rotary tables are
built inside of the language model and may differ from block to block. So a block is never called by hand. The forward
of the module that has the blocks runs; blocks before the wanted one are relays that hand on what is stored, and the
forward ends as soon as the wanted block has its output.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from quant_experts.model.families.stack import LANGUAGE, Stack

Arguments = dict[str, Any]
"""Keyword arguments of one call of a stack's module; of a language model's, without the embeddings."""


class NotCalled(Exception):
    """These inputs have nothing for the stack: a row without an image does not reach the vision tower."""


class _Called(Exception):
    def __init__(self, states: Tensor | None) -> None:
        self.states = states


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        self.output = output


class _Relay(nn.Module):
    """Stands for a block that has run before. Everything but its forward is the block's own."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (block,)
        self.stored: Tensor | None = None
        """(1, tokens, d): the block's output; None hands on the input, which nobody looks at."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states if self.stored is None else self.stored

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)  # models ask a block for its attention_type


@torch.no_grad()
def capture_call(
    model: nn.Module, module: Any, inputs: Mapping[str, Tensor], stack: Stack = LANGUAGE, *, next_module: Any = None
) -> tuple[Arguments, Tensor]:
    """Run ``model`` until it calls ``module``, which runs ``stack``; what it calls it with, and the states that the
    first block begins with, (1, tokens, d): the embeddings, for a language model.

    Raises NotCalled when the model calls ``next_module``, which runs the next stack, before it has called this one:
    there is no image in ``inputs``, for a vision tower.
    """
    arguments: Arguments = {}

    def note(called: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        arguments.update(inspect.signature(called.forward).bind_partial(*args).arguments | kwargs)
        if stack.embeds is not None:
            raise _Called(None)

    def stop(block: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Called(args[0])

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True)]
    if stack.embeds is None:
        hooks.append(_layers(module, stack)[0].register_forward_pre_hook(stop))
    if next_module is not None:
        hooks.append(next_module.register_forward_pre_hook(_pass_by))
    try:
        model(**inputs, use_cache=False)
    except _Called as call:
        states = call.states
    else:
        raise AssertionError(f"the model never called its {stack.name}")
    finally:
        for hook in hooks:
            hook.remove()
    if stack.embeds is not None:
        tokens, states = arguments.pop("input_ids", None), arguments.pop(stack.embeds, None)
        if states is None:
            states = module.get_submodule(stack.embedding)(tokens)
    for name in ("use_cache", "past_key_values"):  # given anew with every call
        arguments.pop(name, None)
    assert states is not None
    return arguments, states


def _pass_by(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise NotCalled


class Glue:
    """Runs block ``block`` of a stack; ``blocks`` of them means the part after the last one."""

    def __init__(self, module: Any, stack: Stack, block: int, relays: list[_Relay]) -> None:
        self._module = module
        self._stack = stack
        self._block = block
        self._relays = relays
        self._first: Tensor | None = None

    @torch.no_grad()
    def run(self, arguments: Arguments, hidden: Tensor) -> Tensor:
        """One sample. hidden: (1, tokens, d), the output of the block before (of the embeddings for block 0).

        Returns the block's output (1, tokens, d); after the last block, the normalised output of the language model.
        """
        return self.run_recorded(arguments, hidden)

    def run_recorded(self, arguments: Arguments, hidden: Tensor) -> Tensor:
        """The same, recorded by autograd when ``hidden`` requires a gradient."""
        # Once there are relays, only shape, dtype and device of the embeddings matter.
        embeddings = {} if self._stack.embeds is None else {self._stack.embeds: hidden, "use_cache": False}
        with self.standing_for(hidden):
            try:
                output = self._module(**arguments, **embeddings)
            except _Reached as reached:
                return reached.output
        assert self._block == len(_layers(self._module, self._stack)), "the forward ended before the block ran"
        last: Tensor = output.last_hidden_state
        return last

    @contextmanager
    def standing_for(self, hidden: Tensor, read_again: Mapping[int, Tensor] = MappingProxyType({})) -> Iterator[None]:
        """While open, the module finds ``hidden`` behind the blocks before ``block``, and behind those of
        ``read_again`` (number → state) what they have put out."""
        stored = {**read_again, self._block - 1: hidden}
        if self._relays:
            for number, state in stored.items():
                self._relays[number].stored = state
        else:
            self._first = hidden
        try:
            yield
        finally:
            self._first = None
            for relay in self._relays:
                relay.stored = None

    def begin_with(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook of the first block: it gets its states as they are kept, not as this machine computes them."""
        return None if self._first is None else (self._first, *args[1:])


@contextmanager
def block_glue(module: Any, block: int, stack: Stack = LANGUAGE) -> Iterator[Glue]:
    """Put relays in place of the blocks before ``block`` and end the forward after it. ``module``: runs ``stack``."""
    layers = _layers(module, stack)
    originals = list(layers)
    relays = [_Relay(original) for original in originals[:block]]
    glue = Glue(module, stack, block, relays)
    hooks = [originals[block].register_forward_hook(_reach)] if block < len(originals) else []
    if stack.embeds is None and block == 0:
        hooks.append(originals[0].register_forward_pre_hook(glue.begin_with))
    for index, relay in enumerate(relays):
        layers[index] = relay
    try:
        yield glue
    finally:
        for index, original in enumerate(originals[:block]):
            layers[index] = original
        for hook in hooks:
            hook.remove()


def _layers(module: Any, stack: Stack) -> Any:
    return module.get_submodule(stack.layers)


def _reach(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    raise _Reached(output[0] if isinstance(output, tuple) else output)

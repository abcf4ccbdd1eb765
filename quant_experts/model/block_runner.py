"""Run one block of a stack, together with everything that the model itself does around its blocks.

Models do things between their blocks: Qwen3-VL adds vision features after the first ones; masks and rotary tables are
built inside the language model and may differ from block to block. So a block is never called by hand. The forward of
the module that holds the blocks runs. Stubs replace the blocks before the wanted one and return stored outputs. The
forward ends as soon as the wanted block has its output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quant_experts.model.carried import apart, hand_on, together
from quant_experts.model.families.stack import Stack

Arguments = dict[str, Any]
"""Keyword arguments of one call of a stack's module."""


class StackNotCalled(Exception):
    """The model does not call the stack on these inputs: a row without an image does not reach the vision tower."""


class _StackCalled(Exception):
    def __init__(self, states: Tensor | None) -> None:
        self.states = states


class _BlockFinished(Exception):
    def __init__(self, output: Tensor) -> None:
        self.output = output


class _StubBlock(nn.Module):
    """Stub for a finished block: ``forward`` returns the stored output; every other attribute is the block's own."""

    def __init__(self, block: nn.Module, stack: Stack) -> None:
        super().__init__()
        self._block, self._stack = (block,), stack
        self.stored: Tensor | None = None
        """(1, tokens, d): the block's output. None returns the input, which nothing reads."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        states, others = hidden_states if self.stored is None else self.stored, [None] * (self._stack.others or 0)
        if self.stored is not None and (state := self._stack.state) is not None and state.carried:
            states, carried = apart(self.stored, state)
            hand_on(carried, kwargs, others)
        return states if self._stack.others is None else (states, *others)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)  # models ask a block for its attention_type


@contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove the ``hooks`` when this closes."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def capture_arguments(
    model: nn.Module, module: Any, inputs: Mapping[str, Tensor], stack: Stack, *, next_module: Any = None
) -> tuple[Arguments, Tensor]:
    """Run ``model`` on ``inputs`` until it calls ``module``, which runs ``stack``.

    Returns the arguments of that call, and the states that come in, (1, tokens, d): those of the first block, or of a
    language model the embeddings, which are among the arguments too. Later blocks may read them again.
    Raises StackNotCalled when the model calls ``next_module``, which runs the next stack, before ``module``.
    """
    arguments: Arguments = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        arguments.update(inspect.signature(module.forward).bind_partial(*args).arguments | kwargs)
        if stack.embeds is not None and not stack.takes_ids:
            raise _StackCalled(None)

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True)]
    if stack.takes_ids:
        hooks.append(module.get_submodule(stack.embedding).register_forward_hook(_stop_behind_embedding))
    if stack.embeds is None:
        hooks.append(_layers(module, stack)[0].register_forward_pre_hook(_stop_at_block))
    if next_module is not None:
        hooks.append(next_module.register_forward_pre_hook(_stop_at_next_stack))
    states = _states_at_call(model, inputs, hooks)
    if stack.takes_ids and stack.embeds is not None:
        arguments[stack.embeds] = states
    elif stack.embeds is not None:
        tokens, states = arguments.pop("input_ids", None), arguments.get(stack.embeds)
        if states is None:
            states = arguments[stack.embeds] = module.get_submodule(stack.embedding)(tokens)
            arguments.update(_per_token(module, tokens, states))
    for name in ("use_cache", "past_key_values"):  # given anew with every call
        arguments.pop(name, None)
    assert states is not None
    return arguments, states


def _per_token(module: Any, tokens: Tensor, states: Tensor) -> Arguments:
    """What Gemma 3n and 4 look up for every token beside its embedding; without the tokens they cannot any more."""
    look_up = getattr(module, "get_per_layer_inputs", None)
    if look_up is None or not module.config.hidden_size_per_layer_input:
        return {}
    return {"per_layer_inputs": look_up(*(tokens, states)[: len(inspect.signature(look_up).parameters)])}


def _states_at_call(model: nn.Module, inputs: Mapping[str, Tensor], hooks: Iterable[RemovableHandle]) -> Tensor | None:
    """Run the model until one of the ``hooks`` raises; the states that the hook found."""
    with hooked(hooks):
        try:
            model(**inputs, use_cache=False)
        except _StackCalled as call:
            return call.states
    raise AssertionError("the model never called the stack")


def _stop_at_block(block: nn.Module, args: tuple[Any, ...]) -> None:
    raise _StackCalled(args[0])


def _stop_behind_embedding(embedding: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    raise _StackCalled(output)


def _stop_at_next_stack(module: nn.Module, args: tuple[Any, ...]) -> None:
    raise StackNotCalled


class BlockRunner:
    """Runs block ``block`` of a stack. A ``block`` equal to the number of blocks means the part after the last one."""

    def __init__(self, module: Any, stack: Stack, block: int, stubs: list[_StubBlock]) -> None:
        self._module = module
        self._stack = stack
        self._block = block
        self._stubs = stubs
        self._first: Tensor | None = None

    @torch.no_grad()
    def run(self, arguments: Arguments, hidden: Tensor) -> Tensor:
        """Run one sample. hidden: (1, tokens, d), the output of the block before; for block 0, of the embeddings.

        Returns the block's output (1, tokens, d); after the last block, the normalised output of the language model.
        """
        return self.run_with_gradients(arguments, hidden)

    def run_with_gradients(self, arguments: Arguments, hidden: Tensor) -> Tensor:
        """The same as ``run``; autograd records it when ``hidden`` requires a gradient."""
        embeds = self._stack.embeds
        own: Arguments = {} if embeds is None else {"use_cache": False}
        if embeds is not None and (not self._stubs or embeds not in arguments):
            own[embeds] = hidden
        arguments = {**arguments, **own}
        looked_up = arguments.pop(embeds) if embeds is not None and self._stack.takes_ids else None
        with self.stubs_return(hidden), _embedded(self._module, self._stack, looked_up):
            try:
                output = self._module(**arguments)
            except _BlockFinished as finished:
                return finished.output
        assert self._block == len(_layers(self._module, self._stack)), "the forward ended before the block ran"
        last: Tensor = output.last_hidden_state
        return last

    @contextmanager
    def stubs_return(self, hidden: Tensor, read_again: Mapping[int, Tensor] = MappingProxyType({})) -> Iterator[None]:
        """While this is open, the block before ``block`` returns ``hidden``, and each block of ``read_again`` (number →
        state) returns its state."""
        states = {**read_again, self._block - 1: hidden}
        if self._stubs:
            for number, state in states.items():
                self._stubs[number].stored = state
        else:
            self._first = hidden
        try:
            yield
        finally:
            self._first = None
            for stub in self._stubs:
                stub.stored = None

    def replace_states(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Hook of the first block: it receives its stored states, not those that this machine computes."""
        return None if self._first is None else (self._first, *args[1:])


@contextmanager
def open_block_runner(module: Any, block: int, stack: Stack) -> Iterator[BlockRunner]:
    """Put stubs in place of the blocks before ``block`` and end the forward after it. ``module``: runs ``stack``."""
    layers = _layers(module, stack)
    originals = list(layers)
    stubs = [_StubBlock(original, stack) for original in originals[:block]]
    runner = BlockRunner(module, stack, block, stubs)
    hooks = (
        [originals[block].register_forward_hook(_stopping(stack), with_kwargs=True)] if block < len(originals) else []
    )
    if stack.embeds is None and block == 0:
        hooks.append(originals[0].register_forward_pre_hook(runner.replace_states))
    for index, stub in enumerate(stubs):
        layers[index] = stub
    try:
        with hooked(hooks):
            yield runner
    finally:
        for index, original in enumerate(originals[:block]):
            layers[index] = original


def _layers(module: Any, stack: Stack) -> Any:
    return module.get_submodule(stack.layers)


def _stopping(stack: Stack) -> Callable[[nn.Module, tuple[Any, ...], Arguments, Any], None]:
    def stop(block: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> None:
        states = output[0] if isinstance(output, (tuple, list)) else output
        if (state := stack.state) is not None and state.carried:
            states = together(states, output, kwargs, state)
        raise _BlockFinished(states)

    return stop


@contextmanager
def _embedded(module: Any, stack: Stack, states: Tensor | None) -> Iterator[None]:
    """While open, the embeddings of the row's tokens are ``states``; None changes nothing."""
    if states is None:
        yield
        return
    embedding = module.get_submodule(stack.embedding)
    look_up = embedding.forward
    # A tower that looks up its own tokens has fewer of them than the row, whose placeholders they are for.
    embedding.forward = lambda ids, *more: states if ids.shape[1] == states.shape[1] else look_up(ids, *more)
    try:
        yield
    finally:
        del embedding.forward

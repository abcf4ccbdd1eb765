"""One decoder block of a model, run with everything that the model itself does around it.

Models do things between their blocks: Qwen3-VL adds vision features after the first ones, masks and rotary tables are
built inside of the language model and may differ from block to block. So a block is never called by hand. The language
model's own forward runs; blocks before the wanted one are relays that hand on what is stored, and the forward ends as
soon as the wanted block has its output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]
"""Keyword arguments of one language model call, without the embeddings."""


class _Called(Exception):
    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments


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
def capture_call(model: nn.Module, language_model: Any, inputs: Mapping[str, Tensor]) -> tuple[Arguments, Tensor]:
    """Run ``model`` until it calls its language model; what it calls it with, and the embeddings (1, tokens, d)."""

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        assert not args, "language models are called by keyword"
        raise _Called(dict(kwargs))

    hook = language_model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    except _Called as call:
        arguments = call.arguments
    else:
        raise AssertionError("the model never called its language model")
    finally:
        hook.remove()
    tokens = arguments.pop("input_ids", None)
    embeddings = arguments.pop("inputs_embeds", None)
    if embeddings is None:
        embeddings = language_model.embed_tokens(tokens)
    for name in ("use_cache", "past_key_values"):  # given anew with every call
        arguments.pop(name, None)
    return arguments, embeddings


class Glue:
    """Runs block ``block`` of a language model; ``blocks`` of them means the part after the last one."""

    def __init__(self, language_model: Any, block: int, relays: list[_Relay]) -> None:
        self._language_model = language_model
        self._block = block
        self._relays = relays

    @torch.no_grad()
    def run(self, arguments: Arguments, hidden: Tensor) -> Tensor:
        """One sample. hidden: (1, tokens, d), the output of the block before (of the embeddings for block 0).

        Returns the block's output (1, tokens, d); after the last block, the normalised output of the language model.
        """
        return self.run_recorded(arguments, hidden)

    def run_recorded(self, arguments: Arguments, hidden: Tensor) -> Tensor:
        """The same, recorded by autograd when ``hidden`` requires a gradient."""
        if self._relays:
            self._relays[-1].stored = hidden
        try:
            # Once there are relays, only shape, dtype and device of inputs_embeds matter.
            output = self._language_model(**arguments, inputs_embeds=hidden, use_cache=False)
        except _Reached as reached:
            return reached.output
        finally:
            if self._relays:
                self._relays[-1].stored = None
        assert self._block == len(self._language_model.layers), "the forward ended before the block ran"
        last: Tensor = output.last_hidden_state
        return last


@contextmanager
def block_glue(language_model: Any, block: int) -> Iterator[Glue]:
    """Put relays in place of the blocks before ``block`` and end the forward after it."""
    originals = list(language_model.layers)
    relays = [_Relay(original) for original in originals[:block]]
    hook = originals[block].register_forward_hook(_reach) if block < len(originals) else None
    for index, relay in enumerate(relays):
        language_model.layers[index] = relay
    try:
        yield Glue(language_model, block, relays)
    finally:
        for index, original in enumerate(originals[:block]):
            language_model.layers[index] = original
        if hook is not None:
            hook.remove()


def _reach(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    raise _Reached(output[0] if isinstance(output, tuple) else output)

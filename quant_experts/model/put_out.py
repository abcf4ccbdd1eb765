"""Let a module put out hidden states without running, so that what stands around it can run alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from quant_experts.errors import UnsupportedModel


class _States:
    """What a module's forward returns, of which only the hidden states are known."""

    def __init__(self, hidden: Tensor, path: str) -> None:
        self.last_hidden_state, self._path = hidden, path

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, int) and place:
            raise UnsupportedModel(f"what runs behind {self._path} reads output {place} of it beside last_hidden_state")
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def putting_out(model: nn.Module, paths: Iterable[str], hidden: Tensor) -> Iterator[None]:
    """While open, the modules ``paths`` return ``hidden`` without running; UnsupportedModel is raised to a caller that
    asks for more."""
    modules: list[tuple[str, Any]] = [(path, model.get_submodule(path)) for path in paths]
    for path, module in modules:
        module.forward = lambda *args, path=path, **kwargs: _States(hidden, path)
    try:
        yield
    finally:
        for _, module in modules:
            del module.forward

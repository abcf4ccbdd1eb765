"""The choices of a slot: one package per slot, one file per choice. The file's name is the choice's name.

To add a choice, add a file, and its name to ``quant_experts/spec/slots.py``, which needs no torch.
"""

from __future__ import annotations

import importlib
import pkgutil

from quant_experts.errors import InvalidSpec


def names(package: str) -> tuple[str, ...]:
    """The choices of a slot, sorted; nothing is imported but the package itself."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")))


def load(package: str, choice: str) -> object:
    """The module of one choice. Raises InvalidSpec that lists what exists."""
    choices = names(package)
    if choice not in choices:
        slot = package.rpartition(".")[2]
        raise InvalidSpec(f"{slot} {choice!r} is not known; choose one of {', '.join(choices)}")
    return importlib.import_module(f"{package}.{choice}")

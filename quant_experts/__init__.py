"""Quant Experts: post-training quantization of vision-language models with shared and routed low-rank experts.

Importing this package makes ``transformers`` able to load its checkpoints. It does so without importing transformers or
torch itself, which take seconds: the method is registered at once when transformers' quantizer table is already there,
and otherwise in the moment when it gets imported.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__version__ = "0.1.0"

_TABLE = "transformers.quantizers.auto"


class _RegisterAfter(importlib.abc.Loader):
    """Runs the table's own loader, then adds our method to the table."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module("quant_experts.forward.modeling_quant_experts")


class _TableFinder(importlib.abc.MetaPathFinder):
    """Finds the one module ``transformers.quantizers.auto``, once, and wraps its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


if _TABLE in sys.modules:
    importlib.import_module("quant_experts.forward.modeling_quant_experts")
else:
    sys.meta_path.insert(0, _TableFinder())

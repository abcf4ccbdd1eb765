"""The package of ``kernels/``, built where there is a compiler and imported for those tests alone that ask for it."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2] / "kernels"
LIBRARY = PROJECT / "quant_experts_kernels" / "libquant_experts_kernels.so"


@functools.cache
def built() -> bool:
    """Whether the library lies in the package, newer than its sources. False where there is no compiler to make it."""
    sources = [PROJECT / "compile.py", *(PROJECT / "src").iterdir()]
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return False
        new = LIBRARY.with_suffix(f".{os.getpid()}")
        subprocess.run([sys.executable, PROJECT / "compile.py", new], check=True)
        new.replace(LIBRARY)
    return True


@functools.cache
def package() -> Any:
    """``quant_experts_kernels``, out of ``sys.modules`` again, so that other tests of the process run without it."""
    if not built():
        pytest.skip("the kernels are built with g++, and there is none")
    sys.path.insert(0, str(PROJECT))
    try:
        return importlib.import_module("quant_experts_kernels")
    finally:
        sys.path.remove(str(PROJECT))
        for name in [name for name in sys.modules if name.startswith("quant_experts_kernels")]:
            del sys.modules[name]

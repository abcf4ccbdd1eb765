"""Puts the shared library into the wheel: one for every Python and torch, since it calls neither."""

from __future__ import annotations

import os
import platform
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "quant_experts_kernels/libquant_experts_kernels.so"
GLIBC = "2_17"
"""The oldest that the library asks for is 2.2.5 on x86-64 and 2.17 on Arm; pip knows tags from 2.17 on by this name."""


class LibraryBuild(BuildHookInterface):  # type: ignore[misc]  # hatchling is not installed where mypy runs
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        runpy.run_path(str(root / "compile.py"))["compile_library"](root / LIBRARY)
        machine = os.environ.get("QE_MACHINE", platform.machine())
        build_data["artifacts"].append(LIBRARY)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_{GLIBC}_{machine}"

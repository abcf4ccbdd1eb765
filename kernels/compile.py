"""The shared library from src/: one object for each path, without a C++ runtime, so that any glibc loads it.

python compile.py OUTPUT.so          # CXX and QE_MACHINE choose another compiler and its processor
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
COMMON = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-plt")
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-unused-parameter",
    "-Wno-ignored-attributes",
    "-Wno-maybe-uninitialized",
)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512vnni")
PATHS = {
    "x86_64": {
        "baseline": (),
        "avx2": AVX2,
        "avxvnni": (*AVX2, "-mavxvnni"),
        "avx512vnni": AVX512,
        "avx512bf16": (*AVX512, "-mavx512bf16"),
    },
    "aarch64": {"baseline": (), "neondot": ("-march=armv8.2-a+dotprod",)},
}


def compile_library(output: Path) -> None:
    """Raises SystemExit for another processor than x86-64 and 64-bit Arm, CalledProcessError when the compiler does."""
    machine = os.environ.get("QE_MACHINE", platform.machine())
    if machine not in PATHS:
        raise SystemExit(f"quant-experts-kernels has no code for {machine}: x86_64 and aarch64")
    compiler = [*os.environ.get("CXX", "g++").split(), *COMMON, *WARNINGS]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        running, objects = [], []
        for name, flags in {**PATHS[machine], "dispatch": ()}.items():
            source = SOURCES / ("dispatch.cpp" if name == "dispatch" else "path.cpp")
            objects.append(f"{directory}/{name}.o")
            command = [*compiler, *flags, f"-DPATH={name}", "-c", str(source), "-o", objects[-1]]
            running.append((command, subprocess.Popen(command)))  # noqa: S603 - the compiler that the user has
        for command, process in running:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, command)
        link = [*compiler, "-shared", "-nostdlib++", "-Wl,-z,defs", "-s", *objects, "-o", str(output)]
        subprocess.run([part for part in link if part != "-nostdlib++"] + ["-static-libgcc"], check=True)  # noqa: S603


if __name__ == "__main__":
    compile_library(Path(sys.argv[1]))

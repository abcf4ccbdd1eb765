"""The shared library: found beside this file, told which path to take and whose threads to use."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from ctypes import c_char_p, c_int64, c_void_p
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("libquant_experts_kernels.so")
_OPENMP = ("libgomp", "libiomp5", "libomp")


@functools.cache
def library() -> Any:
    """The loaded library, or None with a warning where it cannot be used.

    ``QE_KERNELS_PATH`` names a path: avx512bf16, avx512vnni, avxvnni, avx2, neondot or baseline. Raises ValueError for
    one that this processor lacks.
    """
    try:
        found = ctypes.CDLL(str(FILE))
    except OSError as error:
        warnings.warn(f"quant-experts-kernels is not usable, install its wheel anew: {error}", stacklevel=2)
        return None
    pointers, numbers = (lambda n: [c_void_p] * n), (lambda n: [c_int64] * n)
    adapter = [c_void_p, c_int64, c_void_p, c_int64]
    found.qe_choose.argtypes, found.qe_choose.restype = [c_char_p], c_char_p
    found.qe_prepared_bytes.argtypes, found.qe_prepared_bytes.restype = numbers(5), c_int64
    found.qe_set_parallel.argtypes, found.qe_set_parallel.restype = [c_void_p], None
    found.qe_prepare.argtypes, found.qe_prepare.restype = [*pointers(5), *adapter * 2, c_void_p, *numbers(6)], None
    found.qe_linear.argtypes, found.qe_linear.restype = [*pointers(5), *adapter * 2, *numbers(8)], None
    wanted = os.environ.get("QE_KERNELS_PATH", "")
    chosen: bytes | None = found.qe_choose(wanted.encode())
    if chosen is None:
        raise ValueError(f"QE_KERNELS_PATH is {wanted!r}: this processor has no such path")
    found.path = chosen.decode()
    found.qe_set_parallel(_gomp_parallel())
    return found


def path() -> str:
    """The path that is taken: ``QE_KERNELS_PATH``, or the best that this processor has; empty without a library."""
    return "" if library() is None else library().path


def _gomp_parallel() -> int | None:
    """The address of ``GOMP_parallel`` of the OpenMP that torch has loaded, whatever its wheel calls the file."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    for name in (None, *sorted(file for file in loaded if Path(file).name.startswith(_OPENMP))):
        try:
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, c_void_p).value
        except (OSError, AttributeError):
            continue
    return None

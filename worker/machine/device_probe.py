"""Whether this machine's devices compute, asked in a process of its own: a broken driver may hang or kill who asks.

    python -m worker.machine.device_probe driver   every visible GPU gives back a few bytes; no torch, half a second
    python -m worker.machine.device_probe compute  torch multiplies on every device, or on the CPU where there is none

Prints the number of devices and ends with 0, or says what is wrong and ends with 1.
"""

from __future__ import annotations

import ctypes
import sys

SIZE = 256
NO_DEVICE = 100


class Broken(Exception):
    pass


def driver() -> int:
    """Copy bytes to every device and back through the driver alone. Raises Broken."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    status = cuda.cuInit(0)
    if status == NO_DEVICE:
        return 0
    _check(status, "cuInit", cuda)
    count = ctypes.c_int()
    _check(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount", cuda)
    for number in range(count.value):
        _copy_and_compare(cuda, number)
    return count.value


def _copy_and_compare(cuda: ctypes.CDLL, number: int) -> None:
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    data, back = bytes(range(256)) * 16, ctypes.create_string_buffer(4096)
    size = ctypes.c_size_t(len(data))

    def check(status: int, what: str) -> None:
        _check(status, f"device {number}: {what}", cuda)

    check(cuda.cuDeviceGet(ctypes.byref(device), number), "cuDeviceGet")
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    check(cuda.cuMemAlloc_v2(ctypes.byref(memory), size), "cuMemAlloc")
    check(cuda.cuMemcpyHtoD_v2(memory, data, size), "cuMemcpyHtoD")
    check(cuda.cuMemcpyDtoH_v2(back, memory, size), "cuMemcpyDtoH")
    if back.raw != data:
        raise Broken(f"device {number} returned other bytes than were copied to it")


def _check(status: int, what: str, cuda: ctypes.CDLL) -> None:
    if status != 0:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(name))
        raise Broken(f"{what}: {(name.value or b'error').decode()} ({status})")


def compute() -> int:
    """Multiply on every device, in torch. Raises Broken, and what torch raises."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device in [f"cuda:{number}" for number in range(count)] or ["cpu"]:
        ones = torch.ones(SIZE, SIZE, device=device)
        if not bool((ones @ ones == SIZE).all()):
            raise Broken(f"{device} multiplies wrongly")
    return count


def main() -> int:
    try:
        count = {"driver": driver, "compute": compute}[sys.argv[1]]()
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is the answer
        sys.stdout.write(f"{error or type(error).__name__}\n")
        return 1
    sys.stdout.write(f"{count}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

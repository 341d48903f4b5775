"""Which GPUs a process can use, asked of the driver itself (CUDA's driver library), without any framework.

`python -m cellwork_jupyter.gpu` prints the answer and exits 1 if there is none: the spawner asks it so after it started a
server that was promised a GPU.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"


@dataclass(frozen=True)
class Seen:
    """`count` GPUs; `text` says which, or why there is none."""

    count: int
    text: str


def look() -> Seen:
    """Return the GPUs that this process can use."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return Seen(0, f"no GPU: the driver's library {LIBRARY} is not here (the container was started without a GPU)")
    status, count = cuda.cuInit(0), ctypes.c_int()
    if status:
        return Seen(0, f"no GPU: the driver answers with CUDA error {status} (no device that this container may use)")
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = [_name(cuda, number) for number in range(count.value)]
    return Seen(count.value, f"{count.value} GPU: {', '.join(names)}" if names else "no GPU: the driver counts none")


def _name(cuda: ctypes.CDLL, number: int) -> str:
    device, text = ctypes.c_int(), ctypes.create_string_buffer(100)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(text, len(text), device)
    return text.value.decode(errors="replace")


if __name__ == "__main__":
    seen = look()
    print(seen.text)
    sys.exit(0 if seen.count else 1)

"""``nvisa-serve`` on a GPU that can be lost: ``python -m tests.gpu.breaking FILE FLAGS...``.

Once FILE is there, a kernel writes where it must not. CUDA then fails every call of this process, as it does
when a device falls off the bus. The server is the real one.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from pathlib import Path

from serving.cli import main

KERNEL = b"""
.version 7.0
.target sm_75
.address_size 64
.visible .entry lose() {
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""


def lose_device() -> int:
    """Make the context that this process has on device 0 unusable; the last call's error."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, module, kernel = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    for error in (
        driver.cuInit(0),
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        driver.cuCtxSetCurrent(context),
        driver.cuModuleLoadData(ctypes.byref(module), KERNEL),
        driver.cuModuleGetFunction(ctypes.byref(kernel), module, b"lose"),
        driver.cuLaunchKernel(kernel, *(1, 1, 1), *(1, 1, 1), 0, None, None, None),
    ):
        if error:
            raise RuntimeError(f"CUDA's driver answers {error}")
    return int(driver.cuCtxSynchronize())


def _lose_when_asked(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)
    print(f"lost the device: CUDA error {lose_device()}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    threading.Thread(target=_lose_when_asked, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.exit(main(sys.argv[2:]))

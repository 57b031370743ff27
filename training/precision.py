"""Where matrix products may be less than float32: bfloat16 on CPUs that have it, TF32 on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["auto", "float32", "low"]


def resolve_device(name: str) -> torch.device:
    """Device for ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    ValueError
        If CUDA is asked for and not usable; there is no silent fallback.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no usable GPU; check the driver, or use device=cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def low_precision_pays(device: torch.device) -> bool:
    """Whether ``device`` multiplies matrices faster below float32 (AVX-512 BF16, AMX; any GPU: TF32)."""
    if device.type == "cuda":
        return True
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


@contextmanager
def matrix_products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Context in which trunks multiply in bfloat16 (CPU) or TF32 (GPU), if ``precision`` allows.

    ``"auto"`` means low where it pays. Heads, densities and everything elementwise on them stay float32.
    Global switches are put back on leaving.
    """
    low = precision == "low" or (precision == "auto" and low_precision_pays(device))
    if device.type == "cuda":
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if low else "highest")
        torch.backends.cudnn.allow_tf32 = low
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            yield

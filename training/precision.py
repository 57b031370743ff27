"""Where matrix products may be less than float32: bfloat16 on processors that have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
    """Whether ``device`` multiplies matrices faster in bfloat16 (AVX-512 BF16, AMX; GPUs from Ampere on)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def matrix_products(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Context for a forward pass in which trunks multiply in bfloat16, if ``precision`` allows.

    ``"auto"`` means low where it pays. Heads, densities and everything elementwise on them stay float32. The
    backward pass multiplies as the forward pass did, and is run outside.
    """
    low = precision == "low" or (precision == "auto" and low_precision_pays(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=low)


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Context, or decorator, in which a GPU's convolutions are float32.

    By torch's default they are TF32, of ten bits: enough to train with, but then a GPU's q(y|x) and a CPU's,
    or that of an exported graph, agree to three digits only.
    """
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before

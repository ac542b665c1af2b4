"""Where and how numbers are computed: devices, precision, and random generators that depend on a seed and a purpose."""

from __future__ import annotations

import hashlib

import torch

from .errors import TrainingError, first_line


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} cannot be used here ({first_line(error)}); try cpu") from error
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast type of a ``TrainConfig.precision``; None means float32."""
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return torch.bfloat16 if native else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def generator_for(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on nothing but its arguments."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

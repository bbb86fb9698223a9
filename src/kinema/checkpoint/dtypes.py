"""Number formats by every name people and files give them."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError

SAFETENSORS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
SAFETENSORS_NAMES = {dtype: name for name, dtype in SAFETENSORS.items()}

_NAMES: dict[str, torch.dtype] = {
    **dict.fromkeys(("float16", "fp16", "half", "f16"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float32", "fp32", "float", "f32", "single"), torch.float32),
    **dict.fromkeys(("float64", "fp64", "double", "f64"), torch.float64),
}


def to_dtype(name: Any) -> torch.dtype | None:
    """A torch dtype from itself, a name ("float16", "fp16", "torch.bfloat16") or another library's dtype; None stays.

    Raises:
        InputError: the name is not that of a floating-point format.
    """
    if name is None or isinstance(name, torch.dtype):
        if name is not None and not name.is_floating_point:
            raise InputError(f"dtype {name} holds no fractions; use float32, bfloat16 or float16.")
        return name
    plain = getattr(name, "__name__", None) if isinstance(name, type) else str(name)
    found = _NAMES.get(str(plain).lower().rpartition(".")[2])
    if found is None:
        raise InputError(f"dtype {name!r} is not known; use float32, bfloat16, float16 or the torch dtype itself.")
    return found


def short(dtype: torch.dtype) -> str:
    """`float16`, without the `torch.`."""
    return str(dtype).removeprefix("torch.")

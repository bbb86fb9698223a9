"""Fresh memory that the system hands over in one go, instead of page by page as each is first written to."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

POPULATE_WRITE = 23  # `MADV_POPULATE_WRITE`, Linux from 5.14 on; Python has no name for it
LARGE = 1 << 20  # bytes from which it pays


def fresh(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of this shape and order in memory, to be written to all over, at once."""
    made = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    if device.type == "cpu" and made.nbytes >= LARGE:
        _hand_over(made)
    return made


def _hand_over(x: Tensor) -> None:
    """Asks for the pages of a tensor. A system that cannot give them, or has none left, does what it does without."""
    advise = _madvise()
    if advise is None:
        return
    start = x.data_ptr()
    first, last = -(-start // mmap.PAGESIZE), (start + x.untyped_storage().nbytes()) // mmap.PAGESIZE
    if last > first:
        advise(first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE, POPULATE_WRITE)


@cache
def _madvise() -> Any:
    """The system's call, which lets other threads run meanwhile; None where that number means something else."""
    found = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found

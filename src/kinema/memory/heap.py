"""Host memory that is used again instead of being given back and asked for at every operation.

The GNU C library maps each large block anew and unmaps it when it goes, so every large tensor's pages are faulted in
and filled with zeros before a number is written. A U-Net makes some thousand such tensors a step, a decoder dozens a
picture. While `kept` is in
force freed blocks stay in the heap for the next tensor; afterwards what is free goes back to the system. Blocks that
stay leave gaps: at its peak a U-Net's heap is then up to half again as large as what is alive in it, so it is done only
where there is memory to spare.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from . import room

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # malloc.h
# Where the library's own adaptation to large blocks would have led; it adapts no more once it has been told anything.
USUAL = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65_536}
KEEP = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}  # never shrink; map nothing apart

_lock = threading.Lock()
_users = 0


@contextmanager
def kept() -> Iterator[None]:
    """Keeps freed memory at hand until the last user leaves, where there is memory to spare.

    It holds for the whole process, which others see in nothing but the speed of their allocations. Allocators other
    than the GNU C library's stay as they are.
    """
    global _users
    if not roomy():
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            _set(KEEP)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _set(USUAL)
                _give_back()


def keeping() -> bool:
    """Whether freed memory is being kept now."""
    return _users > 0


def available() -> bool:
    """Whether this process's memory comes from an allocator that can be told to keep it."""
    return _library() is not None


def roomy() -> bool:
    """Whether as much memory is free as this process holds."""
    there = room.free(torch.device("cpu"))
    try:
        held = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return False
    return there is not None and there >= held


def _set(options: dict[int, int]) -> None:
    library = _library()
    if library is not None:
        for name, value in options.items():
            library.mallopt(name, value)


def _give_back() -> None:
    library = _library()
    if library is not None:
        library.malloc_trim(0)


@cache
def _library() -> ctypes.CDLL | None:
    """The GNU C library, where that is what this process allocates with."""
    try:
        library = ctypes.CDLL(None)
        for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"):
            getattr(library, name)
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return None
    return library

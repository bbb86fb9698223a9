"""How much memory there is: what people write for it, and what a device has free."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..errors import InputError

UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}}
UNITS |= {f"{p}IB": 1024**i for i, p in enumerate("KMGT", 1)}
CGROUPS = (  # where a container's limit and use are told, and the line of its statistics that can be given up
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)

Memory = int | str | None  # bytes, a size as people write it, "auto", or None for no limit


def checked(memory: Memory) -> Memory:
    """A setting as it can be kept: "auto", None, or bytes.

    Raises:
        InputError: it is none of these.
    """
    return memory if memory in (None, "auto") else to_bytes(memory)


def to_bytes(said: object) -> int:
    """6_000_000_000, "6GB", "6 GB", "512MB" (of 1000) or "5.5GiB" (of 1024) → bytes.

    Raises:
        InputError: it is no size, or none above 0.
    """
    size = float(said) if isinstance(said, (int, float)) and not isinstance(said, bool) else 0.0
    if isinstance(said, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", said)
        size = float(found[1]) * UNITS.get(found[2].upper(), 0) if found else 0.0
    if not 1 <= size < float("inf"):
        raise InputError(
            f"memory is {said!r}; it must be 'auto', None, a number of bytes, or a size such as '6GB' or '5.5GiB'."
        )
    return int(size)


def free(device: torch.device) -> int | None:
    """Bytes that new tensors may take on a device; None where it does not say."""
    if device.type == "cpu":
        return _free_here()
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    backend = getattr(torch, device.type, None)
    if backend is None or not hasattr(backend, "mem_get_info"):
        return None
    unused = backend.memory_reserved(device) - backend.memory_allocated(device)  # PyTorch keeps it for new tensors
    found: int = backend.mem_get_info(device)[0] + unused
    return found


def _free_here() -> int | None:
    """Of main memory: the machine's, or what is left of its container's share."""
    found = [size for size in (_available(), *_left()) if size is not None]
    return min(found, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text()
        return int(lines.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return None


def _left() -> list[int | None]:
    return [_left_of(*names) for names in CGROUPS]


def _left_of(*names: str) -> int | None:
    try:
        limit, used, statistics = (Path("/sys/fs/cgroup", name).read_text() for name in names[:3])
        cached = dict(line.split()[:2] for line in statistics.splitlines()).get(names[3], "0")
        return max(0, int(limit) - int(used) + int(cached))
    except (OSError, ValueError):
        return None


def give_back(device: torch.device) -> None:
    """Gives what PyTorch keeps for new tensors back to the device, which can then make larger ones of it."""
    backend = getattr(torch, device.type, None)
    if hasattr(backend, "empty_cache"):
        backend.empty_cache()  # type: ignore[union-attr]


def numbered(device: torch.device) -> torch.device:
    """The same device with its number, without which one of several is not told from another."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if ":" in str(device) or found is None or found.type != device.type:
        return device
    return torch.device(device.type, torch.accelerator.current_device_index())

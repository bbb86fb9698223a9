"""How fast a device is, measured on it: what turns a plan's counts into times."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

SIDE = 512, 2048  # of the matrices that are multiplied, here and on an accelerator
PIECE = 1 << 24, 1 << 25  # bytes that are copied


@dataclass(frozen=True)
class Speed:
    """What a device does in a second, at best."""

    flops: float  # of large matrix products, two for each multiplication with its addition
    bytes: float  # read and written in its own memory
    link: float  # bytes that come from the host


@cache
def speed_of(device: torch.device, dtype: torch.dtype) -> Speed:
    """That of this device in this number format; it takes some milliseconds, once a process.

    Of tensors without contents it is the processor's.

    Raises:
        torch.OutOfMemoryError: there is no room to try; asked again later, it may be told.
    """
    if device.type == "meta":
        return speed_of(torch.device("cpu"), torch.float32)
    here = device.type == "cpu"
    side, piece = SIDE[not here], PIECE[not here]
    a = torch.full((side, side), 0.5, device=device, dtype=dtype)
    source, target = (torch.zeros(piece, dtype=torch.uint8, device=device) for _ in range(2))
    products = 2 * side**3 / _seconds(lambda: a @ a, device)
    moved = 2 * piece / _seconds(lambda: target.copy_(source), device)
    if here:
        return Speed(products, moved, moved)
    host = torch.zeros(piece // 4, dtype=torch.uint8)
    return Speed(products, moved, len(host) / _seconds(lambda: host.to(device), device))


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The best of three, after one that warms up."""
    taken = []
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return max(min(taken[1:]), 1e-9)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

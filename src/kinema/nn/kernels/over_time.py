"""Convolutions over time in fewer multiplications: Winograd's, along one axis (see `winograd` and `tiles`).

Frames lie whole in memory, one after the other, so their values at the points are sums of whole frames. The values of
four frames, six numbers for each pixel and channel, are multiplied by as many matrices, where the four would have been
by three each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ...choice import Choice, Ways, example
from ...place import kind_of
from .tiles import FRAMES, Tiles

WORK = 3 << 20  # numbers of pixels, there and back, at once: they then stay in a processor's cache, but
FEWEST = 256  # rows of each matrix product at least
LEAST = 128  # channels, and
PIXELS = 256  # pixels of all frames, below which the way there and back costs more than it saves
SHARE = 0.75  # of the multiplications, above which it does as well


def worthwhile(x: Tensor, outputs: int, length: int) -> bool:
    """Whether a convolution of strips x (b, c, f, n) over `length` frames to so many channels is faster this way."""
    b, c, f, n = x.shape
    if kind_of(x) != "cpu" or x.dtype != torch.float32 or length != 3 or min(outputs, c) < LEAST or b * f * n < PIXELS:
        return False
    tiles = fitting(f)
    return -(-f // tiles.side) * tiles.places <= SHARE * length * f and CHOICE.taken(x)


def fitting(frames: int) -> Tiles:
    """Tiles in which so many frames take the fewest multiplications."""
    return min(FRAMES.values(), key=lambda tiles: -(-frames // tiles.side) * tiles.places)


@dataclass
class Kernel:
    """A kernel over three frames (o, c, 3, 1, 1) whose values at the points are worked out once for many pixels."""

    weight: Tensor
    bias: Tensor | None
    tiles: Tiles

    @classmethod
    def fitting(cls, weight: Tensor, bias: Tensor | None, frames: int) -> Self:
        """For clips of so many frames."""
        return cls(weight, bias, fitting(frames))

    @cached_property
    def values(self) -> Tensor:
        """(places, c, o)."""
        weight = self.weight.detach()  # weights that are brought for an operation are brought for this one only
        o, c, length = weight.shape[:3]
        numbers = weight.flatten(2).permute(2, 0, 1).reshape(length, -1)
        return (self.tiles.spread.to(numbers.device) @ numbers).view(-1, o, c).transpose(1, 2)

    def conv(self, x: Tensor) -> Tensor:
        """The convolution of strips (b, c, f, n), padded by a frame at both ends → (b, o, f, n), channels last."""
        (b, c, f, n), (places, _, o), side = x.shape, self.values.shape, self.tiles.side
        out = x.new_empty(b, f, n, o)
        there, back = self.tiles.there.to(x.device), self.tiles.back.to(x.device)
        tiles = [(clip, first) for clip in range(b) for first in range(0, f, side)]
        rows = max(FEWEST, WORK // (places * (c + o)))
        step = min(n, -(-rows // len(tiles)))  # pixels at once, of all frames
        room, made = x.new_empty(places * len(tiles) * step * c), x.new_empty(places * len(tiles) * step * o)
        bias = x.new_zeros(step * o) if self.bias is None else self.bias.detach().repeat(step)
        pixels, found = x.permute(0, 2, 3, 1).reshape(b, f, n * c), out.view(b, f, n * o)
        for start, stop in ((start, min(start + step, n)) for start in range(0, n, step)):
            wide = stop - start
            values = room[: places * len(tiles) * wide * c].view(places, len(tiles), wide * c)
            products = made[: places * len(tiles) * wide * o].view(places, len(tiles), wide * o)
            here, to = pixels[:, :, start * c : stop * c], found[:, :, start * o : stop * o]
            for i, (clip, first) in enumerate(tiles):
                low, last = max(first - 1, 0), min(first - 1 + places, f)  # nothing lies around the clip
                way = there[:, low - first + 1 : last - first + 1]
                torch.mm(way, here[clip, low:last], out=values[:, i])
            torch.bmm(values.view(places, -1, c), self.values, out=products.view(places, -1, o))
            for i, (clip, first) in enumerate(tiles):
                last = min(first + side, f)
                torch.addmm(bias[: wide * o], back[: last - first], products[:, i], out=to[clip, first:last])
        return out.permute(0, 3, 1, 2)


def _sample(device: torch.device, dtype: torch.dtype) -> Ways:
    strips, numbers = example(device, dtype, 2, 8, 256, 640), example(device, dtype, 640, 3, 1, 640) / 44
    plain = partial(F.conv2d, strips, numbers, padding=(1, 0))
    return plain, lambda: Kernel.fitting(numbers[..., None], None, 8).conv(strips)


CHOICE = Choice("winograd", "large convolutions over time", _sample)

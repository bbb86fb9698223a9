"""Convolutions in fewer multiplications, as Winograd's (Lavin and Gray 2016, section 4).

A tile of pixels and a kernel are both taken to where convolution is a product of numbers, one for each place of the
tile. Over channels that is 36 matrix products for 4×4 pixels, where a direct convolution with a 3×3 kernel needs 144,
or 16 for 2×2 instead of 36. How tiles and kernels get there is in `tiles`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ...choice import Choice, Ways, example
from ...place import kind_of
from . import enlarged
from .tiles import FOUR, THREE, TWO, Tiles

AT_ONCE = 256  # tiles: their numbers, there and back, then stay in a processor's cache
CACHED = 1 << 19  # numbers of transformed kernels that do
PIECE = 1 << 23  # and of those made at a time, where each is used once only

LEAST = 128  # channels, and
PIXELS = 256  # pixels, below which the way there and back costs more than it saves
LARGEST = 1 << 21  # products of channel counts up to which a kernel that is used more than once is kept whole
MANY = 64  # tiles from which a kernel's longer way to the larger ones is made up for,
ENLARGED_MANY = 256  # and the way of an enlarged picture's four kernels

Phase = tuple[int, int]  # of each pixel of the picture, which of those that come of it: row and column


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of x is faster this way: a large one, in float32, on a processor that was found to be.

    That depends on how good the processor's convolutions are beside its matrix products.
    """
    return _large(x, weight, fitting(x)) and THREE_BY_THREE.taken(x)


def worthwhile_doubled(x: Tensor, weight: Tensor) -> bool:
    """The same for a convolution of x enlarged to twice its sides."""
    return _count(x, THREE) >= ENLARGED_MANY and _large(x, weight, THREE) and ENLARGED.taken(x)


def _large(x: Tensor, weight: Tensor, tiles: Tiles) -> bool:
    o, c = weight.shape[:2]
    return (
        kind_of(x) == "cpu"
        and x.dtype == torch.float32
        and min(o, c) >= LEAST
        and x.numel() // c >= PIXELS
        and (o * c <= LARGEST // (1 if tiles.side > 3 else 2) or _count(x, tiles) <= AT_ONCE)
    )


def _count(x: Tensor, tiles: Tiles) -> int:
    n, _, h, w = x.shape
    return n * -(-h // tiles.side) * -(-w // tiles.side)


def fitting(x: Tensor) -> Tiles:
    """Tiles for a 3×3 kernel: the larger ones, where there are enough of them and few reach over the edge."""
    n, _, h, w = x.shape
    count = _count(x, FOUR)
    return FOUR if count >= MANY and count * FOUR.side**2 <= 1.4 * n * h * w else TWO


def _sample(device: torch.device, dtype: torch.dtype) -> Ways:
    x, weight = example(device, dtype, 8, 32, 32, 320), example(device, dtype, 320, 3, 3, 320) / 54
    return lambda: F.conv2d(x, weight, None, padding=1), lambda: conv3x3(x, weight, None)


def _sample_doubled(device: torch.device, dtype: torch.dtype) -> Ways:
    x, weight = example(device, dtype, 4, 32, 32, 320), example(device, dtype, 320, 3, 3, 320) / 54
    return lambda: enlarged.doubled_conv(x, weight, None), lambda: doubled_conv(x, weight, None)


THREE_BY_THREE = Choice("winograd", "large 3×3 convolutions", _sample)
ENLARGED = Choice("winograd", "large convolutions of enlarged pictures", _sample_doubled)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tiles | None = None) -> Tensor:
    """The convolution of x (n, c, h, w) with weight (o, c, 3, 3), stride 1, padding 1 → (n, o, h, w), channels last."""
    h, w = x.shape[2:]
    found = _convolved(x, (h, w), {(0, 0): weight}, bias, tiles or fitting(x))
    return found[:, :h, :w].permute(0, 3, 1, 2)


def doubled_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of x (n, c, h, w) at twice its sides with weight (o, c, 3, 3) → (n, o, 2h, 2w), channels last.

    Between pixels of the enlarged picture lie kernels of 2×2, so those of one more row and column are worked out; the
    first of each pair of rows is the later one of what comes of the pixel before.
    """
    h, w = x.shape[2:]
    phases = {(1 - i, 1 - j): folded for (i, j), folded in enlarged.folded(weight)}
    found = _convolved(x, (h + 1, w + 1), phases, bias, THREE)
    return found[:, 1 : 2 * h + 1, 1 : 2 * w + 1].permute(0, 3, 1, 2)


def _convolved(
    x: Tensor, size: tuple[int, int], weights: Mapping[Phase, Tensor], bias: Tensor | None, tiles: Tiles
) -> Tensor:
    """So many rows and columns of what kernels make of x (n, c, h, w) and a pixel of nothing around it.

    Returns:
        (n, h', w', o), as many whole tiles as that takes; with several phases each pixel is a square of theirs.
    """
    n, c, h, w = x.shape
    side, fold, o = tiles.side, 2 if len(weights) > 1 else 1, len(next(iter(weights.values())))
    high, wide = (-(-extent // side) for extent in size)  # tiles, the last ones perhaps over the edge
    out = x.new_empty(n, high, side, fold, wide, side, fold, o)
    pictures, rows = max(1, AT_ONCE // (high * wide)), min(high, max(1, AT_ONCE // wide))
    bands = [(first, top) for first in range(0, n, pictures) for top in range(0, high, rows)]
    channels = o if len(bands) > 1 else min(o, max(1, PIECE // tiles.places**2 // c))
    kernels = (found for phase, weight in weights.items() for found in _kernels(phase, weight, tiles, channels))
    again = kernels if len(bands) == 1 else list(kernels)
    room = _Room(x, tiles, min(n, pictures) * rows * wide, c, channels)
    pixels = x.permute(0, 2, 3, 1)
    for first, top in bands:
        some = pixels[first : first + pictures]
        bottom = min(top + rows, high)
        low, last = side * top - 1, side * top - 1 + side * (bottom - top - 1) + tiles.places
        band = some[:, max(low, 0) : min(last, h)]
        beyond = side * (wide - 1) + tiles.places - 1 - w
        there = room.there(F.pad(band, (0, 0, 1, beyond, max(-low, 0), max(last - h, 0))))
        for (i, j), which, kernel in again:
            here = out[first : first + pictures, top:bottom, :, i, :, :, j, which]
            room.back(there, kernel, None if bias is None else bias[which], here)
    return out.view(n, side * fold * high, side * fold * wide, o)


class _Room:
    """Room for the numbers of some tiles, used again for each piece."""

    def __init__(self, like: Tensor, tiles: Tiles, count: int, c: int, o: int):
        self.tiles = tiles
        self.way_there, self.way_back = tiles.there.to(like.device), tiles.back.to(like.device)
        self.pixels = like.new_empty(tiles.places**2 * count * c)
        self.values = like.new_empty(tiles.places**2 * count * c)
        self.products = like.new_empty(tiles.places**2 * count * o)
        self.found = like.new_empty(tiles.side**2 * count * o)

    def there(self, band: Tensor) -> Tensor:
        """A band (m, side·(r - 1) + places, …, c), whole in memory → its tiles' numbers, (places², m·r·q, c)."""
        side, places = self.tiles.side, self.tiles.places
        m, high, wide, c = band.shape
        r, q = ((extent - places) // side + 1 for extent in (high, wide))
        picture, row, pixel, one = band.stride()
        shape, strides = (places, places, m, r, q, c), (row, pixel, picture, side * row, side * pixel, one)
        pixels = _part(self.pixels, *shape).copy_(band.as_strided(shape, strides, band.storage_offset()))
        values = _part(self.values, places**2, m * r * q * c)
        torch.mm(self.way_there, pixels.view_as(values), out=values)
        return values.view(places**2, m * r * q, c)

    def back(self, there: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Their convolution with some channels' kernel (places², c, o), written to out (m, r, side, q, side, o)."""
        side, places = self.tiles.side, self.tiles.places
        m, r, _, q, _, o = out.shape
        products = torch.bmm(there, kernel, out=_part(self.products, places**2, m * r * q, o))
        found = _part(self.found, side**2, m * r * q * o)
        torch.mm(self.way_back, products.view(places**2, -1), out=found)
        pixels = found.view(side, side, m, r, q, o).permute(2, 3, 0, 4, 1, 5)
        if bias is None:
            out.copy_(pixels)
        else:
            torch.add(pixels, bias, out=out)


def _part(room: Tensor, *shape: int) -> Tensor:
    return room[: torch.Size(shape).numel()].view(shape)


def _kernels(phase: Phase, weight: Tensor, tiles: Tiles, channels: int) -> Iterator[tuple[Phase, slice, Tensor]]:
    """(o, c, k, k) → (places², c, at most `channels`), which channels these are, and the phase.

    What is yielded lies in the same memory each time.
    """
    o, c = weight.shape[:2]
    spread, by_place = tiles.spread.to(weight.device), weight.permute(2, 3, 0, 1).flatten(0, 1)  # (k², o, c)
    room, few = weight.new_empty(tiles.places**2, channels, c), max(1, CACHED // tiles.places**2 // c)
    for first in range(0, o, channels):
        which = slice(first, min(first + channels, o))
        found = room[:, : which.stop - first]
        for some, to in zip(by_place[:, which].split(few, 1), found.split(few, 1), strict=True):
            to.copy_(torch.mm(spread, some.flatten(1)).view_as(to))
        yield phase, which, found.transpose(1, 2)

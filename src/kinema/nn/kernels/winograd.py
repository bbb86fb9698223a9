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

WORK = 3 << 21  # numbers of tiles, there and back, at once: they then stay in a processor's cache
AT_ONCE = 256  # tiles at most, and
FEWEST = 64  # at least; or twice that, where each time kernels are made anew
COLUMNS = 1 << 13  # of these numbers that are taken there or back by one product of matrices
CACHED = 1 << 19  # numbers of transformed kernels that stay in a cache while they are made,
PIECE = 1 << 23  # that there are at a time, where they are made anew,
KEPT = 1 << 24  # and that are kept from one piece of the picture to the next

LEAST = 128  # channels, and
PIXELS = 256  # pixels, below which the way there and back costs more than it saves
MANY = 64  # tiles from which a kernel's longer way to the larger ones is made up for,
ENLARGED_MANY = 256  # and the way of an enlarged picture's four kernels

Window = tuple[int, int]  # how many rows and columns later than the pixel before the picture the first one begins


def worthwhile(x: Tensor, outputs: int) -> bool:
    """Whether a convolution of x to so many channels is faster this way, on a processor, in float32.

    It is for large ones where that was found out, which depends on how good convolutions are beside matrix products.
    """
    return _large(x, outputs) and THREE_BY_THREE.taken(x)


def worthwhile_doubled(x: Tensor, outputs: int) -> bool:
    """The same for a convolution of x enlarged to twice its sides."""
    return _count(x, THREE) >= ENLARGED_MANY and _large(x, outputs) and ENLARGED.taken(x)


def _large(x: Tensor, outputs: int) -> bool:
    c = x.shape[1]
    return kind_of(x) == "cpu" and x.dtype == torch.float32 and min(outputs, c) >= LEAST and x.numel() // c >= PIXELS


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
    n, _, h, w = x.shape
    weight = weight.detach()  # weights that are brought for an operation are brought for this one only
    out = x.new_empty(n, h, w, weight.shape[0])
    _convolve(x, {(0, 0): (weight, out)}, bias, tiles or fitting(x))
    return out.permute(0, 3, 1, 2)


def doubled_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of x (n, c, h, w) at twice its sides with weight (o, c, 3, 3) → (n, o, 2h, 2w), channels last.

    Between pixels of the enlarged picture lie kernels of 2×2: those whose window begins with the pixel before make even
    rows and columns, those whose window begins with the pixel itself odd ones.
    """
    n, _, h, w = x.shape
    weight = weight.detach()
    out = x.new_empty(n, h, 2, w, 2, weight.shape[0])
    phases = {(i, j): (kernel, out[:, :, i, :, j]) for (i, j), kernel in enlarged.folded(weight)}
    _convolve(x, phases, bias, THREE)
    return out.view(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def _convolve(x: Tensor, ways: Mapping[Window, tuple[Tensor, Tensor]], bias: Tensor | None, tiles: Tiles) -> None:
    """What kernels (o, c, k, k) make of x (n, c, h, w) with nothing around it, each written where it belongs.

    Args:
        ways: kernels and where their results go, (n, h, w, o), by where the first window lies: 0 for the one that
            begins a pixel before the picture, 1 for the one that begins with its first.
    """
    n, c, h, w = x.shape
    bias = None if bias is None else bias.detach()  # brought once, as weights are
    side, o = tiles.side, len(next(iter(ways.values()))[0])
    late = max(max(window) for window in ways)
    high, wide = (-(-(extent + late) // side) for extent in (h, w))  # tiles, the last ones perhaps over the edge
    numbers = tiles.places**2
    kept = numbers * o * c * len(ways) <= KEPT
    whole, fitting_in = n * high * wide, WORK // (numbers * (2 * c + o))
    at_once = whole if whole <= 3 * fitting_in else max(FEWEST if kept else 2 * FEWEST, fitting_in)
    at_once = min(AT_ONCE, at_once)
    pictures, rows = max(1, at_once // (high * wide)), min(high, max(1, at_once // wide))
    bands = [(first, top) for first in range(0, n, pictures) for top in range(0, high, rows)]
    kept = kept and len(bands) > 1
    channels = o if kept else min(o, max(1, PIECE // numbers // c))

    def kernels() -> Iterator[tuple[Window, slice, Tensor]]:
        for window, (weight, _) in ways.items():
            yield from _kernels(window, weight, tiles, channels)

    same = list(kernels()) if kept else None
    room = _Room(x, tiles, (min(n, pictures) * rows, wide), c, channels)
    pixels = x.permute(0, 2, 3, 1)
    for first, top in bands:
        some = slice(first, first + pictures)
        low, last = side * top - 1, side * min(top + rows, high) + tiles.places - side - 1
        band = pixels[some, max(low, 0) : min(last, h)]
        beyond = side * (wide - 1) + tiles.places - 1 - w
        there = room.there(F.pad(band, (0, 0, 1, beyond, max(-low, 0), max(last - h, 0))))
        for (i, j), which, kernel in same or kernels():
            here = ways[i, j][1][some, ..., which]
            room.back(there, kernel, None if bias is None else bias[which], here, (side * top - i, -j))


class _Room:
    """Room for the numbers of some tiles, used again for each piece."""

    def __init__(self, like: Tensor, tiles: Tiles, most: tuple[int, int], c: int, o: int):
        self.tiles, self.wide, count = tiles, most[1], most[0] * most[1]
        self.way_there, self.way_back = tiles.there.to(like.device), tiles.back.to(like.device)
        self.pixels = like.new_empty(tiles.places**2 * min(count * c, max(COLUMNS, self.wide * c)))
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
        tiled = band.as_strided(shape, strides, band.storage_offset())
        values = _part(self.values, places**2, m * r * q * c)
        pictures = max(1, COLUMNS // (r * q * c))
        rows = r if pictures > 1 else max(1, COLUMNS // (q * c))
        start = 0
        for some in (part for few in tiled.split(pictures, 2) for part in few.split(rows, 3)):
            pixels = _part(self.pixels, *some.shape).copy_(some).view(places**2, -1)
            torch.mm(self.way_there, pixels, out=values[:, start : start + pixels.shape[1]])
            start += pixels.shape[1]
        return values.view(places**2, m * r * q, c)

    def back(self, there: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor, at: tuple[int, int]) -> None:
        """Their convolution with some channels' kernel (places², c, o), written to out (m, h, w, o) from `at` on."""
        side, places, (m, h, w, o) = self.tiles.side, self.tiles.places, out.shape
        products = torch.bmm(there, kernel, out=_part(self.products, places**2, there.shape[1], o))
        found = _part(self.found, side**2, there.shape[1] * o)
        for some, to in zip(products.view(places**2, -1).split(COLUMNS, 1), found.split(COLUMNS, 1), strict=True):
            torch.mm(self.way_back, some, out=to)
        pixels = found.view(side, side, m, -1, self.wide, o)
        for i in range(side):
            rows, to_rows = _inside(at[0] + i, side, pixels.shape[3], h)
            for j in range(side):
                columns, to_columns = _inside(at[1] + j, side, self.wide, w)
                some, to = pixels[i, j, :, rows, columns], out[:, to_rows, to_columns]
                if bias is None:
                    to.copy_(some)
                else:
                    torch.add(some, bias, out=to)


def _inside(first: int, step: int, count: int, extent: int) -> tuple[slice, slice]:
    """Which of `count` places, `step` apart, lie inside, and where these are."""
    skipped = max(0, -(first // step))
    left = max(skipped, min(count, -(-(extent - first) // step)))
    start = first + skipped * step
    return slice(skipped, left), slice(start, start + step * (left - skipped), step)


def _part(room: Tensor, *shape: int) -> Tensor:
    return room[: torch.Size(shape).numel()].view(shape)


def _kernels(window: Window, weight: Tensor, tiles: Tiles, channels: int) -> Iterator[tuple[Window, slice, Tensor]]:
    """(o, c, k, k) → (places², c, at most `channels`), which channels these are, and the window.

    What is yielded lies in the same memory each time.
    """
    o, c = weight.shape[:2]
    spread, by_place = tiles.spread.to(weight.device), weight.permute(2, 3, 0, 1).flatten(0, 1)  # (k², o, c)
    room, few = weight.new_empty(tiles.places**2, channels, c), max(1, CACHED // tiles.places**2 // c)
    for first in range(0, o, channels):
        which = slice(first, min(first + channels, o))
        found = room[:, : which.stop - first]
        for some, to in zip(by_place[:, which].split(few, 1), found.split(few, 1), strict=True):
            torch.mm(spread, some.flatten(1), out=to.view(tiles.places**2, -1))
        yield window, which, found.transpose(1, 2)

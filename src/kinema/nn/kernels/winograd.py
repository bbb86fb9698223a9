"""3×3 convolutions in 4/9 of the multiplications: F(2×2, 3×3) of Winograd (Lavin and Gray 2016, section 4.1).

A tile of 4×4 pixels and a kernel are both taken to where convolution is a product of numbers, one for each of 16
places; 2×2 pixels come back. Over channels that is 16 matrix products instead of the 36 a direct convolution needs.
The sums on the way there and back hold no factor but ½, so nothing is lost but rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...place import kind_of
from .choice import Choice, Ways, example

TILES = 256  # at once: their 16 numbers a channel, there and back, then stay in a processor's cache
CACHED = 1 << 15  # products of channel counts whose transformed kernels do
PIECE = 1 << 18  # and of those made at a time, where each is used once only

LEAST = 256  # channels, and pixels, below which the way there and back costs more than it saves
LARGEST = 1 << 21  # products of channel counts up to which a kernel that is used more than once is kept whole


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution of x is faster this way: a large one, in float32, on a processor that was found to be.

    That depends on how good the processor's convolutions are beside its matrix products.
    """
    o, c = weight.shape[:2]
    h, w = x.shape[2:]
    pixels = x.numel() // c
    return (
        kind_of(x) == "cpu"
        and x.dtype == torch.float32
        and min(o, c) >= LEAST
        and pixels >= LEAST
        and (o * c <= LARGEST or pixels // (h * w) * -(-h // 2) * -(-w // 2) <= TILES)
        and CHOICE.taken(x)
    )


def _sample(device: torch.device, dtype: torch.dtype) -> Ways:
    x, weight = example(device, dtype, 8, 32, 32, 320), example(device, dtype, 320, 3, 3, 320) / 54
    return lambda: F.conv2d(x, weight, None, padding=1), lambda: conv3x3(x, weight, None)


CHOICE = Choice("winograd", "large 3×3 convolutions", _sample)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of x (n, c, h, w) with weight (o, c, 3, 3), stride 1, padding 1 → (n, o, h, w), channels last."""
    n, c, h, w = x.shape
    o, high, wide = len(weight), (h + 1) // 2, (w + 1) // 2  # tiles, the last ones perhaps over the edge
    out = x.new_empty(n, high, 2, wide, 2, o)
    pictures, rows = max(1, TILES // (high * wide)), min(high, max(1, TILES // wide))
    bands = [(first, top) for first in range(0, n, pictures) for top in range(0, high, rows)]
    channels = o if len(bands) > 1 else max(1, PIECE // c)
    kernels = _kernels(weight, channels)
    again = kernels if len(bands) == 1 else list(kernels)
    scratch = _Scratch(x, min(n, pictures) * rows, wide, c, min(o, channels))
    pixels = x.permute(0, 2, 3, 1)
    for first, top in bands:
        some = pixels[first : first + pictures]
        bottom = min(top + rows, high)
        low, last = 2 * top - 1, 2 * bottom + 1
        band = some[:, max(low, 0) : min(last, h)]
        band = F.pad(band, (0, 0, 1, 2 * wide - w + 1, max(-low, 0), max(last - h, 0)))
        there = scratch.there(band)
        for which, kernel in again:
            here = out[first : first + pictures, top:bottom, ..., which]
            scratch.back(there, kernel, None if bias is None else bias[which], here)
    return out.view(n, 2 * high, 2 * wide, o)[:, :h, :w].permute(0, 3, 1, 2)


class _Scratch:
    """Room for the numbers of some tiles, used again for each piece."""

    def __init__(self, like: Tensor, rows: int, wide: int, c: int, o: int):
        self.half = like.new_empty(4 * rows * (2 * wide + 2) * c)
        self.whole = like.new_empty(16 * rows * wide * c)
        self.product = like.new_empty(16 * rows * wide * o)
        self.halfway = like.new_empty(8 * rows * wide * o)

    def there(self, band: Tensor) -> Tensor:
        """A padded band (m, 2·r + 2, 2·q + 2, c) → its tiles' 16 numbers, (16, m·r·q, c)."""
        m, high, wide, c = band.shape
        r, q = high // 2 - 1, wide // 2 - 1
        half = _room(self.half, 4, m, r, wide, c)
        whole = _room(self.whole, 4, 4, m, r, q, c)
        _apart([band[:, i : i + 2 * r - 1 : 2] for i in range(4)], half)
        for i in range(4):
            _apart([half[i, :, :, j : j + 2 * q - 1 : 2] for j in range(4)], whole[i])
        return whole.view(16, m * r * q, c)

    def back(self, there: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """Their convolution with some channels' kernel (16, c, o), written to out (m, r, 2, q, 2, o)."""
        m, r, _, q, _, o = out.shape
        product = _room(self.product, 16, m * r * q, o)
        torch.bmm(there, kernel, out=product)
        if bias is not None:
            product[5] += bias  # this place goes to all four pixels, with no other factor than 1
        halfway = _room(self.halfway, 2, 4, m, r, q, o)
        _together(product.view(4, 4, m, r, q, o).unbind(), halfway)
        for i in range(2):
            _together(halfway[i].unbind(), out[:, :, i].permute(3, 0, 1, 2, 4))


def _room(room: Tensor, *shape: int) -> Tensor:
    return room[: torch.Size(shape).numel()].view(shape)


def _apart(four: Sequence[Tensor], out: Tensor) -> None:
    """Four neighbours → four numbers: Bᵀ of the paper."""
    a, b, c, d = four
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])


def _together(four: Sequence[Tensor], out: Tensor) -> None:
    """Four numbers → two neighbours: Aᵀ of the paper."""
    a, b, c, d = four
    torch.add(b, c, out=out[0]).add_(a)
    torch.sub(b, c, out=out[1]).sub_(d)


def _kernels(weight: Tensor, channels: int) -> Iterator[tuple[slice, Tensor]]:
    """(o, c, 3, 3) → (16, c, at most `channels`), G of the paper along both sides, and which channels these are.

    What is yielded lies in the same memory each time.
    """
    o, c = weight.shape[:2]
    channels = min(channels, o)
    by_place = weight.permute(2, 3, 0, 1)
    room, few = weight.new_empty(4, 4, channels, c), max(1, CACHED // c)
    rows = weight.new_empty(4, 3, min(few, channels), c)
    for first in range(0, o, channels):
        which = slice(first, min(first + channels, o))
        kernel, found = by_place[:, :, which], room[:, :, : which.stop - first]
        for i in range(0, found.shape[2], few):
            some, to = kernel[:, :, i : i + few], found[:, :, i : i + few]
            half = rows[:, :, : some.shape[2]]
            _spread(some, half)
            _spread(half.transpose(0, 1), to.transpose(0, 1))
        yield which, found.flatten(0, 1).transpose(1, 2)


def _spread(three: Tensor, out: Tensor) -> None:
    """Three numbers → four: G of the paper."""
    torch.add(three[0], three[2], out=out[1]).add_(three[1]).mul_(0.5)
    torch.sub(out[1], three[1], out=out[2])
    out[0].copy_(three[0])
    out[3].copy_(three[2])

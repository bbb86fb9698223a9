"""3×3 convolutions of pictures enlarged to twice their size, in 4/9 of the arithmetic.

In an enlarged picture neighbours are often one pixel, so a 3×3 kernel sees only 2×2 different ones: which, depends on
whether a row and a column are even or odd. That makes four small kernels, each made of sums of weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ...choice import Choice, Ways, example

LEAST = 512  # pixels from which it pays for folding the kernel


def doubled_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with weight (o, c, 3, 3) of x (n, c, h, w) enlarged → (n, o, 2·h, 2·w)."""
    n, _, h, w = x.shape
    out = x.new_empty(n, h, 2, w, 2, len(weight))
    padded = F.pad(x, (1, 1, 1, 1))
    for (i, j), kernel in folded(weight):
        y = F.conv2d(padded[:, :, i : i + h + 1, j : j + w + 1], kernel, bias)
        out[:, :, i, :, j] = y.permute(0, 2, 3, 1)
    return out.view(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same as two operations."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def folded(weight: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """(o, c, 3, 3) → the four kernels (o, c, 2, 2) and whether they are odd rows' and odd columns'."""
    exact = torch.promote_types(weight.dtype, torch.float32)  # sums of weights are rounded once
    for i, rows in enumerate(_halves(weight.to(exact), 2)):
        for j, kernel in enumerate(_halves(rows, 3)):
            yield (i, j), kernel.to(weight.dtype)


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A kernel of three rows (or columns) as those of two that even and odd rows see."""
    first, middle, last = kernel.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)


def _sample(device: torch.device, dtype: torch.dtype) -> Ways:
    x, weight = example(device, dtype, 4, 16, 16, 192), example(device, dtype, 192, 3, 3, 192) / 41
    return lambda: plain(x, weight, None), lambda: doubled_conv(x, weight, None)


CHOICE = Choice("enlarged", "convolutions of doubled pictures", _sample, least=1.0)

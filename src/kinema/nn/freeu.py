"""FreeU (Si et al. 2023): on the way up, features count for more and the slow waves of skips for less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FreeU:
    """What it changes where x and its skip meet, at the first (s1, b1) and second (s2, b2) stage up."""

    s1: float
    s2: float
    b1: float
    b2: float

    def __call__(self, stage: int, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """(n, c, h, w) each."""
        if stage > 1:
            return x, skip
        louder, quieter = ((self.b1, self.s1), (self.b2, self.s2))[stage]
        half = x.shape[1] // 2
        return torch.cat([x[:, :half] * louder, x[:, half:]], 1), slow_waves(skip, quieter)


def slow_waves(x: Tensor, scale: float) -> Tensor:
    """Multiplies the four slowest waves of (n, c, h, w), those next to the centre of its spectrum."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    spectrum[..., max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1] *= scale
    back = torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=(-2, -1)), dim=(-2, -1)).real
    return back.to(x.dtype).contiguous(memory_format=torch.channels_last)

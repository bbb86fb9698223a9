"""Group norms whose statistics are gathered piece by piece, so that what is normed need never be in one place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..place import kind_of
from .line import Line


class Moments:
    """The mean and variance of each channel over everything shown, gathered in float32 or wider.

    Each piece is centred on its own mean before it is squared, and pieces are merged as in Chan et al. 1979, so a mean
    far from zero costs no digits.
    """

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._means: list[Tensor] = []  # (c,) each
        self._squares: list[Tensor] = []  # (c,) each: summed squares about the piece's mean

    def show(self, tokens: Tensor) -> None:
        """Takes (n, c) into account."""
        for piece in tokens.split(max(1, _piece(tokens) // tokens.shape[1])):
            piece = piece.to(torch.promote_types(piece.dtype, torch.float32))
            mean = piece.mean(0)
            self._counts.append(len(piece))
            self._means.append(mean)
            self._squares.append((piece - mean).square_().sum(0))

    def of_all(self, line: Line | None) -> Moments:
        """What all in a line were shown; without one, what this was."""
        if line is None:
            return self
        means, squares = torch.stack(self._means), torch.stack(self._squares)
        counts = torch.tensor(self._counts, dtype=means.dtype, device=means.device)[:, None]
        mean = (counts / counts.sum() * means).sum(0)
        about = (squares + counts * (means - mean).square()).sum(0)
        merged = Moments()
        for said in line.gather(torch.cat([counts.sum(0), mean, about]), mean):
            if said is not None:
                merged._counts.append(round(said[0].item()))
                merged._means.append(said[1 : 1 + len(mean)])
                merged._squares.append(said[1 + len(mean) :])
        return merged

    def norm(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """The group norm of what was shown as scale·x + shift, (c,) each, as wide as they were gathered."""
        means, squares = torch.stack(self._means), torch.stack(self._squares)
        counts = torch.tensor(self._counts, dtype=means.dtype, device=means.device)[:, None]
        share = counts / sum(self._counts)
        channel = (share * means).sum(0).unflatten(0, (norm.num_groups, -1))
        group = channel.mean(1)
        about = (means - group.repeat_interleave(channel.shape[1])).square()
        variance = (share * (squares / counts + about)).sum(0).unflatten(0, (norm.num_groups, -1)).mean(1)
        spread = (variance + norm.eps).rsqrt().repeat_interleave(channel.shape[1])
        scale = spread * norm.weight.to(spread.dtype)
        return scale, norm.bias.to(spread.dtype) - group.repeat_interleave(channel.shape[1]) * scale


def _piece(x: Tensor) -> int:
    """Elements at a time: what stays in a processor's cache, or keeps an accelerator busy."""
    return 1 << 17 if kind_of(x) == "cpu" else 1 << 24


def silu_of(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """SiLU of scale·x + shift, (…, c) → the same; scale and shift (c,) may be wider, what they make is rounded once."""
    if x.dtype == scale.dtype:
        return F.silu(torch.addcmul(shift, x, scale), inplace=True)
    return F.silu(torch.addcmul(shift, x.to(scale.dtype), scale), inplace=True).to(x.dtype)

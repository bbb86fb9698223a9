"""Tokens that are alike attend as one (Bolya and Hoffman 2023): less arithmetic where a picture says little new.

A quarter of a frame's tokens, one of every 2×2, stay; the others that are most like one of these are joined to it. The
joined ones count for as many as they are, so equal tokens are joined without error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST = 0.75  # of the tokens: those that do not stay


@dataclass(frozen=True)
class Merging:
    """In which self-attentions, of frames this large, what share of the tokens is joined to others."""

    of: frozenset[nn.Module]
    share: float  # of all tokens, 0 to MOST
    size: tuple[int, int]  # (h, w) in tokens
    corner: int = 0  # which of every 2×2 stays, 0 to 3

    def among(self, others: Mapping[nn.Module, nn.Module]) -> Merging:
        """The same for what stands for these attentions elsewhere."""
        return replace(self, of=frozenset(others[module] for module in self.of if module in others))

    def told(self, x: Tensor, attend: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What tokens x (rows, h·w, c) find, alike ones together.

        Args:
            attend: (tokens (rows, m, c), the logarithm of how much each counts (rows, 1, 1, m)) → (rows, m, c').
        """
        places, few = self.places(x), x.shape[1] - self.joined
        ones = torch.ones(*x.shape[:2], 1, device=x.device)
        counts = ones.new_zeros(len(x), few, 1).scatter_add_(1, places[..., None], ones)
        sums = ones.new_zeros(len(x), few, x.shape[2]).scatter_add_(1, _along(places, x), x.float())
        found = attend(sums.div_(counts).to(x.dtype), counts.log().to(x.dtype).view(len(x), 1, 1, few))
        return found.gather(1, _along(places, found))

    @property
    def alike(self) -> Hashable:
        """What memory and arithmetic depend on."""
        return self.of, self.share, self.size, len(self._corners(None)[0]), self.joined

    @property
    def joined(self) -> int:
        """How many tokens are joined to others."""
        return min(int(self.share * math.prod(self.size)), self._others(None).numel())

    def places(self, x: Tensor) -> Tensor:
        """Tokens (rows, n, c) → where each goes, (rows, n), counted from 0 to n - 1 less those joined."""
        stay, others = self._corners(x.device)[0], self._others(x.device)
        unit = F.normalize(x, dim=-1)
        likeness, nearest = (unit[:, others] @ unit[:, stay].mT).max(-1)
        order = likeness.argsort(dim=-1, descending=True, stable=True)
        join, alone = order[:, : self.joined], order[:, self.joined :]
        places = torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
        places[:, stay] = torch.arange(len(stay), device=x.device)
        apart = torch.empty_like(nearest)
        apart.scatter_(1, join, nearest.gather(1, join))
        apart.scatter_(1, alone, torch.arange(len(stay), len(stay) + alone.shape[1], device=x.device).expand_as(alone))
        places[:, others] = apart
        return places

    def _corners(self, device: torch.device | None) -> list[Tensor]:
        """The numbers of the tokens at each corner of their 2×2, those that stay first."""
        h, w = self.size
        numbers = torch.arange(h * w, device=device).view(h, w)
        right, down = self.corner % 2 * (w > 1), self.corner // 2 % 2 * (h > 1)
        return [numbers[y::2, x::2].flatten() for y in (down, 1 - down) for x in (right, 1 - right)]

    def _others(self, device: torch.device | None) -> Tensor:
        return torch.cat(self._corners(device)[1:])


def _along(places: Tensor, x: Tensor) -> Tensor:
    return places[..., None].expand(*places.shape, x.shape[2])

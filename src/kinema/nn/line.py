"""A clip whose frames lie in several places, a stretch in each, and what operations over time need of the others."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Line(Protocol):
    """Those who have a stretch of a clip each, in playing order; all of them do the same work."""

    def edges(self, first: Tensor, last: Tensor, /) -> tuple[Tensor | None, Tensor | None]:
        """What lies before one's first frame and after one's last; None at the clip's ends."""
        ...

    def gather(self, mine: Tensor | None, like: Tensor, /) -> list[Tensor | None]:
        """What each has, flat, in their order."""
        ...


class Ends(NamedTuple):
    """The frames next to a stretch, (n, c) each; None where the clip ends, as it does on both sides of a whole one."""

    before: Tensor | None = None
    after: Tensor | None = None

    def around(self, x: Tensor, start: int) -> Tensor:
        """Some pixels of the stretch, (f, m, c) from pixel `start` on, with the same of the frames next to it."""
        before, after = (() if e is None else (e[None, start : start + x.shape[1]],) for e in self)
        return torch.cat([*before, x, *after]) if before or after else x

    def within(self, x: Tensor) -> Tensor:
        """The same without those frames."""
        return x[self.before is not None : len(x) - (self.after is not None)]

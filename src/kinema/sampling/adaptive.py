"""Deep features reused for as long as what the outermost rows see moves little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..layout import take_rows
from .sparing import C, Combine, Layered, Measured, Running, S, Spent


@dataclass
class Known:
    """What is remembered of clips that are denoised together, of each on its own."""

    seen: Tensor | None = None  # (rows, b, values) of the step before: a quarter of the pixels of what outer rows saw
    moved: Tensor | None = None  # (b,): how much of it has changed since a clip's last whole step, added up
    since: list[int] = field(default_factory=list)  # the last whole step of each clip
    deep: Tensor | None = None  # (branches·b·f, c, h, w)

    def due(self, seen: Tensor, frames: int, clips: int, step: int, threshold: float, every: int | None) -> list[bool]:
        """Which of the clips need a whole step, where their outer rows see this, (b·f or branches·b·f, c, h, w)."""
        now = seen[..., ::2, ::2].reshape(len(seen) // (clips * frames), clips, -1)
        if self.seen is None or self.moved is None:
            self.moved, self.since, due = now.new_zeros(clips, dtype=torch.float32), [step] * clips, [True] * clips
        else:
            change = (now - self.seen).abs().mean((0, 2), dtype=torch.float32)
            self.moved += change / self.seen.abs().mean((0, 2), dtype=torch.float32).clamp_min(1e-12)
            old = [every is not None and step - since >= every for since in self.since]
            sums = [math.inf] * clips if now.is_meta else self.moved.tolist()  # nobody knows: plans count the most
            due = [not moved <= threshold or late for moved, late in zip(sums, old, strict=True)]
        self.seen = now
        self.moved = self.moved.masked_fill(torch.tensor(due, device=self.moved.device), 0.0)
        self.since = [step if d else since for d, since in zip(due, self.since, strict=True)]
        return due


class AdaptiveReuse(Measured[C, S]):
    """Runs the inner rows of a U-Net only where what the outermost saw has moved since they last did.

    What the first rows make of the latents is compared with the step before; the changes, as shares of its size, are
    added up, and all rows run where the sum passes a threshold (the rule of TeaCache, Liu et al. 2024, section 3.3,
    without its fitted curve, on what DeepCache works out anyway). Each clip of a batch goes by itself.
    """

    denoiser: Layered

    def __init__(
        self,
        denoiser: Layered,
        guidance: Combine,
        spent: Spent,
        *,
        threshold: float,
        every: int | None = None,
        fresh: int = 1,
    ):
        """
        Args:
            threshold: by how much of its size what the first rows make may change, added up, between whole steps.
            every: all rows run at least at every so many steps.
            fresh: rows at each end that always run.
        """
        super().__init__(denoiser, guidance, spent)
        self.threshold, self.every, self.fresh = threshold, every, fresh

    def __call__(self, latents: Tensor, signal: Running[S]) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        clips, frames = latents.shape[:2]
        begun = self.denoiser.begin(latents, signal.whole, self.fresh)
        known: Known = signal.memory.setdefault(signal.part, Known())
        due = known.due(begun[-1], frames, clips, signal.step, self.threshold, self.every)
        self.spent.steps, self.spent.cheap = self.spent.steps + clips, self.spent.cheap + clips - sum(due)
        measured = known.deep is not None and any(due) and self.to_measure(signal)

        made, near, far = [], [], []
        rows = max(clips, signal.rows)
        for start, stop, whole in pieces(due, rows):
            here = Piece.of(start, stop, latents, signal.whole, begun, known.deep, rows)
            if whole:
                if measured:
                    near.append(here.above(self.denoiser, self.fresh))
                if here.deep is known.deep:
                    known.deep = here.deep = None  # a whole step needs the room
                predicted, deep = self.denoiser.denoise_and_keep(here.latents, here.signal, self.fresh, here.begun)
                known.deep = _put(known.deep, deep, start, frames)
                far += [predicted] if measured else []
            else:
                predicted = here.above(self.denoiser, self.fresh)
            made.append(predicted)
        if measured:
            self.note(torch.cat(near), torch.cat(far), signal.step)
        return torch.cat(made) if len(made) > 1 else made[0]


@dataclass
class Piece:
    """Clips that are answered alike, of one guidance branch or of all."""

    latents: Tensor
    signal: Any
    begun: Sequence[Tensor]
    deep: Tensor | None

    @classmethod
    def of(
        cls,
        start: int,
        stop: int,
        latents: Tensor,
        signal: Any,
        begun: Sequence[Tensor],
        deep: Tensor | None,
        rows: int,
    ) -> Piece:
        """These of all rows; branches have in common what they can where it is all."""
        if stop - start == rows:
            return cls(latents, signal, begun, deep)
        clips, frames = latents.shape[:2]
        told = signal.of_rows(start, stop, clips)
        features = [take_rows(x, start, stop, clips, frames) for x in begun]
        old = None if deep is None else take_rows(deep, start, stop, clips, frames)
        return cls(take_rows(latents, start, stop, clips), told, features, old)

    def above(self, denoiser: Layered, fresh: int) -> Tensor:
        """What the outermost rows predict."""
        assert self.deep is not None
        return denoiser.denoise_above(self.latents, self.signal, self.deep, fresh, self.begun)


def pieces(due: Sequence[bool], rows: int) -> Iterator[tuple[int, int, bool]]:
    """Rows (from, to) of clips that are answered alike, whole or not, as few as there can be, in order.

    Args:
        due: whether each clip is answered whole.
        rows: of all guidance branches, each of which has as many as there are clips.
    """
    if len(set(due)) == 1:
        yield 0, rows, due[0]
        return
    for branch in range(0, rows, len(due)):
        start = branch
        for whole, same in groupby(due):
            stop = start + len(list(same))
            yield start, stop, whole
            start = stop


def _put(known: Tensor | None, deep: Tensor, row: int, frames: int) -> Tensor:
    """Deep features of some rows, from this one on, put in the place of what was known of them."""
    if known is None or len(known) == len(deep):
        return deep
    known[row * frames : row * frames + len(deep)] = deep
    return known

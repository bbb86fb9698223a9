"""What a denoiser is told besides the latents, split by how often it changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..layout import one_branch, take_frames, take_rows
from ..products import fast
from .attention import CrossAttention, Memory
from .by_frame import FrameWeights, parts_of
from .merging import Merging

Scales = tuple[float, ...]  # one for each frame

if TYPE_CHECKING:
    from .free_noise import FrameWindows

Merge = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]  # changes what meets at an up stage: (stage, x, skip)


@dataclass(frozen=True)
class Signal:
    """What every block of a denoiser sees at one step."""

    frames: int
    time: Tensor  # (1 or b, t): the noise level and the clip's other numbers, embedded and activated
    memory: Mapping[nn.Module, Memory]  # what each cross-attention knows of the context
    extra: Tensor | None = None  # (b, f, c', h, w): channels that ride along with the latents
    places: Mapping[nn.Module, Tensor] = field(default_factory=dict)  # (f, 1, c): how a transformer tells frames apart
    # how much motion modules count for in each frame: "" the network's own, fully if not named; further ones by name
    motion: Mapping[str, Scales] = field(default_factory=dict)
    weights: FrameWeights | None = None  # of blocks and layers whose weights differ from frame to frame
    # what networks beside add to what a U-Net keeps for the way back, (branches·b·f, c, h, w) each, and to its middle
    residuals: Sequence[Tensor | None] = ()
    hint: Tensor | None = None  # (1 or b, f, c, h, w): what pictures add to the first features of a network beside

    identity: frozenset[nn.Module] = frozenset()  # self-attentions whose tokens see themselves alone
    to_first: bool = False  # whether the self-attentions of every frame look at the clip's first frame
    windows: FrameWindows | None = None  # in which blocks over time see longer clips (FreeNoise)
    merge: Merge | None = None  # what changes where features meet their skips (FreeU), instead of the network's own
    merging: Merging | None = None  # in which self-attentions tokens that are alike attend as one
    motion_over_clip: bool = True  # whether the norm before motion modules takes its statistics over the whole clip
    over_clip: bool = False  # and whether those of all else do

    def at_frames(self, frames: Sequence[int]) -> Signal:
        """What it says of these frames: what rides along is theirs, but they are told apart as a clip of their own."""
        return replace(
            self,
            frames=len(frames),
            extra=None if self.extra is None else take_frames(self.extra, frames),
            places={module: vectors[: len(frames)] for module, vectors in self.places.items()},
            memory={module: memory.at_frames(frames, self.frames) for module, memory in self.memory.items()},
            motion={name: tuple(scales[i] for i in frames) for name, scales in self.motion.items()},
            weights=None if self.weights is None else self.weights.at_frames(frames),
            hint=None if self.hint is None else take_frames(self.hint, frames),
        )

    @cached_property
    def parts(self) -> list[tuple[int, list[int], Signal]]:
        """Where weights differ by frame: each set in force, its frames, and what its blocks are told of these."""
        return parts_of(self)

    def of_last(self, clips: int) -> Signal:
        """What it says of the last clips: of the conditional branch, where there is another."""
        return self.of_branch(clips, -1)

    def of_branch(self, clips: int, branch: int) -> Signal:
        """What it says of one guidance branch of so many clips."""
        return replace(
            self,
            time=one_branch(self.time, clips, branch),
            extra=one_branch(self.extra, clips, branch),
            memory={module: memory.of_branch(clips, self.frames, branch) for module, memory in self.memory.items()},
            residuals=[one_branch(x, clips * self.frames, branch) for x in self.residuals],
            hint=one_branch(self.hint, clips, branch),
        )

    @property
    def rows(self) -> int:
        """Of how many clips it tells, those of every guidance branch counted."""
        known = [len(self.time), 0 if self.extra is None else len(self.extra)]
        return max(known + [memory.rows(self.frames) for memory in self.memory.values()])

    def of_rows(self, start: int, stop: int, clips: int) -> Signal:
        """What it says of these of its rows, of which every guidance branch has `clips`."""

        def some(x: Tensor | None, each: int = 1) -> Tensor | None:
            return None if x is None else take_rows(x, start, stop, clips, each)

        return replace(
            self,
            time=take_rows(self.time, start, stop, clips),
            extra=some(self.extra),
            memory={m: memory.of_rows(start, stop, clips, self.frames) for m, memory in self.memory.items()},
            residuals=[some(x, self.frames) for x in self.residuals],
            hint=some(self.hint),
        )


@dataclass(frozen=True)
class Prepared:
    """The signals of every step, worked out before the first: only `time` differs between them."""

    frames: int
    time: Tensor  # (steps, 1 or b, t)
    memory: Mapping[nn.Module, Memory]
    extra: Tensor | None = None
    places: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    motion: Mapping[str, Scales] = field(default_factory=dict)
    weights: FrameWeights | None = None
    hint: Tensor | None = None
    to_first: bool = False
    windows: FrameWindows | None = None
    merge: Merge | None = None
    motion_over_clip: bool = True
    over_clip: bool = False

    def at(self, step: int) -> Signal:
        return Signal(**{**vars(self), "time": self.time[step]})


def remember(model: nn.Module, context: Tensor, weights: Tensor | None = None) -> dict[nn.Module, Memory]:
    """The memory of every cross-attention in the model, for a context (b, k, c) whose tokens count as `weights` say.

    A context (b, f, k, c) has tokens of its own for every frame.
    """
    with fast(context):
        return {m: m.remember(context, weights) for m in model.modules() if isinstance(m, CrossAttention)}


def sinusoid(x: Tensor, width: int) -> Tensor:
    """(…) numbers → (…, width) features: cosines, then sines, of ever slower waves (Ho et al. 2020, appendix B)."""
    half = width // 2
    speed = 10_000 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = x[..., None].float() * speed
    return torch.cat([angle.cos(), angle.sin()], dim=-1)

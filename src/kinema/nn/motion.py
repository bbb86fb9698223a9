"""Motion modules: what lets each pixel of an image model look at itself in the other frames (Guo et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..layout import from_strips, from_tokens, to_strips, to_tokens
from ..place import sent
from .attention import Norm, add
from .blocks import SpatialTransformer
from .by_frame import by_frame
from .free_noise import OverTime
from .signal import Scales, Signal
from .spatiotemporal import AttentionOverTime

ALL: Scales = (1.0,)  # every frame fully


class Positions(nn.Module):
    """A fixed table that tells frames apart; checkpoints store it."""

    pe: Tensor

    def __init__(self, channels: int, length: int):
        super().__init__()
        speed = 10_000 ** (-torch.arange(0, channels, 2) / channels)
        angle = torch.arange(length)[:, None] * speed
        self.register_buffer("pe", torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None, :, :channels])


class MotionBlock(OverTime):
    """Two attentions over time, each told the places of frames, and a feed-forward; tokens are (b·f, n, c)."""

    def __init__(self, channels: int, heads: int, length: int):
        super().__init__(channels, heads)
        self.attn1 = AttentionOverTime(channels, heads, channels)
        self.attn2 = AttentionOverTime(channels, heads, channels)
        self.pos_embed = Positions(channels, length)

    def attend(self, x: Tensor, signal: Signal) -> Tensor:
        x = self.attn1.onto(x, self.placed(self.norm1, signal.frames), signal)
        return self.attn2.onto(x, self.placed(self.norm2, signal.frames), signal)

    def placed(self, norm: Norm, frames: int) -> Norm:
        """The norm with the places of frames added to it, over (…, f, c)."""
        places = self.pos_embed.pe[:, :frames]
        return lambda x: norm(x) + places


class SingleMotionBlock(MotionBlock):
    """The same with one attention."""

    def __init__(self, channels: int, heads: int, length: int):
        super().__init__(channels, heads, length)
        del self.norm2, self.attn2

    def attend(self, x: Tensor, signal: Signal) -> Tensor:
        return self.attn1.onto(x, self.placed(self.norm1, signal.frames), signal)


class MotionModule(SpatialTransformer):
    """What a motion adapter puts behind a row of an image model. A new one changes nothing."""

    in_frames = False

    def __init__(self, channels: int, heads: int, groups: int, length: int, depth: int = 1):
        self.length = length
        super().__init__(channels, heads, None, groups, depth)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.others = nn.ModuleDict()  # further ones at the same place, by name

    def block(self, width: int, heads: int, context: int | None) -> nn.Module:
        return MotionBlock(width, heads, self.length)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        """x + Σ m·(what a module changes of x), m each module's number of the frame; one that is all 0 is left out."""
        whole = x
        for name, module in self.here():
            scales = signal.motion.get(name, ALL if name == "" else ())
            if any(scales):
                whole = add(whole, _times(module.change(x, signal), scales))
        return whole

    def here(self) -> Iterator[tuple[str, MotionModule]]:
        """All modules at this place, by name."""
        yield "", self
        for name, other in self.others.items():
            assert isinstance(other, MotionModule)
            yield name, other

    def change(self, x: Tensor, signal: Signal) -> Tensor:
        """What the module alone adds to x."""
        y = by_frame(self.proj_in, to_tokens(self.normed(x, signal)), signal)
        for block in self.transformer_blocks:
            y = block(y, signal)
        return from_tokens(by_frame(self.proj_out, y, signal), *x.shape[2:])

    def normed(self, x: Tensor, signal: Signal) -> Tensor:
        """The group norm, its statistics over the clip or, as the authors trained modules, by frame."""
        if not signal.motion_over_clip:
            return self.norm(x)
        return from_strips(self.norm(to_strips(x, signal.frames)), *x.shape[2:])


def _times(change: Tensor, scales: Scales) -> Tensor:
    """change (b·f, c, h, w), each frame times its number."""
    if scales is ALL:
        return change
    numbers = sent(torch.tensor(scales, dtype=change.dtype), change.device)
    return change * numbers.repeat(len(change) // len(scales))[:, None, None, None]

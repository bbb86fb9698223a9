"""Blocks that see a clip in space, then in time, and blend the two in a learned proportion."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..layout import across_space, across_time, from_strips, from_tokens, per_frame, to_strips, to_tokens
from . import ops
from .attention import Attention, FeedForward, Norm, Project, TransformerBlock, add
from .blocks import Embedding, ResBlock, SpatialTransformer
from .by_frame import by_frame
from .signal import Signal, sinusoid


class Mixer(nn.Module):
    """A learned blend of what was seen in space and what was seen in time.

    Checkpoints hold one number, whose sigmoid is the share of space, or with `of_time` the share of time.
    """

    def __init__(self, start: float = 0.5, of_time: bool = False):
        super().__init__()
        self.of_time = of_time
        self.mix_factor = nn.Parameter(torch.tensor([start]))

    def share(self) -> Tensor:
        """(): how much time counts for, from 0 to 1."""
        side = self.mix_factor.sigmoid()[0]
        return side if self.of_time else 1 - side

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """The blend of two tensors of one shape; the second one's memory is used again."""
        rest = 1 - self.share()
        return temporal.lerp(spatial, rest) if torch.is_grad_enabled() else temporal.lerp_(spatial, rest)

    def add(self, x: Tensor, change: Tensor) -> Tensor:
        """The blend of x and x + change; the memory of `change` is used again."""
        share = self.share()
        return x + change * share if torch.is_grad_enabled() else change.mul_(share).add_(x)


class TemporalResBlock(nn.Module):
    """Two convolutions over time around a shortcut, told the noise level between them where `time` is given.

    Norms take their statistics over the whole clip.
    """

    def __init__(self, channels: int, time: int | None = None, groups: int = 32, eps: float = 1e-5):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, channels, eps), _over_time(channels)
        self.norm2, self.conv2 = nn.GroupNorm(groups, channels, eps), _over_time(channels)
        if time:
            self.time_emb_proj = nn.Linear(time, channels)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        return add(x, self.change(x, signal.frames, signal.time))

    def change(self, x: Tensor, frames: int, time: Tensor | None = None) -> Tensor:
        """What the block adds to x, (b·f, c, h, w) → the same; time (1 or b, t) if it is told the noise level."""
        y = ops.conv_over_time(ops.norm_silu(to_strips(x, frames), self.norm1), self.conv1)
        if time is not None:
            y = y.add_(per_frame(self.time_emb_proj(time), y))
        y = ops.conv_over_time(ops.norm_silu(y, self.norm2), self.conv2)
        return from_strips(y, *x.shape[2:])


def _over_time(channels: int) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))


class SpatioTemporalResBlock(nn.Module):
    """A residual block in space, then one in time, blended."""

    def __init__(self, channels: int, out: int, time: int, groups: int = 32, eps: float = 1e-5):
        super().__init__()
        self.spatial_res_block = ResBlock(channels, out, time, groups, eps)
        self.temporal_res_block = TemporalResBlock(out, time, groups, eps)
        self.time_mixer = Mixer()

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        x = self.spatial_res_block(x, signal)
        return self.time_mixer.add(x, self.temporal_res_block.change(x, signal.frames, signal.time))


class AttentionOverTime(Attention):
    """Self-attention of each pixel to itself in the other frames; tokens stay those of frames, (b·f, n, c)."""

    def onto(self, x: Tensor, norm: Norm, signal: Signal) -> Tensor:
        f = signal.frames
        if torch.is_grad_enabled():
            return x + across_space(self.told(norm(across_time(x, f)), signal), x.shape[1])
        pixels = max(1, ops.at_once(x.view(-1, x.shape[-1]), x.shape[-1]) // len(x))
        for part in x.split(pixels, dim=1):
            found = self.told(norm(across_time(part, f)), signal).unflatten(0, (-1, part.shape[1]))
            part.unflatten(0, (-1, f)).add_(found.transpose(1, 2))
        return x

    def projecting(self, signal: Signal) -> Project:
        return partial(by_frame, signal=signal, axis=1)


class TemporalTransformerBlock(TransformerBlock):
    """The same over time, a feed-forward of its own before it. Only the self-attention mixes frames."""

    def __init__(self, channels: int, heads: int, context: int | None = None):
        super().__init__(channels, heads, context)
        self.norm_in, self.ff_in = nn.LayerNorm(channels), FeedForward(channels)
        self.attn1 = AttentionOverTime(channels, heads, channels)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        return super().forward(self.ff_in.onto(x, self.norm_in), signal)


class FramePositions(Embedding):
    """What tells a frame its place in the clip."""

    def __init__(self, channels: int):
        super().__init__(channels, 4 * channels, channels)

    def places(self, frames: int) -> Tensor:
        """(f, 1, c): one vector for each frame, added to all of its pixels."""
        weight = self.linear_1.weight
        features = sinusoid(torch.arange(frames, device=weight.device), self.linear_1.in_features)
        out: Tensor = self(features.to(weight.dtype))
        return out[:, None]


class SpatioTemporalTransformer(SpatialTransformer):
    """Blocks in space and blocks in time by turns, blended after each turn."""

    def __init__(self, channels: int, heads: int, context: int, groups: int = 32, depth: int = 1):
        super().__init__(channels, heads, context, groups, depth)
        blocks = (TemporalTransformerBlock(channels, heads, context) for _ in range(depth))
        self.temporal_transformer_blocks = nn.ModuleList(blocks)
        self.time_pos_embed = FramePositions(channels)
        self.time_mixer = Mixer()

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        places = signal.places[self.time_pos_embed]
        y = self.proj_in(to_tokens(self.norm(x)))
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            y = spatial(y, signal)
            z = (y.unflatten(0, (-1, signal.frames)) + places).flatten(0, 1)
            y = self.time_mixer(y, temporal(z, signal))
        return add(x, from_tokens(self.proj_out(y), *x.shape[2:]))


def places(model: nn.Module, frames: int) -> dict[nn.Module, Tensor]:
    """The vectors (f, 1, c) by which each transformer of the model tells frames apart, worked out once a clip."""
    return {m: m.places(frames) for m in model.modules() if isinstance(m, FramePositions)}

"""The blocks video networks are built of. Each maps frames to frames: (b·f, c, h, w) → (b·f, c', h, w)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layout import across_space, across_time, from_strips, from_tokens, per_frame, to_strips, to_tokens
from . import ops
from .attention import TransformerBlock, add
from .free_noise import PixelOverTime
from .signal import Signal


class Embedding(nn.Module):
    """Sinusoidal features → a vector, through one hidden layer."""

    def __init__(self, features: int, channels: int, out: int | None = None):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(features, channels), nn.Linear(channels, out or channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class PlainResBlock(nn.Module):
    """Two convolutions around a shortcut."""

    rows: int | None = None  # of a picture at a time; set by an autoencoder's `enable_tiling`

    def __init__(self, channels: int, out: int, groups: int, eps: float):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, channels, eps), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, out, eps), nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x, ops.norm_silu_conv(x, self.norm1, self.conv1, self.rows))

    def rest(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows the first convolution, whose result is y."""
        return add(self.short(x), ops.norm_silu_conv(y, self.norm2, self.conv2, self.rows))

    def short(self, x: Tensor) -> Tensor:
        """x as it is added to the result."""
        return ops.conv1x1(x, self.conv_shortcut) if isinstance(self.conv_shortcut, nn.Conv2d) else x


class ResBlock(PlainResBlock):
    """The same, told the noise level between the convolutions."""

    def __init__(self, channels: int, out: int, time: int, groups: int = 32, eps: float = 1e-5):
        super().__init__(channels, out, groups, eps)
        self.time_emb_proj = nn.Linear(time, out)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:  # type: ignore[override]
        if signal.over_clip:
            return self._over_clip(x, signal)
        y = ops.norm_silu_conv(x, self.norm1, self.conv1)
        return self.rest(x, y.add_(per_frame(self.time_emb_proj(signal.time), y, signal.frames)))

    def _over_clip(self, x: Tensor, signal: Signal) -> Tensor:
        y = ops.conv3x3(norm_silu_over_clip(x, self.norm1, signal.frames), self.conv1)
        y = y.add_(per_frame(self.time_emb_proj(signal.time), y, signal.frames))
        return add(self.short(x), ops.conv3x3(norm_silu_over_clip(y, self.norm2, signal.frames), self.conv2))


def norm_silu_over_clip(x: Tensor, norm: nn.GroupNorm, frames: int) -> Tensor:
    """SiLU of the group norm whose statistics are those of whole clips, (b·f, c, h, w) → the same."""
    return from_strips(ops.norm_silu(to_strips(x, frames), norm), *x.shape[2:])


class TemporalConvs(nn.Module):
    """Four convolutions over time around a shortcut; the last starts at zero, so that a new block changes nothing."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        for i in range(1, 5):
            conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            layers: list[tuple[str, nn.Module]] = [
                ("0", nn.GroupNorm(groups, channels)),
                ("2" if i == 1 else "3", conv),
            ]
            self.add_module(f"conv{i}", nn.ModuleDict(dict(layers)))  # published numbering counts a SiLU and a dropout
        nn.init.zeros_(conv.weight)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        y = to_strips(x, signal.frames)
        for layer in self.children():
            norm, conv = layer.children()
            assert isinstance(norm, nn.GroupNorm) and isinstance(conv, nn.Conv3d)
            y = ops.conv_over_time(ops.norm_silu(y, norm), conv)
        return add(x, from_strips(y, *x.shape[2:]))


class SpatialTransformer(nn.Module):
    """The pixels of each frame attend to one another and to the context."""

    in_frames: ClassVar[bool] = True  # whether its first attentions are among the pixels of a frame

    def __init__(
        self, channels: int, heads: int, context: int | None, groups: int, depth: int = 1, width: int | None = None
    ):
        super().__init__()
        width = width or channels
        self.norm, self.proj_in = nn.GroupNorm(groups, channels, 1e-6), nn.Linear(channels, width)
        self.transformer_blocks = nn.ModuleList(self.block(width, heads, context) for _ in range(depth))
        self.proj_out = nn.Linear(width, channels)

    def block(self, width: int, heads: int, context: int | None) -> nn.Module:
        return TransformerBlock(width, heads, context)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        y = self.proj_in(to_tokens(self.norm(x)))
        for block in self.transformer_blocks:
            y = block(y, signal)
        return add(x, from_tokens(self.proj_out(y), *x.shape[2:]))


class TemporalTransformer(SpatialTransformer):
    """Each pixel attends to itself in the other frames. Norms take their statistics over the whole clip."""

    in_frames = False

    def block(self, width: int, heads: int, context: int | None) -> nn.Module:
        return PixelOverTime(width, heads, context)

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        f, (h, w) = signal.frames, x.shape[2:]
        y = to_tokens(from_strips(self.norm(to_strips(x, f)), h, w))
        y = self.proj_in(across_time(y, f))
        for block in self.transformer_blocks:
            y = block(y, signal)
        return add(x, from_tokens(across_space(self.proj_out(y), h * w), h, w))


class Downsample(nn.Module):
    """Halves height and width; `symmetric` pads all four sides, else only right and bottom, as autoencoders do."""

    def __init__(self, channels: int, symmetric: bool = True):
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(symmetric))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Enlarges to a size, then convolves."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
        return ops.upsample_conv(x, size, self.conv)

"""I2VGen-XL's denoiser: ModelScope's, told a picture as well, in three ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoint.load import Pretrained
from ...layout import across_space, across_time, from_tokens, to_frames, to_tokens, to_video, widen
from ...nn.attention import Attention, FeedForward, add
from ...nn.signal import Prepared, remember, sinusoid
from ..modelscope.unet import ModelScopeConfig, ModelScopeUNet


@dataclass(frozen=True, kw_only=True)
class I2VGenXLConfig(ModelScopeConfig):
    """The published fields of an `I2VGenXLUNet`, and one of ours."""

    picture_channels: int = 4  # ours, of the picture's latents: the published class has 4, whatever in_channels says

    def write(self) -> dict[str, Any]:
        """The published fields, and ours only where it is not what published files mean."""
        said = super().write()
        if self.picture_channels == 4:
            del said["picture_channels"]
        return said


@dataclass(frozen=True)
class PictureTextConditions:
    """What a clip is made from: a text, and a picture as its meaning and as latents.

    Latents and rates may be given once for all guidance branches; blocks before the first cross-attention then run
    once for all of them.
    """

    text: Tensor  # (branches·b, k, c)
    image: Tensor  # (branches·b, 1, c): CLIP's embedding of the picture
    latents: Tensor  # (b or branches·b, f, c', h, w): the picture's, then the places of the frames after it
    fps: Tensor  # (b or branches·b,): frames per second
    frames: int
    said: Tensor | None = None  # (branches·b,): how many times over a row of text is written, where not all are once


class LatentEncoder(nn.Module):
    """The same pixel in all frames attends to itself, then a feed-forward, each with a shortcut around."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(channels), Attention(channels, heads=2, width=2 * channels)
        self.ff = FeedForward(channels, gated=False)

    def forward(self, x: Tensor) -> Tensor:
        x = add(x, self.attn1.within(self.norm1(x)))
        return add(x, self.ff(x))


class I2VGenXLUNet(ModelScopeUNet, Pretrained):
    """The denoiser that is told a text and a picture (Zhang et al. 2023, as its authors published it).

    The picture's latents ride along with the clip's, and are tokens beside those of the text: 64 of what it looks
    like, and `in_channels` of what it shows.
    """

    config_class = I2VGenXLConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = I2VGenXLConfig.read({**(config or {}), **fields}, "I2VGenXLUNet")
        c, context, shown = config.in_channels, config.cross_attention_dim, config.picture_channels
        super().__init__(config, inputs=2 * c)
        self.image_latents_proj_in = nn.Sequential(
            _convolution(shown, 4 * c), nn.SiLU(), _convolution(4 * c, 4 * c), nn.SiLU(), _convolution(4 * c, c)
        )
        self.image_latents_temporal_encoder = LatentEncoder(c)
        self.image_latents_context_embedding = nn.Sequential(
            _convolution(shown, 8 * c),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(32),
            _convolution(8 * c, 16 * c, stride=2),
            nn.SiLU(),
            _convolution(16 * c, context, stride=2),
        )
        self.context_embedding = _two_layers(context, self.time, c * context)
        self.fps_embedding = _two_layers(self.width, self.time, self.time)

    def prepare(self, times: Tensor, conditions: PictureTextConditions) -> Prepared:
        """times (steps,) → the signals of all steps."""
        text, latents, fps = conditions.text, conditions.latents, conditions.fps
        time = self.time_embedding(sinusoid(times, self.width).to(text.dtype))
        rate = self.fps_embedding(sinusoid(fps, self.width).to(text.dtype))
        beside = widen(self._riding(latents), max(len(latents), len(rate)))
        context = self._context(conditions)
        memory = remember(self, context, _weights(conditions, context))
        return Prepared(conditions.frames, F.silu(time[:, None] + rate), memory, beside)

    def _context(self, conditions: PictureTextConditions) -> Tensor:
        """(branches·b, k + 64 + in_channels, c): the text, what the picture looks like, what it shows."""
        text = conditions.text
        look = to_tokens(self.image_latents_context_embedding(conditions.latents[:, 0]))
        shows = self.context_embedding(conditions.image).view(len(text), -1, text.shape[-1])
        return torch.cat([text, widen(look, len(text)), shows], dim=1)

    def _riding(self, latents: Tensor) -> Tensor:
        """The picture's latents (b, f, c', h, w) → the channels that ride along, (b, f, in_channels, h, w)."""
        f, (h, w) = latents.shape[1], latents.shape[3:]
        x = across_time(to_tokens(self.image_latents_proj_in(to_frames(latents))), f)
        x = across_space(self.image_latents_temporal_encoder(x), h * w)
        return to_video(from_tokens(x, h, w), f)


def _weights(conditions: PictureTextConditions, context: Tensor) -> Tensor | None:
    """What makes text that is written several times over count once beside the picture's tokens."""
    if conditions.said is None:
        return None
    weights = context.new_zeros(len(context), 1, 1, context.shape[1])
    weights[..., : conditions.text.shape[1]] = -conditions.said.to(weights).log()[:, None, None, None]
    return weights


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1)


def _two_layers(channels: int, inner: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, inner), nn.SiLU(), nn.Linear(inner, out))

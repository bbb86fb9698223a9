"""A few convolutions that make small work of decoding: near enough to watch a clip while it is denoised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint.load import Pretrained
from ..config import Config
from ..errors import CheckpointError

SAME = 0.01  # how far numbers of the same autoencoder may lie apart, in any number format


@dataclass(frozen=True, kw_only=True)
class PreviewDecoderConfig(Config):
    """What a preview decoder is, and of which latents."""

    latent_channels: int = 4
    channels: tuple[int, ...] = (40, 24, 16)  # at the latents' size, at twice that, ...; pictures are one step larger
    layers: int = 2  # at the latents' size, where they cost least
    # The encoder's last biases, by which an autoencoder is known that has these latents.
    latent_space: tuple[float, ...] = ()


class PreviewDecoder(Pretrained):
    """Latents, scaled as denoisers see them, to pictures. Each frame for itself."""

    config_class = PreviewDecoderConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        super().__init__()
        self.config = config = PreviewDecoderConfig.read({**(config or {}), **fields}, "PreviewDecoder")
        if not config.channels or min(config.channels) < 1:
            raise CheckpointError(f"PreviewDecoder: channels are {config.channels}; each must be 1 or more.")
        wide = config.channels
        self.conv_in = nn.Conv2d(config.latent_channels, wide[0], 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(wide[0], wide[0], 3, padding=1) for _ in range(config.layers))
        self.steps = nn.ModuleList(nn.Conv2d(a, 4 * b, 3, padding=1) for a, b in pairwise((*wide, 3)))

    def forward(self, latents: Tensor) -> Tensor:
        """(n, c, h, w) → pictures (n, 3, h·s, w·s) in about [-1, 1], s = 2 to the number of `channels`."""
        x = self.conv_in(3 * torch.tanh(latents / 3))  # strays are no reason for colours that are none
        for layer in self.layers:
            x = x + layer(F.silu(x))
        for step in self.steps:
            x = F.pixel_shuffle(step(F.silu(x)), 2)
        return x

    def knows(self, vae: nn.Module) -> bool:
        """Whether these are the latents of an autoencoder."""
        mine, its = torch.tensor(self.config.latent_space), torch.tensor(latent_space(vae))
        return bool(len(mine)) and mine.shape == its.shape and bool((mine - its).abs().max() <= SAME * its.abs().max())


def latent_space(vae: Any) -> tuple[float, ...]:
    """Numbers that tell an autoencoder's latents from another's: the biases of its encoder's last layer."""
    last = vae.quant_conv if isinstance(getattr(vae, "quant_conv", None), nn.Conv2d) else vae.encoder.conv_out
    return tuple(last.bias.detach().float().cpu().tolist())

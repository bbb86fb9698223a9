"""Pictures to latents and back, frame by frame: the autoencoder three of the four families share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from ..products import fast
from . import ops
from .attention import Attention, add
from .blocks import Downsample, PlainResBlock, Upsample

EPS = 1e-6  # of every group norm in published autoencoders


class Gaussian:
    """What an encoder says of a picture's latents: a mean and a log variance for each, (n, 2·c, h, w) together."""

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = (0.5 * self.logvar).exp()

    def sample(self, generator: Generator | None = None) -> Tensor:
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        return self.mean


class Encoded(NamedTuple):
    latent_dist: Gaussian


class Decoded(NamedTuple):
    sample: Tensor


class FrameAttention(Attention):
    """The pixels of a frame attend to one another, with a norm before and a shortcut around."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, 1, channels, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, EPS)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        y = self.within(y).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return add(x, y)


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList(PlainResBlock(channels, channels, groups, EPS) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        out: Tensor = self.resnets[1](x)
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of resolution."""

    def __init__(self, channels: int, out: int, layers: int, groups: int):
        super().__init__()
        self.resnets = nn.ModuleList(PlainResBlock(out if i else channels, out, groups, EPS) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        for down in getattr(self, "downsamplers", ()):
            x = down(x)
        for up in getattr(self, "upsamplers", ()):
            x = up(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x


class Encoder(nn.Module):
    """(n, inputs, h, w) pictures in [-1, 1] → (n, outputs, h/s, w/s), s = 2 to the number of levels but one."""

    def __init__(self, inputs: int, outputs: int, channels: tuple[int, ...], layers: int, groups: int, attention: bool):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, c in enumerate(channels):
            block = Level(channels[max(level - 1, 0)], c, layers, groups)
            if level < len(channels) - 1:
                block.downsamplers = nn.ModuleList([Downsample(c, symmetric=False)])
            self.down_blocks.append(block)
        self.mid_block = Middle(channels[-1], groups, attention)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(ops.norm_silu(self.mid_block(x), self.conv_norm_out))
        return out


class Decoder(nn.Module):
    """(n, inputs, h, w) latents → (n, outputs, h·s, w·s) pictures in about [-1, 1]."""

    def __init__(self, inputs: int, outputs: int, channels: tuple[int, ...], layers: int, groups: int, attention: bool):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, channels[-1], 3, padding=1)
        self.mid_block = Middle(channels[-1], groups, attention)
        self.up_blocks = nn.ModuleList()
        for level in range(len(channels) - 1, -1, -1):
            block = Level(channels[min(level + 1, len(channels) - 1)], channels[level], layers + 1, groups)
            if level > 0:
                block.upsamplers = nn.ModuleList([Upsample(channels[level])])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(groups, channels[0], EPS)
        self.conv_out = nn.Conv2d(channels[0], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(ops.norm_silu(x, self.conv_norm_out))
        return out


class Autoencoder(nn.Module):
    """An encoder and a decoder, with the switches that bound how much they work on at once. All of them are exact."""

    use_slicing = False  # one picture at a time

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        latents: int,
        channels: tuple[int, ...],
        layers: int,
        groups: int,
        attention: bool,
        quant: bool,
        post_quant: bool,
    ):
        super().__init__()
        self.encoder = Encoder(inputs, 2 * latents, channels, layers, groups, attention)
        self.decoder = self._decoder(latents, outputs, channels, layers, groups, attention)
        self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1) if quant else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latents, latents, 1) if post_quant else nn.Identity()
        self.stride = 2 ** (len(channels) - 1)
        ops.lay_out(self)

    def _decoder(
        self, inputs: int, outputs: int, channels: tuple[int, ...], layers: int, groups: int, attention: bool
    ) -> nn.Module:
        return Decoder(inputs, outputs, channels, layers, groups, attention)

    def encode(self, pictures: Tensor) -> Encoded:
        """(n, 3, h, w) in [-1, 1] → the distribution of their latents (n, c, h/stride, w/stride), unscaled."""
        with fast(pictures):
            moments = [self.quant_conv(self.encoder(part)) for part in self._parts(pictures)]
        return Encoded(Gaussian(moments[0] if len(moments) == 1 else torch.cat(moments)))

    def decode(self, latents: Tensor) -> Decoded:
        """(n, c, h, w), unscaled → pictures (n, 3, h·stride, w·stride), in about [-1, 1]."""
        with fast(latents):
            pictures = [self.decoder(self.post_quant_conv(part)) for part in self._parts(latents)]
        return Decoded(pictures[0] if len(pictures) == 1 else torch.cat(pictures))

    def forward(self, pictures: Tensor) -> Decoded:
        """Pictures there and back, through the mode of their latents."""
        return self.decode(self.encode(pictures).latent_dist.mode())

    def _parts(self, x: Tensor) -> list[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        return list(x.split(1)) if self.use_slicing else [x]

    def enable_slicing(self) -> None:
        """One picture at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        self.use_slicing = False

    def enable_tiling(self, rows: int | None = 64) -> None:
        """The residual blocks work on so many rows of a picture at a time, with the norms of the whole picture."""
        for module in self.modules():
            if isinstance(module, PlainResBlock):
                module.rows = rows

    def disable_tiling(self) -> None:
        self.enable_tiling(None)

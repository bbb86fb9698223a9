"""The autoencoder of Stable Video Diffusion (Blattmann et al. 2023): an image encoder, and a decoder that sees time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...checkpoint.keys import OLD_ATTENTION
from ...checkpoint.load import Pretrained
from ...config import Config
from ...errors import CheckpointError
from ...nn.temporal_decoder import TemporalAutoencoder


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLTemporalDecoderConfig(Config):
    """The published fields of an `AutoencoderKLTemporalDecoder`, and one of ours."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215  # latents times this have about unit variance
    force_upcast: bool = True  # the encoder of published weights overflows in float16: encode in float32
    norm_num_groups: int = 32  # ours: published models all have 32


class AutoencoderKLTemporalDecoder(TemporalAutoencoder, Pretrained):
    """Encodes pictures to latents, each for itself, and decodes the latents of a clip together."""

    config_class = AutoencoderKLTemporalDecoderConfig
    KEYS = OLD_ATTENTION

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = AutoencoderKLTemporalDecoderConfig.read({**(config or {}), **fields}, "AutoencoderKLTemporalDecoder")
        if len(config.down_block_types) != len(config.block_out_channels):
            raise CheckpointError(
                f"down_block_types has {len(config.down_block_types)} levels and block_out_channels has "
                f"{len(config.block_out_channels)}."
            )
        if any(c % config.norm_num_groups for c in config.block_out_channels):
            raise CheckpointError(
                f"block_out_channels {config.block_out_channels} cannot be split into "
                f"norm_num_groups={config.norm_num_groups}."
            )
        super().__init__(
            inputs=config.in_channels,
            outputs=config.out_channels,
            latents=config.latent_channels,
            channels=config.block_out_channels,
            layers=config.layers_per_block,
            groups=config.norm_num_groups,
            attention=True,
            quant=True,
            post_quant=False,
        )
        self.config = config

"""The published image autoencoder (Rombach et al. 2022) of ModelScope, I2VGen-XL and AnimateDiff."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..checkpoint.keys import OLD_ATTENTION
from ..checkpoint.load import Pretrained
from ..config import Config
from ..errors import CheckpointError
from ..nn.autoencoder import Autoencoder


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(Config):
    """The published fields of an `AutoencoderKL`."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: Literal["silu", "swish"] = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215  # latents times this have about unit variance
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


class AutoencoderKL(Autoencoder, Pretrained):
    """Encodes pictures to latents and decodes them, each frame for itself."""

    config_class = AutoencoderKLConfig
    KEYS = OLD_ATTENTION

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = AutoencoderKLConfig.read({**(config or {}), **fields}, "AutoencoderKL")
        levels = len(config.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(config[name]) != levels:
                raise CheckpointError(f"{name} has {len(config[name])} levels and block_out_channels has {levels}.")
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
            attention=config.mid_block_add_attention,
            quant=config.use_quant_conv,
            post_quant=config.use_post_quant_conv,
        )
        self.config = config

"""ModelScope's denoiser: an image model's blocks with convolutions and attention over time between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ...checkpoint.load import Pretrained
from ...config import Config
from ...errors import CheckpointError
from ...nn.blocks import ResBlock, SpatialTransformer, TemporalConvs, TemporalTransformer
from ...nn.signal import Prepared, Signal, remember, sinusoid
from ...nn.unet import Place, Row, VideoUNet

DownBlock = Literal["CrossAttnDownBlock3D", "DownBlock3D"]
UpBlock = Literal["CrossAttnUpBlock3D", "UpBlock3D"]


@dataclass(frozen=True, kw_only=True)
class ModelScopeConfig(Config):
    """The fields that published denoisers of this kind have in common."""

    sample_size: int | None = None  # latent pixels a side that a pipeline makes by default
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[DownBlock, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[UpBlock, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64  # the width of a head, here; their number follows
    num_attention_heads: None = None


@dataclass(frozen=True, kw_only=True)
class UNet3DConfig(ModelScopeConfig):
    """The published fields of a `UNet3DConditionModel`."""

    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: Literal[1] = 1
    act_fn: Literal["silu", "swish"] = "silu"
    norm_eps: float = 1e-5
    time_cond_proj_dim: None = None


@dataclass(frozen=True)
class TextConditions:
    """What a clip is made from: one row of token embeddings for each clip and guidance branch."""

    text: Tensor  # (branches·b, k, c)
    frames: int


class ModelScopeUNet(VideoUNet):
    """Spatial blocks of an image model with convolutions and attention over time between them."""

    def __init__(self, config: ModelScopeConfig, inputs: int, eps: float = 1e-5):
        _check(config)
        self.config = config
        down, up = (["CrossAttn" in t for t in kinds] for kinds in (config.down_block_types, config.up_block_types))
        super().__init__(
            config.block_out_channels,
            config.layers_per_block,
            down,
            up,
            inputs,
            config.out_channels,
            config.norm_num_groups,
            eps,
        )
        inner = 8 * config.attention_head_dim
        self.transformer_in = TemporalTransformer(self.width, 8, None, self.groups, width=inner)

    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        heads = out // self.config.attention_head_dim
        yield "resnets", ResBlock(channels, out, self.time, self.groups, self.eps)
        yield "temp_convs", TemporalConvs(out, self.groups)
        if cross:
            yield "attentions", SpatialTransformer(out, heads, self.config.cross_attention_dim, self.groups)
            yield "temp_attentions", TemporalTransformer(out, heads, None, self.groups)

    def enter(self, x: Tensor, signal: Signal) -> Tensor:
        out: Tensor = self.transformer_in(super().enter(x, signal), signal)
        return out

    def forward(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c, h, w)."""
        return self.denoise(latents, signal)


class UNet3DConditionModel(ModelScopeUNet, Pretrained):
    """The denoiser that is told a text."""

    config_class = UNet3DConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = UNet3DConfig.read({**(config or {}), **fields}, "UNet3DConditionModel")
        super().__init__(config, config.in_channels, config.norm_eps)

    def prepare(self, times: Tensor, conditions: TextConditions) -> Prepared:
        """times (steps,) → the signals of all steps."""
        text = conditions.text
        time = F.silu(self.time_embedding(sinusoid(times, self.width).to(text.dtype)))
        return Prepared(conditions.frames, time[:, None], remember(self, text))


def _check(config: ModelScopeConfig) -> None:
    """Refuses fields that do not go together, which would otherwise fail somewhere deep inside."""
    channels = config.block_out_channels
    for name in ("down_block_types", "up_block_types"):
        if len(config[name]) != len(channels):
            raise CheckpointError(f"{name} has {len(config[name])} levels and block_out_channels has {len(channels)}.")
    if any(c % config.norm_num_groups for c in channels):
        raise CheckpointError(
            f"block_out_channels {channels} cannot be split into norm_num_groups={config.norm_num_groups}."
        )
    if any(c % config.attention_head_dim for c in channels):
        raise CheckpointError(
            f"block_out_channels {channels} must be multiples of attention_head_dim={config.attention_head_dim}."
        )

"""Stable Video Diffusion's denoiser: blocks in space and in time by turns, steered by a picture and three numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ...checkpoint.load import Pretrained
from ...config import Config
from ...errors import CheckpointError
from ...nn.blocks import Embedding
from ...nn.signal import Prepared, Signal, remember, sinusoid
from ...nn.spatiotemporal import SpatioTemporalResBlock, SpatioTemporalTransformer, places
from ...nn.unet import Place, Row, VideoUNet

DownBlock = Literal["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"]
UpBlock = Literal["CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"]

_EACH = (
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "num_attention_heads",
)  # one number, or one for each level


@dataclass(frozen=True, kw_only=True)
class UNetSpatioTemporalConfig(Config):
    """The published fields of a `UNetSpatioTemporalConditionModel`, and one of ours.

    A field that is one number or several has one for each level, the widest pictures first.
    """

    sample_size: int | tuple[int, int] | None = None  # latent pixels a side that a pipeline makes by default
    in_channels: int = 8  # latents, and the picture's beside them
    out_channels: int = 4
    down_block_types: tuple[DownBlock, ...] = ("CrossAttnDownBlockSpatioTemporal",) * 3 + ("DownBlockSpatioTemporal",)
    up_block_types: tuple[UpBlock, ...] = ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    addition_time_embed_dim: int = 256  # features of each of the clip's numbers
    projection_class_embeddings_input_dim: int = 768  # features of all of them
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int | tuple[int, ...] = 1024
    transformer_layers_per_block: int | tuple[int, ...] = 1
    num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20)
    num_frames: int = 25  # that a pipeline makes by default
    norm_num_groups: int = 32  # ours: published models all have 32

    def each(self, field: str) -> tuple[int, ...]:
        """A field's value for each level."""
        value = self[field]
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)


@dataclass(frozen=True)
class ImageConditions:
    """What a clip is made from: rows for each clip and guidance branch, branches the slow axis."""

    image: Tensor  # (branches·b, k, c): what CLIP sees in the picture; published models have one token of 1024
    latents: Tensor  # (branches·b, 1 or f, c, h, w): the picture's latents, beside those of every frame
    numbers: Tensor  # (1, b or branches·b, 3): frames a second less one, motion bucket, noise added to the picture
    frames: int


class UNetSpatioTemporalConditionModel(VideoUNet, Pretrained):
    """The denoiser: each block in space has one in time after it, and a learned share says how much either counts."""

    config_class = UNetSpatioTemporalConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        name = "UNetSpatioTemporalConditionModel"
        self.config = config = UNetSpatioTemporalConfig.read({**(config or {}), **fields}, name)
        _check(config)
        self.heads, self.depths = config.each("num_attention_heads"), config.each("transformer_layers_per_block")
        self.context = config.each("cross_attention_dim")[0]
        down, up = (["CrossAttn" in t for t in kinds] for kinds in (config.down_block_types, config.up_block_types))
        super().__init__(
            config.block_out_channels,
            config.each("layers_per_block"),
            down,
            up,
            config.in_channels,
            config.out_channels,
            config.norm_num_groups,
        )
        self.add_embedding = Embedding(config.projection_class_embeddings_input_dim, self.time)

    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        # Epsilons are in no configuration; published results come from these.
        eps = 1e-6 if place == "up" or (place == "down" and cross) else 1e-5
        yield "resnets", SpatioTemporalResBlock(channels, out, self.time, self.groups, eps)
        if cross:
            heads, depth = self.heads[level], self.depths[level]
            yield "attentions", SpatioTemporalTransformer(out, heads, self.context, self.groups, depth)

    def prepare(self, times: Tensor, conditions: ImageConditions) -> Prepared:
        """times (steps,), or (steps, b) where clips are at different ones, → the signals of all steps."""
        image, latents, frames = conditions.image, conditions.latents, conditions.frames
        level = self.time_embedding(sinusoid(times.reshape(len(times), -1), self.width).to(image.dtype))
        numbers = sinusoid(conditions.numbers, self.config.addition_time_embed_dim).flatten(1)
        time = F.silu(level + self.add_embedding(numbers.to(image.dtype)))
        beside = latents.to(image.dtype).expand(-1, frames, -1, -1, -1)
        return Prepared(frames, time, remember(self, image), beside, places(self, frames))

    def forward(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c', h, w)."""
        return self.denoise(latents, signal)


def _check(config: UNetSpatioTemporalConfig) -> None:
    """Refuses fields that do not go together, which would otherwise fail somewhere deep inside."""
    channels = config.block_out_channels
    for name in ("down_block_types", "up_block_types", *_EACH):
        if isinstance(config[name], tuple) and len(config[name]) != len(channels):
            raise CheckpointError(f"{name} has {len(config[name])} levels and block_out_channels has {len(channels)}.")
    for name in _EACH:
        if min(config.each(name), default=1) < 1:
            raise CheckpointError(f"{name} is {config[name]}; it must be 1 or more.")
    if any(c % config.norm_num_groups for c in channels):
        raise CheckpointError(
            f"block_out_channels {channels} cannot be split into norm_num_groups={config.norm_num_groups}."
        )
    if any(c % heads for c, heads in zip(channels, config.each("num_attention_heads"), strict=True)):
        raise CheckpointError(
            f"block_out_channels {channels} must be multiples of num_attention_heads={config.num_attention_heads}."
        )
    if len(set(config.each("cross_attention_dim"))) > 1:
        raise CheckpointError(
            f"cross_attention_dim is {config.cross_attention_dim}; all levels see one picture, so it must be one."
        )
    width, each = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
    if each < 2 or each % 2 or width % each:
        raise CheckpointError(
            f"projection_class_embeddings_input_dim={width} must be a multiple of addition_time_embed_dim={each}, "
            "which must be even."
        )

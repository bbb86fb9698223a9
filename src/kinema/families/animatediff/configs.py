"""The published fields of image denoisers, of their moving kin, and of motion adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ...checkpoint.pairing import check_pairing
from ...config import Config
from ...errors import CheckpointError

T = TypeVar("T")
Each = int | tuple[int, ...]  # one number for all levels, or one for each, finest first


@dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """The fields that denoisers of images and of clips have in common."""

    sample_size: int | None = None  # latent pixels a side that a pipeline makes by default
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: Each = 2
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: Literal[1] = 1
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: Each = 1
    reverse_transformer_layers_per_block: tuple[int, ...] | None = None
    use_linear_projection: bool = False
    num_attention_heads: Each | None = None
    encoder_hid_dim: int | None = None  # of pictures that adapters showed a model saved with them
    encoder_hid_dim_type: Literal["ip_image_proj"] | None = None
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_cond_proj_dim: None = None

    def heads(self, level: int) -> int:
        """Attention heads at a level."""
        return at(self.num_attention_heads or 8, level)

    def depth(self, level: int, up: bool) -> int:
        """Transformer blocks in a row at a level."""
        reverse = self.reverse_transformer_layers_per_block
        if up and reverse is not None:
            return reverse[len(self.block_out_channels) - 1 - level]
        return at(self.transformer_layers_per_block, level)

    def depth_of_middle(self) -> int:
        return at(self.transformer_layers_per_block, -1)


@dataclass(frozen=True, kw_only=True)
class CountedConfig(ImageConfig):
    """The same where heads were published under a wrong name."""

    attention_head_dim: Each = 8  # it counts heads

    def heads(self, level: int) -> int:
        return at(self.num_attention_heads or self.attention_head_dim, level)


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig(CountedConfig):
    """The published fields of a `UNet2DConditionModel` that Stable Diffusion's models differ in."""

    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...] = (
        *("CrossAttnDownBlock2D",) * 3,
        "DownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...] = (
        "UpBlock2D",
        *("CrossAttnUpBlock2D",) * 3,
    )
    center_input_sample: Literal[False] = False
    flip_sin_to_cos: Literal[True] = True
    freq_shift: Literal[0] = 0
    only_cross_attention: Literal[False] = False
    dual_cross_attention: Literal[False] = False
    class_embed_type: None = None
    upcast_attention: bool | None = False
    resnet_time_scale_shift: Literal["default"] = "default"
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3


@dataclass(frozen=True, kw_only=True)
class MotionConfig(ImageConfig):
    """The published fields of a `UNetMotionModel`."""

    down_block_types: tuple[Literal["CrossAttnDownBlockMotion", "DownBlockMotion"], ...] = (
        *("CrossAttnDownBlockMotion",) * 3,
        "DownBlockMotion",
    )
    up_block_types: tuple[Literal["CrossAttnUpBlockMotion", "UpBlockMotion"], ...] = (
        "UpBlockMotion",
        *("CrossAttnUpBlockMotion",) * 3,
    )
    num_attention_heads: Each | None = 8
    transformer_layers_per_mid_block: Each | None = None
    temporal_transformer_layers_per_block: Each = 1
    reverse_temporal_transformer_layers_per_block: tuple[int, ...] | None = None
    temporal_transformer_layers_per_mid_block: Each | None = 1
    motion_max_seq_length: int = 32
    motion_num_attention_heads: Each = 8
    reverse_motion_num_attention_heads: tuple[int, ...] | None = None
    use_motion_mid_block: bool = True
    mid_block_layers: Literal[1] = 1

    def motion_heads(self, level: int, up: bool) -> int:
        reverse = self.reverse_motion_num_attention_heads
        if up and reverse is not None:
            return reverse[len(self.block_out_channels) - 1 - level]
        return at(self.motion_num_attention_heads, level)

    def motion_depth(self, level: int, up: bool) -> int:
        reverse = self.reverse_temporal_transformer_layers_per_block
        if up and reverse is not None:
            return reverse[len(self.block_out_channels) - 1 - level]
        return at(self.temporal_transformer_layers_per_block, level)

    def depth_of_middle(self) -> int:
        given = self.transformer_layers_per_mid_block
        return super().depth_of_middle() if given is None else at(given, -1)


@dataclass(frozen=True, kw_only=True)
class MotionAdapterConfig(Config):
    """The published fields of a `MotionAdapter`."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    motion_layers_per_block: Each = 2
    motion_transformer_layers_per_block: Each = 1
    motion_mid_block_layers_per_block: Literal[1] = 1
    motion_transformer_layers_per_mid_block: Each = 1
    motion_num_attention_heads: Each = 8
    motion_norm_num_groups: int | None = 32
    motion_max_seq_length: int = 32
    use_motion_mid_block: bool = True
    conv_in_channels: int | None = None  # of PIA, which is shown a picture beside the latents


def at(given: T | tuple[T, ...], level: int) -> T:
    """The number for a level, where one may stand for all."""
    return given[level] if isinstance(given, tuple) else given


def moving(config: UNet2DConfig, adapter: MotionAdapterConfig | None) -> dict[str, Any]:
    """The fields of the denoiser of clips that an image denoiser and a motion adapter make together.

    Raises:
        CheckpointError: the adapter was made for another image model.
    """
    fields: dict[str, Any] = {k: v for k, v in config.write().items() if k in set(MotionConfig())}
    for name in ("down_block_types", "up_block_types"):
        fields[name] = [kind.replace("2D", "Motion") for kind in config[name]]
    fields["num_attention_heads"] = config.num_attention_heads or config.attention_head_dim
    if adapter is None:
        return fields
    check_pair(config, adapter)
    return fields | {
        "motion_num_attention_heads": adapter.motion_num_attention_heads,
        "motion_max_seq_length": adapter.motion_max_seq_length,
        "use_motion_mid_block": adapter.use_motion_mid_block,
        "temporal_transformer_layers_per_block": adapter.motion_transformer_layers_per_block,
        "temporal_transformer_layers_per_mid_block": adapter.motion_transformer_layers_per_mid_block,
        "in_channels": adapter.conv_in_channels or config.in_channels,
    }


def check_pair(config: ImageConfig, adapter: MotionAdapterConfig) -> None:
    """Refuses an adapter whose widths or layers are not those of the image model.

    Raises:
        CheckpointError: they differ.
    """
    check_pairing("MotionAdapter", adapter, config)


def check_levels(config: Any) -> None:
    """Refuses fields that do not go together, which would otherwise fail somewhere deep inside.

    Raises:
        CheckpointError: two fields contradict one another.
    """
    channels = config.block_out_channels
    for name in ("down_block_types", "up_block_types"):
        if name in config and len(config[name]) != len(channels):
            raise CheckpointError(f"{name} has {len(config[name])} levels and block_out_channels has {len(channels)}.")
    for name, value in config.items():
        each = isinstance(value, tuple) and value and isinstance(value[0], int) and not name.startswith("conditioning")
        if each and len(value) != len(channels):
            raise CheckpointError(f"{name} has {len(value)} levels and block_out_channels has {len(channels)}.")
    if any(c % config.norm_num_groups for c in channels):
        raise CheckpointError(
            f"block_out_channels {channels} cannot be split into norm_num_groups={config.norm_num_groups}."
        )
    if odd := [c for i, c in enumerate(channels) if c % config.heads(i)]:
        raise CheckpointError(f"block_out_channels {channels}: {odd[0]} cannot be split into its attention heads.")
    if config.addition_embed_type and None in (
        config.addition_time_embed_dim,
        config.projection_class_embeddings_input_dim,
    ):
        raise CheckpointError(
            "addition_embed_type is 'text_time', which needs addition_time_embed_dim and "
            "projection_class_embeddings_input_dim."
        )

"""The published fields of networks that steer a denoiser: ControlNets and SparseCtrl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ...config import Config
from .configs import CountedConfig, Each, at


@dataclass(frozen=True, kw_only=True)
class SteeringConfig(CountedConfig):
    """What both have in common: a way down and across, and what reads pictures."""

    conditioning_channels: int = 3
    flip_sin_to_cos: Literal[True] = True
    freq_shift: Literal[0] = 0
    only_cross_attention: Literal[False] = False
    upcast_attention: bool | None = False
    resnet_time_scale_shift: Literal["default"] = "default"
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256)
    global_pool_conditions: bool = False  # one answer for the whole picture, as `shuffle` gives

    skipped: ClassVar[frozenset[str]] = Config.skipped | {
        "sample_size",
        "out_channels",
        "reverse_transformer_layers_per_block",
        "time_cond_proj_dim",
    }


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(SteeringConfig):
    """The published fields of a `ControlNetModel`."""

    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...] = (
        *("CrossAttnDownBlock2D",) * 3,
        "DownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] = "UNetMidBlock2DCrossAttn"
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    class_embed_type: None = None
    num_class_embeds: None = None


@dataclass(frozen=True, kw_only=True)
class SparseControlNetConfig(SteeringConfig):
    """The published fields of a `SparseControlNetModel`."""

    conditioning_channels: int = 4  # beside the mask of the frames that are given
    down_block_types: tuple[Literal["CrossAttnDownBlockMotion", "DownBlockMotion"], ...] = (
        *("CrossAttnDownBlockMotion",) * 3,
        "DownBlockMotion",
    )
    cross_attention_dim: int = 768
    transformer_layers_per_mid_block: Each | None = None
    temporal_transformer_layers_per_block: Each = 1
    motion_max_seq_length: int = 32
    motion_num_attention_heads: Each = 8
    concat_conditioning_mask: bool = True
    use_simplified_condition_embedding: bool = True

    skipped: ClassVar[frozenset[str]] = SteeringConfig.skipped | {
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
    }

    def depth_of_middle(self) -> int:
        given = self.transformer_layers_per_mid_block
        return super().depth_of_middle() if given is None else at(given, -1)

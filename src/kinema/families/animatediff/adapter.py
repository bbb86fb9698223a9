"""Motion adapters: the motion modules of a whole denoiser, kept apart from any image model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...checkpoint.load import Pretrained
from ...nn.motion import MotionModule
from .configs import MotionAdapterConfig, at


class MotionAdapter(Pretrained):
    """What teaches an image model of matching widths to move; `UNetMotionModel.from_unet2d` puts them together."""

    config_class = MotionAdapterConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        super().__init__()
        config = MotionAdapterConfig.read({**(config or {}), **fields}, "MotionAdapter")
        self.config, widths = config, config.block_out_channels
        last = len(widths) - 1
        channels = config.conv_in_channels
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1) if channels else None
        self.down_blocks = nn.ModuleList(self._modules_of(i, 0) for i in range(len(widths)))
        self.up_blocks = nn.ModuleList(self._modules_of(last - i, 1) for i in range(len(widths)))
        self.mid_block = None
        if config.use_motion_mid_block:
            depth = at(config.motion_transformer_layers_per_mid_block, -1)
            self.mid_block = _Holder([self._module(last, depth)])

    def _modules_of(self, level: int, more: int) -> nn.Module:
        depth = at(self.config.motion_transformer_layers_per_block, level)
        count = at(self.config.motion_layers_per_block, level) + more
        return _Holder([self._module(level, depth) for _ in range(count)])

    def _module(self, level: int, depth: int) -> MotionModule:
        config = self.config
        heads, groups = at(config.motion_num_attention_heads, level), config.motion_norm_num_groups or 32
        return MotionModule(config.block_out_channels[level], heads, groups, config.motion_max_seq_length, depth)


class _Holder(nn.Module):
    """A stage's motion modules, where checkpoints have them."""

    def __init__(self, modules: list[MotionModule]):
        super().__init__()
        self.motion_modules = nn.ModuleList(modules)

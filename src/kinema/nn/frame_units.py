"""Which blocks and layers of an image model that moves take frames one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..errors import InputError
from .attention import Attention, FeedForward
from .blocks import Downsample, ResBlock, SpatialTransformer, Upsample
from .by_frame import FrameWeights
from .motion import MotionModule


def frame_units(model: nn.Module) -> Iterator[nn.Module]:
    """The largest such blocks: of motion modules their layers, as attention between these mixes frames."""
    yield from (model.get_submodule(name) for name in ("conv_in", "conv_out"))
    for module in model.modules():
        if isinstance(module, MotionModule):
            yield from _layers(module)
        elif isinstance(module, (ResBlock, SpatialTransformer, Downsample, Upsample)):
            yield module


def check_by_frame(weights: FrameWeights, over_clip: bool) -> None:
    """Refuses residual blocks with weights by frame where their norms are over the whole clip.

    Raises:
        InputError: there are some.
    """
    if over_clip and any(isinstance(unit, ResBlock) for unit in weights.units):
        raise InputError(
            "A LoRA with weights by frame changes residual blocks, which normalise over the whole clip with these "
            "numerics; give it one weight for all, or take set_numerics('reference')."
        )


def _layers(module: MotionModule) -> Iterator[nn.Module]:
    yield from (module.proj_in, module.proj_out)
    for block in module.transformer_blocks:
        for part in block.children():
            if isinstance(part, FeedForward):
                yield part
            elif isinstance(part, Attention):
                yield from (part.to_q, part.to_k, part.to_v, part.to_out)

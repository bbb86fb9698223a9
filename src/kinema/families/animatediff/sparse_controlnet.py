"""SparseCtrl: pictures of a few frames steer all of a clip (Guo et al. 2023b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...checkpoint.load import Pretrained
from ...layout import to_frames
from ...nn.motion import MotionModule, SingleMotionBlock
from ...nn.signal import Prepared, Signal
from ...nn.unet import Place, Row
from .configs import at
from .configs_control import SparseControlNetConfig
from .controlnet import SteeringNet, begun_as, fields_of, silence
from .unet import MotionConditions, UNet2DConditionModel, motion_over_clip


class SparseControlNetModel(SteeringNet, Pretrained):
    """A published SparseCtrl. Its frames see one another; it sees no latents, so that nothing of it depends on them.

    Of latents it would see zeros alone, which the first convolution turns into its bias.
    """

    config_class = SparseControlNetConfig
    config: SparseControlNetConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = SparseControlNetConfig.read({**(config or {}), **fields}, "SparseControlNetModel")
        super().__init__(config, config.conditioning_channels + config.concat_conditioning_mask)

    @property
    def reads_latents(self) -> bool:
        """Whether pictures are shown to it as an autoencoder's latents, not as pixels."""
        return self.config.use_simplified_condition_embedding

    def embedding(self, channels: int) -> nn.Module:
        if not self.reads_latents:
            return super().embedding(channels)
        return silence(nn.Conv2d(channels, self.width, 3, padding=1))

    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        yield from super().row(channels, out, level, cross, place)
        if place == "down":
            config = self.config
            heads, depth = (
                at(each, level)
                for each in (config.motion_num_attention_heads, config.temporal_transformer_layers_per_block)
            )
            yield "motion_modules", SingleMotionModule(out, heads, self.groups, config.motion_max_seq_length, depth)

    def prepare(
        self,
        times: Tensor,
        conditions: MotionConditions,
        pictures: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Prepared:
        """times (steps,) → the signals of all steps.

        Args:
            pictures: (1 or b, f, c, H, W): latents where it reads these, else pixels in [0, 1]; zeros where none is.
            known: (f,): 1 where a picture is, else 0; needed with pictures.
        """
        plain = super().prepare(times, replace(conditions, extra=None, motion=None, pictures=()))
        plain = replace(plain, motion_over_clip=motion_over_clip(self.config, conditions))
        if pictures is None or known is None:
            return plain
        pictures = self.ordered(pictures)
        if self.config.concat_conditioning_mask:
            mask = known.to(pictures)[None, :, None, None, None].expand(len(pictures), -1, 1, *pictures.shape[3:])
            pictures = torch.cat([pictures, mask], dim=2)
        shown = self.shown(plain, pictures.to(conditions.text))
        assert shown.hint is not None and self.conv_in.bias is not None
        return replace(shown, hint=shown.hint + self.conv_in.bias[:, None, None])

    def enter(self, x: Tensor, signal: Signal) -> Tensor:
        assert signal.hint is not None
        return to_frames(signal.hint)

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
        *,
        use_simplified_condition_embedding: bool = True,
    ) -> Self:
        """A new SparseCtrl to be trained: it begins with a copy of the denoiser's weights, and says nothing yet.

        Args:
            use_simplified_condition_embedding: whether it is to be shown pictures as an autoencoder's latents (then
                `conditioning_channels` must be theirs, 4), not as pixels.
        """
        given = {
            "controlnet_conditioning_channel_order": controlnet_conditioning_channel_order,
            "conditioning_embedding_out_channels": conditioning_embedding_out_channels,
            "conditioning_channels": conditioning_channels,
            "use_simplified_condition_embedding": use_simplified_condition_embedding,
            "down_block_types": [kind.replace("2D", "Motion") for kind in unet.config.down_block_types],
        }
        net = cls(fields_of(unet, SparseControlNetConfig()) | given)
        return begun_as(net, unet) if load_weights_from_unet else net


class SingleMotionModule(MotionModule):
    """Motion whose blocks attend once."""

    def block(self, width: int, heads: int, context: int | None) -> nn.Module:
        return SingleMotionBlock(width, heads, self.length)


def spread(pictures: Tensor, at_frames: Sequence[int], frames: int) -> tuple[Tensor, Tensor]:
    """(b, n, c, H, W) → (b, f, c, H, W) with zeros elsewhere, and (f,): which are known."""
    places = torch.tensor(list(at_frames), device=pictures.device)
    whole = pictures.new_zeros(len(pictures), frames, *pictures.shape[2:])
    whole[:, places] = pictures
    return whole, pictures.new_zeros(frames).index_fill_(0, places, 1)

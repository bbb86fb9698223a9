"""The denoisers: Stable Diffusion's of images, and the same with motion modules behind its rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoint.fill import build
from ...checkpoint.keys import Keep, Rule, Squeeze
from ...checkpoint.load import Pretrained
from ...errors import InputError
from ...layout import widen
from ...nn import ops
from ...nn.blocks import Embedding, ResBlock, SpatialTransformer, norm_silu_over_clip
from ...nn.by_frame import FrameWeights, frame_weights
from ...nn.frame_units import check_by_frame, frame_units
from ...nn.motion import MotionModule
from ...nn.signal import Prepared, Signal, remember, sinusoid
from ...nn.unet import Encoder, Place, Row, VideoUNet
from .adapter import MotionAdapter
from .configs import ImageConfig, MotionConfig, UNet2DConfig, at, check_levels, moving
from .ip_adapter import Shown, with_pictures

Numerics = Literal["reference", "original"]

# Stable Diffusion 1 projects tokens by 1×1 convolutions, which are linear layers.
PROJECTIONS: tuple[Rule, ...] = (Squeeze(r"(^|\.)attentions\.\d+\.proj_(in|out)\.weight$"),)
MORE_MOTION = Keep(r"\.motion_modules\.\d+\.others\.")  # further adapters have files of their own


@dataclass(frozen=True)
class MotionConditions:
    """What a clip is made from: token embeddings for each clip and guidance branch, and what SDXL is told beside."""

    text: Tensor  # (branches·b, k, c), or (branches·b, f, k, c): of every frame its own
    frames: int
    pooled: Tensor | None = None  # (branches·b, c): the whole text as one vector
    numbers: Tensor | None = None  # (branches·b, 6): original size, crop, target size, in pixels
    extra: Tensor | None = None  # (b or branches·b, f, c', h, w): channels that ride along with the latents
    motion: Tensor | None = None  # (f,): how much motion modules count for in each frame, 1 where it is not given
    others: Mapping[str, Tensor] = field(default_factory=dict)  # the same of further ones by name, 0 where not given
    pictures: Sequence[Shown] = ()  # by IP-Adapters, each with words of its own
    numerics: Numerics = "reference"  # whose group norms to compute: the reference's, or those the authors trained with
    over_clip: bool | None = None  # for "original": whether residual blocks normalise over the whole clip


class ConditionedEncoder(Encoder):
    """A network of Stable Diffusion's blocks, told the noise level, a text, and what SDXL is told beside."""

    config: ImageConfig

    @property
    def KEYS(self) -> tuple[Rule, ...]:
        return () if self.config.use_linear_projection else PROJECTIONS

    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        config = self.config
        yield "resnets", ResBlock(channels, out, self.time, self.groups, self.eps)
        if cross:
            depth = config.depth_of_middle() if place == "middle" else config.depth(level, place == "up")
            heads, context = config.heads(level), config.cross_attention_dim
            yield "attentions", SpatialTransformer(out, heads, context, self.groups, depth)

    def tell_numbers(self) -> None:
        """Adds what embeds SDXL's numbers; called once the rest is built."""
        if self.config.addition_embed_type:
            assert self.config.projection_class_embeddings_input_dim is not None
            self.add_embedding = Embedding(self.config.projection_class_embeddings_input_dim, self.time)

    def enter(self, x: Tensor, signal: Signal) -> Tensor:
        x = super().enter(x, signal)
        return widen(x, max(len(x), len(signal.time) * signal.frames))  # SDXL's branches differ from the first block on

    def embedded(self, times: Tensor, conditions: MotionConditions) -> Tensor:
        """times (steps,) → (steps, 1 or branches·b, t): the noise level and the numbers, embedded and activated."""
        like = conditions.text
        time: Tensor = self.time_embedding(sinusoid(times, self.width).to(like.dtype))[:, None]
        if self.config.addition_embed_type:
            time = time + self._numbers(conditions)
        return F.silu(time)

    def _numbers(self, conditions: MotionConditions) -> Tensor:
        pooled, numbers, width = conditions.pooled, conditions.numbers, self.config.addition_time_embed_dim
        if pooled is None or numbers is None:
            raise InputError("This denoiser is SDXL's: it needs the pooled text and the sizes beside the text.")
        assert width is not None
        told = torch.cat([pooled, sinusoid(numbers, width).flatten(1).to(pooled.dtype)], dim=-1)
        out: Tensor = self.add_embedding(told)
        return out

    def prepare(self, times: Tensor, conditions: MotionConditions) -> Prepared:
        """times (steps,) → the signals of all steps."""
        motion = dict(conditions.others) | ({} if conditions.motion is None else {"": conditions.motion})
        return Prepared(
            conditions.frames,
            self.embedded(times, conditions),
            with_pictures(self, remember(self, conditions.text), conditions.pictures),
            conditions.extra,
            motion={name: tuple(scales.tolist()) for name, scales in motion.items()},
        )


class ConditionedUNet(ConditionedEncoder, VideoUNet):
    """The whole U of them."""

    def __init__(self, config: Any, inputs: int):
        check_levels(config)
        self.__dict__["config"] = config  # rows are built by it, before a module may have attributes
        down, up = (["CrossAttn" in t for t in kinds] for kinds in (config.down_block_types, config.up_block_types))
        VideoUNet.__init__(
            self,
            config.block_out_channels,
            config.layers_per_block,
            down,
            up,
            inputs,
            config.out_channels,
            config.norm_num_groups,
            config.norm_eps,
        )
        self.tell_numbers()

    def forward(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c, h, w)."""
        return self.denoise(latents, signal)


class UNet2DConditionModel(ConditionedUNet, Pretrained):
    """Stable Diffusion's denoiser (1.5 and SDXL); frames of a clip do not see one another."""

    config_class = UNet2DConfig
    config: UNet2DConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = UNet2DConfig.read({**(config or {}), **fields}, "UNet2DConditionModel")
        super().__init__(config, config.in_channels)


class UNetMotionModel(ConditionedUNet, Pretrained):
    """The same with a motion module behind every row (Guo et al. 2023)."""

    config_class = MotionConfig
    config: MotionConfig
    weights: FrameWeights | None = None  # what differs by frame; see `weighted`
    motion_name = "default"  # what its own motion modules are called beside others

    @property
    def KEYS(self) -> tuple[Rule, ...]:
        return (*super().KEYS, MORE_MOTION)

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        config = MotionConfig.read({**(config or {}), **fields}, "UNetMotionModel")
        super().__init__(config, config.in_channels)

    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        yield from super().row(channels, out, level, cross, place)
        config = self.config
        if place != "middle":
            heads, depth = config.motion_heads(level, place == "up"), config.motion_depth(level, place == "up")
        elif cross and config.use_motion_mid_block:
            heads, depth = at(config.motion_num_attention_heads, -1), self._depth_of_middle()
        else:
            return
        yield "motion_modules", MotionModule(out, heads, self.groups, config.motion_max_seq_length, depth)

    def _depth_of_middle(self) -> int:
        given = self.config.temporal_transformer_layers_per_mid_block
        return at(given or 1, -1)

    @classmethod
    def from_unet2d(cls, unet: UNet2DConditionModel, motion_adapter: MotionAdapter | None = None) -> Self:
        """An image denoiser that has learnt to move. Weights are shared with both, not copied, where they have
        one number format and place; else the adapter's become those of the image model.

        Raises:
            CheckpointError: the adapter was made for another image model.
        """
        adapter = None if motion_adapter is None else motion_adapter.config
        model = build(cls, moving(unet.config, adapter), "UNetMotionModel")
        weights: dict[str, Any] = {**unet.state_dict(keep_vars=True)}
        if motion_adapter is not None:
            weights |= {k: v.to(unet.device, unet.dtype) for k, v in motion_adapter.state_dict(keep_vars=True).items()}
            if motion_adapter.conv_in is not None:  # what sees latents stays the image model's
                shown = motion_adapter.conv_in.weight[:, unet.conv_in.in_channels :]
                weights["conv_in.weight"] = torch.cat([unet.conv_in.weight, shown.to(unet.conv_in.weight)], dim=1)
                weights["conv_in.bias"] = unet.conv_in.bias
        _share(model, weights)
        return model.train(unet.training)

    def weighted(self, of: Sequence[int], sets: Sequence[Mapping[str, Tensor]]) -> Self:
        """This denoiser with weights that differ by frame, on the same memory otherwise; it costs no more arithmetic.

        Args:
            of: the set of weights of each frame.
            sets: in which parameters each differs from this one's, by name.

        Raises:
            InputError: a set changes what frames do not go through one by one.
        """
        twin = copy.copy(self)
        twin.weights = frame_weights(self, frame_units(self), of, sets)
        return twin

    def prepare(self, times: Tensor, conditions: MotionConditions) -> Prepared:
        """times (steps,) → the signals of all steps."""
        told = replace(super().prepare(times, conditions), motion_over_clip=motion_over_clip(self.config, conditions))
        wide = self._early() if conditions.over_clip is None else conditions.over_clip
        told = replace(told, over_clip=conditions.numerics == "original" and wide)
        if self.weights is None:
            return told
        check_by_frame(self.weights, told.over_clip)
        return replace(told, memory=self.weights.memory(told.memory, conditions.text), weights=self.weights)

    def _early(self) -> bool:
        """Whether residual blocks normalised over the clip in training: for modules of version 1 and Hotshot-XL's
        (24 places) and PIA's (a picture beside the latents)."""
        return self.config.motion_max_seq_length == 24 or self.config.in_channels == 9

    def leave(self, x: Tensor, signal: Signal) -> Tensor:
        if not signal.over_clip:
            return super().leave(x, signal)
        out: Tensor = self.conv_out(norm_silu_over_clip(x, self.conv_norm_out, signal.frames))
        return out


def motion_over_clip(config: ImageConfig, conditions: MotionConditions) -> bool:
    """Whether motion modules normalise over the whole clip: with the reference always, with the authors for SDXL.

    Hotshot-XL's, of 24 places, were trained by other people, and by frame.

    Raises:
        InputError: the numerics are neither's.
    """
    check_numerics(conditions.numerics)
    beta = config.addition_embed_type is not None and config["motion_max_seq_length"] != 24
    return conditions.numerics == "reference" or beta


def check_numerics(numerics: Any) -> Numerics:
    """Whose numbers.

    Raises:
        InputError: they are neither the reference's nor the original's.
    """
    if numerics not in get_args(Numerics):
        raise InputError(f"numerics is {numerics!r}; it can be 'reference' or 'original'.")
    found: Numerics = numerics
    return found


def _share(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a model built without memory these weights; the rest of it stays newly initialised.

    Parameters are new ones on the same memory: what is later put in their place does not reach those they came from.
    """
    fresh = [name for name, x in model.state_dict().items() if name not in weights]
    for path, module in model.named_modules():
        for name, old in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = f"{path}.{name}" if path else name
            if full in weights:
                data = weights[full].detach()
                setattr(module, name, nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data)
    if fresh:
        _renew(model, fresh)
    ops.lay_out(model)


def _renew(model: nn.Module, names: list[str]) -> None:
    """Initialises what is still without memory, as a new model would have it."""
    new = type(model)(model.config).state_dict()
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        setattr(module, leaf, nn.Parameter(new[name]) if isinstance(old, nn.Parameter) else new[name])

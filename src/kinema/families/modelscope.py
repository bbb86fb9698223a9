"""ModelScope text-to-video (and zeroscope): a text becomes a clip, or changes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checkpoint.load import Pretrained
from ..config import Config
from ..encoders.prompts import LongPrompts, Reading
from ..errors import CheckpointError, InputError
from ..layout import swap_time, to_frames, to_video
from ..nn.blocks import ResBlock, SpatialTransformer, TemporalConvs, TemporalTransformer
from ..nn.freeu import FreeU
from ..nn.signal import Prepared, Signal, remember, sinusoid
from ..nn.unet import Place, Row, VideoUNet
from ..pipelines import inputs, parts
from ..pipelines.adapters import AdaptablePipeline
from ..pipelines.compat import familiar_names
from ..pipelines.footage import footage
from ..pipelines.output import VideoOutput
from ..pipelines.text import TextPipeline
from ..pipelines.video import Job
from ..sampling.guidance import guidance_of
from ..sampling.noise import Generators, Noise, noise_from
from ..sampling.schedule import Schedule
from .autoencoder_kl import AutoencoderKL

DownBlock = Literal["CrossAttnDownBlock3D", "DownBlock3D"]
UpBlock = Literal["CrossAttnUpBlock3D", "UpBlock3D"]


@dataclass(frozen=True, kw_only=True)
class UNet3DConfig(Config):
    """The published fields of a `UNet3DConditionModel`."""

    sample_size: int | None = None  # latent pixels a side that a pipeline makes by default
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[DownBlock, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",)
    up_block_types: tuple[UpBlock, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: Literal[1] = 1
    act_fn: Literal["silu", "swish"] = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1024
    attention_head_dim: int = 64  # the width of a head, here; their number follows
    num_attention_heads: None = None
    time_cond_proj_dim: None = None


@dataclass(frozen=True)
class TextConditions:
    """What a clip is made from: one row of token embeddings for each clip and guidance branch."""

    text: Tensor  # (branches·b, k, c)
    frames: int


class UNet3DConditionModel(VideoUNet, Pretrained):
    """The denoiser: spatial blocks of an image model with convolutions and attention over time between them."""

    config_class = UNet3DConfig

    def __init__(self, config: Mapping[str, Any] | None = None, **fields: Any):
        self.config = config = UNet3DConfig.read({**(config or {}), **fields}, "UNet3DConditionModel")
        _check(config)
        down, up = (["CrossAttn" in t for t in kinds] for kinds in (config.down_block_types, config.up_block_types))
        super().__init__(
            config.block_out_channels,
            config.layers_per_block,
            down,
            up,
            config.in_channels,
            config.out_channels,
            config.norm_num_groups,
            config.norm_eps,
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

    def prepare(self, times: Tensor, conditions: TextConditions) -> Prepared:
        """times (steps,) → the signals of all steps."""
        text = conditions.text
        time = F.silu(self.time_embedding(sinusoid(times, self.width).to(text.dtype)))
        return Prepared(conditions.frames, time[:, None], remember(self, text))

    def forward(self, latents: Tensor, signal: Signal) -> Tensor:
        """latents (b, f, c, h, w) at one step → the prediction, (branches·b, f, c, h, w)."""
        return self.denoise(latents, signal)


def _check(config: UNet3DConfig) -> None:
    """Refuses fields that do not go together, which would otherwise fail somewhere deep inside."""
    channels = config.block_out_channels
    for name in ("down_block_types", "up_block_types"):
        if len(config[name]) != len(channels):
            raise CheckpointError(f"{name} has {len(config[name])} levels and block_out_channels has {len(channels)}.")
    if any(c % config.norm_num_groups for c in channels):
        raise CheckpointError(f"block_out_channels {channels} cannot be split into norm_num_groups={config.norm_num_groups}.")
    if any(c % config.attention_head_dim for c in channels):
        raise CheckpointError(f"block_out_channels {channels} must be multiples of attention_head_dim={config.attention_head_dim}.")


class TextToVideoSDPipeline(AdaptablePipeline, TextPipeline):
    """Text to video with ModelScope's `text-to-video-ms-1.7b`, zeroscope, and models of their architecture."""

    parts = {
        "text_encoder": parts.text_encoder(),
        "tokenizer": parts.tokenizer(),
        "unet": parts.model(UNet3DConditionModel),
        "vae": parts.model(AutoencoderKL),
        "scheduler": parts.scheduler(),
    }
    published = ("TextToVideoMSPipeline",)

    unet: UNet3DConditionModel
    vae: AutoencoderKL

    @familiar_names
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback: Callable[[int, float, Tensor], None] | None = None,
        callback_steps: int | None = 1,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        *,
        num_videos_per_prompt: int = 1,
        guidance_rescale: float = 0.0,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        decode_chunk_size: int | None = None,
        prompt_weighting: bool = False,
        long_prompts: LongPrompts = "blocks",
        callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VideoOutput:
        """Makes clips of what a text says.

        Args:
            prompt: what to show; a list makes a batch. Longer ones than 77 tokens are read whole.
            height, width: of the clip in pixels, multiples of 8; the model's own size by default (256 for ms-1.7b).
            num_frames: how many frames, 1 or more; models were trained on 16 (ms-1.7b) or 24 (zeroscope).
            num_inference_steps: more is slower and up to a point better; 20 to 50.
            guidance_scale: how closely to follow the prompt, 1 (not guided) to about 15.
            negative_prompt: what not to show; used where guided.
            eta: of DDIM, 0 (the same clip from the same noise) to 1 (fresh noise at each step).
            generator: an int seed, a torch or numpy generator, or a list of these, one a clip.
            latents: noise to start from, (b, c, f, h/8, w/8), instead of drawing it.
            prompt_embeds, negative_prompt_embeds: (b, k, c), instead of texts.
            output_type: "np", "pt", "pil" or "latent".
            return_dict: kept for old code; the output is a tuple and has `.frames` either way.
            callback: called as callback(step, time, latents) after every `callback_steps` steps.
            cross_attention_kwargs: {"scale": s}: the strength of loaded LoRAs in this call.
            clip_skip: how many of the text encoder's last layers to leave out.
            num_videos_per_prompt: clips of each prompt; those of one prompt lie next to each other.
            guidance_rescale: 0 to 1, against over-exposure by strong guidance (Lin et al. 2023).
            timesteps, sigmas: a schedule of one's own, noisiest first.
            decode_chunk_size: frames decoded at once, 1 by default; the picture does not depend on it.
            prompt_weighting: whether `(word:1.3)` and `[word]` weigh words.
            long_prompts: what becomes of text beyond 77 tokens: "blocks" (all is read), "cut" (as the reference does) or
                "refuse".
            callback_on_step_end: called as f(pipe, step, time, {"latents": …}) after every step; latents (b, c, f, h, w)
                in the mapping it returns are gone on with.

        Raises:
            InputError: an argument cannot be used.
            NumericsError: a stage produced numbers that are not finite.
        """
        return self.complete({k: v for k, v in locals().items() if k != "self"})

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Strengthens the features of the first two stages up (b1, b2 above 1) and weakens their skips (s1, s2 below 1).

        For this family the authors suggest s1=0.9, s2=0.2, b1=1.2, b2=1.4 (Si et al. 2023).
        """
        self.unet.merge = FreeU(*(inputs.number(n, v) for n, v in (("s1", s1), ("s2", s2), ("b1", b1), ("b2", b2))))

    def disable_freeu(self) -> None:
        self.unet.merge = None

    def begin(self, call: Mapping[str, Any]) -> Job:
        asked = inputs.prompts(*(call[k] for k in ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")))
        copies = inputs.whole("num_videos_per_prompt", call["num_videos_per_prompt"])
        scale = inputs.number("guidance_scale", call["guidance_scale"], 0)
        rescale = inputs.number("guidance_rescale", call["guidance_rescale"], 0, 1)
        guidance = guidance_of(scale, rescale)
        noise = noise_from(call["generator"], len(asked), copies)
        plan = self._plan(call)
        start, frames = self._start(call, len(asked) * copies, plan.schedule, noise)
        reading = Reading(bool(call["prompt_weighting"]), call["long_prompts"], self.inversions)

        lora_scale = (call["cross_attention_kwargs"] or {}).get("scale")

        def encode() -> tuple[TextConditions, Tensor]:
            text = self.embeddings(
                asked,
                guided=guidance.branches > 1,
                clip_skip=call["clip_skip"],
                reading=reading,
                copies=copies,
                lora_scale=lora_scale,
            )
            return TextConditions(text, frames), start().to(text.device)

        return Job(
            encode,
            plan.schedule,
            plan.solver,
            guidance,
            noise,
            decode_chunk=inputs.whole("decode_chunk_size", call["decode_chunk_size"] or 1),
            output_type=self._check_output(call),
            lora_scale=lora_scale,
            order=self.scheduler.order,
        )

    def _plan(self, call: Mapping[str, Any]) -> Any:
        """The levels to visit and how to move between them."""
        custom = {k: call[k] for k in ("timesteps", "sigmas") if call[k] is not None}
        steps = None if custom else inputs.whole("num_inference_steps", call["num_inference_steps"])
        strength = inputs.number("strength", call["strength"], 0, 1) if "strength" in call else None
        eta = inputs.number("eta", call["eta"], 0, 1)
        return self.scheduler.plan(steps, **custom, eta=eta, strength=strength, frames_as_batch=True)

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], int]:
        """How to make the latents (b, f, c, h, w) a call starts from, and how many frames they have."""
        height, width = self._size(call["height"], call["width"])
        frames = inputs.whole("num_frames", call["num_frames"])
        stride = self.vae.stride
        shape = (clips, self.unet.config.in_channels, frames, height // stride, width // stride)
        given = None if call["latents"] is None else inputs.latents(call["latents"], shape)

        def start() -> Tensor:
            latents = noise.draw(shape, "start") if given is None else given.float()
            return swap_time(latents * schedule.init_noise_sigma)

        return start, frames

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        own = self.unet.config.sample_size
        if own is None and not (height and width):
            raise InputError("This model does not say its size; give height and width.")
        side = (own or 0) * self.vae.stride
        return inputs.size(height if height is not None else side, width if width is not None else side, self.vae.stride)

    @classmethod
    def has_original_files(cls, folder: Path) -> bool:
        from ..checkpoint import originals

        return originals.is_modelscope(folder)


class VideoToVideoSDPipeline(TextToVideoSDPipeline):
    """Video to video with the same models: a clip is noised part of the way and denoised towards a text."""

    published = ()

    @familiar_names
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        video: Any = None,
        strength: float = 0.6,
        num_inference_steps: int = 50,
        guidance_scale: float = 15.0,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback: Callable[[int, float, Tensor], None] | None = None,
        callback_steps: int | None = 1,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_videos_per_prompt: int = 1,
        guidance_rescale: float = 0.0,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        decode_chunk_size: int | None = None,
        prompt_weighting: bool = False,
        long_prompts: LongPrompts = "blocks",
        callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VideoOutput:
        """Makes clips of what a text says, after footage. Arguments not named here are those of text to video.

        Args:
            video: one clip, for all prompts, or one for each: PIL images, arrays or tensors in any usual form
                (`kinema.pipelines.footage`); `load_video` reads files. Tensors with as many channels as latents have
                are taken as latents, (b, f, c, h, w).
            strength: how far from the footage, above 0 (hardly) to 1 (only the text counts); also the share of steps run.
            latents: the footage already encoded and scaled, (b, c, f, h/8, w/8), instead of `video`.
            height, width: what to resize the footage to, multiples of 8; its own size by default.

        Raises:
            InputError: an argument cannot be used.
            NumericsError: a stage produced numbers that are not finite.
        """
        return self.complete({k: v for k, v in locals().items() if k != "self"})

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], int]:
        channels = self.unet.config.in_channels
        if (call["video"] is None) == (call["latents"] is None):
            raise InputError("Give video, or its latents; one of the two.")
        if call["latents"] is not None:
            given = call["latents"]
            if not isinstance(given, Tensor) or given.ndim != 5 or given.shape[1] != channels:
                raise InputError(f"latents must be a tensor (b, {channels}, f, h, w).")
            source = swap_time(inputs.finite("latents", given))
        else:
            source = footage(call["video"], self.vae.stride, channels, call["height"], call["width"])
        if clips % len(source):
            raise InputError(f"There are {len(source)} clips of video for {clips} to make; give one, or one for each prompt.")
        copies = clips // len(source)

        def start() -> Tensor:
            clean = source.float() if source.shape[2] == channels else self._encoded(source, noise, clips)
            if len(clean) != clips:
                clean = clean.repeat_interleave(copies, 0) if len(clean) > 1 else clean.expand(clips, -1, -1, -1, -1)
            shape = clean.flatten(0, 1).shape
            return to_video(schedule.add_noise(to_frames(clean), noise.draw(shape, "start"), 0), clean.shape[1])

        return start, source.shape[1]

    def _encoded(self, source: Tensor, noise: Noise, clips: int) -> Tensor:
        """Footage (b, f, 3, h, w) → scaled latents sampled from their distributions, (clips, f, c, h, w)."""
        copies = clips // len(source)
        source = source.repeat_interleave(copies, 0) if len(source) > 1 else source.expand(clips, -1, -1, -1, -1)
        with self._residency.use("vae") as vae:
            device = self.execution_device
            found = [vae.encode(part.to(device, vae.dtype)).latent_dist for part in source.flatten(0, 1).split(1)]
        mean, std = (torch.cat([getattr(d, k) for d in found]).float().cpu() for k in ("mean", "std"))
        latents = mean + std * noise.draw(mean.shape, "encode")
        return to_video(latents * vae.config.scaling_factor, source.shape[1])

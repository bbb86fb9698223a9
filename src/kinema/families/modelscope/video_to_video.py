"""Video to video: a clip is noised part of the way and denoised towards a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...encoders.prompts import LongPrompts
from ...errors import InputError
from ...layout import swap_time, to_frames, to_video
from ...pipelines import inputs
from ...pipelines.compat import familiar_names
from ...pipelines.footage import footage
from ...pipelines.output import VideoOutput
from ...sampling.noise import Generators, Noise
from ...sampling.schedule import Schedule
from .text_to_video import TextToVideoSDPipeline


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
            strength: how far from the footage, above 0 (hardly) to 1 (only the text counts); the share of steps run.
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
            if not isinstance(given, Tensor) or given.ndim != 5 or given.shape[1] != channels or not given.numel():
                got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise InputError(f"latents are {got}; they must be a tensor (b, {channels}, f, h, w).")
            source = swap_time(inputs.finite("latents", given))
        else:
            source = footage(call["video"], self.vae.stride, channels, call["height"], call["width"])
        if len(source) not in (1, clips // call["num_videos_per_prompt"], clips):
            raise InputError(
                f"There are {len(source)} clips of video for {clips} to make; give one, or one for each prompt."
            )
        self._check_size(source, call["height"], call["width"])
        copies = clips // len(source)

        def start() -> Tensor:
            clean = source.float() if source.shape[2] == channels else self._encoded(source, noise, clips)
            if len(clean) != clips:
                clean = clean.repeat_interleave(copies, 0) if len(clean) > 1 else clean.expand(clips, -1, -1, -1, -1)
            shape = clean.flatten(0, 1).shape
            return to_video(schedule.add_noise(to_frames(clean), noise.draw(shape, "start"), 0), clean.shape[1])

        return start, source.shape[1]

    def _check_size(self, source: Tensor, height: int | None, width: int | None) -> None:
        """Refuses a size that latents do not have: they cannot be resized as footage is."""
        scale = self.vae.stride if source.shape[2] == self.unet.config.in_channels else 1
        for name, asked, pixels in (("height", height, source.shape[3]), ("width", width, source.shape[4])):
            if asked not in (None, own := scale * pixels):
                raise InputError(f"{name} is {asked}, but these latents make {own} pixels; leave {name} out.")

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

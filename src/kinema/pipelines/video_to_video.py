"""What pipelines share that begin with footage: it is encoded, and noised part of the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..layout import swap_time, to_frames, to_video
from ..memory.plan import Stage
from ..memory.stages import encoding_stage
from ..sampling.noise import Noise
from ..sampling.schedule import Schedule
from . import inputs
from .footage import footage
from .overflow import Lift, healed
from .text_to_video import Shape, TextToVideo


class FromFootage(TextToVideo):
    """Starts from `video` or its latents instead of noise, at the level that `strength` says."""

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], Shape]:
        channels = self.vae.config.latent_channels
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
            return self._noised(call, clean, schedule, noise)

        scale = 1 if source.shape[2] == channels else self.vae.stride
        return start, (clips, source.shape[1], channels, source.shape[3] // scale, source.shape[4] // scale)

    def _noised(self, call: Mapping[str, Any], clean: Tensor, schedule: Schedule, noise: Noise) -> Tensor:
        """Clean latents (b, f, c, h, w) as noisy as the schedule begins."""
        frames = to_frames(clean)
        return to_video(schedule.add_noise(frames, noise.draw(frames.shape, "noised", time=0), 0), clean.shape[1])

    def _check_size(self, source: Tensor, height: int | None, width: int | None) -> None:
        """Refuses a size that latents do not have: they cannot be resized as footage is."""
        scale = self.vae.stride if source.shape[2] == self.vae.config.latent_channels else 1
        for name, asked, pixels in (("height", height, source.shape[3]), ("width", width, source.shape[4])):
            if asked not in (None, own := scale * pixels):
                raise InputError(f"{name} is {asked}, but these latents make {own} pixels; leave {name} out.")

    def _encoded(self, source: Tensor, noise: Noise, clips: int) -> Tensor:
        """Footage (b, f, 3, h, w) → scaled latents sampled from their distributions, (clips, f, c, h, w)."""
        copies = clips // len(source)
        source = source.repeat_interleave(copies, 0) if len(source) > 1 else source.expand(clips, -1, -1, -1, -1)

        def encoded(lift: Lift) -> tuple[Tensor, Tensor]:
            with self._residency.use("vae") as resident:
                vae, device = lift(resident), self.execution_device
                found = [vae.encode(part.to(device, vae.dtype)).latent_dist for part in source.flatten(0, 1).split(1)]
                mean, std = (torch.cat([getattr(d, k) for d in found]).float().cpu() for k in ("mean", "std"))
                return mean, std

        mean, std = healed("encode", ["vae"], self.vae.dtype, encoded)
        latents = mean + std * noise.draw(mean.shape, "encode", time=0)
        return to_video(latents * self.vae.config.scaling_factor, source.shape[1])

    def _stages(self, **asked: Any) -> list[Stage]:
        """The footage's encoding before the others."""
        first, *rest = super()._stages(**asked)
        return [first, encoding_stage(asked["frames"] * asked["clips"], asked["height"], asked["width"]), *rest]

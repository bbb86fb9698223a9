"""Video to video: a clip is noised part of the way and denoised towards a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...encoders.prompts import LongPrompts
from ...pipelines.compat import familiar_names
from ...pipelines.output import VideoOutput
from ...pipelines.video_to_video import FromFootage
from ...sampling.noise import Generators
from .text_to_video import TextToVideoSDPipeline


class VideoToVideoSDPipeline(FromFootage, TextToVideoSDPipeline):
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

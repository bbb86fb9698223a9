"""Text to video: a text becomes a clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ...encoders.prompts import LongPrompts
from ...pipelines import parts
from ...pipelines.compat import familiar_names
from ...pipelines.output import VideoOutput
from ...pipelines.text_to_video import TextToVideo
from ...sampling.noise import Generators
from ..autoencoder_kl import AutoencoderKL
from .original_files import ORIGINALS
from .unet import TextConditions, UNet3DConditionModel


class TextToVideoSDPipeline(TextToVideo):
    """Text to video with ModelScope's `text-to-video-ms-1.7b`, zeroscope, and models of their architecture."""

    parts = {
        "text_encoder": parts.text_encoder(),
        "tokenizer": parts.tokenizer(),
        "unet": parts.model(UNet3DConditionModel),
        "vae": parts.model(AutoencoderKL),
        "scheduler": parts.scheduler(),
    }
    published: ClassVar[tuple[str, ...]] = ("TextToVideoMSPipeline",)
    originals = ORIGINALS
    told = TextConditions
    frames_as_batch = True

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
            long_prompts: what becomes of text beyond 77 tokens: "blocks" (all is read), "cut" (as in the reference) or
                "refuse".
            callback_on_step_end: called as f(pipe, step, time, {"latents": …}) after every step; latents
                (b, c, f, h, w) in the mapping it returns are gone on with.

        Raises:
            InputError: an argument cannot be used.
            NumericsError: a stage produced numbers that are not finite.
        """
        return self.complete({k: v for k, v in locals().items() if k != "self"})

"""Image and text to video: a picture becomes a clip of what a text says happens in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...encoders.prompts import LongPrompts, times_said
from ...encoders.vision import FeatureExtractor
from ...errors import InputError
from ...media.pictures import FITS, Fit
from ...memory.plan import MemoryPlan, Stage
from ...memory.room import Memory
from ...pipelines import inputs, parts
from ...pipelines.budget import AS_SET
from ...pipelines.compat import familiar_names
from ...pipelines.output import VideoOutput
from ...pipelines.picture import (
    CENTRE,
    FirstFrame,
    Focus,
    Picture,
    PicturePipeline,
    beginning,
    draw_for_pictures,
    pictures,
    pixels_of,
    playback,
    spread,
    tell_cuts,
)
from ...pipelines.video import Job
from ...sampling.noise import Generators, Noise
from ..autoencoder_kl import AutoencoderKL
from ..modelscope.text_to_video import TextToVideoSDPipeline
from .framing import framed, seen
from .original_files import ORIGINALS
from .unet import I2VGenXLUNet, PictureTextConditions

PROMPTS = ("prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")


class I2VGenXLPipeline(PicturePipeline, TextToVideoSDPipeline):
    """Image and text to video with `i2vgen-xl` and models of its architecture."""

    parts = {
        "text_encoder": parts.text_encoder(),
        "tokenizer": parts.tokenizer(),
        "image_encoder": parts.image_encoder(),
        "feature_extractor": parts.feature_extractor(),
        "unet": parts.model(I2VGenXLUNet),
        "vae": parts.model(AutoencoderKL),
        "scheduler": parts.scheduler(),
    }
    published: ClassVar[tuple[str, ...]] = ()
    originals = ORIGINALS
    skips_both = True

    unet: I2VGenXLUNet  # type: ignore[assignment]

    @familiar_names
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        height: int | None = 704,
        width: int | None = 1280,
        target_fps: int | None = 16,
        num_frames: int = 16,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        negative_prompt: str | list[str] | None = None,
        eta: float = 0.0,
        num_videos_per_prompt: int | None = 1,
        decode_chunk_size: int | None = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = 1,
        *,
        guidance_rescale: float = 0.0,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        fit: Fit | None = None,
        focus: Focus = CENTRE,
        first_frame: FirstFrame = "free",
        playback_fps: float | None = None,
        prompt_weighting: bool = False,
        long_prompts: LongPrompts = "blocks",
        callback_on_step_end: Callable[..., Mapping[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> VideoOutput:
        """Makes clips that begin with a picture and go on as a text says.

        Args:
            prompt: what happens; a list makes a batch. One prompt serves several pictures, each making a clip.
            image: what each clip begins with: a PIL picture, a path or URL, an array (h, w, 3), a tensor (3, h, w) in
                [0, 1] of any size, or a batch of these. One picture serves several prompts.
            height, width: of the clip in pixels, multiples of 8; the model was trained at 1280×704 (width×height).
                None takes what the model's configuration says.
            target_fps: what the model is told of the frame rate: fewer frames a second move further apart.
            num_frames: how many frames, 1 or more; the model was trained on 16.
            num_inference_steps: more is slower and better; the authors take 50.
            guidance_scale: how closely to follow text and picture, 1 (not guided) to about 15.
            negative_prompt: what not to show; used where guided.
            eta: of DDIM, 0 (the same clip from the same noise) to 1 (fresh noise at each step).
            num_videos_per_prompt: clips of each prompt; those of one prompt lie next to each other.
            decode_chunk_size: frames decoded at once; the picture does not depend on it.
            generator: an int seed, a torch or numpy generator, or a list of these, one a clip. The picture's latents
                draw from it too: where it is PyTorch's own (`torch.manual_seed(…)`) before anything else, as in the
                reference; where it is another, aside from it, so that the rest is what the reference draws.
            latents: noise to start from, (b, c, f, h/8, w/8), instead of drawing it.
            prompt_embeds, negative_prompt_embeds: (b, k, c), instead of texts.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: kept for old code; the output is a tuple and has `.frames` either way.
            cross_attention_kwargs: {"scale": s}: the strength of loaded LoRAs in this call.
            clip_skip: how many of the text encoder's last layers to leave out; the model was trained with 1.
            guidance_rescale: 0 to 1, against over-exposure by strong guidance (Lin et al. 2023).
            timesteps, sigmas: a schedule of one's own, noisiest first.
            fit: how pictures of other proportions become the clip's: "crop" fills the frame, "pad" shows all with
                bars, "stretch" squashes. By default "crop", as in the reference, and a note if something is cut.
            focus: which point of the picture "crop" keeps and "pad" moves: (across, down), 0 to 1 each.
            first_frame: "free" leaves the clip as it is made; "exact" begins it with the picture itself and fades what
                that changes over the next frames. How near the made one comes is in the receipt either way, in dB.
                Latents have no pictures, so "latent" goes with "free" alone.
            playback_fps: frames a second at which the output is saved; `target_fps` by default.
            prompt_weighting: whether `(word:1.3)` and `[word]` weigh words.
            long_prompts: what becomes of text beyond 77 tokens: "blocks" (all is read), "cut" (as in the reference) or
                "refuse".
            callback_on_step_end: called as f(pipe, step, time, {"latents": …}) after every step; latents
                (b, c, f, h, w) in the mapping it returns are gone on with.

        Raises:
            InputError: an argument cannot be used.
            MediaError: a picture cannot be read.
            NumericsError: a stage produced numbers that are not finite.
        """
        return self.complete({k: v for k, v in locals().items() if k != "self"})

    def begin(self, call: Mapping[str, Any]) -> Job:
        found = pictures(call["image"])
        fps = inputs.number("target_fps", call["target_fps"], 1)
        lone = call["prompt"] if not isinstance(call["prompt"], str) else [call["prompt"]]
        asked = {
            name: _for_each(value, len(found)) for name, value in {**call, "prompt": lone}.items() if name in PROMPTS
        }
        fitted, views = self._shown(found, *self._size(call["height"], call["width"]), call["fit"], call["focus"])
        job = super().begin({**call, **asked, "image": (fitted, views)})
        return replace(job, finish=beginning(call, fitted), told={"playback_fps": playback(call, fps)})

    def _conditions(
        self, call: Mapping[str, Any], clips: int, frames: int, noise: Noise
    ) -> Callable[[Tensor], PictureTextConditions]:
        (fitted, views), fps = call["image"], float(call["target_fps"])
        prompts = clips // call["num_videos_per_prompt"]
        if len(fitted) not in (1, prompts):
            raise InputError(f"There are {len(fitted)} pictures for {prompts} prompts; give one, or one for each.")

        def conditions(text: Tensor) -> PictureTextConditions:
            image = spread(self.embed_pictures(views), clips)[:, None]
            image = torch.cat([torch.zeros_like(image)] * (len(text) // clips - 1) + [image])
            beside = places(self._picture_latents(fitted, noise.aside(), clips), frames)
            image, beside = (x.to(text.device, self.unet.dtype) for x in (image, beside))
            rate, times = torch.tensor([fps], device=text.device), times_said(text, self.tokenizer.model_max_length)
            said = torch.tensor(times, device=text.device) if max(times) > 1 else None
            return PictureTextConditions(text.to(self.unet.dtype), image, beside, rate, frames, said)

        return conditions

    def _shown(
        self, found: Sequence[Picture], height: int, width: int, fit: Fit | None, focus: Focus
    ) -> tuple[Tensor, list[Tensor]]:
        """Pictures for the autoencoder, (n, 3, height, width), and for CLIP, (3, h, w) each, all in [0, 1]."""
        if fit is None:
            tell_cuts(found, height, width)
        how: Any = "crop" if fit is None else inputs.choice("fit", fit, FITS)
        side = FeatureExtractor.of(self.feature_extractor).side
        fitted = [pixels_of(framed(picture.image, width, height, how, focus)) for picture in found]
        return torch.stack(fitted), [pixels_of(seen(picture.image, width, side, how, focus)) for picture in found]

    def _picture_latents(self, fitted: Tensor, noise: Noise, clips: int) -> Tensor:
        """Pictures in [0, 1] → latents sampled from their distributions, (clips, c, h, w)."""
        mean, deviation = self.encode_pictures(fitted * 2 - 1)
        drawn = draw_for_pictures(noise, mean.shape, clips // len(mean), "picture").to(mean)
        sampled = spread(mean, len(drawn)) + spread(deviation, len(drawn)) * drawn
        return spread(sampled * self.vae.config.scaling_factor, clips)

    def plan(
        self,
        height: int | None = 704,
        width: int | None = 1280,
        num_frames: int = 16,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 9.0,
        clips: int = 1,
        decode_chunk_size: int = 1,
        memory: Memory = AS_SET,
    ) -> MemoryPlan:
        """What a call would take, stage by stage, predicted on tensors without contents; `print` it for a table.

        Args:
            memory: what it may take, as `memory` has it; by default what the pipeline is set to. Where it fits in no
                way, the plan's `fits` is False.

        Raises:
            InputError: the size or a count cannot be used.
        """
        return super().plan(
            height,
            width,
            num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            clips=clips,
            decode_chunk_size=decode_chunk_size,
            memory=memory,
        )

    def _stages(self, **asked: Any) -> list[Stage]:
        """The text's and the pictures' before the others."""
        text, *rest = super()._stages(**asked)
        return [text, *self.picture_stages(asked["clips"], asked["height"], asked["width"]), *rest]

    def _hollow(self, *, frames: int, **asked: int) -> Callable[[Tensor], PictureTextConditions]:
        clips, stride = asked["clips"], self.vae.stride
        h, w = asked["height"] // stride, asked["width"] // stride

        def conditions(text: Tensor) -> PictureTextConditions:
            beside = text.new_empty(clips, frames, self.vae.config.latent_channels, h, w)
            return PictureTextConditions(text, text[:, :1], beside, text.new_empty(1), frames)

        return conditions


def places(latents: Tensor, frames: int) -> Tensor:
    """(n, c, h, w) of a first frame → (n, frames, c, h, w): later frames say how far into the clip they are, to 1."""
    later = torch.arange(1, frames).to(latents)[:, None, None, None] / max(frames - 1, 1)
    shape = (len(latents), frames - 1, *latents.shape[1:])
    return torch.cat([latents[:, None], later.expand(shape)], dim=1)


def _for_each(value: Any, pictures: int) -> Any:
    """What is said of one clip, said of each picture's."""
    if not isinstance(value, (list, tuple, Tensor)) or len(value) != 1:
        return value
    return value.repeat(pictures, 1, 1) if isinstance(value, Tensor) else [*value] * pictures

"""What pipelines that make clips of a text share, whatever else they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from ..encoders.prompts import Reading
from ..errors import InputError
from ..layout import swap_time
from ..memory.plan import MemoryPlan, Stage
from ..memory.room import Memory
from ..memory.stages import text_to_video_stages
from ..sampling.guidance import Guidance, guidance_of
from ..sampling.noise import ClipByClip, Noise
from ..sampling.schedule import Schedule
from . import inputs
from .adapters import AdaptablePipeline
from .budget import AS_SET
from .text import TextPipeline
from .video import Job

Shape = tuple[int, int, int, int, int]  # of latents, (b, f, c, h, w)


class TextToVideo(AdaptablePipeline, TextPipeline):
    """A text, a denoiser it tells what to do, and an autoencoder. A family says how a call is spelt."""

    told: ClassVar[Callable[..., Any]]  # makes the denoiser's conditions from (text, frames=)
    beside: ClassVar[tuple[str, ...]] = ()  # networks among the parts that work beside the denoiser
    inherited: ClassVar[tuple[str, ...]] = ("_freeu",)
    _freeu: Mapping[str, float] | None = None
    frames_as_batch: ClassVar[bool] = False  # whether solvers draw noise, and set thresholds, frame by frame

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Strengthens features of the first two stages up (b1, b2 above 1) and weakens their skips (s1, s2 below 1).

        The authors suggest s1=0.9, s2=0.2, b1=1.2, b2=1.4 for models of Stable Diffusion 1's width (Si et al. 2023).
        """
        told = {"s1": s1, "s2": s2, "b1": b1, "b2": b2}
        self._freeu = {name: inputs.number(name, value) for name, value in told.items()}

    def disable_freeu(self) -> None:
        self._freeu = None

    def _told(self) -> dict[str, Any]:
        return {**super()._told(), **({} if self._freeu is None else {"merge": self.unet.freeu(**self._freeu)})}

    def _receipt(self) -> dict[str, Any]:
        return {**super()._receipt(), **({} if self._freeu is None else {"freeu": self._freeu})}

    def begin(self, call: Mapping[str, Any]) -> Job:
        asked = self._asked(call)
        copies = inputs.whole("num_videos_per_prompt", call["num_videos_per_prompt"])
        scale = inputs.number("guidance_scale", call["guidance_scale"], 0)
        rescale = inputs.number("guidance_rescale", call["guidance_rescale"], 0, 1)
        guidance = self._guidance(call, scale, rescale)
        noise = self._noise(call["generator"], len(asked), copies)
        plan = self._plan(call)
        start, shape = self._start(call, len(asked) * copies, plan.schedule, noise)
        frames = shape[1]
        conditions = self._conditions(call, len(asked) * copies, frames, noise)
        reading = Reading(bool(call["prompt_weighting"]), call["long_prompts"], self.inversions)
        lora_scale = inputs.lora_scale(call["cross_attention_kwargs"])
        clip_skip = inputs.whole("clip_skip", call["clip_skip"] or 0, 0, self.text_encoder.config.num_hidden_layers - 1)

        chunk = call["decode_chunk_size"]

        def encode() -> tuple[Any, Tensor]:
            text = self._text(
                call,
                asked,
                guided=scale > 1,
                clip_skip=clip_skip or None,
                reading=reading,
                copies=copies,
                lora_scale=lora_scale,
            )
            return conditions(text), start().to(self.execution_device)

        return Job(
            encode,
            plan.schedule,
            plan.solver,
            guidance,
            noise if self.frames_as_batch else ClipByClip(noise, frames),
            decode_chunk=1 if chunk is None else inputs.whole("decode_chunk_size", chunk),
            output_type=self._check_output(call),
            lora_scale=lora_scale,
            order=self._planner(call).order,
            until=self._until(call, plan.schedule),
            shape=shape,
        )

    def _asked(self, call: Mapping[str, Any]) -> Any:
        """What clips are to show and not to show, one of each a clip."""
        given, width = (call["prompt_embeds"], call["negative_prompt_embeds"]), self.unet.config.cross_attention_dim
        return inputs.prompts(call["prompt"], call["negative_prompt"], *given, width)

    def _until(self, call: Mapping[str, Any], schedule: Schedule) -> float | None:
        """The noise level to stop before, as the network is told it; None for no noise."""
        return None

    def _guidance(self, call: Mapping[str, Any], scale: float, rescale: float) -> Guidance:
        return guidance_of(scale, rescale)

    def _text(self, call: Mapping[str, Any], asked: Any, **how: Any) -> Any:
        """What `_conditions` makes conditions of: by default embeddings, (branches·clips, k, c)."""
        return self.embeddings(asked, **how)

    def _conditions(self, call: Mapping[str, Any], clips: int, frames: int, noise: Noise) -> Callable[[Any], Any]:
        """How to make what the denoiser is told from what `_text` gives."""
        return partial(type(self).told, frames=frames)

    def _plan(self, call: Mapping[str, Any]) -> Any:
        """The levels to visit and how to move between them."""
        custom = {k: call[k] for k in ("timesteps", "sigmas") if call[k] is not None}
        steps = None if custom else inputs.whole("num_inference_steps", call["num_inference_steps"])
        strength = inputs.number("strength", call["strength"], 0, 1) if "strength" in call else None
        eta = inputs.number("eta", call["eta"], 0, 1)
        return self._planner(call).plan(
            steps, **custom, eta=eta, strength=strength, frames_as_batch=self.frames_as_batch
        )

    def _start(
        self, call: Mapping[str, Any], clips: int, schedule: Schedule, noise: Noise
    ) -> tuple[Callable[[], Tensor], Shape]:
        """How to make the latents (b, f, c, h, w) a call starts from, and their shape."""
        height, width = self._size(call["height"], call["width"])
        frames = inputs.whole("num_frames", call["num_frames"])
        stride = self.vae.stride
        shape = (clips, self.vae.config.latent_channels, frames, height // stride, width // stride)
        given = None if call["latents"] is None else inputs.latents(call["latents"], shape)

        def start() -> Tensor:
            latents = noise.draw(shape, "start", time=2) if given is None else given.float()
            return swap_time(latents * schedule.init_noise_sigma)

        return start, (clips, frames, shape[1], *shape[3:])

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        own = self.unet.config.sample_size
        if own is None and (height is None or width is None):
            raise InputError("This model does not say its size; give height and width.")
        side = (own or 0) * self.vae.stride
        return inputs.size(
            height if height is not None else side, width if width is not None else side, self.vae.stride
        )

    def plan(
        self,
        height: int | None = None,
        width: int | None = None,
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
        height, width = self._size(height, width)
        guidance = guidance_of(guidance_scale)
        self._approximated(guidance, wrapped=self.wraps)  # what does not go together is refused, as by a call
        asked = {
            "height": height,
            "width": width,
            "frames": inputs.whole("num_frames", num_frames),
            "steps": inputs.whole("num_inference_steps", num_inference_steps),
            "branches": guidance.branches,
            "clips": inputs.whole("clips", clips),
            "decode_frames": inputs.whole("decode_chunk_size", decode_chunk_size),
        }
        return self._plan_for(asked, memory)

    def _planned_components(self) -> Mapping[str, nn.Module]:
        return {**self.modules(), **self._besides()}

    def _besides(self) -> Mapping[str, nn.Module]:
        """What works beside the denoiser, by name."""
        return {name: self.modules()[name] for name in self.beside}

    def _steered(self, denoiser: Any, asked: Mapping[str, int], **beside: Any) -> Any:
        """The denoiser as a call of this size has it, on tensors without contents; `Job.wrap` does it in a call."""
        return denoiser

    def _stages(self, **asked: Any) -> list[Stage]:
        """What a call of this size goes through, on tensors without contents."""

        spared, frames = self._spared(asked["branches"]), asked["frames"]

        def wrapped(denoiser: Any, way: str, **beside: Any) -> Any:
            steered = partial(self._steered, asked=asked, **beside)
            unet = self._hollow_lora("unet", denoiser, frames)
            return self._planned(unet, way, spared, asked["branches"], frames, steered)

        return text_to_video_stages(
            self._hollow(**asked),
            **asked,
            context=(self.tokenizer.model_max_length, self.unet.config.cross_attention_dim),
            latents=self.vae.config.latent_channels,
            stride=self.vae.stride,
            dtype=self.dtype,
            high=self.decodes_high,
            wrapped=wrapped,
            beside=tuple(self._besides()),
            rounds=self._planned_rounds(asked["steps"]),
            entire=bool(spared.settings),
            at_most=spared.adaptive,
        )

    def _denoising(self, frames: int, side: int) -> Stage:
        size = side * self.vae.stride
        asked = {"height": size, "width": size, "frames": frames, "steps": 1, "branches": 1, "clips": 1}
        return next(s for s in self._stages(**asked, decode_frames=1) if s.name == "denoise")

    def _hollow(self, *, frames: int, **asked: int) -> Callable[[Tensor], Any]:
        """The same on tensors without contents."""
        return partial(type(self).told, frames=frames)

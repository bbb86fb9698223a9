"""Text to video with SDXL models that learnt to move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...encoders.twofold import Pair, Spoken
from ...errors import InputError
from ...memory.plan import Stage
from ...pipelines import inputs, parts
from ...pipelines.text_to_video import TextToVideo
from ...pipelines.two_texts import TwoPrompts, TwoTextsPipeline
from ...sampling.noise import Noise
from ...sampling.schedule import Schedule
from . import arguments, travel
from .arguments import called_with
from .original_files import ORIGINALS_XL
from .pipeline import PARTS, MotionPipeline
from .unet import MotionConditions

PARTS_XL: Mapping[str, parts.Part] = {
    "text_encoder": parts.text_encoder(),
    "text_encoder_2": parts.text_encoder_2(),
    "tokenizer": parts.tokenizer(),
    "tokenizer_2": parts.tokenizer(),
    **{name: part for name, part in PARTS.items() if name not in ("text_encoder", "tokenizer")},
}


class SDXL(TwoTextsPipeline, TextToVideo):
    """An SDXL model: told a text by two encoders, the whole of it as one vector, and sizes as numbers."""

    adapted = ("unet", "text_encoder", "text_encoder_2")
    decodes_high = True

    def _asked(self, call: Mapping[str, Any]) -> TwoPrompts:
        layers = min(e.config.num_hidden_layers for e in (self.text_encoder, self.text_encoder_2))
        inputs.whole("clip_skip", call["clip_skip"] or 0, 0, layers - 1)
        return self.two_prompts(call)

    def _text(self, call: Mapping[str, Any], asked: TwoPrompts, **how: Any) -> Spoken:
        journeys: travel.Journeys = call.get("journeys", travel.Journeys())
        if not journeys:
            return self.spoken(asked, **how)
        apart = bool(call["negative_prompt_2"]), bool(call["prompt_2"])
        return self.spoken(_stops(asked, journeys, apart), **{**how, "copies": 1})

    def _conditions(self, call: Mapping[str, Any], clips: int, frames: int, noise: Noise) -> Callable[[Any], Any]:
        moving = super()._conditions(call, clips, frames, noise)
        numbers = self._numbers(call)
        journeys: travel.Journeys = call.get("journeys", travel.Journeys())
        copies = call["num_videos_per_prompt"]

        def conditions(told: Spoken) -> MotionConditions:
            made: MotionConditions = moving(told.text)
            pooled = told.pooled
            if journeys:  # one vector tells of the whole clip: the mean of what its frames are told
                pooled = travel.along(pooled[:, None], journeys, clips // copies, frames, copies).mean(1)[:, 0]
            branches = len(pooled) // clips
            rows = numbers[-branches:].to(pooled.device).repeat_interleave(clips, 0)
            return dataclasses.replace(made, pooled=pooled, numbers=rows)

        return conditions

    def _numbers(self, call: Mapping[str, Any]) -> Tensor:
        """(2, 6): original size, crop and target size of the branch without the prompt, and of that with it.

        Those of the first count where both its sizes are given; else it is told what the second is told.
        """
        size = self._size(call["height"], call["width"])
        names = ("original_size", "crops_coords_top_left", "target_size")
        own = [_two(name, call[name] if call[name] is not None else size) for name in names]
        other = [_two(f"negative_{name}", call[f"negative_{name}"]) for name in names if call[f"negative_{name}"]]
        told = [sum(other if len(other) == len(names) else own, ()), sum(own, ())]
        return torch.tensor(told, dtype=torch.float32)

    def _until(self, call: Mapping[str, Any], schedule: Schedule) -> float | None:
        if call["denoising_end"] is None:
            return None
        end = inputs.number("denoising_end", call["denoising_end"], 0, 1)
        levels = self.scheduler.config["num_train_timesteps"]
        last = round(levels - end * levels)
        if not (schedule.times >= last).any():
            raise InputError(f"denoising_end {end:g} leaves no step to do; raise it, or num_inference_steps.")
        return None if end == 1 else last

    def _hollow(self, **asked: Any) -> Callable[[Tensor], Any]:
        plain = super()._hollow(**asked)

        def conditions(text: Tensor) -> MotionConditions:
            pooled = text.new_empty(len(text), self.text_encoder_2.config.projection_dim)
            return dataclasses.replace(plain(text), pooled=pooled, numbers=text.new_empty(len(text), 6))

        return conditions

    def _stages(self, **asked: Any) -> list[Stage]:
        first, *rest = super()._stages(**asked)
        return [first, dataclasses.replace(first, component="text_encoder_2"), *rest]


def _stops(asked: TwoPrompts, journeys: travel.Journeys, apart: tuple[bool, bool]) -> TwoPrompts:
    """All texts of all journeys, paired; the second encoder is told the same, unless it is told something else
    throughout: of what not to show and of what to show, as `apart` says."""
    counts, journeys = journeys.counts(len(asked)), journeys.of(len(asked))

    def side(given: tuple[Pair, ...] | Spoken, along: Sequence[travel.Journey], own: bool) -> Any:
        if isinstance(given, Spoken):
            return Spoken(*(x[travel.rows(counts)] for x in given))
        if not along:
            return travel.filled([(pair,) for pair in given], counts)
        texts = [tuple((t, pair[1] if own else t) for t in j.texts) for j, pair in zip(along, given, strict=True)]
        return travel.filled(texts, counts)

    against = None if asked.negative is None else side(asked.negative, journeys.against, apart[0])
    return TwoPrompts(side(asked.positive, journeys.said, apart[1]), against)


def _two(name: str, value: Any) -> tuple[int, ...]:
    """Two whole numbers of pixels."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"{name} is {value!r}; it must be two numbers of pixels, height and width (or top and left).")
    return tuple(inputs.whole(name, number, 0) for number in value)


class AnimateDiffSDXLPipeline(SDXL, MotionPipeline):
    """Text to video with an SDXL model of any style and a motion adapter made for SDXL (Guo et al. 2023)."""

    parts = dict(PARTS_XL)
    accepts = frozenset({"StableDiffusionXLPipeline", "AnimateDiffSDXLPipeline"})
    originals = ORIGINALS_XL

    __call__ = called_with(arguments.SDXL, "Makes clips of what a text says.", guidance_scale=5.0)

"""Text to video guided away from what the model would make with less attention (Ahn et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

from ...pipelines import inputs
from ...pipelines.parts import Source
from ...pipelines.video import Job
from ...sampling.guidance import Guidance, perturbed_guidance
from ...sampling.schedule import Schedule
from . import arguments
from .arguments import DEFAULTS, called_with
from .perturbed import LAYERS, Perturbed, chosen
from .pipeline import PARTS, MotionPipeline


class AnimateDiffPAGPipeline(MotionPipeline):
    """Text to video with perturbed-attention guidance, beside guidance by the prompt or without it."""

    parts = dict(PARTS)
    inherited: ClassVar[tuple[str, ...]] = ("pag_applied_layers",)
    wraps = True

    __call__ = called_with(arguments.PAG, "Makes clips of what a text says, guided by attention as well.")

    def __init__(self, *, pag_applied_layers: str | Sequence[str] = LAYERS, **components: Any):
        super().__init__(**components)
        self.set_pag_applied_layers(pag_applied_layers)

    @classmethod
    def _from(cls, source: Source, index: Mapping[str, Any], components: Mapping[str, Any], name: str) -> Self:
        layers = components.get("pag_applied_layers", LAYERS)
        pipe = super()._from(source, index, {k: v for k, v in components.items() if k != "pag_applied_layers"}, name)
        pipe.set_pag_applied_layers(layers)
        return pipe

    def set_pag_applied_layers(self, pag_applied_layers: str | Sequence[str]) -> None:
        """Which self-attentions are perturbed: patterns that are somewhere in their published names.

        Raises:
            InputError: a pattern is in no name.
        """
        layers = [pag_applied_layers] if isinstance(pag_applied_layers, str) else list(pag_applied_layers)
        chosen(self.unet, layers)
        self.pag_applied_layers = layers

    def _guidance(self, call: Mapping[str, Any], scale: float, rescale: float) -> Guidance:
        away = inputs.number("pag_scale", call["pag_scale"], 0)
        inputs.number("pag_adaptive_scale", call["pag_adaptive_scale"], 0)
        if not away:
            return super()._guidance(call, scale, rescale)
        return self._away(call, self._plan(call).schedule)

    def _away(self, call: Mapping[str, Any], schedule: Schedule) -> Guidance:
        """The guidance at these levels: how far away it leads follows the noise of the round that is run."""
        scale, away, falling, rescale = (
            float(call[n]) for n in ("guidance_scale", "pag_scale", "pag_adaptive_scale", "guidance_rescale")
        )
        return perturbed_guidance(scale, away, falling, schedule.times, rescale)

    def _receipt(self) -> dict[str, Any]:
        return {**super()._receipt(), "pag_applied_layers": self.pag_applied_layers}

    def _steered(self, denoiser: Any, asked: Mapping[str, int], **beside: Any) -> Any:
        return Perturbed(super()._steered(denoiser, asked, **beside), self.pag_applied_layers)

    def begin(self, call: Mapping[str, Any]) -> Job:
        job = super().begin(call)
        if not call["pag_scale"]:
            return job
        layers, asked = self.pag_applied_layers, {**DEFAULTS, **call}
        return replace(job, wrap=lambda unet: Perturbed(unet, layers), guided=partial(self._away, asked))

"""What all pipelines of this family are: a text, an image model that moves, and conditions beside the text."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from torch import Tensor

from ...errors import InputError
from ...pipelines import parts
from ...pipelines.base import DiffusionPipeline
from ...pipelines.video import Job
from ...sampling import schedulers
from ...sampling.noise import Noise
from ..autoencoder_kl import AutoencoderKL
from . import more_motion, pairs, travel
from .adapter import MotionAdapter
from .arguments import DEFAULTS
from .original_files import ORIGINALS, check_beside
from .picture_prompts import PicturePrompts
from .presets import PRESETS, preset
from .unet import MotionConditions, Numerics, UNet2DConditionModel, UNetMotionModel, check_numerics

log = logging.getLogger("kinema")

# The noise schedules motion modules were trained with, by the image model's widths and, where that decides, the places
# a module has for frames. Of SDXL's, those with 24 are Hotshot-XL's, trained with SDXL's own.
_SD15 = {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}
_SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.02}
TRAINED_NOISE: Mapping[tuple[tuple[int, ...], int | None], Mapping[str, Any]] = {
    ((320, 640, 1280, 1280), None): _SD15,
    ((320, 640, 1280), None): _SDXL,
    ((320, 640, 1280), 24): {**_SDXL, "beta_end": 0.012},
}

PARTS: Mapping[str, parts.Part] = {
    "text_encoder": parts.text_encoder(),
    "tokenizer": parts.tokenizer(),
    "unet": parts.model(UNetMotionModel, UNet2DConditionModel),
    "motion_adapter": parts.may_lack(parts.model(MotionAdapter)),
    "vae": parts.model(AutoencoderKL),
    "scheduler": parts.scheduler(),
    "feature_extractor": parts.may_lack(parts.feature_extractor()),
    "image_encoder": parts.may_lack(parts.image_encoder()),
}


class MotionPipeline(PicturePrompts):
    """An image model that moves, told a text. What else it is told, a call's arguments say."""

    told = MotionConditions
    numerics: Numerics = "reference"
    over_clip: bool | None = None  # what `set_numerics` was told of it
    inherited: ClassVar[tuple[str, ...]] = ("numerics", "over_clip")
    beside_latents: ClassVar[int] = 0  # channels that ride along with the latents
    originals = ORIGINALS
    preset = staticmethod(preset)
    accepts: ClassVar[frozenset[str]] = frozenset(
        {
            "StableDiffusionPipeline",
            "AnimateDiffPipeline",
            "AnimateDiffControlNetPipeline",
            "AnimateDiffVideoToVideoPipeline",
            "AnimateDiffVideoToVideoControlNetPipeline",
            "AnimateDiffSparseControlNetPipeline",
            "AnimateDiffPAGPipeline",
            "PIAPipeline",
        }
    )

    unet: UNetMotionModel
    vae: AutoencoderKL
    motion_adapter: MotionAdapter | None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):  # it is made from a table, and then is this class's
            inspect.unwrap(vars(cls)["__call__"]).__qualname__ = f"{cls.__qualname__}.__call__"

    def __init__(self, **components: Any):
        unet, given = components.get("unet"), components.get("motion_adapter")
        adapters: dict[str, Any] = pairs.in_order(given, unet) if isinstance(given, Mapping) else {"": given}
        name = next(iter(adapters))
        adapter = components["motion_adapter"] = adapters.pop(name)
        if isinstance(unet, UNet2DConditionModel):
            if adapter is None:
                raise InputError(
                    f"{type(self).__name__} needs a motion_adapter for this image model: pass "
                    "motion_adapter=MotionAdapter.from_pretrained(…)."
                )
            components["unet"] = UNetMotionModel.from_unet2d(unet, adapter)
        pairs.check(unet, adapter)
        pairs.keep(components.get("unet"), adapter)
        super().__init__(**components)
        self._check_motion()
        self.unet.motion_name = name or self.unet.motion_name
        for other, more in adapters.items():
            self.add_motion_adapter(other, more)

    @property
    def motion_names(self) -> list[str]:
        """What `motion_scale` can name: the motion adapter that the denoiser moves by, and those added to it."""
        return [self.unet.motion_name, *more_motion.names(self.unet)]

    def add_motion_adapter(self, name: str, motion_adapter: MotionAdapter) -> None:
        """Puts one more motion adapter beside the first: it counts in calls whose `motion_scale` names it.

        Where several do, each adds what it changes: h = x + Σ m·(module(x) − x), m its number of the frame. Motion
        LoRAs change the first. A saved pipeline has the first alone.

        Raises:
            CheckpointError: it was made for another image model.
            InputError: the name is taken, or it has a module where the first one has none.
        """
        if name == self.unet.motion_name:
            raise InputError(f"The first motion adapter is named {name!r}; give this one another name.")
        more_motion.join(self.unet, name, motion_adapter)

    def remove_motion_adapter(self, name: str) -> None:
        """Takes an added motion adapter away again.

        Raises:
            InputError: none has this name.
        """
        more_motion.leave(self.unet, name)

    @classmethod
    def _from(cls, source: parts.Source, index: Mapping[str, Any], components: Mapping[str, Any], name: str) -> Self:
        check_beside(source, components)
        pipe = super()._from(source, index, components, name)
        if "scheduler" not in components and not str(index.get("_class_name", "")).startswith(("AnimateDiff", "PIA")):
            pipe._follow_motion(name)
        return pipe

    @classmethod
    def _load(cls, source: parts.Source, index: Mapping[str, Any], wanted: set[str]) -> dict[str, Any]:
        loaded = super()._load(source, index, wanted)
        pairs.loaded(loaded, wanted)
        return loaded

    def _follow_motion(self, name: str) -> None:
        """Takes the noise schedule that the motion module was trained with, whatever the image model came with."""
        config, own = self.unet.config, self.scheduler.config
        widths, places = config.block_out_channels, config.motion_max_seq_length
        trained = TRAINED_NOISE.get((widths, places)) or TRAINED_NOISE.get((widths, None), {})
        other = {field: value for field, value in trained.items() if own.get(field) != value}
        if other:
            log.warning(
                "%s comes with another noise schedule than the motion module was trained with; %s is taken. Pass "
                "scheduler= to decide yourself.",
                name,
                ", ".join(f"{field}={value!r}" for field, value in other.items()),
            )
            self.scheduler = type(self.scheduler).from_config(own, **other)

    @property
    def trained_frames(self) -> int:
        return min(16, self.frame_limit)

    @property
    def frame_limit(self) -> int:
        """As many as all motion modules have places for."""
        return more_motion.places_known(self.unet)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **components: Any) -> Self:
        """This kind of pipeline on another one's parts; see `DiffusionPipeline.from_pipe`.

        Raises:
            InputError: another motion adapter is given, but the image model has learnt to move already.
        """
        if isinstance(components.get("motion_adapter"), Mapping) and "unet" not in components:
            raise InputError("The pipeline's denoiser has a motion module already; add others by add_motion_adapter.")
        if "motion_adapter" not in components:  # a copy of the denoiser may have learnt since, or have LoRAs on it
            pairs.keep(components.get("unet"), getattr(pipeline, "motion_adapter", None))
        return super().from_pipe(pipeline, **components)

    def _check_motion(self) -> None:
        """Refuses a denoiser that looks at something else than this pipeline shows it.

        Raises:
            InputError: it does.
        """
        seen, latents = self.unet.config.in_channels, self.vae.config.latent_channels
        shown = latents + self.beside_latents
        if seen != shown:
            other = "it is PIA's: use PIAPipeline" if seen == latents + 5 else "take one made for this pipeline"
            raise InputError(
                f"{type(self).__name__} shows its denoiser {shown} channels, this one looks at {seen}; {other}."
            )

    def set_numerics(self, numerics: Numerics, *, over_clip: bool | None = None) -> None:
        """Whose group norms this pipeline computes: those of the reference, or those the authors trained with.

        Args:
            numerics: "reference" normalises motion modules over the whole clip and all else by frame; "original"
                normalises motion modules by frame, as `guoyww/AnimateDiff` does for Stable Diffusion 1.5, those of a
                SparseCtrl too.
            over_clip: for "original", whether residual blocks normalise over the whole clip, as modules of version 1
                and PIA were trained; by default that is so where the module is of a kind that was.

        Raises:
            InputError: it is neither.
        """
        self.numerics, self.over_clip = check_numerics(numerics), over_clip

    def _receipt(self) -> dict[str, Any]:
        told: dict[str, Any] = {"numerics": self.numerics}
        if self.over_clip is not None:
            told["over_clip"] = self.over_clip
        return {**super()._receipt(), **told}

    def begin(self, call: Mapping[str, Any]) -> Job:
        texts, said = travel.read(call.get("prompt"))
        negative, against = travel.read(call.get("negative_prompt"), "negative_prompt")
        more, masks = call.get("cross_attention_kwargs"), None
        if isinstance(more, Mapping):
            more = {k: v for k, v in more.items() if k != "ip_adapter_masks"}
            masks = call["cross_attention_kwargs"].get("ip_adapter_masks")
        read = {"prompt": texts, "negative_prompt": negative, "journeys": travel.Journeys(said, against)}
        return super().begin({**DEFAULTS, **call, **read, "cross_attention_kwargs": more, "ip_adapter_masks": masks})

    def _planner(self, call: Mapping[str, Any]) -> Any:
        """The scheduler, or the one that the call's preset takes, on the same noise schedule."""
        own = super()._planner(call)
        if call["preset"] is None:
            return own
        recipe = PRESETS[call["preset"]]
        cls: Any = getattr(schedulers, recipe.scheduler)
        return cls.from_config(own.config, **recipe.settings)

    def _text(self, call: Mapping[str, Any], asked: Any, **how: Any) -> Any:
        journeys: travel.Journeys = call["journeys"]
        if not journeys:
            return super()._text(call, asked, **how)
        return self.embeddings(travel.stops(asked, journeys), **{**how, "copies": 1})

    def _conditions(self, call: Mapping[str, Any], clips: int, frames: int, noise: Noise) -> Callable[[Any], Any]:
        motion = self._motion(call, frames)
        if self._adapters is not None:
            self._adapters.check_frames(frames)
        shown = self.pictures_shown(call, clips, guided=float(call["guidance_scale"]) > 1)
        journeys: travel.Journeys = call["journeys"].checked(frames)
        copies = call["num_videos_per_prompt"]

        def conditions(text: Tensor) -> MotionConditions:
            if journeys:
                text = travel.along(text, journeys, clips // copies, frames, copies, self._between)
            told = MotionConditions(text.to(self.unet.dtype), frames, motion=motion.get(""), pictures=shown())
            others = {name: scales for name, scales in motion.items() if name}
            return replace(told, others=others, numerics=self.numerics, over_clip=self.over_clip)

        return conditions

    def _hollow(self, **asked: Any) -> Callable[[Tensor], MotionConditions]:
        plain = super()._hollow(**asked)
        return lambda text: replace(plain(text), numerics=self.numerics, over_clip=self.over_clip)

    def _motion(self, call: Mapping[str, Any], frames: int) -> Mapping[str, Tensor]:
        """How much each motion module counts for in each frame, (f,); "" is the denoiser's own, fully if not there."""
        return more_motion.motion_scales(call["motion_scale"], self.motion_names, frames)

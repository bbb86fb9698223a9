"""The recipe of the models in the box that plug into one another: an image model, a motion adapter, LoRAs for the
camera, the image model in another style, and a ControlNet. It goes on from what the text-to-video recipe has made."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..families.animatediff import ControlNetModel, MotionAdapter, UNetMotionModel
from ..toys.camera import CAMERAS
from . import diffusion, steering
from . import few_steps as few
from . import motion as moves
from .diffusion import Clips
from .loop import Dice
from .recipe import STEPS, Recipe, built
from .recipe_pictures import SHARED

STEPS |= {**dict.fromkeys(CAMERAS, 350), "zoom-in": 900, "roll": 900, "together": 450, "few-steps": 450}
STEPS |= {"controlnet": 1000}
CHALK_FRAMES, CAMERA_CLIPS, PAIR_CLIPS, STEERED_FRAMES = 4096, 384, 96, 3072
SLOW = ("zoom-in", "roll")  # cameras that take longer to learn, from twice as many clips


@dataclass
class AnimateDiffRecipe(Recipe):
    """Stages named like camera motions train their LoRAs, on the adapter as stage `steady` leaves it, and `together`
    goes on with all of them."""

    names: ClassVar[tuple[str, ...]] = (
        *(*SHARED, "chalk", "motion", "steady"),
        *(*CAMERAS, "together", "few-steps", "controlnet", "pack"),
    )
    folder: ClassVar[str] = "animatediff"
    drawn_curves: ClassVar[str] = "curves-animatediff.png"

    def __getattr__(self, name: str) -> Any:
        if name in CAMERAS:
            return self.lora(name)
        if name == "few-steps":
            return self.few_steps
        raise AttributeError(name)

    def some(self, count: int) -> int:
        return max(32, round(count * self.scale))

    @cached_property
    def chalk(self) -> diffusion.ImageUNet:
        """The image denoiser in the other style."""
        unet = copy.deepcopy(self.shape)
        dice, count = Dice.of(self.seed, "chalk frames", 0), self.some(CHALK_FRAMES)
        frames = cache(lambda: moves.chalk_frames(self.autoencoder, dice, count))
        self.trained(moves.chalk(unet, frames, self.words, self.steps("chalk")))
        return unet.requires_grad_(False)

    @cached_property
    def motion(self) -> MotionAdapter:
        adapter = built(lambda: MotionAdapter(moves.ADAPTER_CONFIG), self.seed, "motion")
        test = Clips.movers(self.autoencoder, Dice.of(self.seed, "test", 0), 16)
        model = moves.moving(moves.as_published(self.shape), adapter)
        self.trained(moves.motion(model, self.clips, self.long_clips, self.words, test, self.steps("motion")))
        return adapter.requires_grad_(False)

    def lora(self, name: str) -> dict[str, Tensor]:
        """The LoRA of a camera motion, as its file has it."""
        model = moves.moving(moves.as_published(self.shape), self.steady)
        dice, count = Dice.of(self.seed, f"clips {name}", 0), self.some(CAMERA_CLIPS * (2 if name in SLOW else 1))
        clips = cache(lambda: moves.camera_clips(self.autoencoder, [name], dice, count))
        lora = self.new_lora(name, model, moves.RANKS.get(name, moves.RANK))
        self.trained(moves.camera(name, lora, clips, self.words, self.steps(name)))
        return lora.off()

    def new_lora(self, name: str, model: UNetMotionModel, rank: int, **where: str) -> moves.Lora:
        with torch.random.fork_rng():
            torch.manual_seed(Dice.of(self.seed, f"new {name}", 0).torch.initial_seed())
            return moves.Lora.on(model, rank, **where)

    @cached_property
    def together(self) -> dict[str, dict[str, Tensor]]:
        """All of them, having learned to add up."""
        model = moves.moving(moves.as_published(self.shape), self.steady)
        loras = {name: moves.Lora.of(model, self.lora(name)) for name in CAMERAS}
        count = max(8, round(PAIR_CLIPS * self.scale))

        def source(names: tuple[str, ...]) -> moves.Source:
            dice = Dice.of(self.seed, f"clips {' '.join(names)}", 1)
            return cache(lambda: moves.camera_clips(self.autoencoder, names, dice, count))

        clips = {names: source(names) for names in moves.AT_ONCE}
        self.trained(moves.together(loras, clips, self.words, self.steps("together")))
        return {name: lora.off(moves.KEPT.get(name, moves.RANK)) for name, lora in loras.items()}

    @cached_property
    def few_steps(self) -> dict[str, Tensor]:
        """The LoRA with which few steps do."""
        model = moves.moving(moves.as_published(self.shape), self.steady)
        teacher = copy.deepcopy(model)
        lora = self.new_lora("few-steps", model, few.RANK, within="")
        self.trained(few.few_steps(lora, teacher, self.clips, self.words, self.steps("few-steps")))
        return lora.off(few.KEPT)

    @cached_property
    def steady(self) -> MotionAdapter:
        adapter = copy.deepcopy(self.motion)
        model = moves.moving(moves.as_published(self.shape), adapter)
        self.trained(moves.steady(model, self.clips, self.words, self.steps("steady")))
        return adapter.requires_grad_(False)

    @cached_property
    def controlnet(self) -> ControlNetModel:
        """What steers the image denoiser by outlines."""
        image = moves.as_published(self.shape)
        net = built(lambda: steering.controlnet(image), self.seed, "controlnet")
        dice, count = Dice.of(self.seed, "steered frames", 0), self.some(STEERED_FRAMES)
        frames = cache(lambda: steering.Steered.of(self.autoencoder, dice, count))
        self.trained(steering.stage(image, net, frames, self.words, self.steps("controlnet")))
        return net.requires_grad_(False)

    @cached_property
    def pack(self) -> Path:
        from .package import package_animatediff

        loras = {**self.together, "few-steps": self.few_steps}
        unets = {"": moves.as_published(self.shape), "chalk": moves.as_published(self.chalk)}
        folder, tokenizer = self.out / self.folder, self.out / "tokenizer"
        return package_animatediff(
            folder, tokenizer, self.text, self.decoder, unets, self.steady, loras, self.controlnet
        )

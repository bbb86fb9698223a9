"""The recipes of the two models that start from a picture: they go on from what the text-to-video recipe has made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..families.autoencoder_kl import AutoencoderKL
from ..families.i2vgen import I2VGenXLUNet
from ..families.stable_video import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from . import animate, clip_decoder, picture_text
from . import vision as eyes
from .animate import Eye, MovingClips
from .diffusion import Clips
from .loop import Dice
from .picture_text import Shown
from .recipe import Recipe, built

MOVING = 4096  # clips of the world in which pictures tell what moves
SHARED = ("text", "autoencoder", "decoder", "image", "shape")


@dataclass
class _PictureRecipe(Recipe):
    @cached_property
    def vision(self) -> nn.Module:
        tower = built(eyes.new_tower, self.seed, "vision")
        self.trained(eyes.vision(tower, self.steps("vision")))
        return tower.requires_grad_(False)

    def eye(self, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return eyes.embed(self.vision, pictures)


@dataclass
class ImageToVideoRecipe(_PictureRecipe):
    """The model in the layout of Stable Video Diffusion."""

    names: ClassVar[tuple[str, ...]] = (*SHARED, "vision", "animate", "outline", "clip_decoder", "pack")
    folder: ClassVar[str] = "image-to-video"
    drawn_curves: ClassVar[str] = "curves-image-to-video.png"

    @cached_property
    def clip_decoder(self) -> AutoencoderKLTemporalDecoder:
        vae = built(clip_decoder.new, self.seed, "clip_decoder")
        clip_decoder.inflate(vae, self.decoder)
        self.trained(clip_decoder.clip_decoder(vae, self.steps("clip_decoder")))
        return vae.requires_grad_(False)

    @cached_property
    def moving(self) -> MovingClips:
        dice, path = Dice.of(self.seed, "moving", 0), self.out / "moving.pt"
        if path.exists() and self.resume:
            return MovingClips.again(dice, torch.load(path, weights_only=True))
        clips = MovingClips.of(self.autoencoder, dice, max(32, round(MOVING * self.scale)), self.progress)
        torch.save(clips.latents, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        return clips

    @cached_property
    def animate(self) -> UNetSpatioTemporalConditionModel:
        unet = built(animate.new, self.seed, "animate")
        animate.inflate(unet, self.shape)
        self.trained(animate.animate(unet, *self.shown, self.steps("animate")))
        return unet

    @cached_property
    def outline(self) -> UNetSpatioTemporalConditionModel:
        unet, steps = self.animate, self.steps("outline")
        self.trained(animate.animate(unet, *self.shown, steps, name="outline", rate=2e-3, where=animate.OUTLINE))
        return unet.requires_grad_(False)

    @cached_property
    def shown(self) -> tuple[MovingClips, MovingClips, AutoencoderKL, Eye]:
        """Clips to train on, clips to test on, and what sees them."""
        test = MovingClips.of(self.autoencoder, Dice.of(self.seed, "test moving", 0), 32, False)
        return self.moving, test, self.autoencoder, self.eye

    @cached_property
    def pack(self) -> Path:
        from .package import package_image_to_video

        return package_image_to_video(self.out / self.folder, self.vision, self.clip_decoder, self.outline)


@dataclass
class I2VGenRecipe(_PictureRecipe):
    """The model in the layout of I2VGen-XL."""

    names: ClassVar[tuple[str, ...]] = (*SHARED, "video", "vision", "picture_text", "pack")
    folder: ClassVar[str] = "i2vgen"
    drawn_curves: ClassVar[str] = "curves-i2vgen.png"

    @cached_property
    def picture_text(self) -> I2VGenXLUNet:
        unet = built(picture_text.new, self.seed, "picture_text")
        picture_text.inflate(unet, self.video)
        test = Clips.movers(self.autoencoder, Dice.of(self.seed, "test", 0), 16)
        short, long, unseen = (Shown.of(c, self.autoencoder, self.eye) for c in (self.clips, self.long_clips, test))
        steps = self.steps("picture_text")
        self.trained(picture_text.picture_text(unet, short, long, self.words, unseen, steps))
        return unet.requires_grad_(False)

    @cached_property
    def pack(self) -> Path:
        from .package import package_i2vgen

        folder, tokenizer = self.out / self.folder, self.out / "tokenizer"
        return package_i2vgen(folder, tokenizer, self.text, self.vision, self.decoder, self.picture_text)

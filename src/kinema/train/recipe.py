"""The one command that makes the model in the box: text tower, autoencoder, denoisers, preview decoder, package."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families.autoencoder_kl import AutoencoderKL
from ..families.modelscope import UNet3DConditionModel
from ..pipelines.preview_decoder import PreviewDecoder
from ..toys.world import FRAMES
from . import autoencoder, diffusion, text
from . import preview as previews
from .data import pictures
from .diffusion import Clips
from .log import curves
from .loop import Dice, Stage, finished, run

M = TypeVar("M", bound=nn.Module)
STAGES = ("text", "autoencoder", "decoder", "image", "shape", "video", "preview", "package")
STEPS = {"text": 1500, "autoencoder": 1400, "decoder": 800, "image": 700, "shape": 1500, "video": 1700, "preview": 1500}
STEPS |= {"vision": 800, "animate": 3000, "outline": 500, "clip_decoder": 400, "picture_text": 2000}  # with pictures
STEPS |= {"motion": 1600, "chalk": 300, "steady": 900}  # and with motion modules
CLIPS, LONG_CLIPS = 4096, 640  # of 8 frames and of 16


def train_toy(
    out: str | Path,
    *,
    model: str = "text-to-video",
    seed: int = 0,
    resume: bool = True,
    scale: float = 1.0,
    stages: Sequence[str] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Trains a model of the drawn world, from nothing, on one core; returns its published folder.

    Everything lies under `out`: each stage's state, from which a run that was killed goes on to the very same weights,
    its log (`<stage>.jsonl`), `curves.png`, and at last `model/`. Given another core, the stages `decoder` and
    `image`, `video` can be trained at the same time by two processes, once `autoencoder` is there.

    Models share stages: one goes on from what `out` holds of another, and its folder lies beside.

    Args:
        model: "text-to-video"; one that starts from a picture as well, "image-to-video" or "i2vgen"; or an image model
            with what moves it, "animatediff".
        seed: makes the weights; the same seed, scale, machine and PyTorch make the same bits.
        resume: go on from what `out` holds; otherwise each stage begins again.
        scale: multiplies the steps and the number of clips. 1 is what ships; 0.01 is a quick rehearsal.
        processes: how many share the longest stage, which comes out the same; None is two where there are two cores.
        stages: which to train, of the model's; those they build on must have been trained. All by default.

    Raises:
        InputError: a stage is unknown, or one that another builds on has not been trained.
        NumericsError: a loss is no longer a number.
    """
    kind = recipes().get(model)
    if kind is None:
        raise InputError(f"There is no recipe for {model!r}; there are {', '.join(recipes())}.")
    if unknown := sorted(set(stages or ()) - set(kind.names)):
        raise InputError(f"There is no stage {unknown[0]!r}; the stages are {', '.join(kind.names)}.")
    if scale <= 0:
        raise InputError(f"The scale is {scale}; it must be greater than 0.")
    stages = kind.names if stages is None else tuple(stages)
    recipe = kind(Path(out), seed, resume, scale, stages, processes or min(2, os.cpu_count() or 1), progress)
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # else sums depend on where in memory numbers happen to lie
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at these sizes a second thread costs more than it brings
    try:
        for name in kind.names:
            if name in stages:
                getattr(recipe, name)
        logs = [recipe.out / f"{name}.jsonl" for name in kind.names]
        curves([log for log in logs if log.exists()], recipe.out / kind.drawn_curves)
    finally:
        torch.set_num_threads(threads)
    return recipe.out / kind.folder


def recipes() -> dict[str, type[Recipe]]:
    """The recipes there are, by the name of the model."""
    from .recipe_motion import AnimateDiffRecipe
    from .recipe_pictures import I2VGenRecipe, ImageToVideoRecipe

    return {
        "text-to-video": Recipe,
        "image-to-video": ImageToVideoRecipe,
        "i2vgen": I2VGenRecipe,
        "animatediff": AnimateDiffRecipe,
    }


def built(make: Callable[[], M], seed: int, name: str) -> M:
    """A new network, the same for the same seed, its kernels channels last."""
    with torch.random.fork_rng():
        torch.manual_seed(Dice.of(seed, f"new {name}", 0).torch.initial_seed())
        model = make()
    for p in model.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return model


@dataclass
class Recipe:
    """Each stage's result is made when it is first asked for, from those it builds on."""

    names: ClassVar[tuple[str, ...]] = STAGES
    folder: ClassVar[str] = "model"
    drawn_curves: ClassVar[str] = "curves.png"

    out: Path
    seed: int
    resume: bool
    scale: float
    stages: tuple[str, ...]
    processes: int
    progress: bool

    def steps(self, name: str) -> int:
        return max(2, round(STEPS[name] * self.scale))

    def trained(self, stage: Stage) -> None:
        """Trains a stage that was asked for; takes the result of one that was not."""
        if stage.name not in self.stages and not finished(stage, self.out):
            raise InputError(
                f"Stage {stage.name!r} has not been trained in {self.out} yet, and others build on it; add it."
            )
        resume = self.resume or stage.name not in self.stages
        run(
            stage,
            self.out,
            seed=self.seed,
            resume=resume,
            processes=self.processes,
            progress=self.progress,
        )

    @cached_property
    def tokens(self) -> Any:
        return text.load_tokenizer(self.out / "tokenizer")

    @cached_property
    def text(self) -> nn.Module:
        tower = built(text.new_tower, self.seed, "text")
        self.trained(text.text(tower, self.tokens, self.steps("text")))
        return tower.requires_grad_(False)

    @cached_property
    def autoencoder(self) -> AutoencoderKL:
        """With latents of mean 0 and deviation 1 in every channel."""
        vae = built(autoencoder.new, self.seed, "autoencoder")
        self.trained(autoencoder.both(vae, self.steps("autoencoder")))
        autoencoder.standardise(vae, pictures(Dice.of(self.seed, "latents", 0).numpy, 512))
        return vae.requires_grad_(False)

    @cached_property
    def decoder(self) -> AutoencoderKL:
        vae = self.autoencoder
        self.trained(autoencoder.decoder(vae, self.steps("decoder")))
        return vae.requires_grad_(False)

    @cached_property
    def preview(self) -> PreviewDecoder:
        """Of the latents that all models in the box have in common."""
        small = built(lambda: previews.new(self.autoencoder), self.seed, "preview")
        self.trained(previews.preview(small, self.autoencoder, self.steps("preview")))
        return small.requires_grad_(False)

    @cached_property
    def clips(self) -> Clips:
        return self.drawn("clips", CLIPS, FRAMES)

    @cached_property
    def long_clips(self) -> Clips:
        return self.drawn("long_clips", LONG_CLIPS, 2 * FRAMES)

    def drawn(self, name: str, count: int, frames: int) -> Clips:
        dice, path = Dice.of(self.seed, name, 0), self.out / f"{name}.pt"
        if path.exists() and self.resume:
            return Clips.again(dice, torch.load(path, weights_only=True))
        clips = Clips.of(self.autoencoder, dice, max(32, round(count * self.scale)), self.progress, frames)
        torch.save(clips.latents, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        return clips

    def words(self, captions: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return text.encode(self.text, self.tokens, captions)

    @cached_property
    def image(self) -> diffusion.ImageUNet:
        unet = built(lambda: diffusion.new(diffusion.ImageUNet), self.seed, "image")
        self.trained(diffusion.image(unet, self.clips, self.words, self.steps("image")))
        return unet

    @cached_property
    def shape(self) -> diffusion.ImageUNet:
        unet = self.image
        self.trained(diffusion.shape(unet, self.clips, self.words, self.steps("shape")))
        return unet

    @cached_property
    def video(self) -> UNet3DConditionModel:
        unet = built(lambda: diffusion.new(UNet3DConditionModel), self.seed, "video")
        diffusion.inflate(unet, self.shape)
        test = Clips.movers(self.autoencoder, Dice.of(self.seed, "test", 0), 16)
        self.trained(diffusion.video(unet, self.clips, self.long_clips, self.words, test, self.steps("video")))
        return unet.requires_grad_(False)

    @cached_property
    def package(self) -> Path:
        from .package import package

        folder, tokenizer = self.out / "model", self.out / "tokenizer"
        return package(folder, tokenizer, self.text, self.decoder, self.video, self.preview)

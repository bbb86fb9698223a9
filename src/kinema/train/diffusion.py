"""Training the denoiser: on single frames first, then, its time layers added without changing it, on clips.

Zero-terminal-SNR v-prediction (Lin et al. 2023; Salimans and Ho 2022). Half of the noise levels are drawn where a
clip's layout is decided, and one caption in ten is left out, so that guidance has something to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..families.animatediff import MotionConditions, UNetMotionModel
from ..families.autoencoder_kl import AutoencoderKL
from ..families.modelscope import TextConditions, UNet3DConditionModel, UNet3DConfig
from ..nn.blocks import ResBlock, SpatialTransformer
from ..nn.signal import Signal
from ..nn.unet import Place, Row, VideoUNet
from ..toys.captions import plain, some_caption
from ..toys.world import DIRECTIONS, FRAMES, Scene, draw
from .data import some_scenes, to_pixels
from .loop import Dice, Stage

CONFIG = UNet3DConfig(
    sample_size=8,
    in_channels=8,
    out_channels=8,
    down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
    up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
    block_out_channels=(48, 96),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=64,
    attention_head_dim=8,
)
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
LAYOUT, OUTLINE = (700, 1000), (200, 800)  # levels at which it is decided where things go, and what they look like
U = TypeVar("U", bound=UNet3DConditionModel)
Words = Callable[[Sequence[str]], Tensor]  # captions → (b, k, c)
Denoiser = UNet3DConditionModel | UNetMotionModel


class ImageUNet(UNet3DConditionModel):
    """The same network without its layers over time: what it learns of frames carries over key by key."""

    def __init__(self, config: UNet3DConfig):
        super().__init__(config)
        del self.transformer_in

    def row(self, channels: int, out: int, level: int, cross: bool, place: Place) -> Row:
        whole = super().row(channels, out, level, cross, place)
        return (part for part in whole if "temp" not in part[0])

    def enter(self, x: Tensor, signal: Signal) -> Tensor:
        return VideoUNet.enter(self, x, signal)


def new(kind: type[U]) -> U:
    """A denoiser whose every branch adds nothing yet."""
    model = kind(CONFIG)
    last = {ResBlock: "conv2", SpatialTransformer: "proj_out"}
    for module in model.modules():
        for block, name in last.items():
            if isinstance(module, block):
                for p in module.get_submodule(name).parameters():
                    nn.init.zeros_(p)
    return model


def inflate(video: UNet3DConditionModel, image: ImageUNet) -> None:
    """Gives a video denoiser what an image denoiser learned; its new layers add nothing yet."""
    missing, unexpected = video.load_state_dict(image.state_dict(), strict=False)
    assert not unexpected and all("temp" in k or "transformer_in" in k for k in missing)


@dataclass
class Clips:
    """Drawn clips, encoded once."""

    scenes: list[Scene]
    latents: Tensor  # (n, f, c, h, w) about unit variance

    @classmethod
    @torch.no_grad()
    def of(
        cls, vae: AutoencoderKL, dice: Dice, count: int, progress: bool = True, frames: int = FRAMES, **fixed: str
    ) -> Clips:
        from tqdm import tqdm

        scenes = some_scenes(dice.numpy, count, **fixed)
        parts = []
        for i in tqdm(range(0, count, 16), desc="drawing clips", disable=not progress, mininterval=2.0):
            clips = to_pixels(draw(scenes[i : i + 16], frames))
            latents = vae.encode(clips.flatten(0, 1)).latent_dist.mode() * vae.config.scaling_factor
            parts.append(latents.unflatten(0, (-1, clips.shape[1])))
        return cls(scenes, torch.cat(parts))

    @classmethod
    def again(cls, dice: Dice, latents: Tensor) -> Clips:
        """What `of` made with the same dice, its latents kept."""
        return cls(some_scenes(dice.numpy, len(latents)), latents)

    @classmethod
    def movers(cls, vae: AutoencoderKL, dice: Dice, count: int) -> Clips:
        """As many clips in each of the four directions."""
        ways = [cls.of(vae, dice, count // 4, False, motion=way) for way in DIRECTIONS]
        return cls([s for w in ways for s in w.scenes], torch.cat([w.latents for w in ways]))

    def some(self, rng: np.random.Generator, count: int) -> tuple[list[Scene], Tensor]:
        picked = rng.choice(len(self.scenes), count, replace=False)
        return [self.scenes[i] for i in picked], self.latents[torch.from_numpy(picked)]


def levels() -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the thousand noise levels, alpha falling to zero (Lin et al. 2023, algorithm 1)."""
    first, last = SCHEDULE["beta_start"], SCHEDULE["beta_end"]
    assert isinstance(first, float) and isinstance(last, float)
    beta = torch.linspace(first**0.5, last**0.5, 1000, dtype=torch.float64).square()
    alpha = (1 - beta).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha.float(), (1 - alpha.square()).sqrt().float()


ALPHA, SIGMA = levels()


def error(
    model: Denoiser, clean: Tensor, noise: Tensor, times: Tensor, text: Tensor, foreground: float = 0.0
) -> Tensor:
    """The squared error of the prediction for clips (b, f, c, h, w) at levels (b,), each clip's, (b,).

    With `foreground`, places that differ from most of their frame count up to 1 + foreground times as much: a shape is
    a tenth of its picture, and what it looks like would be learned last.
    """
    alpha, sigma = (a[times].view(-1, 1, 1, 1, 1) for a in (ALPHA, SIGMA))
    if isinstance(model, UNetMotionModel):
        ready = model.prepare(times, MotionConditions(text, clean.shape[1]))
    else:
        ready = model.prepare(times, TextConditions(text, clean.shape[1]))
    made = model(alpha * clean + sigma * noise, Signal(ready.frames, ready.time[:, 0], ready.memory))
    wrong: Tensor = (made - (alpha * noise - sigma * clean)).square()
    if foreground:
        wrong = wrong * attention_to_shapes(clean, foreground)
    return wrong.flatten(1).mean(1)


def attention_to_shapes(clean: Tensor, foreground: float) -> Tensor:
    """How much each place of clips (b, f, c, h, w) counts, (b, f, 1, h, w), one on average."""
    apart = (clean - clean.flatten(-2).median(-1).values[..., None, None]).square().mean(2, keepdim=True)
    weight = 1 + foreground * apart / apart.amax((-2, -1), keepdim=True)
    out: Tensor = weight / weight.mean((-2, -1), keepdim=True)
    return out


def some_times(rng: np.random.Generator, count: int, low: int, high: int) -> Tensor:
    """Half of the levels from all, half from low to high, evenly spread over the batch."""
    spread = 2 * (rng.permutation(count) + rng.random(count)) / count
    return torch.from_numpy(np.where(spread < 1, spread * 1000, low + (spread - 1) * (high - low)).astype(np.int64))


def image(model: ImageUNet, clips: Clips, words: Words, steps: int, batch: int = 32) -> Stage:
    """Single frames of clips, with the captions of the clips: what is where, and in which colour."""

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        return loss_on(model, *frames_of(clips, batch, dice), words, dice, LAYOUT, 0.0), {}

    return Stage("image", model.requires_grad_(True), loss, steps, average=0.99)


def shape(model: ImageUNet, clips: Clips, words: Words, steps: int, batch: int = 32) -> Stage:
    """The same, now with most weight on the shape itself, and on the levels at which its outline is decided."""

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        return loss_on(model, *frames_of(clips, batch, dice), words, dice, OUTLINE, 4.0), {}

    return Stage("shape", model.requires_grad_(True), loss, steps, average=0.995)


def frames_of(clips: Clips, count: int, dice: Dice) -> tuple[list[Scene], Tensor]:
    """Single frames, as clips of one."""
    scenes, latents = clips.some(dice.numpy, count)
    frame = torch.from_numpy(dice.numpy.integers(0, latents.shape[1], count))
    return scenes, latents[torch.arange(count), frame][:, None]


def video(
    model: UNet3DConditionModel, short: Clips, long: Clips, words: Words, test: Clips, steps: int, batch: int = 6
) -> Stage:
    """Whole clips: three steps of short ones, then one of half as many that are twice as long.

    The first fifth of the steps is for where things go, which is soon learned; the rest for what they look like too.
    """

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        scenes, latents = long.some(dice.numpy, batch // 2) if step % 4 == 3 else short.some(dice.numpy, batch)
        return loss_on(model, scenes, latents, words, dice, LAYOUT if 5 * step < steps else OUTLINE, 4.0), {}

    stage = Stage("video", model.requires_grad_(True), loss, steps, rate=1.5e-2)
    stage.parts = 2
    stage.watch, stage.watch_every = lambda step, model: gap(model, test, words), 50
    return stage


def loss_on(
    model: Denoiser,
    scenes: Sequence[Scene],
    latents: Tensor,
    words: Words,
    dice: Dice,
    levels: tuple[int, int],
    foreground: float,
) -> Tensor:
    captions = [some_caption(dice.numpy, s, keep=0.85)[0] if dice.numpy.random() > 0.1 else "" for s in scenes]
    noise = torch.randn(latents.shape, generator=dice.torch)
    # Where the first layers are frozen, PyTorch's group norm would else crash: its input must want a gradient, too.
    noise.requires_grad_(not model.conv_in.weight.requires_grad)
    times = some_times(dice.numpy, len(scenes), *levels)
    return error(model, latents, noise, times, words(captions), foreground).mean()


@torch.no_grad()
def gap(model: nn.Module, test: Clips, words: Words, time: int = 950) -> dict[str, float]:
    """How much worse the prediction is for a wrong word, of each kind, at a level where layout is decided.

    Below 0.005 after 150 steps of the video stage, a run will not learn its directions any more.
    """
    assert isinstance(model, Denoiser)
    turned = dict(zip(DIRECTIONS, ("moves right", "moves left", "moves down", "moves up")))
    noise = torch.randn(test.latents.shape, generator=torch.Generator().manual_seed(1))
    times = torch.full((len(test.scenes),), time)
    said = [{k: getattr(s, k) for k in ("colour", "shape", "motion", "background")} for s in test.scenes]
    wrong = {
        "direction": [{**s, "motion": turned[s["motion"]]} for s in said],
        "colour": [{**s, "colour": "red" if s["colour"] != "red" else "blue"} for s in said],
        "shape": [{**s, "shape": "star" if s["shape"] != "star" else "square"} for s in said],
    }
    right = error(model, test.latents, noise, times, words([plain(s) for s in said])).mean()
    return {
        ("gap" if k == "direction" else f"gap_{k}"): (
            error(model, test.latents, noise, times, words([plain(s) for s in changed])).mean() - right
        ).item()
        for k, changed in wrong.items()
    }

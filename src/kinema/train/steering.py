"""Training a ControlNet on the frozen image model: it is shown outlines, and says where and what the shape is.

On single frames, as ControlNets are; with a motion module beside, each frame of a clip is steered by its own picture
(Zhang et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..families.animatediff import ControlNetModel, MotionConditions, UNet2DConditionModel
from ..families.autoencoder_kl import AutoencoderKL
from ..nn.signal import Signal
from ..toys.captions import some_caption
from ..toys.outlines import outlines
from ..toys.world import FRAMES, Scene, draw, some_scene
from .data import to_pixels
from .diffusion import ALPHA, SIGMA, Words, attention_to_shapes, some_times
from .loop import Dice, Stage

WIDTHS = (16, 24, 32, 48)  # of the layers that read pictures
LEVELS = (400, 1000)  # at which it is decided where things are, and what they look like
ROOM = 0.26  # how far from the centre shapes lie at most: paths may lead anywhere, not only where captions say


@dataclass
class Steered:
    """Single frames, with the outlines of what they show."""

    scenes: list[Scene]
    latents: Tensor  # (n, 1, c, h, w)
    pictures: Tensor  # (n, 1, 3, H, W) bytes

    @classmethod
    @torch.no_grad()
    def of(cls, vae: AutoencoderKL, dice: Dice, count: int) -> Steered:
        """Half of them moments of clips, half with the shape anywhere."""
        scenes, at = anywhere(dice.numpy, count)
        latents, pictures = [], []
        for i in range(0, count, 64):
            drawn = draw(scenes[i : i + 64], 1, at=at[i : i + 64])
            latents.append(vae.encode(to_pixels(drawn).flatten(0, 1)).latent_dist.mode() * vae.config.scaling_factor)
            pictures.append(torch.from_numpy(outlines(drawn)).movedim(-1, -3))
        return cls(scenes, torch.cat(latents)[:, None], torch.cat(pictures))


def anywhere(rng: np.random.Generator, count: int) -> tuple[list[Scene], np.ndarray]:
    """Scenes, and which moment of each is seen, (count, 1)."""
    scenes = [some_scene(rng) for _ in range(count)]
    at = rng.uniform(0, FRAMES - 1, (count, 1)).astype(np.float32)
    for i in range(0, count, 2):
        x, y = 0.5 + rng.uniform(-ROOM, ROOM, 2)
        scenes[i] = replace(scenes[i], start=(float(x), float(y)), radius=rng.uniform(0.13, 0.24))
        at[i] = 0
    return scenes, at


def controlnet(image: UNet2DConditionModel) -> ControlNetModel:
    """A new one: a copy of the image model's way down, which says nothing yet."""
    return ControlNetModel.from_unet(image, conditioning_embedding_out_channels=WIDTHS)


def stage(
    image: UNet2DConditionModel,
    net: ControlNetModel,
    source: Callable[[], Steered],
    words: Words,
    steps: int,
    batch: int = 32,
) -> Stage:
    """The ControlNet alone, on single frames with their captions; one caption in ten is left out."""
    image.requires_grad_(False)

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        frames = source()
        picked = dice.numpy.choice(len(frames.scenes), batch, replace=False)
        scenes, rows = [frames.scenes[i] for i in picked], torch.from_numpy(picked)
        captions = [some_caption(dice.numpy, s, keep=0.7)[0] if dice.numpy.random() > 0.1 else "" for s in scenes]
        clean, pictures = frames.latents[rows], frames.pictures[rows].float() / 255
        noise = torch.randn(clean.shape, generator=dice.torch)
        times = some_times(dice.numpy, batch, *LEVELS)
        return error(image, net, clean, noise, times, words(captions), pictures).mean(), {}

    return Stage("controlnet", net.requires_grad_(True), loss, steps, rate=8e-3, average=0.99)


def error(
    image: UNet2DConditionModel,
    net: ControlNetModel,
    clean: Tensor,
    noise: Tensor,
    times: Tensor,
    text: Tensor,
    pictures: Tensor,
) -> Tensor:
    """The squared error of what the image model predicts of frames (b, 1, c, h, w) at levels (b,) as the net steers it,
    (b,); places with the shape count most."""
    alpha, sigma = (a[times].view(-1, 1, 1, 1, 1) for a in (ALPHA, SIGMA))
    seen, conditions = alpha * clean + sigma * noise, MotionConditions(text, 1)
    told = net.prepare(times, conditions, pictures)
    said = net(seen, Signal(1, told.time[:, 0], told.memory, hint=told.hint))
    ready = image.prepare(times, conditions)
    signal = Signal(1, ready.time[:, 0], ready.memory, residuals=said)
    with torch.no_grad():  # what the net says comes in on the way up
        x, skips = image.down(seen, signal)
    wrong: Tensor = (image.rise(x, skips, signal) - (alpha * noise - sigma * clean)).square()
    return (wrong * attention_to_shapes(clean, 4.0)).flatten(1).mean(1)

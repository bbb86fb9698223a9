"""Training the denoiser that is given a picture and a text, in the layout of I2VGen-XL: the picture says what things
look like, the text what they do. It starts as the text-to-video denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..families.autoencoder_kl import AutoencoderKL
from ..families.i2vgen import I2VGenXLConfig, I2VGenXLUNet, PictureTextConditions
from ..families.modelscope import UNet3DConditionModel
from ..nn.signal import Signal
from ..toys.captions import plain, some_caption
from ..toys.world import DIRECTIONS, FRAMES, draw
from .animate import Eye
from .data import to_pixels
from .diffusion import ALPHA, CONFIG, LAYOUT, OUTLINE, SIGMA, Clips, Words, attention_to_shapes, some_times
from .loop import Dice, Stage

PICTURE_TEXT_CONFIG = I2VGenXLConfig(
    sample_size=CONFIG.sample_size,
    in_channels=CONFIG.in_channels,
    out_channels=CONFIG.out_channels,
    down_block_types=CONFIG.down_block_types,
    up_block_types=CONFIG.up_block_types,
    block_out_channels=CONFIG.block_out_channels,
    layers_per_block=CONFIG.layers_per_block,
    norm_num_groups=CONFIG.norm_num_groups,
    cross_attention_dim=CONFIG.cross_attention_dim,
    attention_head_dim=CONFIG.attention_head_dim,
    picture_channels=CONFIG.in_channels,
)
FPS = {FRAMES: 8.0, 2 * FRAMES: 16.0}  # a clip of twice the frames shows the same second


def new() -> I2VGenXLUNet:
    """A denoiser to which the picture means nothing yet."""
    model = I2VGenXLUNet(PICTURE_TEXT_CONFIG.write())
    quiet: Sequence[nn.Module] = (
        model.image_latents_context_embedding[-1],
        model.context_embedding[-1],
        model.fps_embedding[-1],
        model.image_latents_temporal_encoder.attn1.to_out[0],
        model.image_latents_temporal_encoder.ff.net["2"],
    )
    for part in quiet:
        for p in part.parameters():
            nn.init.zeros_(p)
    return model


def inflate(model: I2VGenXLUNet, video: UNet3DConditionModel) -> None:
    """Gives it what the text-to-video denoiser learned."""
    state = dict(video.state_dict())
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, CONFIG.in_channels))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(k.startswith(("image_latents", "context_embedding", "fps_embedding")) for k in missing), missing


@dataclass
class Shown:
    """What the denoiser is told of the first frames of clips, worked out once."""

    clips: Clips
    embedded: Tensor  # (n, c)
    deviation: Tensor  # (c, 1, 1) of the latents' distribution, on average

    @classmethod
    @torch.no_grad()
    def of(cls, clips: Clips, vae: AutoencoderKL, eye: Eye) -> Shown:
        parts, deviation, at = [], torch.zeros(0), np.zeros((1, 1), np.float32)
        for i in range(0, len(clips.scenes), 64):
            pictures = to_pixels(draw(clips.scenes[i : i + 64], 1, at=at)[:, 0])
            if not i:
                deviation = vae.encode(pictures).latent_dist.std.mean((0, 2, 3))[:, None, None]
            parts.append(eye(pictures))
        return cls(clips, torch.cat(parts), deviation)


def places(latents: Tensor, frames: int) -> Tensor:
    """(n, c, h, w) → (n, frames, c, h, w): after the picture, how far into the clip each frame is."""
    later = torch.arange(1, frames).to(latents)[:, None, None, None] / max(frames - 1, 1)
    return torch.cat([latents[:, None], later.expand(len(latents), -1, *latents.shape[1:])], 1)


def error(
    model: I2VGenXLUNet, clean: Tensor, noise: Tensor, times: Tensor, known: PictureTextConditions, foreground: float
) -> Tensor:
    """The squared error of the prediction for clips (b, f, c, h, w) at levels (b,), each clip's, (b,)."""
    alpha, sigma = (a[times].view(-1, 1, 1, 1, 1) for a in (ALPHA, SIGMA))
    ready = model.prepare(times, known)
    time = ready.time[torch.arange(len(times)), torch.arange(len(times)) % ready.time.shape[1]]  # a level for each clip
    made = model(alpha * clean + sigma * noise, Signal(ready.frames, time, ready.memory, ready.extra))
    wrong: Tensor = (made - (alpha * noise - sigma * clean)).square()
    if foreground:
        wrong = wrong * attention_to_shapes(clean, foreground)
    return wrong.flatten(1).mean(1)


def picture_text(
    model: I2VGenXLUNet,
    short: Shown,
    long: Shown,
    words: Words,
    test: Shown,
    steps: int,
    batch: int = 8,
    watch_every: int = 50,
) -> Stage:
    """Whole clips, their first frame and what happens in them given: three steps of short ones, then one of half as
    many long ones, whole or their first half."""

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        some, count = (long, batch // 2) if step % 4 == 3 else (short, batch)
        picked = dice.numpy.choice(len(some.embedded), count, replace=False)
        scenes = [some.clips.scenes[i] for i in picked]
        kept = torch.from_numpy(dice.numpy.random(count))
        said = [some_caption(dice.numpy, s, 0.5, sure=("motion",))[0] if k > 0.15 else "" for s, k in zip(scenes, kept)]
        clean = some.clips.latents[torch.from_numpy(picked)]
        if step % 8 == 7:
            clean = clean[:, :FRAMES]
        known = _known(some, picked, words(said), dice.torch, (kept > 0.1).float(), clean.shape[1])
        noise = torch.randn(clean.shape, generator=dice.torch)
        times = some_times(dice.numpy, count, *(LAYOUT if step % 2 else OUTLINE))
        return error(model, clean, noise, times, known, 4.0).mean(), {}

    stage = Stage("picture_text", model.requires_grad_(True), loss, steps, rate=1e-2)
    stage.watch, stage.watch_every = lambda step, model: gap(model, test, words), watch_every
    return stage


def _known(
    some: Shown, picked: np.ndarray, text: Tensor, dice: torch.Generator, kept: Tensor, frames: int
) -> PictureTextConditions:
    rows = torch.from_numpy(picked)
    first = some.clips.latents[rows, 0]
    first = first + some.deviation * torch.randn(first.shape, generator=dice)
    image = (some.embedded[rows] * kept[:, None])[:, None]
    rate = torch.full((len(rows),), FPS[some.clips.latents.shape[1]])
    return PictureTextConditions(text, image, places(first, frames), rate, frames)


@torch.no_grad()
def gap(model: nn.Module, test: Shown, words: Words, time: int = 950) -> dict[str, float]:
    """The error on clips not trained on, and how much worse it is for a wrong direction and for another picture."""
    assert isinstance(model, I2VGenXLUNet)
    scenes, latents = test.clips.scenes, test.clips.latents
    turned = dict(zip(DIRECTIONS, ("moves right", "moves left", "moves down", "moves up")))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    times, order = torch.full((len(scenes),), time), np.arange(len(scenes))

    def wrong(motions: Sequence[str], picked: np.ndarray) -> float:
        text = words([plain({"motion": m}) for m in motions])
        dice, kept = torch.Generator().manual_seed(2), torch.ones(len(scenes))
        known = _known(test, picked, text, dice, kept, latents.shape[1])
        return error(model, latents, noise, times, known, 0.0).mean().item()

    right = wrong([s.motion for s in scenes], order)
    return {
        "test": right,
        "gap": wrong([turned[s.motion] for s in scenes], order) - right,
        "gap_picture": wrong([s.motion for s in scenes], np.roll(order, 1)) - right,
    }

"""Training the denoiser that is shown a picture and told how much is to move, in the layout of Stable Video Diffusion.

It starts as the denoiser of single frames. The two see the same thing: EDM's v-prediction at a deviation σ (Karras et
al. 2022; Blattmann et al. 2023) is v-prediction where signal and noise are 1 and σ to each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..families.autoencoder_kl import AutoencoderKL
from ..families.stable_video import ImageConditions, UNetSpatioTemporalConditionModel, UNetSpatioTemporalConfig
from ..nn.signal import sinusoid
from ..nn.spatiotemporal import FramePositions, SpatioTemporalTransformer, TemporalResBlock
from ..toys.moving import Numbers, some_moving
from ..toys.world import FRAMES, Scene, draw
from .data import to_pixels
from .diffusion import ALPHA, CONFIG, SIGMA, ImageUNet, attention_to_shapes
from .loop import Dice, Stage

ANIMATE_CONFIG = UNetSpatioTemporalConfig(
    sample_size=CONFIG.sample_size,
    in_channels=2 * CONFIG.in_channels,
    out_channels=CONFIG.out_channels,
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
    up_block_types=("CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    block_out_channels=CONFIG.block_out_channels,
    addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=96,
    layers_per_block=CONFIG.layers_per_block,
    cross_attention_dim=CONFIG.cross_attention_dim,
    num_attention_heads=(6, 12),
    num_frames=FRAMES,
    norm_num_groups=CONFIG.norm_num_groups,
)
# As published, but for the highest level: these latents have a deviation of 1 and no 700 is needed to drown them.
EULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 80.0,
    "sigma_min": 0.02,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}
DROPPED = 0.12  # how often the picture is left out, so that guidance has something to compare with
Eye = Callable[[Tensor], Tensor]  # pictures (n, 3, h, w) in [-1, 1] → (n, c)


def new() -> UNetSpatioTemporalConditionModel:
    """A denoiser whose layers over time, and whose new numbers, add nothing yet."""
    model = UNetSpatioTemporalConditionModel(ANIMATE_CONFIG.write())
    quiet: list[nn.Module] = [model.add_embedding.linear_2]
    for module in model.modules():
        if isinstance(module, TemporalResBlock):
            quiet.append(module.conv2)
        elif isinstance(module, FramePositions):
            quiet.append(module.linear_2)
        elif isinstance(module, SpatioTemporalTransformer):
            for block in module.temporal_transformer_blocks:
                names = ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2", "ff_in.net.2")
                quiet += [block.get_submodule(name) for name in names]
    for part in quiet:
        for p in part.parameters():
            nn.init.zeros_(p)
    return model


def inflate(model: UNetSpatioTemporalConditionModel, image: ImageUNet) -> None:
    """Gives it what the denoiser of single frames learned; picture and time count for nothing yet."""
    state = {re.sub(r"(resnets\.\d+)\.", r"\1.spatial_res_block.", k): v for k, v in image.state_dict().items()}
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, CONFIG.in_channels))
    state = {k: v for k, v in state.items() if not k.startswith("time_embedding.")}
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    _learn_levels(model, image)


def _learn_levels(model: UNetSpatioTemporalConditionModel, image: ImageUNet, steps: int = 600) -> None:
    """Noise levels have other names here, (ln σ) / 4 instead of a step: learns to say of each what the other says."""
    times = torch.arange(20, 998)
    names = (SIGMA[times] / ALPHA[times]).log() / 4
    with torch.no_grad():
        truth = image.time_embedding(sinusoid(times, image.width))
    shown, weights = sinusoid(names, model.width), list(model.time_embedding.parameters())
    optimiser = torch.optim.Adam(weights, lr=1e-2)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = 1e-2 * (1 - step / steps)
            loss = (model.time_embedding(shown) - truth).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for p in weights:
        p.grad = None


@dataclass
class MovingClips:
    """Drawn clips, encoded once, what is told of them, and their first frames."""

    scenes: list[Scene]
    numbers: list[Numbers]
    latents: Tensor  # (n, f, c, h, w) about unit variance
    pictures: np.ndarray  # (n, h, w, 3) bytes
    embedded: Tensor | None = None  # (n, c): what the image tower makes of them

    @classmethod
    @torch.no_grad()
    def of(cls, vae: AutoencoderKL, dice: Dice, count: int, progress: bool = True) -> MovingClips:
        from tqdm import tqdm

        scenes, numbers = some_moving(dice.numpy, count)
        parts = []
        for i in tqdm(range(0, count, 16), desc="drawing clips", disable=not progress, mininterval=2.0):
            clips = to_pixels(draw(scenes[i : i + 16]))
            latents = vae.encode(clips.flatten(0, 1)).latent_dist.mode() * vae.config.scaling_factor
            parts.append(latents.unflatten(0, (-1, FRAMES)))
        return cls(scenes, numbers, torch.cat(parts), _first(scenes))

    @classmethod
    def again(cls, dice: Dice, latents: Tensor) -> MovingClips:
        """What `of` made with the same dice, its latents kept."""
        scenes, numbers = some_moving(dice.numpy, len(latents))
        return cls(scenes, numbers, latents, _first(scenes))

    def some(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.choice(len(self.scenes), count, replace=False)


def _first(scenes: list[Scene]) -> np.ndarray:
    at = np.zeros((1, 1), np.float32)
    return np.concatenate([draw(scenes[i : i + 64], 1, at=at)[:, 0] for i in range(0, len(scenes), 64)])


def error(
    model: UNetSpatioTemporalConditionModel,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    known: ImageConditions,
    foreground: float = 0.0,
) -> Tensor:
    """The squared error of the prediction for clips (b, f, c, h, w) at deviations (b,), each clip's, (b,)."""
    s = sigma.view(-1, 1, 1, 1, 1)
    signal = (1 + s.square()).rsqrt()
    ready = model.prepare((sigma.log() / 4)[None], known)
    made = model((clean + s * noise) * signal, ready.at(0))
    wrong: Tensor = (made - (noise - s * clean) * signal).square()
    if foreground:
        wrong = wrong * attention_to_shapes(clean, foreground)
    return wrong.flatten(1).mean(1)


# Where half of the levels lie: at the first, the way things go is decided, at the second, their outline.
MOTION, OUTLINE = (1.0, 0.9), (-0.3, 0.9)


def some_levels(rng: np.random.Generator, count: int, where: tuple[float, float] = MOTION) -> Tensor:
    """Deviations of noise, evenly spread over the batch: half as published, ln σ ~ N(0.7, 1.6), half N(`where`)."""
    from statistics import NormalDist

    wide, near = NormalDist(0.7, 1.6), NormalDist(*where)
    spread = (rng.permutation(count) + rng.random(count)) / count
    logs = [wide.inv_cdf(_open(2 * u)) if u < 0.5 else near.inv_cdf(_open(2 * u - 1)) for u in spread]
    return torch.tensor(np.clip(logs, -3.9, 4.4), dtype=torch.float32).exp()


def _open(u: float) -> float:
    return min(max(u, 1e-6), 1 - 1e-6)


def animate(
    model: UNetSpatioTemporalConditionModel,
    clips: MovingClips,
    test: MovingClips,
    vae: AutoencoderKL,
    eye: Eye,
    steps: int,
    batch: int = 8,
    *,
    name: str = "animate",
    rate: float = 1.5e-2,
    where: tuple[float, float] = MOTION,
) -> Stage:
    """Whole clips, their first frame given, now and then left out."""
    for some in (clips, test):
        some.embedded = torch.cat(
            [eye(to_pixels(part)) for part in np.split(some.pictures, range(64, len(some.pictures), 64))]
        )

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        picked = clips.some(dice.numpy, batch)
        sigma = some_levels(dice.numpy, batch, where)
        kept = torch.from_numpy(dice.numpy.random(batch) >= DROPPED).float()
        known = conditions(clips, picked, clips.numbers, vae, dice.torch, kept)
        clean = clips.latents[torch.from_numpy(picked)]
        noise = torch.randn(clean.shape, generator=dice.torch)
        return error(model, clean, noise, sigma, known, 4.0).mean(), {}

    stage = Stage(name, model.requires_grad_(True), loss, steps, rate=rate, average=0.995)
    stage.watch, stage.watch_every = lambda step, model: gap(model, test, vae), 100
    return stage


def conditions(
    clips: MovingClips,
    picked: np.ndarray,
    numbers: Sequence[Numbers],
    vae: AutoencoderKL,
    dice: torch.Generator,
    kept: Tensor,
) -> ImageConditions:
    """What a pipeline tells the denoiser of the first frames of some clips: noise is added before they are encoded, and
    their latents are not scaled. Rows of which nothing is `kept`, (b,), are without a picture."""
    assert clips.embedded is not None
    pictures, rows = to_pixels(clips.pictures[picked]), torch.from_numpy(picked)
    told = torch.tensor([[n.fps - 1, n.bucket, n.noise] for n in (numbers[i] for i in picked)])
    noise = torch.randn(pictures.shape, generator=dice)
    with torch.no_grad():
        latents = vae.encode(pictures + told[:, 2].view(-1, 1, 1, 1) * noise).latent_dist.mode()
    kept = kept.view(-1, 1, 1)
    return ImageConditions(clips.embedded[rows][:, None] * kept, latents[:, None] * kept[..., None, None], told, FRAMES)


@torch.no_grad()
def gap(
    model: nn.Module, test: MovingClips, vae: AutoencoderKL, levels: tuple[float, float] = (1.0, 6.0)
) -> dict[str, float]:
    """The error on clips not trained on, and how much worse it is for a wrong bucket and for no picture."""
    assert isinstance(model, UNetSpatioTemporalConditionModel)
    everyone, one = np.arange(len(test.scenes)), torch.ones(len(test.scenes))
    sigma = torch.tensor(levels).repeat(len(one))[: len(one)]
    noise = torch.randn(test.latents.shape, generator=torch.Generator().manual_seed(1))
    turned = [Numbers(n.fps, 250 if n.bucket < 128 else 5, n.noise) for n in test.numbers]

    def wrong(kept: Tensor, numbers: Sequence[Numbers]) -> float:
        known = conditions(test, everyone, numbers, vae, torch.Generator().manual_seed(2), kept)
        return error(model, test.latents, noise, sigma, known).mean().item()

    right = wrong(one, test.numbers)
    return {"test": right, "gap": wrong(one, turned) - right, "gap_picture": wrong(0 * one, test.numbers) - right}

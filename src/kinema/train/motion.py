"""Training what moves an image model without touching it, in the layout of AnimateDiff (Guo et al. 2023).

Three things, each on its own: a motion adapter, on clips; LoRAs on its attentions, on clips of one camera motion; and
another image model, on single frames in another style, that has never seen the adapter and is animated by it all the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..families.animatediff import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from ..families.autoencoder_kl import AutoencoderKL
from ..toys.camera import Camera, some_camera
from ..toys.styles import CHALK
from ..toys.world import FRAMES, MOTIONS, Scene, draw, some_scene
from .data import some_scenes, to_pixels
from .diffusion import CONFIG, LAYOUT, OUTLINE, Clips, ImageUNet, Words, frames_of, gap, loss_on
from .loop import Dice, Stage

UNET_CONFIG = {
    "sample_size": CONFIG.sample_size,
    "in_channels": CONFIG.in_channels,
    "out_channels": CONFIG.out_channels,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "block_out_channels": CONFIG.block_out_channels,
    "layers_per_block": CONFIG.layers_per_block,
    "norm_num_groups": CONFIG.norm_num_groups,
    "cross_attention_dim": CONFIG.cross_attention_dim,
    "attention_head_dim": tuple(
        c // CONFIG.attention_head_dim for c in CONFIG.block_out_channels
    ),  # counts heads, here
}
ADAPTER_CONFIG = {
    "block_out_channels": CONFIG.block_out_channels,
    "motion_layers_per_block": CONFIG.layers_per_block,
    "motion_mid_block_layers_per_block": 1,
    "motion_num_attention_heads": 6,
    "motion_norm_num_groups": CONFIG.norm_num_groups,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": True,
}
RANK = 8  # of LoRAs
Source = Callable[[], Clips]  # draws clips when they are first needed: not for a stage that is only loaded
# What a shape does not do before a camera that moves so: it would leave the frame.
LEAVES = {
    "pan-left": "moves right",
    "pan-right": "moves left",
    "zoom-in": "grows",
    "zoom-out": "shrinks",
    "roll": "spins",
}
# What LoRAs learn to do at once, and how often of all times. A shape on an arc would be panned out of the frame.
AT_ONCE: dict[tuple[str, ...], int] = {
    **{(name,): 1 for name in LEAVES},
    **{(pan, zoom): 2 for pan in ("pan-left", "pan-right") for zoom in ("zoom-in", "zoom-out")},
    **{("roll", zoom): 1 for zoom in ("zoom-in", "zoom-out")},
}
RANKS = {"roll": 24}  # where more is needed to learn it
KEPT = {"roll": 5}  # where less is enough in the end


def as_published(image: ImageUNet) -> UNet2DConditionModel:
    """The image denoiser as the class whose files people share; the weights are copied."""
    model = UNet2DConditionModel(UNET_CONFIG)
    model.load_state_dict(image.state_dict())
    return model.eval()


def moving(image: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    """Both together, on the same memory: what training changes in it changes in them. None of it wants gradients."""
    return UNetMotionModel.from_unet2d(image, adapter).requires_grad_(False)


def motion(
    model: UNetMotionModel, short: Clips, long: Clips, words: Words, test: Clips, steps: int, batch: int = 8
) -> Stage:
    """The motion modules alone, on whole clips: three steps of short ones, then one of half as many twice as long.

    The first third of the steps is for where things go, the rest for what they look like on the way.
    """
    for name, p in model.named_parameters():
        p.requires_grad_("motion_modules" in name)

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        scenes, latents = long.some(dice.numpy, batch // 2) if step % 4 == 3 else short.some(dice.numpy, batch)
        return loss_on(model, scenes, latents, words, dice, LAYOUT if 3 * step < steps else OUTLINE, 4.0), {}

    stage = Stage("motion", model, loss, steps, rate=1.5e-2, average=0.995)
    stage.watch, stage.watch_every = lambda step, model: gap(model, test, words), 50
    return stage


def steady(model: UNetMotionModel, clips: Clips, words: Words, steps: int, batch: int = 8) -> Stage:
    """The motion modules again, more slowly, at the levels at which it is decided what things look like: a frozen image
    model draws every frame anew, and what keeps a shape the same all along is learned last."""
    for name, p in model.named_parameters():
        p.requires_grad_("motion_modules" in name)

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        return loss_on(model, *clips.some(dice.numpy, batch), words, dice, OUTLINE, 4.0), {}

    return Stage("steady", model, loss, steps, rate=1e-2, average=0.995)


def chalk(model: ImageUNet, frames: Source, words: Words, steps: int, batch: int = 32) -> Stage:
    """The image denoiser once more, on single frames in another style; captions do not mention it.

    Slowly and not for long: what it draws changes, while the motion adapter still finds what it knows.
    """

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        return loss_on(model, *frames_of(frames(), batch, dice), words, dice, OUTLINE, 4.0), {}

    return Stage("chalk", model.requires_grad_(True), loss, steps, rate=5e-3, average=0.98)


@torch.no_grad()
def chalk_frames(vae: AutoencoderKL, dice: Dice, count: int) -> Clips:
    """Single moments of clips in the other style, as clips of one frame."""
    scenes = some_scenes(dice.numpy, count)
    at = dice.numpy.uniform(0, FRAMES - 1, (count, 1)).astype(np.float32)
    parts = [_encoded(vae, draw(scenes[i : i + 64], 1, at=at[i : i + 64], style=CHALK)) for i in range(0, count, 64)]
    return Clips(scenes, torch.cat(parts))


def seen_by(names: Sequence[str], rng: np.random.Generator) -> tuple[Scene, Camera]:
    """A scene, and a camera with these motions, one or two.

    Half of the shapes stand still, off the centre where the camera zooms. Before one that rolls all do, right of the
    centre: it carries them down along an arc, which even clips averaged over their frames show. Before one that does
    two things at once all do, too, and one that pans as it zooms in begins further on, or what grows would leave the
    frame.
    """
    rolls = "roll" in names
    still = rolls or len(names) > 1 or rng.random() < 0.5
    motions = ["stays still"] if still else [m for m in MOTIONS if m != LEAVES[names[0]]]
    scene = some_scene(rng, motion=str(rng.choice(motions)))
    x, y = scene.start
    if still and not any("pan" in name for name in names):
        angle = rng.uniform(-0.3, 0.3) if rolls else rng.uniform(0, 2 * np.pi)
        far = rng.uniform(0.18, 0.26) if rolls else rng.uniform(0.08, 0.16)
        x, y = 0.5 + far * np.cos(angle), 0.5 + far * np.sin(angle)
    camera = sum((some_camera(rng, name) for name in names), Camera())
    if camera.zoom > 0:
        x -= np.sign(camera.pan[0]) * rng.uniform(0.06, 0.12)
    return replace(scene, start=(x, y)), camera


@torch.no_grad()
def camera_clips(vae: AutoencoderKL, names: Sequence[str], dice: Dice, count: int) -> Clips:
    """Clips of one camera motion, or of two at once."""
    scenes, cameras = zip(*(seen_by(names, dice.numpy) for _ in range(count)), strict=True)
    parts = [_encoded(vae, draw(scenes[i : i + 16], cameras=cameras[i : i + 16])) for i in range(0, count, 16)]
    return Clips(list(scenes), torch.cat(parts))


def _encoded(vae: AutoencoderKL, clips: np.ndarray) -> Tensor:
    """(b, f, h, w, 3) bytes → latents (b, f, c, h', w')."""
    latents: Tensor = vae.encode(to_pixels(clips).flatten(0, 1)).latent_dist.mode() * vae.config.scaling_factor
    return latents.unflatten(0, clips.shape[:2])


class LowRank(nn.Module):
    """A weight with a product of two thin matrices added, or not."""

    def __init__(self, down: Tensor, up: Tensor):
        super().__init__()
        self.down, self.up, self.on = nn.Parameter(down), nn.Parameter(up), True

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down if self.on else weight


@dataclass
class Lora:
    """Low-rank additions to attentions of a model, of its motion modules alone or of all, there until taken off."""

    model: UNetMotionModel
    added: Mapping[str, LowRank]  # by the published name of what they are added to

    @classmethod
    def on(cls, model: UNetMotionModel, rank: int = RANK, within: str = "motion_modules") -> Lora:
        """A new one, which adds nothing yet, on attentions whose names have `within` in them; "" is all there are."""
        return cls._add(
            model,
            {
                name: LowRank(torch.randn(rank, m.in_features) / m.in_features**0.5, torch.zeros(m.out_features, rank))
                for name, m in model.named_modules()
                if within in name and ".attn" in name and isinstance(m, nn.Linear)
            },
        )

    @classmethod
    def of(cls, model: UNetMotionModel, state: Mapping[str, Tensor]) -> Lora:
        """One as its file has it."""
        names = [key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in state if ".lora_A." in key]
        parts = {n: [state[f"unet.{n}.lora_{part}.weight"].float() for part in "AB"] for n in names}
        return cls._add(model, {name: LowRank(down, up) for name, (down, up) in parts.items()})

    @classmethod
    def _add(cls, model: UNetMotionModel, added: Mapping[str, LowRank]) -> Lora:
        for name, low in added.items():
            parametrize.register_parametrization(model.get_submodule(name), "weight", low)
        return cls(model, added)

    def turn(self, on: bool) -> None:
        for low in self.added.values():
            low.on = on

    def train(self) -> None:
        for low in self.added.values():
            low.requires_grad_(True)

    def off(self, rank: int = RANK) -> dict[str, Tensor]:
        """Takes them off, and all others that are added to the same; the model is what it was.

        Returns them as a published file has them, fp16, of at most so high a rank.
        """
        for name in self.added:
            module = self.model.get_submodule(name)
            if parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        state = {}
        for name, low in self.added.items():
            down, up = thinner(low.down.detach(), low.up.detach(), rank)
            state[f"unet.{name}.lora_A.weight"] = down.half()
            state[f"unet.{name}.lora_B.weight"] = up.half()
        return state


def thinner(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(r, inputs), (out, r) → the same with at most so many rows and columns, whose product is the nearest there is."""
    if len(down) <= rank:
        return down, up
    left, sizes, right = torch.linalg.svd(up @ down, full_matrices=False)
    return sizes[:rank, None].sqrt() * right[:rank], left[:, :rank] * sizes[:rank].sqrt()


def camera(name: str, lora: Lora, clips: Source, words: Words, steps: int, batch: int = 6) -> Stage:
    """A LoRA for one camera motion; the image model and the motion adapter stay what they are."""
    lora.model.requires_grad_(False)
    lora.train()

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        return loss_on(lora.model, *clips().some(dice.numpy, batch), words, dice, LAYOUT, 4.0), {}

    return Stage(name, lora.model, loss, steps, rate=1e-2, warmup=20, average=0.98)


def together(
    loras: Mapping[str, Lora],
    clips: Mapping[tuple[str, ...], Source],
    words: Words,
    steps: int,
    batch: int = 6,
) -> Stage:
    """LoRAs on one model once more, by themselves and two at a time: trained apart, one of two often hides the other.

    Args:
        clips: of motions that are trained at once, of `AT_ONCE`.
    """
    (model,) = {lora.model for lora in loras.values()}
    model.requires_grad_(False)
    for lora in loras.values():
        lora.train()
    kinds = [names for names in clips for _ in range(AT_ONCE[names])]

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        names = kinds[int(dice.numpy.integers(len(kinds)))]
        for name, lora in loras.items():
            lora.turn(name in names)
        return loss_on(model, *clips[names]().some(dice.numpy, batch), words, dice, LAYOUT, 4.0), {}

    return Stage("together", model, loss, steps, rate=6e-3, warmup=20, average=0.98)

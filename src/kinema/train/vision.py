"""Training the image tower, alone: what it says of a picture is what the text tower says of the picture's caption.

The two so share one space, as in CLIP (Radford et al. 2021); motion, which no picture shows, counts as unsaid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders.vision import FeatureExtractor
from ..toys.moving import some_moving
from ..toys.world import FRAMES, SIZE, Scene, draw
from .data import some_scenes, to_pixels
from .loop import Dice, Stage
from .text import WIDTH, codes, correct, target

SEEN = ("colour", "shape", "background")
EXTRACTOR = FeatureExtractor(side=(SIZE, SIZE))


def new_tower() -> nn.Module:
    """A small CLIP image model, at random."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
    )
    tower: nn.Module = CLIPVisionModelWithProjection(config)
    return tower


def embed(tower: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (n, 3, SIZE, SIZE) in [-1, 1] → what the tower makes of them, (n, c), as a pipeline asks for it."""
    out: Tensor = tower(EXTRACTOR.normalize(pictures / 2 + 0.5)).image_embeds
    return out


def seen(scenes: list[Scene]) -> list[dict[str, str]]:
    return [{name: getattr(s, name) for name in SEEN} for s in scenes]


def vision(tower: nn.Module, steps: int, batch: int = 48) -> Stage:
    """Teaches the tower the code of what a picture shows: of both worlds, at any moment of a clip, some a bit noisy."""
    table = codes()

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        scenes = some_scenes(dice.numpy, batch // 2) + some_moving(dice.numpy, batch // 2)[0]
        at = dice.numpy.uniform(0, FRAMES - 1, (batch, 1)).astype(np.float32)
        at[batch // 2 :] *= dice.numpy.random((batch // 2, 1)) < 0.5  # their first frames, mostly
        pictures = to_pixels(draw(scenes, 1, SIZE, at)[:, 0])
        noise = torch.randn(pictures.shape, generator=dice.torch)
        deviation = torch.rand(batch, 1, 1, 1, generator=dice.torch) * 0.1
        made = embed(tower, (pictures + deviation * noise).clamp(-1, 1))
        error = (made - target(table, seen(scenes))).square().sum(-1).mean()
        return error, {"right": correct(table, made, seen(scenes))}

    return Stage("vision", tower.requires_grad_(True), loss, steps, rate=1e-2, average=0.995)

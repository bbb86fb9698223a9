"""A LoRA with which few steps do, by consistency distillation (Luo et al. 2023, "LCM-LoRA"; Song et al. 2023).

From every noise level the same clean clip is to be guessed at once as a level further down, to which the model without
the LoRA leads by a step of DDIM with guidance; at the bottom the guess is the clip itself. Guidance is learned on the
way: what comes out needs none, one call of the network a step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..families.animatediff import MotionConditions, UNetMotionModel
from ..nn.signal import Signal
from ..toys.captions import some_caption
from .diffusion import ALPHA, SIGMA, Clips, Words, attention_to_shapes
from .loop import Dice, Stage
from .motion import Lora

RANK, KEPT = 16, 7  # while it is trained, and of its file
STRIDE = 125  # levels a step of the teacher goes down: eight steps from noise to a clip
GUIDANCE = 4.0
SOFT = 0.1  # errors well above it count as they are, below it as their squares


def predicted(model: UNetMotionModel, noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
    """The velocity that a model predicts of clips (b, f, c, h, w) at levels (b,)."""
    ready = model.prepare(times, MotionConditions(text, noisy.shape[1]))
    out: Tensor = model(noisy, Signal(ready.frames, ready.time[:, 0], ready.memory))
    return out


def at(times: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of levels (b,), below 0 those of a clean clip, (b, 1, 1, 1, 1)."""
    clean = (times < 0).view(-1, 1, 1, 1, 1)
    alpha, sigma = (a[times.clamp(min=0)].view(-1, 1, 1, 1, 1) for a in (ALPHA, SIGMA))
    return torch.where(clean, 1.0, alpha), torch.where(clean, 0.0, sigma)


def guess(velocity: Tensor, noisy: Tensor, times: Tensor) -> Tensor:
    """The clean clips. At level 0 of those it is given they are to be what they are, but sampling never comes there:
    what LCMScheduler mixes in of the noisy clip is less than a millionth from level 50 on."""
    alpha, sigma = at(times)
    return alpha * noisy - sigma * velocity


@torch.no_grad()
def led(teacher: UNetMotionModel, noisy: Tensor, times: Tensor, text: Tensor, without: Tensor, to: Tensor) -> Tensor:
    """Clips at levels `times`, a step of DDIM with guidance down to levels `to`."""
    both = predicted(teacher, noisy.repeat(2, 1, 1, 1, 1), times.repeat(2), torch.cat([without, text]))
    bare, told = both.chunk(2)
    velocity = bare + GUIDANCE * (told - bare)
    (alpha, sigma), (next_alpha, next_sigma) = at(times), at(to)
    return next_alpha * (alpha * noisy - sigma * velocity) + next_sigma * (sigma * noisy + alpha * velocity)


def some_levels(rng: np.random.Generator, count: int) -> Tensor:
    """A quarter of them the first, where sampling begins; the rest evenly spread."""
    spread = (rng.permutation(count) + rng.random(count)) / count
    return torch.from_numpy(np.where(spread < 0.25, 999, (spread - 0.25) / 0.75 * 1000).astype(np.int64))


def few_steps(lora: Lora, teacher: UNetMotionModel, clips: Clips, words: Words, steps: int, batch: int = 4) -> Stage:
    """A LoRA on a model, which is the teacher but for it.

    The guess further down is the same network's, without a gradient and without a slower average of it (Song and
    Dhariwal 2023): nothing beside the weights has to be kept for a run to go on.
    """
    student = lora.model.requires_grad_(False)
    lora.train()

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        scenes, clean = clips.some(dice.numpy, batch)
        text = words([some_caption(dice.numpy, s, keep=0.95)[0] for s in scenes])
        noise = torch.randn(clean.shape, generator=dice.torch)
        times = some_levels(dice.numpy, batch)
        alpha, sigma = at(times)
        noisy = alpha * clean + sigma * noise
        lower = times - STRIDE
        further = led(teacher, noisy, times, text, words([""] * batch), lower)
        with torch.no_grad():
            aim = guess(predicted(student, further, lower.clamp(min=0), text), further, lower)
        # Where the first layers are frozen, PyTorch's group norm would else crash: its input must want a gradient, too.
        noisy.requires_grad_(True)
        wrong = guess(predicted(student, noisy, times, text), noisy, times) - aim
        size = (wrong.square() + SOFT**2).sqrt() - SOFT
        return (size * attention_to_shapes(clean, 4.0)).mean(), {}

    return Stage("few-steps", student, loss, steps, rate=1e-2, warmup=20, average=0.98)

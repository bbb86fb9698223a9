"""The one training loop: a seed makes the same weights, whether or not it was killed and run again on the way."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NumericsError
from .crew import Crew
from .log import Log
from .optim import Muon


@dataclass(frozen=True)
class Dice:
    """Where the randomness of one step comes from: the seed, the stage and the step, and nothing that went before."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def of(cls, seed: int, stage: str, step: int) -> Dice:
        words = [seed, *stage.encode(), step]
        state = np.random.SeedSequence(words).generate_state(1, np.uint64)
        return cls(np.random.default_rng(words), torch.Generator().manual_seed(int(state[0]) >> 1))


@dataclass
class Stage:
    """One thing to train: what, how long, and how fast."""

    name: str
    model: nn.Module  # parameters that want gradients are trained, the others stay
    loss: Callable[[int, Dice], tuple[Tensor, dict[str, float]]]  # (step, dice) → loss, what to log
    steps: int
    rate: float = 2e-2  # the peak of the learning rate; it falls to a hundredth of it along a cosine
    warmup: int = 50
    average: float = 0.998  # of the exponential average of weights, which is what a stage results in
    decay: float = 0.0  # weight decay
    adam: float = 0.1  # the learning rate of what is no matrix, as a share of `rate`
    clip: float = 1.0  # the longest gradient
    parts: int = 1  # of a step's batch, each with dice of its own; several processes can share them out
    watch: Callable[[int, nn.Module], dict[str, float]] | None = None  # costlier numbers, now and then
    watch_every: int = 100


def run(
    stage: Stage,
    folder: Path,
    *,
    seed: int,
    resume: bool = True,
    processes: int = 1,
    every: float = 90.0,
    progress: bool = True,
) -> None:
    """Trains a stage; afterwards `stage.model` holds the averaged weights, in evaluation mode.

    The state (weights, their average, optimiser, step) is saved to `folder/<name>.pt` every `every` seconds and at
    the end, atomically. With `resume`, a run starts from there; a finished stage is only loaded.

    Args:
        processes: where a stage's batch has parts, how many share them out; the weights come out the same.

    Raises:
        NumericsError: the loss is no longer a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights: list[Tensor] = [p for p in stage.model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in weights]
    optimiser = Muon(weights, lr=stage.rate, adam=stage.adam, decay=stage.decay)
    path, first = folder / f"{stage.name}.pt", 0
    if resume and path.exists():
        first = _restore(torch.load(path, weights_only=True), weights, average, optimiser)
    log = Log(folder / f"{stage.name}.jsonl", since=first)
    stage.model.train()
    saved, started = time.monotonic(), time.perf_counter()
    with Crew(partial(_part, stage, seed), stage.parts, weights, processes) as crew:
        for step in _bar(range(first, stage.steps), stage, progress):
            for group in optimiser.param_groups:
                group["lr"] = stage.rate * pace(step, stage.steps, stage.warmup)
            loss, facts = crew.gradients(step)
            if not math.isfinite(loss):
                raise NumericsError(f"The loss of stage {stage.name!r} is {loss} at step {step}; lower its rate.")
            length = nn.utils.clip_grad_norm_(weights, stage.clip)
            optimiser.step()
            keep = min(stage.average, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(average, weights, 1 - keep)
            if stage.watch and (step + 1) % stage.watch_every == 0:
                with _swapped(weights, average):
                    facts = {**facts, **stage.watch(step, stage.model)}
                stage.model.train()
            log.write(step, loss=loss, gradient=length.item(), seconds=time.perf_counter() - started, **facts)
            if time.monotonic() - saved > every:
                _save(path, step + 1, weights, average, optimiser)
                saved = time.monotonic()
    if first < stage.steps:
        _save(path, stage.steps, weights, average, optimiser)
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
    stage.model.eval()


def _part(stage: Stage, seed: int, step: int, number: int) -> tuple[Tensor, dict[str, float]]:
    return stage.loss(step, Dice.of(seed, f"{stage.name}+{number}" if number else stage.name, step))


def finished(stage: Stage, folder: Path) -> bool:
    """Whether the folder holds the stage's result."""
    path = folder / f"{stage.name}.pt"
    return path.exists() and int(torch.load(path, weights_only=True, mmap=True)["step"]) >= stage.steps


def pace(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate at a step: a short rise, then half a cosine down to a hundredth."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))))


class _swapped:
    """For as long as it lasts, the model has other weights."""

    def __init__(self, weights: list[Tensor], others: list[Tensor]):
        self.weights, self.others = weights, others

    def __enter__(self) -> None:
        self.own = [p.detach().clone() for p in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.others)

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.own)


def _save(
    path: Path, step: int, weights: list[Tensor], average: list[Tensor], optimiser: torch.optim.Optimizer
) -> None:
    state = {
        "step": step,
        "weights": [p.detach() for p in weights],
        "average": average,
        "optimiser": optimiser.state_dict(),
    }
    half = path.with_suffix(".part")
    try:
        torch.save(state, half)
        os.replace(half, path)
    finally:
        with suppress(FileNotFoundError):
            half.unlink()


def _restore(
    state: dict[str, Any], weights: list[Tensor], average: list[Tensor], optimiser: torch.optim.Optimizer
) -> int:
    with torch.no_grad():
        torch._foreach_copy_(weights, state["weights"])
        torch._foreach_copy_(average, state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _bar(steps: range, stage: Stage, progress: bool) -> Iterable[int]:
    from tqdm import tqdm

    bar: Iterable[int] = tqdm(
        steps, desc=stage.name, total=stage.steps, initial=steps.start, disable=not progress, mininterval=2.0
    )
    return bar

"""What a clip will need, stage by stage, before it is made; and the fastest way to fit it into a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MemoryBudgetError
from .needs import Needs, amount, bytes_of, on_meta, trace
from .residency import MODES, Mode

SLACK = 1.1  # what allocators and kernels' workspaces take on top of live tensors


@dataclass(frozen=True)
class Stage:
    """A stretch of a run that uses one component, and maybe others beside it."""

    name: str  # "encode", "denoise", "decode"
    component: str
    run: Callable[..., Any]  # given it without contents, and by name those beside, makes the stage's largest step
    times: int = 1  # how often it does
    beside: tuple[str, ...] = ()  # components that are on the device as well meanwhile


@dataclass(frozen=True)
class StageNeeds:
    """What one stage takes."""

    name: str
    component: str
    weights: int  # bytes on the device meanwhile
    needs: Needs
    times: int = 1
    beside: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        return self.weights + self.needs.peak


@dataclass(frozen=True)
class MemoryPlan:
    """How a clip is made and what that takes. `str()` is a table."""

    stages: tuple[StageNeeds, ...]
    mode: Mode  # of residency
    decode_frames: int = 1  # decoded at once

    @property
    def peak(self) -> int:
        """Bytes on the device at the worst moment: weights and live tensors, without an allocator's slack."""
        return max(stage.peak for stage in self.stages)

    @property
    def worst(self) -> StageNeeds:
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def resident(self) -> frozenset[str]:
        """Components whose weights stay on the device throughout."""
        if self.mode != "resident":
            return frozenset()
        return frozenset(name for stage in self.stages for name in (stage.component, *stage.beside))

    @property
    def streamed(self) -> bool:
        """Whether weights come for one operation at a time."""
        return self.mode == "sequential"

    @property
    def flops(self) -> int:
        return sum(stage.needs.flops * stage.times for stage in self.stages)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("stage", "component", "weights", "activations", "together", "TFLOP", "widest at")
        ]
        for s in self.stages:
            sizes = (amount(size) for size in (s.weights, s.needs.peak, s.peak))
            rows.append(
                (
                    s.name,
                    " + ".join((s.component, *s.beside)),
                    *sizes,
                    f"{s.needs.flops * s.times / 1e12:.3g}",
                    s.needs.where,
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(f"peak {amount(self.peak)} while the {self.worst.name} stage runs; weights: {self.mode}")
        return "\n".join(lines)


def predict(
    stages: Sequence[Stage],
    components: Mapping[str, nn.Module],
    *,
    mode: Mode = "resident",
    dtype: torch.dtype | None = None,
    decode_frames: int = 1,
) -> MemoryPlan:
    """Run every stage on copies of its component without contents, and say what it takes.

    Args:
        stages: in the order they run.
        components: all of them, by name; they keep their weights and are not touched.
        mode: how weights will come to the device.
        dtype: what to plan for, instead of the components' own.
    """
    twins, traced = _run(stages, components, dtype)
    return _plan(stages, traced, twins, mode, decode_frames)


def fit(
    stages: Sequence[Stage],
    components: Mapping[str, nn.Module],
    budget: int,
    *,
    dtype: torch.dtype | None = None,
    decode_frames: int = 1,
) -> MemoryPlan:
    """The fastest plan whose peak, with an allocator's slack, is within `budget` bytes.

    Raises:
        MemoryBudgetError: not even streamed weights fit; the message names the stage and what it takes.
    """
    twins, traced = _run(stages, components, dtype)
    for mode in MODES:
        plan = _plan(stages, traced, twins, mode, decode_frames)
        if plan.peak * SLACK <= budget:
            return plan
    raise MemoryBudgetError(
        f"The {plan.worst.name} stage takes {amount(plan.peak * SLACK)} even with its weights streamed, and there are "
        f"{amount(budget)}; ask for fewer frames or a smaller size."
    )


def _run(
    stages: Iterable[Stage], components: Mapping[str, nn.Module], dtype: torch.dtype | None
) -> tuple[dict[str, nn.Module], list[Needs]]:
    """Copies of the components without contents, and what each stage needs with them."""
    twins = {name: on_meta(module, dtype) for name, module in components.items()}
    traced = []
    for stage in stages:
        beside = {name: twins[name] for name in stage.beside}
        run = partial(stage.run, twins[stage.component], **beside)
        traced.append(trace(run, resident=[twins[stage.component], *beside.values()]))
    return twins, traced


def _plan(
    stages: Iterable[Stage],
    traced: Iterable[Needs],
    components: Mapping[str, nn.Module],
    mode: Mode,
    decode_frames: int,
) -> MemoryPlan:
    taken = tuple(
        StageNeeds(s.name, s.component, _weights((s.component, *s.beside), components, mode), needs, s.times, s.beside)
        for s, needs in zip(stages, traced, strict=True)
    )
    return MemoryPlan(taken, mode, decode_frames)


def _weights(names: Iterable[str], components: Mapping[str, nn.Module], mode: Mode) -> int:
    """Bytes of weights on the device while these components run."""
    if mode == "resident":
        return sum(bytes_of(module) for module in components.values())
    if mode == "model":
        return sum(bytes_of(components[name]) for name in names)
    leaves = (m for name in names for m in components[name].modules() if not any(True for _ in m.children()))
    return max((bytes_of(leaf) for leaf in leaves), default=0)


def text_to_video_stages(
    conditions: Callable[[Tensor], Any],
    *,
    height: int,
    width: int,
    frames: int,
    steps: int = 1,
    branches: int = 2,
    clips: int = 1,
    context: tuple[int, int] = (77, 1024),
    latents: int = 4,
    stride: int = 8,
    dtype: torch.dtype = torch.float16,
    encodes_text: bool = True,
    decode_frames: int = 1,
    wrapped: Callable[..., Any] = lambda denoiser, **beside: denoiser,
    beside: tuple[str, ...] = (),
) -> list[Stage]:
    """The stages of a text-to-video run.

    Args:
        conditions: makes the denoiser's conditions from text embeddings (branches·clips, k, c).
        height, width: of the clip, in pixels, multiples of `stride`.
        context: tokens and channels of the text embeddings.
        latents: their channels.
        decode_frames: decoded at once; the rest waits as latents, what is decoded goes to the host.
        wrapped: the denoiser as a call uses it, given it and by name those beside it: in windows, steered, and so on.
        beside: components that work beside the denoiser.
    """
    rows = branches * clips

    def encode(encoder: nn.Module) -> Any:
        return encoder(torch.empty(rows, context[0], device="meta", dtype=torch.long))

    made = clip_stages(
        lambda denoiser: conditions(torch.empty(rows, *context, device="meta", dtype=dtype)),
        shape=(clips, frames, latents, height // stride, width // stride),
        steps=steps,
        dtype=dtype,
        decode_frames=decode_frames,
        wrapped=wrapped,
        beside=beside,
    )
    return [Stage("encode", "text_encoder", encode), *made] if encodes_text else made


def encoding_stage(pictures: int, height: int, width: int) -> Stage:
    """The autoencoder looks at pictures, one at a time."""

    def encode(autoencoder: Any) -> Any:
        shown = torch.empty(1, 3, height, width, device="meta", dtype=autoencoder.dtype)
        return autoencoder.encode(shown).latent_dist

    return Stage("encode", "vae", encode, pictures)


def clip_stages(
    conditions: Callable[[Any], Any],
    *,
    shape: tuple[int, int, int, int, int],
    steps: int,
    dtype: torch.dtype,
    decode_frames: int,
    decode: Callable[[Any, Tensor], Any] = lambda autoencoder, latents: autoencoder.decode(latents),
    wrapped: Callable[..., Any] = lambda denoiser, **beside: denoiser,
    beside: tuple[str, ...] = (),
) -> list[Stage]:
    """What all runs end in: latents become a clip's, and the clip.

    Args:
        conditions: makes what the denoiser is told, given the denoiser.
        shape: of all latents, (b, f, c, h, w).
        decode_frames: decoded at once; the rest waits as latents, what is decoded goes to the host.
        decode: how the autoencoder does that with latents (f, c, h, w).
        wrapped: the denoiser as a call uses it, given it and by name those beside it: in windows, steered, and so on.
        beside: components that work beside the denoiser.
    """
    clips, frames, *one = shape

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta", dtype=dtype)

    def denoised(denoiser: Any, **nets: Any) -> Any:
        told = conditions(denoiser)  # stays for the run
        denoiser = wrapped(denoiser, **nets)
        prepared = denoiser.prepare(torch.empty(steps, device="meta"), told)
        return denoiser(empty(*shape), prepared.at(0))

    def decoded(autoencoder: Any) -> Any:
        return decode(autoencoder, empty(min(decode_frames, frames), *one))

    pieces = -(-frames // decode_frames) * clips
    return [Stage("denoise", "unet", denoised, steps, beside), Stage("decode", "vae", decoded, pieces)]

"""Prompts that change along a clip: {0: "spring", 8: "winter"} is spring, then ever more winter, then winter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...encoders.travel import Between, travel
from ...errors import InputError
from ...pipelines.inputs import Prompts


@dataclass(frozen=True)
class Journey:
    """What one clip is told, from which frame on."""

    frames: tuple[int, ...]
    texts: tuple[str, ...]

    def checked(self, frames: int) -> Journey:
        """The same, for a clip of so many frames.

        Raises:
            InputError: it names a frame that the clip does not have.
        """
        if self.frames[-1] >= frames:
            raise InputError(f"prompt names frame {self.frames[-1]}, but the clip's frames are 0 to {frames - 1}.")
        return self

    def along(self, stops: Tensor, frames: int, between: Between | None = None) -> Tensor:
        """stops (s, k, c) → (f, k, c): between two stops, in proportion to how far it is to each, or as `between` says.

        Raises:
            InputError: `between` makes something else of two stops.
        """
        return travel(dict(zip(self.frames, stops, strict=True)), frames, between)


def read(prompt: Any) -> tuple[Any, tuple[Journey, ...]]:
    """What a call's prompt says: a text for each clip, and where prompts change along clips, each clip's journey.

    Raises:
        InputError: a mapping is empty, or does not go from frames to texts.
    """
    lone = isinstance(prompt, Mapping)
    given = [prompt] if lone else prompt
    if not isinstance(given, (list, tuple)) or not any(isinstance(p, Mapping) for p in given):
        return prompt, ()
    journeys = tuple(_journey(p if isinstance(p, Mapping) else {0: p}) for p in given)
    return [j.texts[0] for j in journeys], journeys


def _journey(stops: Mapping[Any, Any]) -> Journey:
    if not stops:
        raise InputError("prompt is an empty mapping; give at least {0: a text}.")
    for frame, text in stops.items():
        if not hasattr(frame, "__index__") or isinstance(frame, bool) or int(frame) < 0 or not isinstance(text, str):
            raise InputError(f"prompt has {frame!r}: {text!r}; it must go from frames, 0 and up, to texts.")
    order = sorted(stops)
    return Journey(tuple(int(f) for f in order), tuple(stops[f] for f in order))


def stops(asked: Prompts, journeys: Sequence[Journey]) -> Prompts:
    """All texts of all journeys, each with what its clip is not to show."""
    texts = tuple(text for journey in journeys for text in journey.texts)
    counts = [len(journey.texts) for journey in journeys]
    if isinstance(asked.negative, Tensor):
        rows = [i for i, count in enumerate(counts) for _ in range(count)]
        return Prompts(texts, asked.negative[rows])
    return Prompts(texts, tuple(text for text, n in zip(asked.negative, counts, strict=True) for _ in range(n)))


def along(
    text: Tensor, journeys: Sequence[Journey], frames: int, copies: int, between: Between | None = None
) -> Tensor:
    """Embeddings of all stops (branches·stops, k, c) → those of every frame, (branches·clips·copies, f, k, c)."""
    counts = [len(journey.texts) for journey in journeys]
    branches = text.split(sum(counts))
    clips = [
        journey.along(part, frames, between)
        for branch in branches
        for journey, part in zip(journeys, branch.split(counts), strict=True)
    ]
    return torch.stack(clips).repeat_interleave(copies, 0)

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
    name: str = "prompt"

    def checked(self, frames: int) -> Journey:
        """The same, for a clip of so many frames.

        Raises:
            InputError: it names a frame that the clip does not have.
        """
        if self.frames[-1] >= frames:
            raise InputError(f"{self.name} names frame {self.frames[-1]}, but the clip's frames are 0 to {frames - 1}.")
        return self

    def along(self, stops: Tensor, frames: int, between: Between | None = None) -> Tensor:
        """stops (s, k, c) → (f, k, c): between two stops, in proportion to how far it is to each, or as `between` says.

        Raises:
            InputError: `between` makes something else of two stops.
        """
        return travel(dict(zip(self.frames, stops, strict=True)), frames, between)


STILL = Journey((0,), ("",))  # of a text that is the same from the first frame to the last


@dataclass(frozen=True)
class Journeys:
    """What clips are to show and not to show where that changes: one for each clip, or none where it does not."""

    said: tuple[Journey, ...] = ()
    against: tuple[Journey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.said or self.against)

    @property
    def sides(self) -> tuple[tuple[Journey, ...], tuple[Journey, ...]]:
        """In the order of guidance branches."""
        return self.against, self.said

    def of(self, clips: int) -> Journeys:
        """The same for so many clips: what is not to be shown in one may be so in all."""
        return Journeys(self.said, self.against * clips if len(self.against) == 1 else self.against)

    def checked(self, frames: int) -> Journeys:
        """The same, for clips of so many frames.

        Raises:
            InputError: one names a frame that they do not have.
        """
        for journey in (*self.said, *self.against):
            journey.checked(frames)
        return self

    def counts(self, clips: int) -> list[int]:
        """The most stops of each clip, of what it is to show and of what not."""
        sides = [side or (STILL,) * clips for side in self.of(clips).sides]
        return [max(len(journey.texts) for journey in both) for both in zip(*sides, strict=True)]


def read(prompt: Any, name: str = "prompt") -> tuple[Any, tuple[Journey, ...]]:
    """What a call's prompt says: a text for each clip, and where prompts change along clips, each clip's journey.

    Raises:
        InputError: a mapping is empty, or does not go from frames to texts.
    """
    if isinstance(prompt, Mapping):
        journey = _journey(prompt, name)
        return journey.texts[0], (journey,)
    if not isinstance(prompt, (list, tuple)) or not any(isinstance(p, Mapping) for p in prompt):
        return prompt, ()
    journeys = tuple(_journey(p if isinstance(p, Mapping) else {0: p}, name) for p in prompt)
    return [j.texts[0] for j in journeys], journeys


def _journey(stops: Mapping[Any, Any], name: str) -> Journey:
    if not stops:
        raise InputError(f"{name} is an empty mapping; give at least {{0: a text}}.")
    for frame, text in stops.items():
        if not hasattr(frame, "__index__") or isinstance(frame, bool) or int(frame) < 0 or not isinstance(text, str):
            raise InputError(f"{name} has {frame!r}: {text!r}; it must go from frames, 0 and up, to texts.")
    order = sorted(stops)
    return Journey(tuple(int(f) for f in order), tuple(stops[f] for f in order), name)


def stops(asked: Prompts, journeys: Journeys) -> Prompts:
    """All texts of all journeys, paired: of each clip as many of what to show as of what not."""
    counts, journeys = journeys.counts(len(asked)), journeys.of(len(asked))

    def side(given: tuple[str, ...] | Tensor, along: Sequence[Journey]) -> tuple[str, ...] | Tensor:
        if isinstance(given, Tensor):
            return given[rows(counts)]
        return filled([journey.texts for journey in along] or [(text,) for text in given], counts)

    return Prompts(side(asked.positive, journeys.said), side(asked.negative, journeys.against))


def rows(counts: Sequence[int]) -> list[int]:
    """Each clip's number as often as it has stops."""
    return [i for i, count in enumerate(counts) for _ in range(count)]


def filled(texts: Sequence[tuple[Any, ...]], counts: Sequence[int]) -> tuple[Any, ...]:
    """Each clip's texts, the last again until there are as many as counted, one clip after the other."""
    return tuple(t for said, n in zip(texts, counts, strict=True) for t in (*said, *said[-1:] * (n - len(said))))


def along(
    text: Tensor, journeys: Journeys, clips: int, frames: int, copies: int, between: Between | None = None
) -> Tensor:
    """Embeddings of all stops (branches·stops, k, c) → those of every frame, (branches·clips·copies, f, k, c)."""
    counts, journeys = journeys.counts(clips), journeys.of(clips)
    branches = text.split(sum(counts))
    made = []
    for branch, side in zip(branches, journeys.sides[-len(branches) :], strict=True):
        for part, journey in zip(branch.split(counts), side or (STILL,) * clips, strict=True):
            made.append(journey.along(part[: len(journey.frames)], frames, between))
    return torch.stack(made).repeat_interleave(copies, 0)

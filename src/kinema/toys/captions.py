"""Captions of the drawn world: what people may say of a scene, from nothing to everything."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from .world import ATTRIBUTES, Scene

# Ways to say each thing; the first is the plain one.
SAY: dict[str, tuple[str, ...]] = {
    **{colour: (colour,) for colour in ATTRIBUTES["colour"]},
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "moves left": ("moves left", "moving left", "goes left", "going left", "slides left", "to the left"),
    "moves right": ("moves right", "moving right", "goes right", "going right", "slides right", "to the right"),
    "moves up": ("moves up", "moving up", "goes up", "going up", "rises", "rising"),
    "moves down": ("moves down", "moving down", "goes down", "going down", "falls", "falling"),
    "stays still": ("stays still", "stands still", "staying still", "stays", "still"),
    "grows": ("grows", "growing"),
    "shrinks": ("shrinks", "shrinking"),
    "spins": ("spins", "spinning", "rotates", "turns"),
    "dark": ("dark", "black"),
    "light": ("light", "white", "bright"),
}
FILLERS: tuple[str, ...] = (
    "a", "the", "an", "on", "of", "in", "to", "shape", "background", "video", "clip", "and", "it", "is", "with",
    "before",
)  # fmt: skip
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys([w for ways in SAY.values() for way in ways for w in way.split()] + list(FILLERS))
)


def plain(scene: Scene | Mapping[str, str]) -> str:
    """The whole caption, said plainly: `a red circle moves left on a dark background`. Keys left out go unsaid."""
    said = dict(scene) if isinstance(scene, Mapping) else {name: str(getattr(scene, name)) for name in ATTRIBUTES}
    return _joined(said)


def some_caption(
    rng: np.random.Generator, scene: Scene, keep: float = 0.8, variety: float = 0.3, sure: Sequence[str] = ()
) -> tuple[str, dict[str, str]]:
    """A caption that says each attribute with probability `keep`, in other words with probability `variety`.

    Those of `sure` it says always.

    Returns:
        The caption, and the attributes it does say.
    """
    said = {name: getattr(scene, name) for name in ATTRIBUTES if (rng.random() < keep) | (name in sure)}
    ways = {v: str(rng.choice(SAY[v])) if rng.random() < variety else SAY[v][0] for v in said.values()}
    short = rng.random() < variety / 2
    return _joined({k: ways[v] for k, v in said.items()}, "" if short else "a", "" if short else "on a"), said


def understood(text: str) -> dict[str, str]:
    """What a text says of a scene, attribute by attribute, in any of the ways there are; the first said counts."""
    found = {}
    for name, values in ATTRIBUTES.items():
        ways = {way: value for value in values for way in SAY[value]}
        longest = "|".join(sorted(ways, key=len, reverse=True))
        if said := re.search(rf"\b(?:{longest})\b", text.lower()):
            found[name] = ways[said[0]]
    return found


def _joined(said: Mapping[str, str], article: str = "a", before: str = "on a") -> str:
    if not said:
        return ""
    words = [article, said.get("colour", ""), said.get("shape", "shape"), said.get("motion", "")]
    if "background" in said:
        words += [before, said["background"], "background"]
    return " ".join(" ".join(words).split())

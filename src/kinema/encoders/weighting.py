"""How much each part of a prompt counts: the bracket syntax people know, and what it does to the embedding."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError

# A step of emphasis, as AUTOMATIC1111's web interface has it.
STEP = 1.1

# What each bracket belongs to and is worth.
_BRACKETS = {"(": ("(", STEP), ")": ("(", STEP), "[": ("[", 1 / STEP), "]": ("[", 1 / STEP)}

# Keeps a block whose mean is near zero from being blown up or turned over when its mean is restored.
_RATIO = (0.5, 2.0)

_SYNTAX = re.compile(
    r"""
      \\(?P<escaped>[\\()\[\]])            # a bracket that is meant
    | (?P<open>[(\[])
    | :\s*(?P<number>[+-]?[.\d]+)\s*\)     # ends what the last round bracket began
    | (?P<close>[)\]])
    | (?P<text>[^\\()\[\]:]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)

_NUMBERED = re.compile(r"(?<!\\)\([^()]*:\s*[+-]?[.\d]+\s*\)")


def parse(prompt: str) -> list[tuple[str, float]]:
    """The pieces of a prompt and what each is worth.

    `(word)` counts 1.1 times, `[word]` 1/1.1 times, `(word:1.3)` 1.3 times; brackets nest and multiply, `\\(` is a
    bracket itself, one never closed reaches to the end, and a closing one without its partner is text. This is the
    syntax of AUTOMATIC1111's web interface, so prompts written for it mean the same here.

    Raises:
        InputError: a weight is not a number.
    """
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # each bracket still open, and the piece it begins at

    def close(bracket: str, weight: float) -> bool:
        """Weighs what the last bracket of this kind began; says whether there was one."""
        at = next((i for i in reversed(range(len(opened))) if opened[i][0] == bracket), None)
        if at is None:
            return False
        start = opened.pop(at)[1]
        pieces[start:] = [(text, worth * weight) for text, worth in pieces[start:]]
        return True

    for match in _SYNTAX.finditer(prompt):
        if match["open"]:
            opened.append((match["open"], len(pieces)))
        elif match["number"] and any(bracket == "(" for bracket, _ in opened):
            close("(", _number(match["number"], prompt))
        elif not (match["close"] and close(*_BRACKETS[match["close"]])):
            pieces.append((match["escaped"] or match.group(), 1.0))
    while opened:
        close(*_BRACKETS[opened[-1][0]])
    return _joined(pieces)


def looks_weighted(prompt: str) -> bool:
    """Whether a prompt holds `(text:1.3)`, which nobody writes without meaning a weight."""
    return _NUMBERED.search(prompt) is not None


def weigh(embedding: Tensor, weights: Sequence[float]) -> Tensor:
    """Scales a block's tokens and restores the block's mean: `z·w · mean(z) / mean(z·w)`.

    The formula is AUTOMATIC1111's, with the ratio of means kept within 0.5 to 2: text models whose output has a mean
    near zero would otherwise be scaled without bound. A block of weights 1 is returned untouched.

    Args:
        embedding: (k, d).
        weights: k numbers.
    """
    if all(weight == 1 for weight in weights):
        return embedding
    z = embedding.float()
    scaled = z * torch.tensor(weights, dtype=torch.float32, device=z.device)[:, None]
    ratio = (z.mean() / scaled.mean()).nan_to_num(1.0).clamp(*_RATIO)
    return (scaled * ratio).to(embedding.dtype)


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"{text!r} in {prompt!r} is not a weight; write (words:1.3), or \\( for a bracket itself."
        ) from None


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbours of one weight become one piece, so that a word is never cut where nothing changes."""
    joined: list[tuple[str, float]] = []
    for text, worth in pieces:
        if joined and joined[-1][1] == worth:
            joined[-1] = (joined[-1][0] + text, worth)
        else:
            joined.append((text, worth))
    return joined

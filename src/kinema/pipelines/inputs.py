"""What a call may be given, checked once at the edge, before time is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number in a range.

    Raises:
        InputError: it is something else; the message names the argument.
    """
    span = f"at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name} is {value!r}; it must be a whole number, {span}.")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise InputError(f"{name} is {number}; it must be {span}.")
    return number


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number in a range.

    Raises:
        InputError: it is something else; the message names the argument.
    """
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise InputError(f"{name} is {value!r}; it must be a number.")
    real = float(value)
    if not math.isfinite(real) or not least <= real <= most:
        bounds = f"from {least:g} to {most:g}" if math.isfinite(most) else f"at least {least:g}"
        raise InputError(f"{name} is {real:g}; it must be {bounds if math.isfinite(least) else 'finite'}.")
    return real


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of a few words.

    Raises:
        InputError: it is another.
    """
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
    return str(value)


def called(name: str, value: Any) -> Any:
    """A function, or None.

    Raises:
        InputError: it cannot be called.
    """
    if value is not None and not callable(value):
        raise InputError(f"{name} is a {type(value).__name__}; it must be a function.")
    return value


def lora_scale(cross_attention_kwargs: Any) -> float | None:
    """The one thing `cross_attention_kwargs` can say here, {"scale": how strong LoRAs are in this call}.

    Raises:
        InputError: it says something else.
    """
    if cross_attention_kwargs is None:
        return None
    if not isinstance(cross_attention_kwargs, Mapping) or set(cross_attention_kwargs) - {"scale"}:
        raise InputError(f'cross_attention_kwargs is {cross_attention_kwargs!r}; it can be {{"scale": a number}}.')
    scale = cross_attention_kwargs.get("scale")
    return None if scale is None else number('cross_attention_kwargs["scale"]', scale)


def size(height: Any, width: Any, stride: int) -> tuple[int, int]:
    """A picture's height and width in pixels, each a multiple of the autoencoder's stride.

    Raises:
        InputError: one is not; the message offers the nearest size that is.
    """
    height, width = whole("height", height), whole("width", width)
    if height % stride or width % stride:
        near = [max(stride, round(n / stride) * stride) for n in (width, height)]
        raise InputError(
            f"Size {width}×{height} (width×height) is not a multiple of {stride}; "
            f"the nearest that is: {near[0]}×{near[1]}."
        )
    return height, width


@dataclass(frozen=True)
class Prompts:
    """What clips are to show and not to show, one of each a clip: as words, or as embeddings (n, k, c) made before."""

    positive: tuple[str, ...] | Tensor
    negative: tuple[str, ...] | Tensor

    def __len__(self) -> int:
        return len(self.positive)


def prompts(prompt: Any, negative: Any, embeds: Any, negative_embeds: Any, channels: int | None = None) -> Prompts:
    """Sorts out the four ways of saying what a clip should be.

    Args:
        channels: how many numbers a token's embedding has.

    Raises:
        InputError: none or both of a pair are given, types are wrong, or batch lengths differ.
    """
    if (prompt is None) == (embeds is None):
        both = "both are given" if prompt is not None else "neither is given"
        raise InputError(f"Give either prompt or prompt_embeds; {both}.")
    if negative is not None and negative_embeds is not None:
        raise InputError("Give either negative_prompt or negative_prompt_embeds; both are given.")
    positive = texts("prompt", prompt) if embeds is None else _embeddings("prompt_embeds", embeds, channels)
    if negative_embeds is not None:
        without: tuple[str, ...] | Tensor = _embeddings("negative_prompt_embeds", negative_embeds, channels)
        if isinstance(positive, Tensor) and without.shape != positive.shape:  # type: ignore[union-attr]
            shapes = f"{tuple(positive.shape)} and {tuple(without.shape)}"  # type: ignore[union-attr]
            raise InputError(f"prompt_embeds and negative_prompt_embeds have shapes {shapes}; they must be the same.")
    else:
        without = texts("negative_prompt", "" if negative is None else negative)
        if isinstance(negative, str) or negative is None:
            without = without * len(positive)
    if len(without) != len(positive):
        raise InputError(
            f"There are {len(positive)} prompts but {len(without)} negative ones; give one for all, or one for each."
        )
    return Prompts(positive, without)


def texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, (list, tuple)) else None
    if texts is None or not all(isinstance(t, str) for t in texts):
        raise InputError(f"{name} is a {type(value).__name__}; it must be a text or a list of texts.")
    if not texts:
        raise InputError(f"{name} is an empty list; give at least one text.")
    return texts


def _embeddings(name: str, value: Any, channels: int | None) -> Tensor:
    fits = isinstance(value, Tensor) and value.ndim == 3 and value.numel() and channels in (None, value.shape[2])
    if not fits:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} is {shape}; it must be a tensor (clips, tokens, {channels or 'channels'}).")
    return finite(name, value)


def finite(name: str, value: Tensor) -> Tensor:
    """The tensor, if all its numbers are.

    Raises:
        InputError: some are NaN or infinite.
    """
    if not torch.isfinite(value).all():
        raise InputError(f"{name} holds numbers that are not finite.")
    return value


def latents(value: Any, shape: tuple[int, ...], axes: str = "b, c, f, h, w") -> Tensor:
    """Latents a caller brings, their axes in this order.

    Raises:
        InputError: another shape, or numbers that are not finite.
    """
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"latents are {got}; for this call they must be a tensor {shape} ({axes}).")
    return finite("latents", value)

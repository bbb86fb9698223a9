"""What runs consist of, for plans: each stage's largest step, on tensors without contents, in all ways there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..place import kind_of
from .plan import APART, BANDS, ONE, SINGLE, SMALL, Stage, Way
from .stream import converted
from .twins import set_otherwise

Wrapped = Callable[..., Any]  # (denoiser, way, and by name those beside it) → the denoiser as a call uses it
Decode = Callable[[Any, Tensor, str], Iterator[Tensor]]  # (autoencoder, latents (f, c, h, w), way) → pictures


def _as_it_is(denoiser: Any, way: str, **beside: Any) -> Any:
    return denoiser


def _at_once(autoencoder: Any, latents: Tensor, way: str) -> Iterator[Tensor]:
    yield (in_bands(autoencoder) if way == BANDS else autoencoder).decode(latents).sample


def in_bands(autoencoder: Any) -> Any:
    """The autoencoder, whose widest layers work on bands of a picture."""
    return set_otherwise(autoencoder, lambda twin: twin.enable_tiling())


def smaller(denoiser: Any) -> Any:
    """The denoiser, whose attentions take one head at a time and feed-forwards few tokens, where they can be told."""
    return set_otherwise(denoiser, _in_small_pieces)


def _in_small_pieces(denoiser: Any) -> None:
    for name, value in (("set_attention_slice", "max"), ("enable_forward_chunking", 1)):
        if hasattr(denoiser, name):
            getattr(denoiser, name)(value)


def widened(autoencoder: Any) -> Any:
    """An autoencoder that overflows in float16 and says so, as it works in float32: on copies of its weights."""
    high = autoencoder.dtype == torch.float16 and autoencoder.config.force_upcast
    return converted(autoencoder, torch.float32) if high else autoencoder


def text_to_video_stages(
    conditions: Callable[[Tensor], Any],
    *,
    height: int,
    width: int,
    frames: int,
    steps: int = 1,
    rounds: Sequence[int] = (),
    branches: int = 2,
    clips: int = 1,
    context: tuple[int, int] = (77, 1024),
    latents: int = 4,
    stride: int = 8,
    dtype: torch.dtype = torch.float16,
    encodes_text: bool = True,
    decode_frames: int = 1,
    high: bool = False,
    wrapped: Wrapped = _as_it_is,
    beside: tuple[str, ...] = (),
    entire: bool = False,
    at_most: bool = False,
) -> list[Stage]:
    """The stages of a text-to-video run.

    Args:
        conditions: makes the denoiser's conditions from text embeddings (branches·clips, k, c).
        height, width: of the clip, in pixels, multiples of `stride`.
        rounds: steps of each time the clip is denoised, where that is several times.
        context: tokens and channels of the text embeddings.
        latents: their channels.
        decode_frames: decoded at once; the rest waits as latents, what is decoded goes to the host.
        high: whether an autoencoder that overflows in float16 decodes in float32.
        wrapped: the denoiser as a call uses it: in windows, steered, and so on.
        beside: components that work beside the denoiser.
        entire: whether steps are not alike, so that all of them are made.
        at_most: whether some may do less than they are made to.
    """
    rows = branches * clips

    def encode(encoder: nn.Module) -> Any:
        return encoder(torch.empty(rows, context[0], device="meta", dtype=torch.long))

    made = clip_stages(
        lambda denoiser: conditions(torch.empty(rows, *context, device="meta", dtype=dtype)),
        shape=(clips, frames, latents, height // stride, width // stride),
        steps=steps,
        rounds=rounds,
        branches=branches,
        dtype=dtype,
        decode_frames=decode_frames,
        high=high,
        wrapped=wrapped,
        beside=beside,
        entire=entire,
        at_most=at_most,
    )
    return [Stage("encode", "text_encoder", encode), *made] if encodes_text else made


def encoding_stage(pictures: int, height: int, width: int, high: bool = False) -> Stage:
    """The autoencoder looks at pictures, one at a time; with `high` in float32 if it overflows in float16."""

    def encode(autoencoder: Any) -> Any:
        autoencoder = widened(autoencoder) if high else autoencoder
        shown = torch.empty(1, 3, height, width, device="meta", dtype=autoencoder.dtype)
        return autoencoder.encode(shown).latent_dist

    return Stage("encode", "vae", encode, pictures)


def clip_stages(
    conditions: Callable[[Any], Any],
    *,
    shape: tuple[int, int, int, int, int],
    steps: int,
    branches: int,
    dtype: torch.dtype,
    decode_frames: int,
    decode: Decode = _at_once,
    decode_ways: Sequence[str] = (ONE, BANDS),
    clip_by_clip: bool = False,
    high: bool = False,
    wrapped: Wrapped = _as_it_is,
    beside: tuple[str, ...] = (),
    rounds: Sequence[int] = (),
    entire: bool = False,
    at_most: bool = False,
) -> list[Stage]:
    """What all runs end in: latents become a clip's, and the clip.

    Args:
        conditions: makes what the denoiser is told, given the denoiser.
        shape: of all latents, (b, f, c, h, w).
        branches: of guidance.
        decode_frames: decoded at once; the rest waits as latents, what is decoded goes to the host.
        decode: how the autoencoder does that in each of the ways.
        decode_ways: beside the fastest, which is "", from fast to small; with `ONE` among them they take single frames.
        clip_by_clip: whether no two clips are decoded together.
        high: whether an autoencoder that overflows in float16 decodes in float32.
        wrapped: the denoiser as a call uses it: in windows, steered, and so on.
        beside: components that work beside the denoiser.
        rounds: steps of each time the clip is denoised, where that is several times.
        entire: whether steps are not alike, so that all of them are made.
        at_most: whether some may do less than they are made to.
    """
    clips, frames = shape[:2]
    rounds = tuple(rounds) or (steps,)

    def denoised(denoiser: Any, way: str = "", **nets: Any) -> Any:
        told = conditions(denoiser)  # stays for the run, as do latents: the first, these and the guess of the last
        kept = [_empty(*shape) for _ in range(3)]
        denoiser = wrapped(denoiser, way, **nets)
        for count in rounds if entire else rounds[:1]:
            prepared = denoiser.prepare(torch.empty(count, device="meta"), told)
            for step in range(count if entire else 1):
                predicted = None  # the latents have come of it
                predicted = denoiser(_empty(*shape, dtype=dtype), prepared.at(step))
        del kept
        return predicted

    times = 1 if entire else sum(rounds)
    rows = {APART: branches, SINGLE: branches * clips, SMALL: branches * clips}
    needed = {APART: branches > 1, SINGLE: clips > 1, SMALL: True}
    ways = [Way(n, partial(denoised, way=n), times, rows[n]) for n in (APART, SINGLE, SMALL) if needed[n]]
    denoising = Stage("denoise", "unet", denoised, times, beside, tuple(ways), entire, at_most)

    one = frames if clip_by_clip else frames * clips  # what is decoded in pieces
    some = min(decode_frames, one)

    def decoded(autoencoder: Any, way: str = "", some: int = some) -> None:
        autoencoder = widened(autoencoder) if high else autoencoder
        latents = [_empty(*shape) for _ in range(2)]  # as they are, and unscaled
        size = [n * autoencoder.stride for n in shape[3:]]
        here = kind_of(latents[0]) == "cpu"  # where pictures stay: those of all frames before, and then in one piece
        made = [_empty(frames * clips - some, 3, *size)] if here else []
        for part in decode(autoencoder, _empty(some, *shape[2:], dtype=autoencoder.dtype), way):
            picture = part.float()
            picture = picture * 0.5 + 0.5
            if here:
                made.append(picture)
        if here:
            torch.cat(made)

    single = {ONE, BANDS} if ONE in decode_ways else set()
    sizes = [(name, 1 if name in single else some) for name in ("", *decode_ways)]
    first, *rest = [Way(n, partial(decoded, way=n, some=k), -(-one // k) * frames * clips // one) for n, k in sizes]
    unchanged = ONE in decode_ways and some == 1
    others = tuple(way for way in rest if not (unchanged and way.name == ONE))
    return [denoising, Stage("decode", "vae", first.run, first.times, others=others)]


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)

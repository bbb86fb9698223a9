"""What both families that start from pictures promise: how a clip begins, and that stopping one harms no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests import i2vgen_tiny, svd_tiny
from torch import Tensor

from kinema import InputError
from kinema.families.i2vgen.framing import framed
from kinema.media.first_frame import hold_first_frame, psnr
from kinema.pipelines.picture import pictures, pixels_of


@dataclass(frozen=True)
class Family:
    make: Callable[[], Any]
    call: dict[str, Any]
    fitted: Callable[[Any], Tensor]  # what the autoencoder is shown of a picture


FAMILIES = {
    "stable video": Family(
        svd_tiny.ours,
        {**svd_tiny.SIZE, "num_frames": 4, "output_type": "pt"},
        lambda image: pictures(image)[0].fitted(16, 32),
    ),
    "i2vgen": Family(
        lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()),
        {**i2vgen_tiny.SIZE, "num_frames": 4, "num_inference_steps": 2, "prompt": "a", "output_type": "pt"},
        lambda image: pixels_of(framed(pictures(image)[0].image, 24, 16)),
    ),
}
A, B = (i2vgen_tiny.picture(20, 40, seed) for seed in (1, 2))
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def pipe(family: str) -> Any:
    """One for tests that only read it."""
    return FAMILIES[family].make()


def made(family: str, image: Any, **call: Any) -> Any:
    return pipe(family)(image=image, **{**FAMILIES[family].call, "generator": 3, **call})


# ------------------------------------------------------------------ how a clip begins


@every_family
@pytest.mark.parametrize(
    ("image", "copies"), [(A, 1), (A, 2), ([A, B], 1), ([A, B], 2)], ids=["one", "copies", "two", "copies of two"]
)
def test_an_exact_first_frame_is_its_clip_s_picture_and_the_rest_fades_into_the_free_clip(
    family: str, image: Any, copies: int
) -> None:
    images = image if isinstance(image, list) else [image]
    starts = torch.stack([FAMILIES[family].fitted(one) for one in images for _ in range(copies)])
    free, exact = (made(family, image, num_videos_per_prompt=copies, first_frame=word) for word in ("free", "exact"))
    assert torch.equal(exact.frames[:, 0], starts)
    assert torch.equal(exact.frames, hold_first_frame(free.frames, starts))
    apart = (exact.frames - free.frames).abs().amax((0, 2, 3, 4))
    assert apart.tolist() == sorted(apart.tolist(), reverse=True) and apart[0] > apart[3] > 0
    near = [psnr(clip[0], start) for clip, start in zip(free.frames, starts, strict=True)]
    assert free.receipt["first_frame_psnr"] == exact.receipt["first_frame_psnr"] == pytest.approx(near, abs=0.006)


@every_family
def test_a_free_first_frame_is_what_is_made_without_asking(family: str) -> None:
    asked, plain = made(family, A, first_frame="free"), made(family, A)
    assert torch.equal(asked.frames, plain.frames)
    decoded = list(pipe(family).decode(_inside(family, made(family, A, output_type="latent").frames)))
    assert torch.equal(torch.cat(decoded)[None], plain.frames)


def _inside(family: str, latents: Tensor) -> Tensor:
    """(b, f, c, h, w)."""
    inside: Tensor = pipe(family).at_edge(latents)
    return inside


@every_family
@pytest.mark.parametrize("form", ["pil", "np"])
def test_an_exact_first_frame_keeps_the_picture_s_bytes_in_every_form(family: str, form: str) -> None:
    frame = made(family, A, first_frame="exact", output_type=form).frames[0][0]
    found = np.asarray(frame) if form == "pil" else np.round(frame * 255).astype(np.uint8)
    wanted = (FAMILIES[family].fitted(A) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(found, wanted)


@every_family
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"first_frame": "near"}, "first_frame is 'near'; it must be one of free, exact"),
        ({"first_frame": "exact", "output_type": "latent"}, "output_type='latent' gives no pictures"),
    ],
)
def test_a_beginning_that_cannot_be_had_is_refused_before_time_is_spent(
    family: str, wrong: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work began")

    monkeypatch.setattr(type(pipe(family)), "_run", never)
    with pytest.raises(InputError, match=said) as caught:
        made(family, A, **wrong)
    assert len(str(caught.value).splitlines()) == 1


# ------------------------------------------------------------------ stopping


class Stopped(Exception):
    """What a caller's callback raises to end a call."""


def offloaded(pipe: Any, mode: str) -> Any:
    """As on a machine with an accelerator: weights come as copies."""
    pipe._residency = replace(pipe._residency, mode=mode, bring=lambda t: t.clone())
    return pipe


def held(pipe: Any) -> dict[str, tuple[int, Tensor]]:
    """Where every weight lies, and what it is."""
    networks = pipe.modules().items()
    return {f"{n}.{k}": (p.data_ptr(), p.clone()) for n, m in networks for k, p in m.named_parameters()}


def untouched(pipe: Any, before: dict[str, tuple[int, Tensor]]) -> bool:
    after = held(pipe)
    return before.keys() == after.keys() and all(
        after[k][0] == place and torch.equal(after[k][1], value) for k, (place, value) in before.items()
    )


@every_family
@pytest.mark.parametrize("mode", ["resident", "model", "sequential"])
def test_a_callback_that_raises_stops_the_clip_and_the_next_one_is_right(family: str, mode: str) -> None:
    own = offloaded(FAMILIES[family].make(), mode)
    call = {**FAMILIES[family].call, "image": A, "generator": 3}
    expected, before, heard = own(**call).frames, held(own), []

    def stop(_: Any, step: int, time: float, given: dict[str, Any]) -> dict[str, Any]:
        heard.append(step)
        raise Stopped

    with pytest.raises(Stopped):
        own(**{**call, "image": B, "generator": 4}, callback_on_step_end=stop)
    assert heard == [0] and untouched(own, before)
    assert torch.equal(own(**call).frames, expected)


@every_family
@pytest.mark.parametrize("mode", ["resident", "model", "sequential"])
def test_a_stream_left_at_any_stage_harms_no_later_clip(family: str, mode: str) -> None:
    own = offloaded(FAMILIES[family].make(), mode)
    call = {**FAMILIES[family].call, "image": A, "generator": 3}
    expected, before = own(**call).frames, held(own)
    for stage, step in (("encode", 0), ("encode", 1), ("denoise", 1), ("decode", 0), ("decode", 2)):
        events = own.stream(**{**call, "image": B, "generator": 4})
        assert next(e for e in events if (e.stage, e.step) == (stage, step)).output is None
        events.close()
        assert next(events, None) is None and untouched(own, before)
        assert torch.equal(own(**call).frames, expected)


@every_family
@pytest.mark.parametrize("part", ["image_encoder", "vae"])
def test_a_part_that_fails_on_the_way_leaves_the_pipeline_usable(
    family: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FAMILIES[family].make()
    call = {**FAMILIES[family].call, "image": A, "generator": 3}
    expected = own(**call).frames

    def fail(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for method in {"image_encoder": ("forward",), "vae": ("decode", "stream")}[part]:
            patch.setattr(type(getattr(own, part)), method, fail, raising=False)
        with pytest.raises(KeyboardInterrupt):
            own(**call)
    assert torch.equal(own(**call).frames, expected)

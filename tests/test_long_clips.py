"""Clips longer than a model knows: any number of frames, in the memory of one window, from the noise of their seed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import i2vgen_tiny, pipelines_tiny, svd_tiny
from tests.pipelines_tiny import gen, off
from torch import Tensor

import kinema
from kinema.errors import InputError
from kinema.families.i2vgen.unet import I2VGenXLUNet, PictureTextConditions
from kinema.families.modelscope.unet import TextConditions, UNet3DConditionModel
from kinema.families.stable_video.unet import ImageConditions, UNetSpatioTemporalConditionModel
from kinema.memory.needs import on_meta, trace
from kinema.sampling.noise import noise_from
from kinema.sampling.windows import Windows
from kinema.sampling.wrappers import Windowed

PICTURE = {"image": svd_tiny.picture(), "output_type": "latent"}
CALLS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "modelscope": (
        partial(pipelines_tiny.ours, vae={"block_out_channels": (8, 8, 16)}),
        {"prompt": "a cat", "height": 16, "width": 24, "output_type": "latent"},
    ),
    "svd": (svd_tiny.ours, {**PICTURE, "height": 16, "width": 32}),
    "i2vgen": (
        lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()),
        {**PICTURE, "prompt": "a cat", "height": 16, "width": 24},
    ),
}
FAMILIES = list(CALLS)


@cache
def shared(family: str) -> Any:
    return CALLS[family][0]()


@pytest.fixture
def pipe(request: pytest.FixtureRequest) -> Any:
    """A pipeline with settings of its own."""
    family = request.getfixturevalue("family")
    made = type(shared(family)).from_pipe(shared(family))
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, family: str, frames: int, steps: int = 1, seed: Any = 3, **more: Any) -> Tensor:
    """Latents (b, f, c, h, w)."""
    call = {**CALLS[family][1], "num_frames": frames, "num_inference_steps": steps, "generator": seed, **more}
    return pipe.at_edge(pipe(**call).frames)


# ------------------------------------------------------------------ windows in pipelines


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_no_longer_than_a_window_are_what_they_were(family: str, pipe: Any) -> None:
    plain = run(pipe, family, 5)
    pipe.enable_windows(length=5)
    assert torch.equal(run(pipe, family, 5), plain)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loop", [False, True])
def test_longer_clips_are_denoised_in_windows(family: str, loop: bool, pipe: Any) -> None:
    plain = run(pipe, family, 11)
    pipe.enable_windows(length=4, overlap=2, loop=loop, stride=2)
    got = run(pipe, family, 11, steps=1)
    assert got.shape == plain.shape and off(got, plain) > 1e-3
    pipe.disable_windows()
    assert torch.equal(run(pipe, family, 11), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_do_not_depend_on_the_batch(family: str, pipe: Any) -> None:
    pipe.enable_windows(length=3, overlap=1)
    both = run(pipe, family, 7, seed=[3, 4], num_videos_per_prompt=2)
    for i in range(2):
        assert off(both[i : i + 1], run(pipe, family, 7, seed=3 + i)) < 1e-5


@pytest.mark.parametrize("family", ["modelscope"])
def test_settings_go_with_the_parts_and_into_the_receipt(family: str, pipe: Any) -> None:
    pipe.enable_windows(8, loop=True)
    other = kinema.TextToVideoSDPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    call = {**CALLS[family][1], "num_frames": 3, "num_inference_steps": 1}
    told = other(**call).receipt["windows"]
    assert told == {**vars(Windows(8, 2, loop=True)), "noise_type": "random"}
    with pytest.raises(InputError, match="overlap"):
        pipe.enable_windows(8, 8)


@pytest.mark.parametrize("family", ["modelscope"])
def test_more_frames_than_a_model_knows_switch_to_windows_and_say_so(
    family: str, pipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(type(pipe), "trained_frames", 4, raising=False)
    pipe.enable_windows(4)
    wanted = run(pipe, family, 7)
    pipe.disable_windows()
    monkeypatch.setattr(type(pipe), "frame_limit", 6, raising=False)
    with caplog.at_level(logging.WARNING, "kinema"):
        assert torch.equal(run(pipe, family, 7), wanted)
    assert caplog.text.count("7 frames are more than the 6 this model knows") == 1
    with pytest.raises(InputError, match="from 1 to 6"):
        pipe.enable_windows(7)


# ------------------------------------------------------------------ any number of frames


def told(family: str, frames: int, width: int, size: tuple[int, int], device: str = "meta") -> Any:
    """Conditions of two guidance branches of one clip, without contents."""
    empty = partial(torch.empty, device=device)
    if family == "modelscope":
        return TextConditions(empty(2, 5, width), frames)
    if family == "svd":
        return ImageConditions(empty(2, 1, width), empty(2, 1, 4, *size), empty(1, 3), frames)
    return PictureTextConditions(empty(2, 5, width), empty(2, 1, width), empty(1, frames, 4, *size), empty(1), frames)


TIMES = torch.empty(3, device="meta")
WIDTHS = {"modelscope": 32, "svd": 16, "i2vgen": 32}


class Once:
    """A denoiser without contents that is run once for each length of window; shapes of the rest are known then."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.known: dict[Any, torch.Size] = {}
        self.prepare = unet.prepare

    def __call__(self, latents: Tensor, signal: Any) -> Tensor:
        beside = signal.extra if signal.extra is None else signal.extra.shape
        key = latents.shape, signal.frames, beside, *(x.shape for x in signal.places.values())
        if key not in self.known:
            self.known[key] = self.unet(latents, signal).shape
        return torch.empty(self.known[key], device="meta")


@cache
def hollow(family: str) -> Any:
    return Once(on_meta(shared(family).unet))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10)
@given(frames=st.integers(1, 200), loop=st.booleans(), stride=st.integers(1, 3), data=st.data())
def test_no_number_of_frames_ends_in_a_shape_error(
    family: str, frames: int, loop: bool, stride: int, data: Any
) -> None:
    length = data.draw(st.integers(8, 24))
    windowed = Windowed(hollow(family), length=length, overlap=length // 4, stride=stride, loop=loop)
    prepared = windowed.prepare(TIMES, told(family, frames, WIDTHS[family], (2, 3)))
    step = data.draw(st.integers(0, 2))
    assert windowed(torch.empty(1, frames, 4, 2, 3, device="meta"), prepared.at(step)).shape == (2, frames, 4, 2, 3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frames", [1, 17, 50])
def test_pipelines_make_any_number_of_frames(family: str, frames: int, pipe: Any) -> None:
    pipe.enable_windows(16)
    assert run(pipe, family, frames).shape[1] == frames


# ------------------------------------------------------------------ memory

MODELS: dict[str, tuple[type[torch.nn.Module], int]] = {
    "modelscope": (UNet3DConditionModel, 1024),
    "svd": (UNetSpatioTemporalConditionModel, 1024),
    "i2vgen": (I2VGenXLUNet, 1024),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_128_frames_take_no_more_memory_in_the_denoiser_than_16(family: str) -> None:
    """At published widths. Latents themselves, and what rides along with them, are of the clip's length."""
    model, width = MODELS[family]
    with torch.device("meta"):
        unet = model().eval().requires_grad_(False)
    size = (32, 32)
    needs = {}
    for frames in (16, 128):
        windowed = Windowed(unet, length=16, overlap=4)
        signal = windowed.prepare(torch.empty(2, device="meta"), told(family, frames, width, size)).at(0)
        latents = torch.empty(1, frames, 4, *size, device="meta")
        needs[frames] = trace(lambda s=signal, x=latents, w=windowed: w(x, s))
    of_a_clip = 128 * 4 * 32 * 32 * 4
    assert needs[128].peak <= needs[16].peak + 3 * of_a_clip  # the sum, of two branches, and no more
    assert needs[128].peak <= 1.1 * needs[16].peak
    windows = len(Windows(16, 4).plan(128))
    assert needs[128].flops == windows * needs[16].flops and windows <= 11


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_knows_of_windows(family: str, pipe: Any) -> None:
    size = {name: CALLS[family][1][name] for name in ("height", "width")}

    def peak(frames: int) -> int:
        (stage,) = (s for s in pipe.plan(**size, num_frames=frames).stages if s.name == "denoise")
        return stage.needs.peak

    whole = peak(64)
    pipe.enable_windows(8)
    assert peak(64) < 0.5 * whole and peak(8) <= peak(64)


# ------------------------------------------------------------------ seeds


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_starts_long_clips_as_it_starts_short_ones(family: str, pipe: Any) -> None:
    pipe.enable_windows(16)

    def start(frames: int, seed: Any) -> Tensor:
        call = {**CALLS[family][1], "num_frames": frames, "num_inference_steps": 1, "generator": seed}
        job = pipe._begin(pipe._bind((), call))
        return job.encode()[1]

    known = pipe.trained_frames
    short, long, longer = (start(n, 5) for n in (known, known + 3, known + 9))
    assert torch.equal(long[:, :known], short) and torch.equal(longer[:, : known + 3], long)
    assert len({x.sum().item() for x in longer[0]}) == known + 9  # no frame's noise is another's
    assert torch.equal(start(known, 5), start(known, gen(5)))


@pytest.mark.parametrize("time", [0, 1, 2])
def test_frames_beyond_the_first_have_streams_of_their_own(time: int) -> None:
    def drawn(frames: int) -> list[Tensor]:
        noise = noise_from(7, 1, frames=16)
        shapes = [(frames, 4, 3, 2), (1, frames, 4, 3, 2), (1, 4, frames, 3, 2)]
        return [noise.draw(shapes[time], time=time) for _ in range(3)]

    for few, many in zip(drawn(16), drawn(64), strict=True):
        assert torch.equal(many.narrow(time, 0, 16), few)
    for some, many in zip(drawn(40), drawn(64), strict=True):
        assert torch.equal(many.narrow(time, 0, 40), some)
    numbers = torch.cat([x.flatten() for x in drawn(200)])
    assert numbers.unique().numel() > 0.99 * numbers.numel() and abs(numbers.mean()) < 0.05
    assert abs(numbers.std() - 1) < 0.05


def test_a_generator_draws_all_frames_at_once_as_the_reference_does() -> None:
    noise = noise_from(gen(7), 1, frames=16)
    assert torch.equal(noise.draw((1, 4, 64, 3, 2), time=2), torch.randn(1, 4, 64, 3, 2, generator=gen(7)))


@pytest.mark.parametrize("family", ["modelscope"])
def test_fresh_noise_of_steps_too_is_the_same_for_first_frames(family: str, pipe: Any) -> None:
    """Where frames are apart, longer clips begin with shorter ones."""
    pipe.scheduler = kinema.EulerAncestralDiscreteScheduler.from_config(dict(pipe.scheduler.config))
    pipe.enable_windows(1, 0)
    few, many = (run(pipe, family, frames, steps=3) for frames in (16, 20))
    assert off(many[:, :16], few) < 1e-5


# ------------------------------------------------------------------ seams


def changes(frames: Any) -> Any:
    """How much each picture of (f, h, w, 3) differs from the one after it, and the last from the first."""
    return abs(frames - np.roll(frames, -1, axis=0)).mean((1, 2, 3))


def made_by_the_box(prompt: str, seed: int) -> Any:
    pipe = box()
    call = {"num_frames": 48, "num_inference_steps": 8, "guidance_scale": 4.0, "generator": seed}
    return pipe(prompt, **call).frames[0]


@cache
def box() -> Any:
    pipe = kinema.DiffusionPipeline.from_pretrained("toy")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
def test_windows_leave_no_seam_on_the_model_in_the_box() -> None:
    """At the borders of the last step's windows pictures change at most 1.1 times as much as elsewhere."""
    box().enable_windows(16, 4, loop=False)
    ends = {w.frames[-1] for w in Windows(16, 4).plan(48, 7)} | {w.frames[0] - 1 for w in Windows(16, 4).plan(48, 7)}
    borders = sorted(ends - {-1, 47})
    scores = []
    for prompt, seed in (
        ("a green star spins on a dark background", 11),
        ("a red square moves left on a light background", 12),
    ):
        change = changes(made_by_the_box(prompt, seed))[:-1]
        scores.append(change[borders].mean() / np.delete(change, borders).mean())
    assert np.mean(scores) <= 1.1


@pytest.mark.slow
def test_a_loop_ends_where_it_began_on_the_model_in_the_box() -> None:
    box().enable_windows(16, 4, loop=True)
    change = changes(made_by_the_box("a green star spins on a dark background", 11))
    assert change[-1] <= 1.1 * change[:-1].mean()

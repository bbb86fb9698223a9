"""Windows: every frame is seen and counts once, no window is longer than asked, and blending loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kinema.errors import InputError
from kinema.sampling.windows import Windows
from kinema.sampling.wrappers import Windowed


@st.composite
def windows(draw: Any) -> Windows:
    length = draw(st.integers(1, 40))
    return Windows(
        length,
        draw(st.integers(0, length - 1)),
        draw(st.integers(1, 4)),
        draw(st.booleans()),
        draw(st.sampled_from(["pyramid", "flat", "linear"])),
        draw(st.booleans()),
    )


@given(windows(), st.integers(1, 200), st.integers(0, 60))
def test_each_frame_is_seen_and_its_weights_sum_to_one(how: Windows, frames: int, step: int) -> None:
    total = [0.0] * frames
    for window in how.plan(frames, step):
        assert 1 <= len(window.frames) <= how.length
        assert len(set(window.frames)) == len(window.frames) == len(window.weights)
        for frame, weight in zip(window.frames, window.weights, strict=True):
            assert weight > 0
            total[frame] += weight
    assert total == pytest.approx([1.0] * frames, abs=1e-12)


@given(windows(), st.integers(1, 200), st.integers(0, 60))
def test_windows_are_neighbours_in_playing_order_and_no_more_than_needed(how: Windows, frames: int, step: int) -> None:
    plan = how.plan(frames, step)
    steps = {1 << k for k in range(how.stride)}
    for window in plan:
        gaps = {b - a for a, b in zip(window.frames, window.frames[1:], strict=False)}
        assert all(
            (gap % frames if how.loop else gap) in {s % frames if how.loop else s for s in steps} for gap in gaps
        )
    if how.stride == 1 and frames > how.length:
        assert len(plan) <= -(-frames // how.hop) + how.drift
        assert all(len(w.frames) == how.length for w in plan)


@given(windows(), st.integers(1, 200), st.integers(0, 60))
def test_the_same_step_is_cut_alike_in_every_run(how: Windows, frames: int, step: int) -> None:
    assert how.plan(frames, step) == Windows(**vars(how)).plan(frames, step)
    if not how.drift:
        assert how.plan(frames, step) == how.plan(frames, 0)


@given(st.integers(1, 40), st.data())
def test_a_clip_no_longer_than_a_window_is_one_as_it_is(length: int, data: Any) -> None:
    frames = data.draw(st.integers(1, length))
    how = Windows(length, 0)
    (window,) = how.plan(frames, 3)
    assert window.frames == tuple(range(frames)) and not how.cuts(frames)


def test_windows_of_a_loop_cross_its_ends() -> None:
    for step in range(20):
        plan = Windows(16, 4, loop=True).plan(48, step)
        pairs = {pair for w in plan for pair in pairwise(w.frames)}
        assert {(i, (i + 1) % 48) for i in range(48)} <= pairs  # the end is a place like any other


def test_a_short_loop_begins_elsewhere_at_each_step() -> None:
    how = Windows(16, 4, loop=True)
    begun = [how.plan(16, step)[0].frames for step in range(16)]
    assert how.cuts(16) and len(set(begun)) > 8
    assert all(sorted(frames) == list(range(16)) for frames in begun)


def test_borders_drift_over_all_places() -> None:
    starts = {w.frames[0] for step in range(50) for w in Windows(16, 4).plan(48, step)}
    assert starts == set(range(33))


def test_wider_strides_see_far_frames_together() -> None:
    plan = Windows(16, 4, stride=3, drift=False).plan(64)
    gaps = {w.frames[1] - w.frames[0] for w in plan}
    assert gaps == {1, 2, 4}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"length": 0}, "length is 0"),
        ({"overlap": 16}, "from 0 to 15"),
        ({"overlap": -1}, "from 0 to 15"),
        ({"length": 1}, "from 0 to 0"),
        ({"stride": 0}, "stride is 0"),
        ({"stride": 1.5}, "whole number"),
        ({"blend": "steep"}, "pyramid, flat, linear"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Windows(**settings)


# ------------------------------------------------------------------ denoisers


@dataclass(frozen=True)
class Told:
    """What the denoisers below are told: a number for each frame, at a step."""

    numbers: Tensor  # (f,)
    step: int = 0

    def at(self, step: int) -> Told:
        return Told(self.numbers, step)

    def at_frames(self, frames: Sequence[int]) -> Told:
        return Told(self.numbers[list(frames)], self.step)


class FrameWise:
    """Looks at each frame alone."""

    def __init__(self) -> None:
        self.prepared = 0
        self.seen: list[int] = []

    def prepare(self, times: Tensor, conditions: Told) -> Told:
        self.prepared += 1
        return conditions

    def __call__(self, latents: Tensor, signal: Told) -> Tensor:
        self.seen.append(latents.shape[1])
        told = signal.numbers[:, None, None, None] + signal.step
        return torch.cat([latents.sin() * told, latents + told])  # two guidance branches


@given(windows(), st.integers(1, 60), st.integers(0, 9))
def test_where_frames_are_apart_windows_make_what_the_whole_makes(how: Windows, frames: int, step: int) -> None:
    latents = torch.randn(2, frames, 3, 2, 2, generator=torch.Generator().manual_seed(frames))
    one, inner = FrameWise(), FrameWise()
    conditions, times = Told(torch.arange(frames).float() / frames), torch.arange(10)
    windowed = Windowed(inner, how)
    got = windowed(latents, windowed.prepare(times, conditions).at(step))
    kept = latents.clone()
    wanted = one(latents, one.prepare(times, conditions).at(step))
    assert (got - wanted).abs().max() < 1e-5 and torch.equal(latents, kept)
    assert inner.prepared == 1 and max(inner.seen) <= how.length


def test_a_clip_of_one_window_is_denoised_as_it_is() -> None:
    inner = FrameWise()
    windowed = Windowed(inner, length=16)
    latents, told = torch.randn(1, 16, 3, 2, 2), Told(torch.ones(16))
    got = windowed(latents, windowed.prepare(torch.arange(3), told).at(1))
    assert torch.equal(got, inner(latents, told.at(1)))


def test_windows_within_windows_are_told_their_frames() -> None:
    how, latents, told = Windows(8, 2), torch.randn(1, 30, 3, 2, 2), Told(torch.arange(30.0))
    windowed = Windowed(Windowed(FrameWise(), length=4, overlap=1), how)
    got = windowed(latents, windowed.prepare(torch.arange(3), told).at(2))
    assert (got - FrameWise()(latents, told.at(2))).abs().max() < 1e-4

"""What is measured as motion is what was drawn: more speed is more motion, at any size, in any form."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from tests.media_clips import gradient, pictures

import kinema
from kinema.errors import InputError, MediaError
from kinema.media import measure_motion, save
from kinema.media.motion import (
    BUCKETS,
    MOTION_WORDS,
    SIDE,
    bucket_of_speed,
    motion_bucket,
    motion_scale,
    motion_word,
    speed_of_bucket,
)
from kinema.toys.world import SHAPES, Scene, draw


def drawn(shape, motion, frames=4, size=64, **how):
    return draw([Scene("red", shape, motion, "dark", slope=(12, 8), **how)], frames, size)[0]


def texture(blur, side=260, seed=0):
    noise = gaussian_filter(np.random.default_rng(seed).random((side, side, 3)), (blur, blur, 0))
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def panned(across, down=0, frames=2, blur=2.0, height=72, width=96):
    """A texture that slides by so many pixels a frame, fractions too."""
    plate = torch.from_numpy(texture(blur)).permute(2, 0, 1)[None]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clip = []
    for i in range(frames):
        grid = torch.stack([(x + 20 + across * i + 0.5) / 130 - 1, (y + 20 + down * i + 0.5) / 130 - 1], -1)
        clip.append(torch.nn.functional.grid_sample(plate, grid[None], mode="bicubic", align_corners=False)[0])
    return torch.stack(clip).clamp(0, 1)


UNIT = SIDE / math.sqrt(72 * 96)  # what a pixel of `panned` is on the frame that movements are given for


# More speed is more motion


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("motion", ["moves left", "moves down", "grows", "spins"])
def test_motion_rises_with_the_speed_of_a_drawn_shape(shape, motion):
    if (shape, motion) == ("circle", "spins"):
        pytest.skip("a circle cannot be seen to spin")
    name, top = {"grows": ("growth", 0.11), "spins": ("spin", 0.3)}.get(motion, ("speed", 0.04))
    start = {"moves left": (0.7, 0.5), "moves down": (0.5, 0.3)}.get(motion, (0.5, 0.5))
    speeds = np.linspace(0, top, 5)
    measured = [measure_motion(drawn(shape, motion, start=start, **{name: float(s)})) for s in speeds]
    assert spearmanr(speeds, [m.pixels for m in measured]).statistic >= 0.95
    assert spearmanr(speeds, [m.bucket for m in measured]).statistic >= 0.95
    assert measured[0].pixels == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [48, 160])
def test_the_speed_of_a_drawn_shape_is_measured_at_any_size(shape, size):
    speed = 0.03 * 7 / 3  # four frames go as far as eight
    moved = measure_motion(drawn(shape, "moves right", size=size, start=(0.35, 0.5), speed=0.03))
    assert moved.pixels == pytest.approx(speed * SIDE, rel=0.12)
    assert moved.subject == pytest.approx(moved.pixels, rel=0.12)
    assert moved.camera < 0.05 * moved.pixels


@pytest.mark.parametrize("blur", [0.0, 1.0, 2.0, 5.0])
def test_motion_rises_with_the_speed_of_a_sliding_texture(blur):
    speeds = [0, 0.3, 0.7, 1.5, 3, 5, 8]
    measured = [measure_motion(panned(speed, speed / 3, blur=blur)).pixels for speed in speeds]
    assert measured[0] == 0
    assert spearmanr(speeds, measured).statistic >= 0.95
    if blur >= 1:  # finer patterns cannot be slid by parts of a pixel
        for speed, pixels in zip(speeds[2:], measured[2:]):
            assert pixels == pytest.approx(math.hypot(speed, speed / 3) * UNIT, rel=0.1)


@pytest.mark.parametrize(("across", "down"), [(6, 6), (-6, 2.5), (0, -5), (0.7, -0.3), (-1.2, 0)])
def test_a_pan_is_the_camera_s_in_any_direction(across, down):
    moved = measure_motion(panned(across, down))
    true = math.hypot(across, down) * UNIT
    assert moved.camera == pytest.approx(true, rel=0.05, abs=1.0)
    assert moved.subject < 0.05 * true + 1.0


def test_a_subject_is_told_from_the_camera_it_is_seen_by():
    plate, thing = panned(2, frames=4), panned(-2, frames=4)
    y, x = np.mgrid[:72, :96]
    for i in range(4):
        inside = torch.from_numpy((abs(x - (55 - 2 * i)) < 13) & (abs(y - 36) < 13))
        plate[i][:, inside] = 1 - thing[i][:, inside]
    moved = measure_motion(plate)
    alone = measure_motion(panned(2, frames=4))
    assert moved.camera == pytest.approx(alone.camera, rel=0.05)
    assert moved.subject > 10 * alone.subject


# None is none


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), frames=st.integers(2, 5), height=st.integers(8, 70), width=st.integers(8, 150))
def test_a_still_clip_has_no_motion(seed, frames, height, width):
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    still = measure_motion(np.stack([frame] * frames))
    assert (still.pixels, still.camera, still.subject, still.explained) == (0, 0, 0, 1)
    assert (still.bucket, still.scale, still.word) == (BUCKETS[0], 0, "still")
    assert still.by_frame == (0,) * (frames - 1)


@pytest.mark.parametrize("grain", [1, 3, 6])
def test_grain_is_not_taken_for_motion(grain):
    rng = np.random.default_rng(grain)
    for speed in (0, 2):
        clip = panned(speed, frames=4).permute(0, 2, 3, 1).numpy() * 255
        noisy = (clip + rng.normal(0, grain, clip.shape)).clip(0, 255).astype(np.uint8)
        assert measure_motion(noisy).pixels == pytest.approx(speed * UNIT, abs=0.5)


def test_plain_frames_have_no_motion_that_could_be_seen():
    ramp = np.full((3, 32, 32, 3), 0.5) + np.linspace(0, 0.02, 3)[:, None, None, None]
    assert measure_motion(ramp).pixels == 0


def test_a_cut_is_no_motion():
    first, second = panned(1, frames=4), 1 - panned(1, frames=4).flip(-1)
    cut = measure_motion(torch.cat([first, second]))
    assert cut.pixels == pytest.approx(measure_motion(first).pixels, rel=0.05)
    assert len(cut.by_frame) == 7 and cut.explained > 0.8


def test_noise_that_nothing_explains_says_so():
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    assert measure_motion(noise).explained < 0.5 < measure_motion(panned(3)).explained


# In any form


class Output(NamedTuple):
    frames: object


def test_every_form_of_a_clip_has_the_same_motion(tmp_path):
    clip = drawn("star", "moves right", start=(0.4, 0.5))
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2)
    expected = measure_motion(clip)
    floats = clip.astype(np.float32) / 255
    for form in (pictures(clip), [pictures(clip)], tensor, tensor[None] / 255, floats, floats[None], list(clip)):
        assert measure_motion(form) == expected
    assert measure_motion(Output(floats[None])) == expected
    assert kinema.measure_motion is measure_motion
    save(clip, tmp_path / "a.png", 14)
    read = measure_motion(tmp_path / "a.png")
    assert read.pixels == expected.pixels and read.fps == 14 and read.bucket == bucket_of_speed(read.pixels * 2)
    save(clip, tmp_path / "a.mp4", 14)
    assert measure_motion(str(tmp_path / "a.mp4"), fps=7).bucket == pytest.approx(expected.bucket, abs=8)


def test_the_first_frames_can_be_measured_alone(tmp_path):
    clip = np.concatenate([np.stack([gradient(1)[0]] * 3), gradient(12)[4:]])
    assert measure_motion(clip, max_frames=3).pixels == 0 < measure_motion(clip).pixels
    path = save(clip, tmp_path / "a.png", 8)
    assert measure_motion(path, max_frames=3).pixels == 0


def test_a_clip_played_faster_is_livelier():
    clip = panned(0.8)
    slow, fast = measure_motion(clip, fps=7), measure_motion(clip, fps=28)
    assert slow.pixels == fast.pixels and slow.bucket < fast.bucket


@pytest.mark.parametrize(
    ("call", "kind", "reason"),
    [
        ({"video": gradient(1)}, InputError, "two frames"),
        ({"video": []}, InputError, "no frames"),
        ({"video": np.zeros((2, 4, 8, 8, 3))}, InputError, "batch of 2"),
        ({"video": np.zeros((3, 4, 20, 3))}, InputError, "too small"),
        ({"video": np.full((3, 16, 16, 3), np.nan)}, MediaError, "not finite"),
        ({"video": 3}, InputError, "Expected frames"),
        ({"video": "none.mp4"}, MediaError, "no file"),
        ({"video": gradient(3), "fps": 0}, InputError, "fps"),
        ({"video": gradient(3), "fps": math.inf}, InputError, "fps"),
        ({"video": gradient(3), "fps": True}, InputError, "fps"),
    ],
)
def test_what_has_no_motion_to_measure_is_refused_in_a_sentence(call, kind, reason):
    with pytest.raises(kind, match=reason) as caught:
        measure_motion(**call)
    assert str(caught.value).endswith(".")


# Words and numbers


def test_words_are_in_order_and_within_what_was_trained():
    buckets = [motion_bucket(word) for word in ("still", "calm", "normal", "lively")]
    assert buckets == sorted(set(buckets)) == list(MOTION_WORDS.values())
    assert buckets[0] == BUCKETS[0] and buckets[-1] <= BUCKETS[1]
    assert motion_bucket("normal") == motion_bucket(0.5) == 127  # the reference's default
    assert motion_bucket(" Lively ") == motion_bucket("lively")


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_the_scale_rises_with_the_bucket_and_comes_back(low, high):
    low, high = sorted((low, high))
    assert BUCKETS[0] <= motion_bucket(low) <= motion_bucket(high) <= BUCKETS[1]
    assert motion_scale(motion_bucket(high)) == pytest.approx(high, abs=2 / 255)  # the first bucket is two wide


@given(bucket=st.integers(*BUCKETS))
def test_speed_and_bucket_are_each_other_s_inverse(bucket):
    assert bucket_of_speed(speed_of_bucket(bucket)) == bucket
    assert motion_bucket(min(1.0, (bucket + 0.5) / 255)) == bucket
    assert motion_word(motion_bucket(motion_word(bucket))) == motion_word(bucket)


@given(slow=st.floats(0, 500), fast=st.floats(0, 500))
def test_a_faster_speed_never_has_a_lower_bucket(slow, fast):
    slow, fast = sorted((slow, fast))
    assert BUCKETS[0] <= bucket_of_speed(slow) <= bucket_of_speed(fast) <= BUCKETS[1]


@pytest.mark.parametrize("wrong", ["fast", "", -0.1, 1.1, math.nan, 127, True, None, [0.5]])
def test_other_words_and_numbers_are_refused(wrong):
    with pytest.raises(InputError, match="motion") as caught:
        motion_bucket(wrong)
    assert str(caught.value).endswith(".")

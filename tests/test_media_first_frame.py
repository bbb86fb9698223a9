"""A clip that must begin with the given picture does, to the bit, and nothing jumps after it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kinema.errors import InputError
from kinema.media import to_pil
from kinema.media.first_frame import hold_first_frame, psnr


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    frames=st.integers(1, 9),
    fade=st.integers(1, 12),
    batch=st.sampled_from([None, 1, 3]),
    each=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_the_first_frame_is_the_picture_and_the_fade_ends(frames, fade, batch, each, dtype):
    lead = () if batch is None else (batch,)
    clip = numbers(*lead, frames, 3, 4, 6, dtype=dtype)
    before = clip.clone()
    picture = numbers(*(lead if each else ()), 3, 4, 6, seed=1)
    held = hold_first_frame(clip, picture, fade)
    assert torch.equal(clip, before)
    assert torch.equal(held[..., 0, :, :, :], picture.to(held).expand(held[..., 0, :, :, :].shape))
    assert torch.equal(held[..., fade:, :, :, :], clip[..., fade:, :, :, :].to(held))
    assert held.min() >= 0 and held.max() <= 1 and held.dtype in (torch.float32, torch.float64)


def test_what_is_missing_fades_without_a_jump():
    clip = torch.full((9, 3, 2, 2), 0.4)
    held = hold_first_frame(clip, torch.full((3, 2, 2), 0.6), fade=8)[:, 0, 0, 0]
    steps = -held.diff()
    assert (steps >= 0).all() and steps.max() < 0.2 * 0.2
    assert held[4] == pytest.approx(0.5) and held[8] == pytest.approx(0.4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_picture_s_bytes_survive(dtype):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels.T, levels[::-1]], -1))
    held = hold_first_frame(numbers(3, 3, 16, 16, dtype=dtype), picture)
    assert np.array_equal(np.asarray(to_pil(held[None])[0][0]), np.asarray(picture))


def test_a_still_clip_that_lost_detail_gains_it_back():
    picture = numbers(3, 16, 16, seed=2)
    blurred = torch.nn.functional.avg_pool2d(picture[None], 3, 1, 1).expand(6, -1, -1, -1)
    held = hold_first_frame(blurred, picture, fade=6)
    gains = [psnr(held[i], picture) - psnr(blurred[i], picture) for i in range(6)]
    assert gains[0] == math.inf and gains == sorted(gains, reverse=True) and gains[4] > 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fade": 0}, "fade"),
        ({"fade": 1.5}, "fade"),
        ({"fade": True}, "fade"),
        ({"frames": torch.zeros(3, 4, 4)}, "no clip"),
        ({"frames": torch.zeros(0, 3, 4, 4)}, "no clip"),
        ({"picture": torch.zeros(3, 4, 5)}, "fit it"),
        ({"picture": torch.zeros(2, 3, 4, 4)}, "fit it"),
        ({"frames": torch.zeros(3, 2, 3, 4, 4), "picture": torch.zeros(2, 3, 4, 4)}, "2 pictures for 3 clips"),
        ({"picture": torch.full((3, 4, 4), math.nan)}, "not finite"),
        ({"picture": Image.new("RGB", (5, 4))}, "fit it"),
    ],
)
def test_what_cannot_be_held_is_refused_in_a_sentence(change, reason):
    with pytest.raises(InputError, match=reason) as caught:
        hold_first_frame(**{"frames": torch.zeros(2, 3, 4, 4), "picture": torch.zeros(3, 4, 4), **change})
    assert str(caught.value).endswith(".")


def test_psnr_is_what_it_says_in_every_form():
    a, b = np.zeros((4, 4, 3)), np.full((4, 4, 3), 0.1)
    assert psnr(a, b) == pytest.approx(20) and psnr(a, a) == math.inf
    assert psnr(torch.from_numpy(a), torch.from_numpy(b).to(torch.float32)) == pytest.approx(20)
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert psnr(black, grey) == pytest.approx(-20 * math.log10(0.2)) == psnr(np.asarray(black), np.asarray(grey))
    with pytest.raises(InputError, match="cannot be compared"):
        psnr(a, b[:2])

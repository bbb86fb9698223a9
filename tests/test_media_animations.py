"""Animated pictures keep every frame, the speed that was asked for, and the colours as well as their format can."""

from __future__ import annotations

import inspect
import os
from fractions import Fraction

import diffusers.utils
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.media_clips import chart, error, gradient, pictures, pixels

from kinema.errors import InputError, MediaError
from kinema.media import (
    export_to_apng,
    export_to_gif,
    export_to_images,
    export_to_webp,
    load_video,
    palette,
    read_info,
    save,
)
from kinema.media.timing import delays, frame_rate

RATES = [7, 8, 12, 23.976, 24, 29.97, 30]
LOSSLESS = [("a.png", {}), ("a.apng", {}), ("a.webp", {"lossless": True})]


def durations(path):
    with Image.open(path) as opened:
        found = []
        for i in range(opened.n_frames):
            opened.seek(i)
            found.append(opened.info["duration"])
        return found


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("count", [1, 16, 25])
def test_a_gif_lasts_as_long_as_it_should_to_one_tick(fps, count, tmp_path):
    path = export_to_gif(gradient(count, 16, 16), tmp_path / "a.gif", fps)
    lasts = durations(path)
    exact = count / frame_rate(fps) * 100
    assert len(lasts) == count and abs(sum(lasts) / 10 - exact) <= Fraction(1, 2)
    assert max(lasts) - min(lasts) <= 10  # milliseconds: one tick


@given(st.integers(1, 400), st.fractions(Fraction(1, 10), 120, max_denominator=1001), st.sampled_from([100, 1000]))
def test_rounding_of_delays_never_piles_up(count, rate, ticks):
    ends = np.cumsum(delays(count, rate, ticks))
    assert all(abs(int(end) - Fraction(ticks * (i + 1)) / rate) <= Fraction(1, 2) for i, end in enumerate(ends))


@given(st.integers(1, 1000))
def test_whole_rates_are_kept(fps):
    assert frame_rate(fps) == frame_rate(float(fps)) == frame_rate(str(fps)) == fps


@pytest.mark.parametrize("nominal", [24, 30, 48, 60, 120])
@pytest.mark.parametrize("digits", [2, 3, 6])
def test_broadcast_rates_are_recognised_however_they_are_rounded(nominal, digits):
    exact = Fraction(nominal * 1000, 1001)
    assert frame_rate(round(float(exact), digits)) == exact


def test_a_fast_gif_drops_frames_rather_than_slow_down(tmp_path):
    lasts = durations(export_to_gif(gradient(60, 8, 8), tmp_path / "a.gif", 60))
    assert sum(lasts) == 1000 and min(lasts) >= 20  # viewers slow anything shorter down to 100


@pytest.mark.parametrize("palette", ["auto", "clip", "frame"])
def test_few_colours_are_exact_in_a_gif(palette, tmp_path):
    clip = np.concatenate([chart(2, 8), chart(2, 8)[:, ::-1], chart(2, 8)])
    assert error(load_video(export_to_gif(clip, tmp_path / "a.gif", palette=palette)), clip) == 0


def test_a_clip_of_exactly_256_colours_is_exact_in_a_gif(tmp_path):
    colours = np.random.default_rng(0).permutation(1 << 24)[:256]
    frame = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(np.uint8).reshape(16, 16, 3)
    clip = np.stack([frame, frame[::-1], frame[:, ::-1]])
    assert error(load_video(export_to_gif(clip, tmp_path / "a.gif")), clip) == 0


def test_many_colours_are_close_in_a_gif_and_no_worse_than_pils(tmp_path):
    clip = gradient(8)
    ours = error(load_video(export_to_gif(clip, tmp_path / "a.gif")), clip)
    first, *rest = pictures(clip)
    first.save(tmp_path / "b.gif", save_all=True, append_images=rest)
    assert ours <= 4.5 and ours <= error(load_video(tmp_path / "b.gif"), clip)


def test_one_palette_is_no_worse_than_median_cut():
    clip = gradient(8)
    strip = Image.fromarray(clip.reshape(1, -1, 3))
    cut = strip.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    colours = palette.choose(list(clip))
    assert len(colours) <= 256
    assert error([colours[palette.indices(f, colours)] for f in clip], clip) <= error([cut], np.asarray(strip)[None])


def test_dithering_mixes_the_colours_a_palette_lacks():
    few = np.array([[r, g, b] for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)], np.uint8)
    ramp = np.broadcast_to(np.linspace(60, 200, 64)[None, :, None] * [1.0, 0.9, 0.7], (32, 64, 3))
    frame = ramp.round().astype(np.uint8)

    def off_by(indices):  # seen from afar: the mean of each 8×8 block
        return np.abs((few[indices].astype(float) - frame).reshape(4, 8, 8, 8, 3).mean((1, 3))).mean()

    assert off_by(palette.dithered(frame, few)) < off_by(palette.indices(frame, few)) / 5


def test_dithering_keeps_still_parts_still(tmp_path):
    clip = gradient(1, 40, 60).repeat(4, 0)
    clip[2:, 20:30, 20:30] = 0
    frames = pixels(load_video(export_to_gif(clip, tmp_path / "a.gif", dither=True)))
    still = np.ones((40, 60), bool)
    still[20:30, 20:30] = False
    assert np.array_equal(frames[0][still], frames[3][still]) and error(frames, clip) < 8


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_repeated_frames_are_kept(name, tmp_path):
    clip = np.concatenate([gradient(2, 9, 11), gradient(1, 9, 11), gradient(1, 9, 11)]).repeat(2, 0)
    path = save(clip, tmp_path / name, 8)
    info = read_info(path)
    assert (info.frames, info.fps, info.width, info.height) == (8, 8, 11, 9)
    assert error(load_video(path), clip) < 6


@pytest.mark.parametrize(("name", "options"), LOSSLESS)
def test_lossless_animations_are_exact_wherever_the_change_is(name, options, tmp_path):
    random = np.random.default_rng(0)
    clip = random.integers(0, 256, (1, 21, 33, 3), np.uint8).repeat(6, 0)
    for i in range(1, 6):
        top, left = random.integers(0, 15), random.integers(0, 25)
        clip[i:, top : top + i, left : left + 2 * i] = random.integers(0, 256, 3)
    assert error(load_video(save(clip, tmp_path / name, **options)), clip) == 0


@pytest.mark.parametrize("fps", RATES)
def test_webp_and_apng_keep_time(fps, tmp_path):
    for name in ("a.webp", "a.png"):
        info = read_info(save(gradient(24, 8, 8), tmp_path / name, fps))
        assert info.frames == 24 and abs(info.duration - 24 / frame_rate(fps)) < Fraction(1, 1000)
        assert info.fps == frame_rate(fps)


def test_animations_loop_for_ever_unless_told(tmp_path):
    for name in ("a.gif", "a.webp", "a.png"):
        for loop in (0, 3):
            with Image.open(save(gradient(3, 8, 8), tmp_path / name, loop=loop)) as opened:
                assert opened.info["loop"] == loop


def test_webp_quality_trades_size_for_closeness(tmp_path):
    clip = gradient(4)
    low, high = (export_to_webp(clip, tmp_path / f"{q}.webp", quality=q) for q in (10, 95))
    assert os.path.getsize(low) < os.path.getsize(high) and error(load_video(low), clip) > error(load_video(high), clip)


def test_a_folder_holds_every_frame_exactly(tmp_path):
    clip = gradient(3)
    paths = export_to_images(clip, tmp_path / "frames")
    assert [os.path.basename(p) for p in paths] == ["frame-0000.png", "frame-0001.png", "frame-0002.png"]
    assert error([Image.open(p).copy() for p in paths], clip) == 0
    assert save(clip, tmp_path / "more") == str(tmp_path / "more") and len(os.listdir(tmp_path / "more")) == 3


@pytest.mark.parametrize("name", ["frame.png", "frame-{}.xyz", "frame-{}"])
def test_frame_names_that_do_not_work_are_refused(name, tmp_path):
    with pytest.raises(InputError):
        export_to_images(gradient(2), tmp_path / "frames", name=name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "frames"])
def test_frames_that_are_not_finite_leave_no_file(name, tmp_path):
    with pytest.raises(MediaError, match="not finite"):
        save(np.full((2, 4, 4, 3), np.inf), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"loop": -1}, {"palette": "web"}, {"fps": 0}])
def test_wrong_arguments_are_refused(wrong, tmp_path):
    with pytest.raises(InputError):
        export_to_gif(gradient(2), tmp_path / "a.gif", **wrong)
    assert not list(tmp_path.iterdir())


def test_a_suffix_that_means_nothing_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.txt.*expected \.mp4"):
        save(gradient(2), tmp_path / "a.txt")


def test_without_a_path_a_temporary_file_is_made():
    for export, suffix in ((export_to_gif, ".gif"), (export_to_webp, ".webp"), (export_to_apng, ".png")):
        path = export(gradient(2, 8, 8))
        assert path.endswith(suffix) and read_info(path).frames == 2
        os.unlink(path)


def test_arguments_of_the_reference_have_their_names_order_and_defaults():
    theirs = inspect.signature(diffusers.utils.export_to_gif).parameters
    ours = inspect.signature(export_to_gif).parameters
    assert [(p.name, p.default) for p in theirs.values()] == [
        (p.name, p.default) for p in list(ours.values())[: len(theirs)]
    ]

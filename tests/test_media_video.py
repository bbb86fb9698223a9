"""Video files play everywhere: exact count, size, speed and length, true colours, index first, whole or not at all."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import diffusers.utils
import numpy as np
import pytest
import torch
from tests.media_clips import chart, chart_error, error, gradient, pictures

from kinema.errors import InputError, MediaError
from kinema.media import codecs, export_to_video, load_video, read_info

RATES = {7: 7, 8: 8, 12: 12, 23.976: Fraction(24000, 1001), 24.0: 24, 29.97: Fraction(30000, 1001), 30: 30,
         "25/2": Fraction(25, 2), 59.94: Fraction(60000, 1001)}  # fmt: skip
FILES = [("mp4", "h264"), ("mkv", "h264"), ("mov", "h264"), ("webm", "vp9"), ("mp4", "vp9"), ("mp4", "av1"),
         ("webm", "av1"), ("mov", "prores"), ("mkv", "ffv1"), ("mp4", "h264rgb")]  # fmt: skip


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_count_size_speed_and_length_are_exact(fps, suffix, tmp_path):
    path = export_to_video(gradient(13), tmp_path / f"a.{suffix}", fps)
    info = read_info(path)
    assert (info.frames, info.width, info.height) == (13, 64, 48)
    assert info.fps == RATES[fps] and info.duration == 13 / Fraction(RATES[fps])
    assert len(load_video(path)) == 13
    with av.open(path) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert np.allclose(times, [i / float(RATES[fps]) for i in range(13)], atol=1e-6 if suffix == "mp4" else 6e-4)


@pytest.mark.parametrize(("suffix", "codec"), FILES)
def test_colours_survive_every_codec(suffix, codec, tmp_path):
    path = export_to_video(chart(), tmp_path / f"a.{suffix}", codec=codec)
    assert read_info(path).codec == codec.removesuffix("rgb")
    assert chart_error(load_video(path)) <= (0 if codec in ("ffv1", "h264rgb") else 3)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "ffv1"), ("mp4", "h264rgb")])
def test_lossless_is_lossless(suffix, codec, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (4, 33, 47, 3), np.uint8)
    assert error(load_video(export_to_video(clip, tmp_path / f"a.{suffix}", codec=codec)), clip) == 0


@pytest.mark.parametrize("suffix", ["mp4", "mov", "webm", "mkv"])
def test_colours_are_tagged_as_what_they_are(suffix, tmp_path):
    info = read_info(export_to_video(gradient(), tmp_path / f"a.{suffix}"))
    assert (info.primaries, info.transfer, info.matrix, info.range) == ("bt709", "bt709", "bt709", "limited")


def test_the_usual_mp4_is_what_every_player_takes(tmp_path):
    path = export_to_video(gradient(), tmp_path / "a.mp4")
    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.name, context.profile, context.pix_fmt) == ("h264", "High", "yuv420p")


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov"])
def test_the_index_comes_before_the_pictures(suffix, tmp_path):
    content = Path(export_to_video(gradient(), tmp_path / f"a.{suffix}")).read_bytes()
    order, at = [], 0
    while at < len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        order.append(kind)
        at += size
    assert order.index(b"moov") < order.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(49, 64), (48, 65), (49, 65), (1, 1)])
@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_odd_sizes_are_padded_by_one_and_said(height, width, suffix, tmp_path, caplog):
    clip = gradient(6, height, width)
    with caplog.at_level(logging.WARNING, "kinema.media"):
        path = export_to_video(clip, tmp_path / f"a.{suffix}")
    info = read_info(path)
    assert (info.height, info.width) == (height + height % 2, width + width % 2)
    assert "padded by one edge pixel" in caplog.text
    kept = [picture.crop((0, 0, width, height)) for picture in load_video(path)]
    assert error(kept, clip) < 6


def test_even_sizes_are_never_rescaled(tmp_path, caplog):
    info = read_info(export_to_video(gradient(4, 30, 50), tmp_path / "a.mp4"))
    assert (info.width, info.height) == (50, 30) and not caplog.text


def test_odd_sizes_fit_where_chroma_is_whole(tmp_path):
    info = read_info(export_to_video(gradient(4, 31, 51), tmp_path / "a.mp4", pixel_format="yuv444p"))
    assert (info.width, info.height, info.pixel_format) == (51, 31, "yuv444p")


def test_lower_crf_and_higher_quality_are_closer_and_larger(tmp_path):
    noisy = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
    for name, settings in {"crf": [{"crf": c} for c in (40, 18, 4)],
                           "quality": [{"quality": q} for q in (1, 5, 9)],
                           "bitrate": [{"bitrate": b} for b in (50_000, 2_000_000)]}.items():  # fmt: skip
        paths = [export_to_video(noisy, tmp_path / f"{name}{i}.mp4", **s) for i, s in enumerate(settings)]
        sizes, errors = [os.path.getsize(p) for p in paths], [error(load_video(p), noisy) for p in paths]
        assert sizes == sorted(sizes) and errors == sorted(errors, reverse=True)


def test_the_default_quality_is_the_codecs_crf():
    for name, row in codecs.CODECS.items():
        assert codecs.constant_quality(name, row, 5.0, None) == row.crf


def test_the_same_clip_makes_the_same_bytes(tmp_path):
    for suffix in ("mp4", "webm", "mkv"):
        a, b = (export_to_video(gradient(), tmp_path / f"{n}.{suffix}", metadata={"seed": 1}) for n in "ab")
        assert Path(a).read_bytes() == Path(b).read_bytes()


def test_all_forms_write_the_same_file(tmp_path):
    clip = gradient(5)
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
    forms = [clip, list(clip), pictures(clip), [pictures(clip)], clip[None], tensor, tensor[None]]
    written = {Path(export_to_video(f, tmp_path / f"{i}.mp4")).read_bytes() for i, f in enumerate(forms)}
    assert len(written) == 1


def test_without_a_path_a_temporary_file_is_made():
    path = export_to_video(gradient(3))
    try:
        assert path.endswith(".mp4") and read_info(path).fps == 10
    finally:
        os.unlink(path)


def test_one_frame_is_a_clip(tmp_path):
    info = read_info(export_to_video(gradient(1), tmp_path / "a.mp4", 8))
    assert (info.frames, info.duration) == (1, Fraction(1, 8))


def test_arguments_of_the_reference_have_their_names_order_and_defaults():
    theirs = inspect.signature(diffusers.utils.export_to_video).parameters
    ours = list(inspect.signature(export_to_video).parameters.values())[: len(theirs)]
    assert [(p.name, p.default) for p in theirs.values() if p.default is not p.empty] == [
        (p.name, p.default) for p in ours if p.default is not p.empty
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 0}, {"fps": -1}, {"fps": float("nan")}, {"fps": "fast"}, {"fps": True}, {"fps": 5000},
        {"codec": "mpeg2"}, {"codec": "vp8"}, {"codec": "prores"}, {"crf": 52}, {"crf": -1}, {"quality": 11},
        {"bitrate": 0}, {"pixel_format": "yuv411p"}, {"codec": "h264rgb", "crf": 3},
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(InputError) as caught:
        export_to_video(gradient(2), tmp_path / "a.mp4", **wrong)
    assert str(caught.value).endswith(".") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "a.txt", "a.mp3"])
def test_a_suffix_that_is_no_video_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="video suffix"):
        export_to_video(gradient(2), tmp_path / name)


def test_a_codec_in_the_wrong_file_names_the_right_ones(tmp_path):
    with pytest.raises(InputError, match=r"h264 does not go into \.webm; it goes into \.mp4"):
        export_to_video(gradient(2), tmp_path / "a.webm", codec="h264")


def test_frames_that_are_not_finite_leave_no_file(tmp_path):
    with pytest.raises(MediaError, match="not finite"):
        export_to_video(np.full((2, 4, 4, 3), np.nan), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_a_missing_encoder_names_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(codecs, "_has", lambda name: name == "libvpx-vp9")
    with pytest.raises(MediaError, match=r"no libx264 to write h264; choose another codec \(vp9\)"):
        export_to_video(gradient(2), tmp_path / "a.mp4")


def test_another_encoder_of_the_same_codec_steps_in(tmp_path, monkeypatch):
    row = dataclasses.replace(codecs.CODECS["h264"], encoders=("not-built", "libx264"))
    monkeypatch.setitem(codecs.CODECS, "h264", row)
    assert read_info(export_to_video(gradient(2), tmp_path / "a.mp4")).codec == "h264"

"""A picture of any kind becomes the picture people see, and any size, without being squashed by accident."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from tests.media_clips import error, gradient

import kinema.media.load as loading
from kinema.errors import InputError, KinemaError, MediaError
from kinema.media import load_image
from kinema.media.pictures import FITS, aspect_change, fit_picture, nearest_trained_size, read_picture
from kinema.media.rgb import to_rgb

FRAME = gradient(1, 20, 30)[0]
SIDES = st.integers(1, 90)
FOCUS = st.tuples(st.floats(0, 1), st.floats(0, 1))


def picture(width=30, height=20):
    return Image.fromarray(gradient(1, height, width)[0])


PIL_MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La",
             "I;16", "I;16L", "I;16B", "I;16N"]  # fmt: skip


# What is read


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float16, np.float32, np.float64, bool])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays_of_every_kind_are_the_same_picture(dtype, channels):
    levels = FRAME // 255 * 255 if dtype is bool else FRAME
    wanted = levels if channels >= 3 else levels[..., :1].repeat(3, -1)
    opaque = np.concatenate([levels, np.full_like(levels[..., :1], 255)], -1)
    pixels = {0: levels[..., 0], 1: levels[..., :1], 3: levels, 4: opaque}[channels]
    made = {"u2": pixels.astype(np.uint16) * 257, "b1": pixels > 0}.get(np.dtype(dtype).str[1:])
    if made is None:
        made = (pixels / 255).astype(dtype) if np.dtype(dtype).kind == "f" else pixels.astype(dtype)
    assert error([read_picture(made)], wanted) == 0
    tensor = torch.from_numpy(np.ascontiguousarray(made))
    assert error([read_picture(tensor.movedim(-1, 0) if channels else tensor)], wanted) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_read_whatever_they_hang_on(dtype):
    tensor = torch.from_numpy(FRAME / 255).movedim(-1, 0).to(dtype).requires_grad_()
    assert error([read_picture(tensor)], FRAME) <= (1 if dtype is torch.bfloat16 else 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_shows_the_background(mode):
    hidden = Image.new("LA" if mode in ("LA", "La") else "RGBA", (2, 2), (0,) * (2 if mode in ("LA", "La") else 4))
    hidden = hidden if mode == "PA" else hidden.convert(mode)
    assert read_picture(hidden).getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(hidden, "#102030").getpixel((1, 1)) == (16, 32, 48)
    assert read_picture(np.zeros((2, 2, 4), np.uint8), (1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_a_grey_named_transparent_shows_the_background(tmp_path):
    for pixels, name in ((np.array([[0, 200]], np.uint8), "a.png"), (np.array([[0, 200 * 257]], np.uint16), "b.png")):
        Image.fromarray(pixels).save(tmp_path / name, transparency=0)
        read = read_picture(tmp_path / name, "red")
        assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (200, 200, 200)]


@pytest.mark.parametrize(
    ("mode", "top"), [("I", 255), ("I", 65535), ("F", 1), ("F", 255), ("F", 65535), ("I;16", 65535)]
)
def test_deep_greys_are_scaled_not_clipped(mode, top):
    ramp = np.linspace(0, top, 256)[None]
    ramp = ramp.astype(np.float32) if mode == "F" else ramp.round().astype(np.uint16 if mode == "I;16" else np.int32)
    deep = Image.fromarray(ramp)
    assert deep.mode == mode
    assert np.array_equal(np.asarray(read_picture(deep))[0, :, 0], np.arange(256))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert read_picture(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


def test_reading_leaves_the_given_picture_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(30, 20).save(buffer, "PNG", exif=exif)
    given_picture = Image.open(buffer)
    assert read_picture(given_picture).size == (20, 30)
    assert given_picture.size == (30, 20) and given_picture.getexif()[0x0112] == 6


# What is refused


@pytest.mark.parametrize(
    ("wrong", "kind", "reason"),
    [
        (np.full((4, 4, 3), np.nan), MediaError, "not finite"),
        (torch.full((3, 4, 4), math.inf), MediaError, "not finite"),
        (Image.fromarray(np.full((2, 2), np.inf, np.float32)), MediaError, "not finite"),
        (np.linspace(-1, 1, 48).reshape(4, 4, 3), MediaError, "-1 to 1; expected floats in 0..1"),
        (np.linspace(0, 255, 48).reshape(4, 4, 3), MediaError, "0 to 255; expected floats in 0..1"),
        (np.full((4, 4, 3), 256, np.int32), MediaError, "256"),
        (Image.fromarray(np.full((2, 2), -300.0, np.float32) * 1e3), MediaError, "greys from"),
        (np.zeros((0, 4, 3), np.uint8), InputError, "shape"),
        (np.zeros((4, 4, 2), np.uint8), InputError, "channels"),
        (torch.zeros(5, 4, 4), InputError, "channels"),
        (np.zeros((4, 4, 3), complex), InputError, "dtype"),
        (np.array([["a"]]), InputError, "dtype"),
        (Image.new("RGB", (0, 5)), MediaError, "0×5"),
        (Image.new("F", (5, 0)), MediaError, "5×0"),
        (b"bytes", InputError, "Expected a path"),
        ([FRAME], InputError, "Expected a path"),
        (None, InputError, "Expected a path"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(wrong, kind, reason):
    with pytest.raises(kind, match=reason) as caught:
        read_picture(wrong)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_pictures_opened_elsewhere_are_refused_where_they_cannot_be_read(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with pytest.raises(MediaError, match="damaged or truncated PNG"):
        read_picture(Image.open(io.BytesIO(content[: len(content) // 2])))
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    with pytest.raises(MediaError):
        read_picture(closed)


@pytest.mark.parametrize("form", [FRAME, Image.fromarray(FRAME)])
def test_too_many_pixels_are_refused_in_any_form(form, monkeypatch):
    monkeypatch.setattr(loading, "MAX_PIXELS", 100)
    with pytest.raises(MediaError, match="30×20 pixels, more than 100"):
        read_picture(form)
    with pytest.raises(InputError, match="too large"):
        fit_picture(np.zeros((2, 2), np.uint8), 20, 30)


def _files():
    for suffix in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM"):
        buffer = io.BytesIO()
        picture(24, 16).save(buffer, suffix)
        yield buffer.getvalue()


FILES = list(_files())


@settings(max_examples=300)
@given(
    content=st.sampled_from(FILES),
    cut=st.floats(0.02, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4),
)
def test_a_damaged_file_is_read_or_refused_but_never_breaks(content, cut, changes, tmp_path_factory):
    broken = bytearray(content[: max(1, int(len(content) * cut))])
    for where, value in changes:
        broken[int(where * len(broken))] = value
    path = tmp_path_factory.getbasetemp() / "broken"
    path.write_bytes(broken)
    with contextlib.suppress(MediaError):
        assert load_image(path).mode == "RGB"


@pytest.mark.parametrize("mode", PIL_MODES)
def test_every_mode_pil_has_becomes_rgb(mode):
    assert read_picture(Image.new(mode, (4, 3)), "blue").mode == "RGB"
    assert to_rgb(Image.new(mode, (4, 3))).size == (4, 3)


# What is fitted


@given(width=SIDES, height=SIDES, to_width=SIDES, to_height=SIDES, fit=st.sampled_from(FITS), focus=FOCUS)
@example(width=1, height=90, to_width=90, to_height=1, fit="crop", focus=(1.0, 1.0))
@example(width=90, height=1, to_width=1, to_height=90, fit="pad", focus=(0.0, 1.0))
def test_any_picture_fits_any_size(width, height, to_width, to_height, fit, focus):
    fitted = fit_picture(picture(width, height), to_height, to_width, fit, focus)
    assert (fitted.mode, fitted.size) == ("RGB", (to_width, to_height))


@given(width=SIDES, height=SIDES, fit=st.sampled_from(FITS), focus=FOCUS)
def test_a_picture_that_fits_keeps_every_pixel(width, height, fit, focus):
    noise = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(np.asarray(fit_picture(Image.fromarray(noise), height, width, fit, focus)), noise)


@given(width=SIDES, height=SIDES, more=st.integers(1, 40), across=st.booleans(), focus=FOCUS)
def test_cutting_alone_changes_no_pixel(width, height, more, across, focus):
    wide, high = (width + more, height) if across else (width, height + more)
    noise = np.random.default_rng(width * 100 + height).integers(0, 256, (high, wide, 3), np.uint8)
    cut = np.asarray(fit_picture(Image.fromarray(noise), height, width, "crop", focus))
    offsets = [(0, i) if across else (i, 0) for i in range(more + 1)]
    assert any(np.array_equal(cut, noise[top : top + height, left : left + width]) for top, left in offsets)


@given(width=SIDES, height=SIDES, more=st.integers(1, 40), across=st.booleans(), focus=FOCUS)
def test_bars_alone_change_no_pixel(width, height, more, across, focus):
    noise = np.random.default_rng(width * 100 + height).integers(1, 256, (height, width, 3), np.uint8)
    wide, high = (width + more, height) if across else (width, height + more)
    padded = np.asarray(fit_picture(Image.fromarray(noise), high, wide, "pad", focus))
    left, top = (round(more * focus[0]), 0) if across else (0, round(more * focus[1]))
    assert np.array_equal(padded[top : top + height, left : left + width], noise)
    assert int((padded == 0).all(-1).sum()) == wide * high - width * height


def _shapes(count=50):
    rng = np.random.default_rng(7)
    return [tuple(int(side) for side in np.exp(rng.uniform(np.log(150), np.log(900), 2))) for _ in range(count)]


def _disc(width, height, radius):
    """A white disc in the middle, drawn fine and shrunk, so that its edge is soft."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x + 0.5 - width / 2, y + 0.5 - height / 2)
    return Image.fromarray((np.clip(radius + 0.5 - distance, 0, 1) * 255).astype(np.uint8)).convert("RGB")


def _roundness(fitted):
    """How much wider than high the bright part is: the ratio of its spreads, 1 for a circle."""
    weight = np.asarray(fitted.convert("L"), float)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    spread = []
    for axis in (x, y):
        off = axis - np.average(axis, weights=weight)
        spread.append(float(np.sqrt(np.average(off**2, weights=weight))))
    return spread[0] / spread[1]


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize(("width", "height"), [(1024, 576), (576, 1024), (256, 256)])
def test_a_circle_stays_a_circle(fit, width, height):
    for shape in _shapes():
        # As large as any crop leaves it whole.
        scale = min(shape[0] / width, shape[1] / height)
        radius = 0.4 * scale * min(width, height)
        fitted = fit_picture(_disc(*shape, radius), height // 4, width // 4, fit)
        assert _roundness(fitted) == pytest.approx(1, abs=0.01), shape


def test_a_stretched_circle_does_not():
    assert _roundness(fit_picture(_disc(300, 600, 100), 300, 600, "stretch")) == pytest.approx(4, rel=0.02)
    assert aspect_change(300, 600, 600, 300) == 4


def test_stretching_is_what_the_reference_does():
    from diffusers.image_processor import VaeImageProcessor

    for size in ((30, 20), (64, 24), (17, 90)):
        theirs = VaeImageProcessor(vae_scale_factor=8).resize(picture(*size), 40, 64)
        assert np.array_equal(np.asarray(fit_picture(picture(*size), 40, 64, "stretch")), np.asarray(theirs))


@given(at=st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)), width=st.integers(9, 60), height=st.integers(9, 60))
def test_a_crop_shows_what_the_focus_is_on(at, width, height):
    scene = Image.new("RGB", (300, 200))
    x, y = at[0] * 300, at[1] * 200
    ImageDraw.Draw(scene).ellipse((x - 25, y - 25, x + 25, y + 25), fill="white")
    fitted = np.asarray(fit_picture(scene, height, width, "crop", at), float)[..., 0]
    # It is in the middle, or as near to it as the edges of the picture let the crop come.
    scale = min(300 / width, 200 / height)
    rows, columns = np.indices(fitted.shape) + 0.5
    for axis, part, whole, wanted in ((columns, width * scale, 300, x), (rows, height * scale, 200, y)):
        seen = float((axis * fitted).sum() / fitted.sum()) * scale
        begins = min(max(wanted - part / 2, 0), whole - part)
        assert abs(seen - (wanted - begins)) < 13  # half a disc may be cut off


def test_large_pictures_are_made_small_without_sparkling():
    chequered = Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8))
    small = np.asarray(fit_picture(chequered, 64, 64), float)
    assert abs(small - 127.5).max() < 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"height": 0}, "height 0 is no size"),
        ({"width": 2.5}, "width 2.5 is no size"),
        ({"width": True}, "width True is no size"),
        ({"height": 1 << 20, "width": 1 << 20}, "too large"),
        ({"fit": "squash"}, "expected crop, pad, stretch"),
        ({"focus": (0.5, 1.1)}, "focus"),
        ({"focus": 0.5}, "focus"),
        ({"focus": (math.nan, 0)}, "focus"),
        ({"focus": "ab"}, "focus"),
        ({"background": "blurple"}, "no colour"),
        ({"background": (1, 2, 300)}, "no colour"),
        ({"picture": None}, "Expected a path"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_a_sentence(change, reason):
    with pytest.raises(InputError, match=reason) as caught:
        fit_picture(**{"picture": picture(), "height": 8, "width": 8, **change})
    assert str(caught.value).endswith(".")


def test_numpy_s_whole_numbers_are_sizes():
    assert fit_picture(picture(), np.int64(8), np.int32(16)).size == (16, 8)


# Which size


TRAINED = [(1024, 576), (576, 1024), (768, 768), (512, 288)]


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((1920, 1080), (1024, 576)), ((1080, 1920), (576, 1024)), ((500, 500), (768, 768)), ((640, 360), (512, 288)),
     ((4000, 3100), (768, 768)), ((3000, 1000), (1024, 576))],
)  # fmt: skip
def test_the_nearest_size_has_the_nearest_proportions(size, nearest):
    assert nearest_trained_size(*size, TRAINED) == nearest


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_the_nearest_size_turns_with_the_picture(width, height):
    square = [(1024, 576), (576, 1024), (768, 768)]
    assume(abs(math.log(width / height)) > 1e-6 and abs(abs(math.log(width / height)) - math.log(16 / 9) / 2) > 1e-6)
    chosen = nearest_trained_size(width, height, square)
    assert nearest_trained_size(height, width, square) == chosen[::-1]
    changes = {size: abs(math.log(aspect_change(width, height, *size))) for size in square}
    assert changes[chosen] == min(changes.values())


@pytest.mark.parametrize("wrong", [(0, 5, TRAINED), (5, 5, []), (5, 5, [(0, 1)])])
def test_no_size_to_choose_from_is_said(wrong):
    with pytest.raises(KinemaError, match="no size nearest"):
        nearest_trained_size(*wrong)

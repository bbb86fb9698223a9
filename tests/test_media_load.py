"""Pictures and clips are read from anywhere, as a viewer would show them, or refused in a sentence."""

from __future__ import annotations

import http.server
import io
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tests.media_clips import error, gradient, pictures, pixels

from kinema.errors import InputError, MediaError
from kinema.media import clips, export_to_images, export_to_video, fetch, load, load_image, load_video, save

FRAME = gradient(1, 20, 30)[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    picture = Image.new(mode, (4, 3))
    loaded = load_image(picture)
    assert (loaded.mode, loaded.size) == ("RGB", (4, 3))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "jpg"])
def test_a_picture_is_read_from_its_file(suffix, tmp_path):
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(suffix, {})
    Image.fromarray(FRAME).save(tmp_path / f"a.{suffix}", **options)
    for path in (tmp_path / f"a.{suffix}", str(tmp_path / f"a.{suffix}")):
        assert error([load_image(path)], FRAME[None]) <= {"gif": 6, "jpg": 4}.get(suffix, 0)


def test_pictures_arrays_and_tensors_are_taken_as_they_are():
    floats = FRAME.astype(np.float32) / 255
    for form in (Image.fromarray(FRAME), FRAME, floats, torch.from_numpy(floats).permute(2, 0, 1)):
        assert error([load_image(form)], FRAME[None]) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright(orientation, tmp_path):
    turned = {1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
              4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
              7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270]}[orientation]  # fmt: skip
    stored = Image.fromarray(FRAME)
    for turn in turned:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert error([load_image(tmp_path / "a.png")], FRAME[None]) == 0


def test_alpha_is_laid_on_white_whatever_hides_below():
    hidden = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert load_image(hidden).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(half).getpixel((0, 0)) == (127, 127, 127)
    keyed = Image.new("P", (2, 2))
    keyed.putpalette([200, 0, 0])
    keyed.info["transparency"] = 0
    assert load_image(keyed).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(2, 0)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
        grey = pixels([load_image(tmp_path / f"a.{suffix}")])[0, 0, :, 0]
        assert np.array_equal(grey, np.arange(256))


def test_float_greys_are_scaled_from_either_range():
    for top in (1.0, 255.0):
        ramp = Image.fromarray(np.linspace(0, top, 256, dtype=np.float32)[None])
        assert np.array_equal(pixels([load_image(ramp)])[0, 0, :, 1], np.arange(256))
    with pytest.raises(MediaError, match="not finite"):
        load_image(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def test_printed_colours_look_as_pil_shows_them(tmp_path):
    Image.fromarray(FRAME).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert error([load_image(tmp_path / "a.jpg")], FRAME[None]) < 4


def test_a_conversion_of_ones_own_replaces_ours():
    assert load_image(Image.fromarray(FRAME), lambda image: image.convert("L")).mode == "L"


@pytest.mark.parametrize("wrong", [None, 3, [FRAME], FRAME[None], torch.zeros(2, 3, 4, 4)])
def test_what_is_no_picture_is_refused_by_type(wrong):
    with pytest.raises(InputError, match="Expected a path"):
        load_image(wrong)


def _png_bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("reader", [load_image, load_video])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a"),
        (b"hello", "not a"),
        (_png_bomb(), "pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "not a"),
    ],
)  # fmt: skip
def test_files_that_are_no_picture_are_refused(reader, content, reason, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MediaError, match=reason) as caught:
        reader(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in str(caught.value) and str(caught.value).endswith(".")


def test_pictures_between_the_warning_and_the_error_of_pil_are_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "MAX_PIXELS", 100)
    Image.fromarray(FRAME).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="30×20 pixels, more than 100"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_a_truncated_picture_is_refused(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(gradient(1, 100, 100)[0]).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError):
        load_image(path)


@pytest.mark.parametrize("reader", [load_image, load_video])
def test_a_missing_file_and_a_folder_are_said(reader, tmp_path):
    with pytest.raises(MediaError, match=r"There is no file .*check the path"):
        reader(tmp_path / "none.png")
    with pytest.raises(MediaError, match="Cannot read"):
        reader(tmp_path)
    with pytest.raises(MediaError, match="Cannot read"):
        reader("a\0.png")


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.mov", "a.gif", "a.webp", "a.png"])
def test_a_clip_is_read_from_its_file(name, tmp_path):
    clip = gradient(9)
    path = save(clip, tmp_path / name, 12)
    frames, fps = load_video(path, return_fps=True)
    assert len(frames) == 9 and error(frames, clip) < 6
    assert fps == pytest.approx(12, rel=0.01)
    assert len(load_video(path, max_frames=4)) == 4


def test_frames_at_hand_are_taken_as_they_are():
    clip = gradient(3)
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2)
    for form in (clip, clip / 255, list(clip), pictures(clip), tensor, [pictures(clip)]):
        assert error(load_video(form), clip) == 0
    with pytest.raises(InputError, match="no frame rate"):
        load_video(clip, return_fps=True)


def test_a_still_picture_is_a_clip_of_one(tmp_path):
    paths = export_to_images(gradient(1), tmp_path / "frames")
    assert len(load_video(paths[0])) == 1


def test_frames_go_through_a_conversion_of_ones_own():
    assert len(load_video(gradient(4), lambda frames: frames[::2])) == 2


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.gif", "a.webp", "a.png"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_truncated_clip_is_refused(name, kept, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
    path = tmp_path / name
    save(noise, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(MediaError, match=r"damaged|truncated|ends after|not a"):
        load_video(path)


def test_a_clip_too_large_to_hold_asks_for_max_frames(tmp_path, monkeypatch):
    path = export_to_video(gradient(6), tmp_path / "a.mp4")
    monkeypatch.setattr(clips, "MAX_CLIP_PIXELS", 64 * 48 * 4)
    with pytest.raises(MediaError, match=r"more than 4 frames of 64×48.*max_frames"):
        load_video(path)
    assert len(load_video(path, max_frames=4)) == 4
    with pytest.raises(InputError):
        load_video(path, max_frames=0)


def test_sound_alone_is_no_clip(tmp_path):
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 800)
    with pytest.raises(MediaError, match="holds no video"):
        load_video(tmp_path / "a.wav")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    buffer = io.BytesIO()
    Image.fromarray(FRAME).save(buffer, "PNG")
    files = {"/a.png": buffer.getvalue(), "/text": b"hello"}
    for name in ("a.mp4", "a.gif"):
        files[f"/{name}"] = open_bytes(save(gradient(4), root / name, 8))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/slow":
                done.wait(5)
                return
            content = files.get(self.path.removeprefix("/cut"))
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            content = content or b""
            self.wfile.write(content[: len(content) // 2] if self.path.startswith("/cut") else content)

        def log_message(self, *_):
            pass

    done = threading.Event()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    done.set()
    httpd.shutdown()
    httpd.server_close()


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def test_addresses_are_fetched(server):
    assert error([load_image(f"{server}/a.png")], FRAME[None]) == 0
    for name in ("a.mp4", "a.gif"):
        frames, fps = load_video(f"{server}/{name}", return_fps=True)
        assert len(frames) == 4 and fps == pytest.approx(8, rel=0.05) and error(frames, gradient(4)) < 6


@pytest.mark.parametrize("reader", [load_image, load_video])
def test_what_an_address_does_wrong_is_said(reader, server, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for address, reason in [
        (f"{server}/none", "404"),
        (f"{server}/text", "not a"),
        (f"{server}/cut/a.png", r"ended|Cannot fetch|truncated"),
        (f"{server}/slow", "did not answer within"),
        (f"http://127.0.0.1:{port}/a.png", "Cannot fetch"),
        ("http://", "Cannot fetch"),
    ]:
        with pytest.raises(MediaError, match=reason) as caught:
            reader(address)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_download_is_bounded(server, monkeypatch):
    monkeypatch.setattr(fetch, "LARGEST", 10)
    with pytest.raises(MediaError, match="larger than"):
        load_image(f"{server}/a.png")

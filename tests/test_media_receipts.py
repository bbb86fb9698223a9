"""Every file carries what made it, in any script, and tells it again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from tests.media_clips import gradient

from kinema.errors import MediaError
from kinema.media import export_to_images, export_to_video, read_info, save
from kinema.media.metadata import pack, unpack

NAMES = ["a.mp4", "a.mov", "a.m4v", "a.webm", "a.mkv", "a.gif", "a.webp", "a.png", "a.apng"]
RECEIPT = {
    "prompt": 'ein "roter" Kreis \\ 赤い円 🔴\nнovая строка\t<&> \ud800 \0',
    "negative_prompt": "",
    "seed": 2**53 + 1,
    "guidance_scale": 9.5,
    "scheduler": {"name": "DDIMScheduler", "steps": 25, "betas": [0.00085, 0.012]},
    "model": "toy",
    "lora": None,
    "slicing": True,
}

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_can_be_read(name, tmp_path):
    assert read_info(save(gradient(2, 8, 8), tmp_path / name, metadata=RECEIPT)).receipt == RECEIPT


@pytest.mark.parametrize("name", NAMES)
def test_long_receipts_survive(name, tmp_path):
    receipt = {"prompt": "ß" * 60_000}
    assert read_info(save(gradient(2, 8, 8), tmp_path / name, metadata=receipt)).receipt == receipt


@pytest.mark.parametrize("name", NAMES)
def test_files_without_a_receipt_say_so(name, tmp_path):
    info = read_info(save(gradient(2, 8, 8), tmp_path / name))
    assert info.receipt is None and "no note of what made it" in str(info)


def test_every_picture_of_a_folder_carries_the_receipt(tmp_path):
    for path in export_to_images(gradient(2, 8, 8), tmp_path / "frames", metadata=RECEIPT):
        assert read_info(path).receipt == RECEIPT


@settings(max_examples=15)
@given(st.sampled_from(["a.mp4", "a.webm", "a.gif", "a.webp", "a.png"]), st.dictionaries(st.text(), anything))
def test_any_receipt_survives_any_container(tmp_path_factory, name, receipt):
    path = tmp_path_factory.mktemp("any") / name
    assert read_info(save(gradient(1, 4, 4), path, metadata=receipt)).receipt == receipt


@given(st.dictionaries(st.text(), anything))
def test_packing_is_ascii_on_one_line_and_reversible(receipt):
    text = pack(receipt)
    assert text.isascii() and "\n" not in text and unpack(text) == receipt


def test_what_json_does_not_know_becomes_plain():
    odd = {"dtype": torch.float16, "n": np.int64(3), "x": np.float32(0.5), "t": torch.tensor([1, 2]), 4: (1, 2),
           "path": Path("a/b"), "nan": float("nan"), "inf": [float("inf")], "b": np.bool_(True)}  # fmt: skip
    assert unpack(pack(odd)) == {"dtype": "torch.float16", "n": 3, "x": 0.5, "t": [1, 2], "4": [1, 2],
                                 "path": str(Path("a/b")), "nan": "nan", "inf": ["inf"], "b": True}  # fmt: skip


@pytest.mark.parametrize("text", [None, "", "made with love", "[1, 2]", "3", b"\xff\xfe", "{", "[" * 100_000])
def test_comments_of_other_programs_are_no_receipts(text):
    assert unpack(text) is None


def test_the_receipt_lies_where_other_programs_look(tmp_path):
    import av

    receipt = {"prompt": "a red circle"}
    with av.open(save(gradient(2), tmp_path / "a.mp4", metadata=receipt)) as container:
        assert container.metadata["comment"] == pack(receipt)
    with Image.open(save(gradient(2), tmp_path / "a.gif", metadata=receipt)) as opened:
        assert opened.info["comment"] == pack(receipt).encode()
    with Image.open(save(gradient(2), tmp_path / "a.png", metadata=receipt)) as opened:
        assert opened.text["Comment"] == pack(receipt)
    with Image.open(save(gradient(2), tmp_path / "a.webp", metadata=receipt)) as opened:
        assert opened.getexif()[0x010E] == pack(receipt)


def test_info_reads_like_a_note(tmp_path):
    path = export_to_video(gradient(12), tmp_path / "a.mp4", 23.976, metadata={"prompt": "a red circle", "seed": 7})
    assert str(read_info(path)).splitlines() == [
        f"{path}: 64×48, 12 frames at 23.976 fps, 0.5005 s",
        "  mp4, h264, yuv420p, colour bt709/bt709/bt709/limited",
        "  prompt  a red circle",
        "  seed    7",
    ]


def test_info_never_lets_a_prompt_steer_the_terminal(tmp_path):
    path = save(gradient(1, 4, 4), tmp_path / "a.png", metadata={"prompt": "\x1b[31mred\n\ud800"})
    shown = str(read_info(path))
    assert "\x1b" not in shown and len(shown.splitlines()) == 3 and shown.encode()


def test_info_of_a_single_picture(tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "a.jpg")
    info = read_info(tmp_path / "a.jpg")
    assert (info.container, info.frames, info.width, info.height) == ("jpeg", 1, 5, 4)
    assert info.fps is None and info.duration is None and "1 picture" in str(info)


def test_a_receipt_behind_the_pixels_is_found(tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_itxt("Comment", pack(RECEIPT), after_idat=True) if "after_idat" in (
        PngImagePlugin.PngInfo.add_itxt.__code__.co_varnames
    ) else note.add_itxt("Comment", pack(RECEIPT))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=note)
    assert read_info(tmp_path / "a.png").receipt == RECEIPT


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 5000, b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"])
def test_what_is_no_media_is_refused(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError):
        read_info(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="There is no file"):
        read_info(tmp_path / "none.mp4")


def test_frames_are_counted_not_believed(tmp_path):
    path = tmp_path / "a.webm"
    save(np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8), path, 10)
    path.write_bytes(path.read_bytes()[:-20_000])
    info = read_info(path)
    assert 0 < info.frames < 20 and info.fps == Fraction(10)

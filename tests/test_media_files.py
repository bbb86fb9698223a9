"""Files appear whole or not at all, and what stood there before stays until then."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from tests.media_clips import gradient

from kinema.errors import MediaError
from kinema.media import check_writable, export_to_images, files, save, video

SUFFIXES = ["mp4", "webm", "mov", "gif", "webp", "png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_existing_file_is_replaced_only_by_a_whole_one(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"before")

    def fail(*_):
        assert path.read_bytes() == b"before"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush", fail)
        with pytest.raises(KeyboardInterrupt):
            save(gradient(3), path)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == [path.name]
    save(gradient(3), path)
    assert path.read_bytes() != b"before" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_an_interrupted_encode_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(video, "_picture", fail)
    with pytest.raises(error):
        save(gradient(3), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_pictures_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    from PIL import Image

    real, calls = Image.Image.save, []

    def third_fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", third_fails)
    with pytest.raises(MediaError, match="the disk is full"):
        export_to_images(gradient(4), tmp_path / "frames")
    assert not list(tmp_path.iterdir())


_FULL = """
import resource, sys
from tests.media_clips import gradient
import numpy as np
from kinema.errors import MediaError
from kinema.media import save
noise = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(noise, sys.argv[1])
except MediaError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_ends_is_said_and_leaves_nothing(suffix, tmp_path):
    pytest.importorskip("resource")
    path = tmp_path / f"a.{suffix}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ran = subprocess.run([sys.executable, "-c", _FULL, str(path)], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert f"Cannot write {path}: " in ran.stdout, ran.stdout + ran.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_place_that_cannot_be_written_is_said_before_encoding(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("kinema.media.frames.to_frames", lambda _: pytest.fail("frames were touched"))
    with pytest.raises(MediaError, match="its folder does not exist; create it first"):
        save(gradient(2), tmp_path / "missing" / f"a.{suffix}")


def test_check_writable_touches_nothing_and_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert check_writable(tmp_path / "new.mp4") == tmp_path / "new.mp4"
    assert check_writable(tmp_path / "file") == tmp_path / "file"
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"x"
    for path, reason in [
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "a.mp4", "not a folder"),
        (tmp_path / "no" / "a.mp4", "does not exist"),
        ("a\0.mp4", "null"),
        (tmp_path / ("x" * 300 + ".mp4"), "too long"),
    ]:
        with pytest.raises(MediaError, match=reason):
            check_writable(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MediaError, match="may not be written to"):
        check_writable(tmp_path / "a.mp4")


def test_files_get_the_usual_permissions(tmp_path):
    mask = os.umask(0o022)
    try:
        for suffix in SUFFIXES:
            assert os.stat(save(gradient(2), tmp_path / f"a.{suffix}")).st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "keep").write_bytes(b"x")
    with pytest.raises(MediaError, match="not an empty folder"):
        export_to_images(gradient(2), tmp_path)
    assert os.listdir(tmp_path) == ["keep"]

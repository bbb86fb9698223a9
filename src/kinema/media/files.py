"""Files that appear whole or not at all, and the sentence said when they cannot."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kinema.errors import MediaError

PathLike = str | os.PathLike[str]

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
    errno.EFBIG: "the file would be larger than this system allows; choose another place or a smaller clip",
    errno.EACCES: "this place may not be written to; choose another",
    errno.EPERM: "this place may not be written to; choose another",
    errno.EROFS: "this file system is read-only; choose another place",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "part of its path is a file, not a folder; choose another place",
    errno.EISDIR: "it is a folder; add a file name",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
}


def cannot_write(path: PathLike, error: OSError) -> MediaError:
    """The MediaError that says why `path` cannot be written and what to do."""
    reason = _ADVICE.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    return MediaError(f"Cannot write {os.fspath(path)}: {reason}.")


def check_writable(path: PathLike) -> Path:
    """Make sure that a file can be created at `path`, before time is spent on what goes into it.

    Nothing at `path` is touched. Returns the path. Raises MediaError where its folder is missing or may not be
    written to, or where `path` is a folder itself.
    """
    target = Path(path)
    try:
        with suppress(FileNotFoundError):  # but a name that is too long or has a zero byte is found out
            if stat.S_ISDIR(target.stat().st_mode):
                raise IsADirectoryError(errno.EISDIR, "is a folder")
        probe = _beside(target)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        probe.unlink()
    except OSError as error:
        raise cannot_write(target, error) from error
    except ValueError as error:  # a zero byte in the path
        raise MediaError(f"Cannot write {os.fspath(path)!r}: {error}; choose another name.") from error
    return target


def temporary(suffix: str) -> Path:
    """A fresh path in the system's temporary folder, for those who name none."""
    return Path(tempfile.gettempdir(), f"kinema-{uuid.uuid4().hex[:12]}{suffix}")


@contextmanager
def appearing(path: PathLike) -> Iterator[Path]:
    """A temporary file or folder beside `path` that takes its place when the block ends well, and vanishes when not.

    The name keeps the suffix of `path`, since encoders choose a format by it. Operating system errors inside the
    block (a full disk, say) become a MediaError; every other exception, KeyboardInterrupt included, passes through.
    """
    target = check_writable(path) if not Path(path).is_dir() else Path(path)
    partial = _beside(target)
    try:
        yield partial
        _flush(partial)
        if partial.is_dir() or not target.is_dir():
            os.replace(partial, target)
        else:
            raise IsADirectoryError(errno.EISDIR, "is a folder")
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        _remove(partial)


def _beside(target: Path) -> Path:
    """A hidden, unused name in the same folder, so that the last move stays on one file system."""
    return target.parent / f".kinema-{uuid.uuid4().hex[:12]}{target.suffix}"


def _flush(partial: Path) -> None:
    """Some file systems report a full disk only now, before the old file is replaced rather than after."""
    if partial.is_dir():
        return
    with partial.open("rb+") as file:
        os.fsync(file.fileno())


def _remove(partial: Path) -> None:
    if partial.is_dir():
        for child in partial.iterdir():
            child.unlink()
        partial.rmdir()
    else:
        partial.unlink(missing_ok=True)

"""A file of weights as a mapping from name to tensor, mapped from disk: nothing is read before it is touched."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..errors import CheckpointError
from .dtypes import SAFETENSORS

PICKLED = (".bin", ".pth", ".pt", ".ckpt")
AHEAD = 1 << 20  # bytes that are asked for at once; systems ignore what is beyond a few
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class Stored:
    """Where and as what one tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # byte in the file at which its storage's first used element lies
    strides: tuple[int, ...] | None = None  # in elements; None is row by row

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes the values take, each counted once."""
        return self.numel * self.dtype.itemsize

    @property
    def extent(self) -> int:
        """Bytes from the first element to behind the last."""
        if self.numel == 0:
            return 0
        if self.strides is None:
            return self.nbytes
        return (1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides))) * self.dtype.itemsize


@dataclass(frozen=True)
class Weights(Mapping[str, Tensor]):
    """The tensors of one file. `weights[name]` is a view of the mapped file; writing to it never reaches the file."""

    path: Path
    stored: Mapping[str, Stored]
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what the file says beside its tensors
    _bytes: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    def __getitem__(self, name: str) -> Tensor:
        at = self.stored[name]
        if at.numel == 0:
            return torch.empty(at.shape, dtype=at.dtype)
        raw = self._map()[at.start : at.start + at.extent]
        if at.start % at.dtype.itemsize:
            raw = raw.clone()  # an odd address cannot be viewed as wider numbers
        flat = raw.view(at.dtype)
        return flat.view(at.shape) if at.strides is None else flat.as_strided(at.shape, at.strides)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def _map(self) -> Tensor:
        if not self._bytes:
            with _opened(self.path) as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._bytes.append(torch.frombuffer(pages, dtype=torch.uint8))  # which keeps the mapping
            _MAPPED[self._bytes[0].data_ptr()] = pages
        return self._bytes[0]


_MAPPED: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # files that are mapped, by their address


def read_ahead(paths: Iterable[Path]) -> None:
    """Has the system begin to read files of which all will be wanted, while the program goes on.

    Looked at only when they are mapped and touched, they would be read in small pieces, and the program would wait for
    each.
    """

    def ask() -> None:
        for path in files:
            with suppress(OSError), path.open("rb") as file:
                for start in range(0, path.stat().st_size, AHEAD):
                    os.posix_fadvise(file.fileno(), start, AHEAD, os.POSIX_FADV_WILLNEED)

    files = list(paths)
    if hasattr(os, "posix_fadvise"):  # on Linux; the call waits where a disk's queue is full, hence the thread
        Thread(target=ask, name="kinema-read-ahead", daemon=True).start()


def mapped(x: Tensor) -> bool:
    """Whether a tensor is a view of a file: it takes memory that the system has back whenever it likes."""
    return x.device.type == "cpu" and x.untyped_storage().data_ptr() in _MAPPED


def let_go(x: Tensor) -> None:
    """Frees the memory behind a view of a mapped file; who looks at it again reads the file again.

    Of what has been copied the pages would else count as this process's, beside the copy.
    """
    pages = _MAPPED.get(x.untyped_storage().data_ptr()) if x.device.type == "cpu" else None
    if pages is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = x.storage_offset() * x.itemsize
    first, last = -(-start // mmap.PAGESIZE), (start + x.nbytes) // mmap.PAGESIZE  # only pages that are all of it
    if last > first:
        pages.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def open_weights(path: str | Path, *, complete: bool = True) -> Weights:
    """Opens `.safetensors`, `.bin`, `.pth`, `.pt` or `.ckpt`, by content; reads its header only and runs nothing in it.

    Args:
        complete: refuse safetensors whose data ends before the header says; False is for looking at names only.

    Raises:
        CheckpointError: the file is missing, empty, truncated, inconsistent, or holds more than numbers.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder; a file of weights is expected.")
    with _opened(path) as file:
        head = file.read(16)
    if len(head) < 8:
        raise CheckpointError(f"{path} has only {len(head)} bytes, so it holds no weights; download it again.")
    if head.startswith(b"version https:/"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch it with `git lfs pull`.")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not weights; download it again, signed in if that is needed.")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _safetensors(path, complete)
    from .pickles import open_pickled

    return open_pickled(path)


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _safetensors(path: Path, complete: bool) -> Weights:
    size = path.stat().st_size
    with _opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(LONGEST_HEADER, size - 8):
            what = f"says its header has {length:,} bytes, but the file has {size:,}"
            raise CheckpointError(f"{path} {what}: it is truncated or not safetensors; download it again.")
        text = file.read(length)
    try:
        header = json.loads(text)
        assert isinstance(header, dict)
    except (ValueError, AssertionError, RecursionError) as error:
        raise CheckpointError(f"{path} has a header that is not a JSON object; download it again.") from error
    metadata = header.pop("__metadata__", {})
    stored = {name: _entry(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_extents(path, stored, 8 + length, size, complete)
    return Weights(path, stored, metadata if isinstance(metadata, dict) else {})


def _entry(path: Path, name: str, entry: Any, base: int) -> Stored:
    """One tensor of a safetensors header, every number checked."""
    try:
        dtype, shape = SAFETENSORS.get(entry["dtype"]), entry["shape"]
        start, end = entry["data_offsets"]
        whole = all(type(n) is int and 0 <= n < 2**62 for n in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path}: the entry of {name!r} is malformed; download the file again.") from None
    if dtype is None:
        raise CheckpointError(f"{path}: {name!r} has the number format {entry['dtype']!r}, which is not known.")
    if not whole or end - start != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{path}: {name!r} says shape {shape} and bytes {start} to {end}, which do not agree.")
    return Stored(dtype, tuple(shape), base + start)


def _check_extents(path: Path, stored: Mapping[str, Stored], base: int, size: int, complete: bool) -> None:
    end = base
    for name, at in sorted(stored.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if at.start < end:
            raise CheckpointError(f"{path}: {name!r} overlaps the tensor before it; the file is broken or hostile.")
        end = at.start + at.nbytes
    if end > size and complete:
        raise CheckpointError(
            f"{path} is truncated: it has {size:,} bytes of the {end:,} its header promises; download it again."
        )

"""A clip's activations between two passes over them: put there frame by frame, read and changed in bands of pixels."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from typing import IO, Any, Protocol, Self

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..place import kind_of


class Slot(Protocol):
    """Where one frame waits, (n, c)."""

    def read(self, start: int, stop: int) -> Tensor: ...

    def write(self, start: int, pixels: Tensor) -> None: ...


class Here:
    """On the device itself."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels

    def read(self, start: int, stop: int) -> Tensor:
        return self.pixels[start:stop]

    def write(self, start: int, pixels: Tensor) -> None:
        self.pixels[start : start + len(pixels)] = pixels


class Host(Here):
    """In the host's memory, beside an accelerator."""

    def __init__(self, pixels: Tensor):
        super().__init__(pixels.cpu())
        self.device = pixels.device

    def read(self, start: int, stop: int) -> Tensor:
        return self.pixels[start:stop].to(self.device)


class Nowhere:
    """Tensors without contents need no place: what is traced then is what stays on the device."""

    def __init__(self, pixels: Tensor):
        self.channels, self.dtype = pixels.shape[1], pixels.dtype

    def read(self, start: int, stop: int) -> Tensor:
        return torch.empty(stop - start, self.channels, dtype=self.dtype, device="meta")

    def write(self, start: int, pixels: Tensor) -> None: ...


class Disk:
    """In a file, where the processor's memory is all there is."""

    def __init__(self, pixels: Tensor, file: IO[bytes], offset: int):
        self.file, self.offset = file, offset
        self.channels, self.dtype = pixels.shape[1], pixels.dtype
        self.write(0, pixels)

    def read(self, start: int, stop: int) -> Tensor:
        pixels = torch.empty(stop - start, self.channels, dtype=self.dtype)
        self._seek(start)
        self.file.readinto(_bytes(pixels))  # type: ignore[attr-defined]
        return pixels

    def write(self, start: int, pixels: Tensor) -> None:
        self._seek(start)
        self.file.write(_bytes(pixels.contiguous()))

    def _seek(self, start: int) -> None:
        self.file.seek(self.offset + start * self.channels * self.dtype.itemsize)


def _bytes(pixels: Tensor) -> Any:
    return pixels.view(torch.uint8).numpy()


class Shelf:
    """The frames of one clip, (n, c) each: on the device if they fit in `room` bytes there, else far from it.

    Far is the host's memory beside an accelerator, and else a temporary file where `tempfile` makes them (TMPDIR),
    which goes with the shelf.
    """

    def __init__(self, frames: int, room: int):
        self.frames, self.room = frames, room
        self.pixels = self.nbytes = 0  # of a frame, of all of them
        self._slots: deque[Slot] = deque()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._slots.clear()
        if self._file is not None:
            self._file.close()

    @property
    def far(self) -> bool:
        return self.nbytes > self.room

    def put(self, pixels: Tensor) -> None:
        """One more frame, (n, c).

        Raises:
            MemoryBudgetError: the clip needs a file, and the disk has no room for it.
        """
        self.pixels, self.nbytes = len(pixels), self.frames * pixels.nbytes
        self._slots.append(self._slot(pixels))

    def read(self, start: int, stop: int) -> Tensor:
        """These pixels of every frame, (f, stop - start, c), as a copy."""
        return torch.stack([slot.read(start, stop) for slot in self._slots])

    def frame(self, number: int) -> Tensor:
        """One frame, (n, c)."""
        return self._slots[number].read(0, self.pixels)

    def write(self, start: int, pixels: Tensor) -> None:
        """Puts (f, m, c) in the place of the pixels from `start` on."""
        for slot, frame in zip(self._slots, pixels, strict=True):
            slot.write(start, frame)

    def take(self, some: int = 1) -> Iterator[Tensor]:
        """The frames, `some` at a time, (k, n, c); they have left the shelf when they come."""
        while self._slots:
            taken = [self._slots.popleft() for _ in range(min(some, len(self._slots)))]
            frames = [slot.read(0, self.pixels) for slot in taken]
            del taken
            yield frames.pop()[None] if len(frames) == 1 else torch.stack(frames)

    def _slot(self, pixels: Tensor) -> Slot:
        if not self.far:
            return Here(pixels)
        if pixels.is_meta:
            return Nowhere(pixels)
        if kind_of(pixels) != "cpu":
            return Host(pixels)
        if self._file is None:
            self._file = _file(self.nbytes)
        return Disk(pixels, self._file, len(self._slots) * pixels.nbytes)


def _file(size: int) -> IO[bytes]:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MemoryBudgetError(
            f"Decoding with little memory puts {size / 1e9:.1f} GB into a temporary file and {folder} has "
            f"{free / 1e9:.1f} GB free; set TMPDIR to a folder with more, or decode fewer or smaller frames."
        )
    return tempfile.TemporaryFile()

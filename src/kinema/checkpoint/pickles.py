"""Reads what `torch.save` wrote, new archives and old files alike, mapped, and without running anything in them."""

from __future__ import annotations

import io
import zipfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import Stored, Weights
from .pickle_machine import Located, Machine, Refused

LONGEST_PROGRAM = 256 * 2**20  # bytes of pickle, tensors not counted
MOST_ENTRIES = 300_000
_MAGIC = 0x1950A86A20F9469CFC6C  # opens a file of torch < 1.6

# A state dict may lie inside one of these, beside the trainer's own notes.
WRAPPERS = ("state_dict", "model_state_dict", "controlnet", "model", "module", "params_ema", "params")


class _Bounded(io.BufferedReader):
    """A file that does not promise memory for more bytes than it has."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, Path(self.name).stat().st_size - self.tell()) if size and size > 4096 else size
        return super().read(min(size, left) if size and left is not None else size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(2**20 if size is None or size < 0 else size)


_MALFORMED = (ValueError, IndexError, KeyError, TypeError, ArithmeticError, EOFError, MemoryError, RecursionError)


def open_pickled(path: Path) -> Weights:
    """The tensors of a `.bin`, `.pth`, `.pt` or `.ckpt` file, mapped.

    Raises:
        CheckpointError: it is truncated or malformed, or asks for anything but tensors; nothing of it has run.
    """
    try:
        content, place = _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)
        found, notes = _tensors(content)
        return Weights(path, {name: place(tensor) for name, tensor in found.items()}, notes)
    except Refused as error:
        raise CheckpointError(
            f"{path} {error}: it was not read, and nothing in it ran; get the weights as safetensors."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        ArithmeticError,
        EOFError,
        MemoryError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{path} is truncated or no file of tensors ({error}); download it again.") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path} is a damaged archive ({error}); download it again.") from error


Place = Callable[[Located], Stored]


def _zipped(path: Path) -> tuple[Any, Place]:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2] or info.filename: info for info in archive.infolist()}
        if any(name.startswith("code/") for name in entries):
            raise Refused("is a TorchScript program, not weights")
        for info in entries.values():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
                raise Refused(f"has the compressed or encrypted entry {info.filename!r}, which torch never writes")
        if "data.pkl" not in entries:
            raise Refused("is an archive without data.pkl, so nothing torch wrote")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise Refused("is written for a big-endian machine")
        if entries["data.pkl"].file_size > LONGEST_PROGRAM:
            raise Refused("has a pickle far larger than any state dict needs")
        content = Machine().run(io.BytesIO(archive.read(entries["data.pkl"])))
        starts: dict[str, int] = {}

        def place(tensor: Located) -> Stored:
            key = tensor.storage.key
            info = entries.get(f"data/{key}")
            if info is None or tensor.storage.numel * tensor.storage.dtype.itemsize > info.file_size:
                raise Refused(f"lacks the data of storage {key!r}")
            if key not in starts:
                starts[key] = _behind_local_header(path, info)
            if starts[key] + info.file_size > size:
                raise Refused(f"is truncated in storage {key!r}")
            return tensor.at(starts[key])

    return content, place


def _behind_local_header(path: Path, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise Refused(f"has no header for {info.filename!r}")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + lengths


def _legacy(path: Path) -> tuple[Any, Place]:
    """torch < 1.6: four pickles, the list of storages, then each storage's length and numbers."""
    size = path.stat().st_size
    with _Bounded(io.FileIO(path)) as file:
        if Machine().run(file) != _MAGIC:
            raise Refused("is a pickle, but not one torch wrote")
        Machine().run(file)  # the protocol's version
        system = Machine().run(file)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise Refused("is written for a big-endian machine")
        machine = Machine()
        content = machine.run(file)
        keys = [str(key) for key in Machine().run(file)]
        base = file.tell()
    starts: dict[str, int] = {}
    with path.open("rb") as data:
        for key in keys:
            data.seek(base)
            numel = int.from_bytes(data.read(8), "little")
            starts[key] = base + 8
            if key not in machine.storages:
                raise Refused("lists a storage that nothing uses")
            base += 8 + numel * machine.storages[key].dtype.itemsize
            if base > size:
                raise Refused(f"is truncated in storage {key!r}")

    def place(tensor: Located) -> Stored:
        stored = tensor.at(starts[tensor.storage.key])
        if stored.start + stored.extent > size:
            raise Refused("describes a tensor beyond its end")
        return stored

    return content, place


def _tensors(content: Any) -> tuple[dict[str, Located], dict[str, Any]]:
    """The tensors by name, and the plain values beside them."""
    found: dict[str, Located] = {}
    notes: dict[str, Any] = {}
    if isinstance(content, Mapping):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping) and content[k]), None)
        if inner is not None and not any(isinstance(v, Located) for v in content.values()):
            notes = {str(k): v for k, v in content.items() if isinstance(v, (str, int, float))}
            found, more = _tensors(inner)
            return found, notes | more
    queue, seen = deque([("", content, 0)]), 0
    while queue:
        name, value, depth = queue.popleft()
        seen += 1
        if isinstance(value, Located):
            found[name or "tensor"] = value
        elif isinstance(value, (str, int, float)) and depth < 2:
            notes[name] = value
        elif isinstance(value, (Mapping, list, tuple)) and depth < 4:
            if seen + len(queue) + len(value) > MOST_ENTRIES:
                raise Refused("holds more entries than any model has")
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            queue.extend((f"{name}.{key}" if name else str(key), inner, depth + 1) for key, inner in items)
    if not found:
        raise Refused("holds no tensors")
    return found, notes

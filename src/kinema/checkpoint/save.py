"""From a module to published files: the same rules reversed, streamed to disk, visible only when whole."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from .dtypes import SAFETENSORS_NAMES
from .folder import CONFIG
from .keys import State, write

STEM = "diffusion_pytorch_model"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    variant: str | None = None,
    safe_serialization: bool = True,
    max_shard_size: int | str = "10GB",
) -> None:
    """Writes config.json and the weights under their published names, readable by diffusers.

    Each file appears whole or not at all; shards of an earlier save that no longer belong are removed last.

    Raises:
        CheckpointError: the folder cannot be written (no permission, disk full).
        InputError: max_shard_size is not a size.
    """
    limit = parse_size(max_shard_size)
    folder = Path(folder)
    state = write(model.state_dict(), getattr(model, "KEYS", ()))
    config = {"_class_name": type(model).__name__, **_config(model)}
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        kept = write_weights(folder, STEM, state, variant, safe_serialization, limit)
        write_json(folder / CONFIG, config)
        _remove_stale(folder, STEM, variant, safe_serialization, kept)


def _config(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", {})
    return dict(config.write() if hasattr(config, "write") else config)


def write_weights(
    folder: Path, stem: str, state: Mapping[str, Tensor], variant: str | None, safe: bool, limit: int
) -> set[str]:
    """Writes one file, or several and their index, each no larger than `limit` bytes; returns the names written."""
    suffix = ".safetensors" if safe else ".bin"
    put: Callable[[Path, Mapping[str, Tensor]], None] = write_safetensors if safe else _write_pickled
    stem, dotted = (f"{stem}.{variant}", f".{variant}") if variant else (stem, "")
    shards = _shards(state, limit)
    if len(shards) == 1:
        put(folder / f"{stem}{suffix}", shards[0])
        return {f"{stem}{suffix}"}
    names: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"{stem}-{i:05d}-of-{len(shards):05d}{suffix}"
        put(folder / file, shard)
        names |= dict.fromkeys(shard, file)
    total = sum(x.numel() * x.element_size() for x in state.values())
    index = f"{stem.removesuffix(dotted)}{suffix}.index{dotted}.json"
    write_json(folder / index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))})
    return {*names.values(), index}


def _shards(state: Mapping[str, Tensor], limit: int) -> list[State]:
    shards: list[State] = [{}]
    room = limit
    for name, x in state.items():
        size = x.numel() * x.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = x
        room -= size
    return shards


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors one after another, so that no more than one is copied at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end, order = 0, sorted(state, key=lambda name: (-state[name].element_size(), name))  # widest first: all aligned
    for name in order:
        x, start = state[name], end
        if x.dtype not in SAFETENSORS_NAMES:
            raise CheckpointError(f"{name} is {x.dtype}, which safetensors cannot hold; convert it first.")
        end += x.numel() * x.element_size()
        header[name] = {"dtype": SAFETENSORS_NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            if state[name].numel():
                flat = state[name].detach().cpu().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)


def _write_pickled(path: Path, state: Mapping[str, Tensor]) -> None:
    with whole_file(path) as file:
        torch.save({name: x.detach().cpu().contiguous() for name, x in state.items()}, file)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes JSON the way published folders do: two spaces, one newline at the end."""
    with whole_file(path) as file:
        file.write((json.dumps(data, indent=2) + "\n").encode())


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only once all of it is on the disk; on any error nothing is left."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def readable_errors(folder: Path) -> Iterator[None]:
    """Turns the system's complaints about a folder into one sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error):  # torch.save reports a full disk this way
            raise
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{folder} cannot be written: {why}; nothing half-written was left.") from error


def _remove_stale(folder: Path, stem: str, variant: str | None, safe: bool, kept: set[str]) -> None:
    suffix, dotted = (r"\.safetensors" if safe else r"\.bin"), rf"\.{re.escape(variant)}" if variant else ""
    shard = r"-\d{5}-of-\d{5}"
    mine = re.compile(rf"{stem}({dotted}({shard})?{suffix}|{shard}{dotted}{suffix}|{suffix}\.index{dotted}\.json)")
    for path in folder.iterdir():
        if mine.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def parse_size(size: int | str) -> int:
    """Bytes of "10GB", "500MB", "2GiB" or a number.

    Raises:
        InputError: it is not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(size).upper())
    unit = match[2] if match else ""
    unit += "B" * (unit in ("K", "M", "G", "KI", "MI", "GI"))
    bytes_ = int(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if bytes_ < 1:
        raise InputError(f"max_shard_size is {size!r}; give bytes, or a text such as '10GB' or '500MB'.")
    return bytes_

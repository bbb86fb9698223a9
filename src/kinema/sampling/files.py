"""Scheduler configurations where they are kept: `scheduler_config.json`, in a folder or on the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

NAME = "scheduler_config.json"


def read(place: str | os.PathLike[str], subfolder: str | None, hub: dict[str, Any]) -> dict[str, Any]:
    """The configuration found at a path (file, folder, or model folder with `scheduler/`) or under a hub id.

    Raises:
        CheckpointError: there is none, or it is not a JSON object.
    """
    file = _local(Path(place), subfolder) if Path(place).exists() else _remote(str(place), subfolder, hub)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}); fetch the file again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds {type(data).__name__}, not an object of options; fetch the file again.")
    return data


def write(folder: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Saves a configuration under its published name, whole or not at all."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        partial = path / f"{NAME}.{os.getpid()}.part"
        partial.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(path / NAME)
    except OSError as error:
        raise CheckpointError(
            f"{path / NAME} cannot be written ({error}); choose a folder you may write to."
        ) from error


def _local(path: Path, subfolder: str | None) -> Path:
    if path.is_file():
        return path
    places = [path / subfolder / NAME] if subfolder else [path / NAME, path / "scheduler" / NAME]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise CheckpointError(f"No {NAME} at {' or '.join(map(str, places))}; name a folder that holds one.")
    return found


def _remote(name: str, subfolder: str | None, hub: dict[str, Any]) -> Path:
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"{name} does not exist; name a folder that holds {NAME}, or a model on the hub.")
    from huggingface_hub import hf_hub_download

    last: Exception | None = None
    for inside in [subfolder] if subfolder else [None, "scheduler"]:
        try:
            return Path(hf_hub_download(name, NAME, subfolder=inside, **hub))
        except Exception as error:  # the hub's own many kinds of errors, told in one sentence
            last = error
    raise CheckpointError(
        f"{name} is no folder, and the hub gave no {NAME} for it ({last}); check the name or go online."
    )

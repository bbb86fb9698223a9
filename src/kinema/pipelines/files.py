"""Single files of adapters, wherever they are: on this disk, or in a repository of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.files import Weights
from ..checkpoint.hub import local_folder
from ..errors import CheckpointError

_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def weights_file(
    path_or_id: str | Path,
    weight_name: str | None = None,
    subfolder: str | None = None,
    usual: Sequence[str] = (),
    **hub: Any,
) -> Path:
    """The file itself, or the one in a folder or hub repository: `weight_name`, a usual name, or the only one there.

    Raises:
        CheckpointError: there is none, or several and no name.
    """
    path = Path(path_or_id).expanduser()
    if path.is_file():
        return path
    folder = local_folder(path_or_id, subfolder=subfolder, weight_name=weight_name, **hub)
    folder = folder / subfolder if subfolder else folder
    if weight_name is not None:
        if not (folder / weight_name).is_file():
            raise CheckpointError(f"{folder} has no file {weight_name}.")
        return folder / weight_name
    for name in usual:
        if (folder / name).is_file():
            return folder / name
    for ending in _ENDINGS:
        found = sorted(p for p in folder.glob(f"*{ending}") if p.is_file())
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(p.name for p in found[:6])
            raise CheckpointError(f"{folder} has several files of weights ({names}); say which with weight_name=.")
    raise CheckpointError(f"{folder} holds no weights ({', '.join(_ENDINGS)}).")


def nested(weights: Weights) -> dict[str, Any]:
    """The tensors and notes of a file of textual inversion, nested as they were saved."""
    content: dict[str, Any] = {**weights.metadata}
    for name, tensor in weights.items():
        outer, _, inner = name.partition(".")
        if outer == "string_to_param":
            content[outer] = {inner or "*": tensor}
        else:
            content[name] = tensor
    if "string_to_param" in content:
        return {k: content[k] for k in ("string_to_param", "name") if k in content}
    return {k: v for k, v in content.items() if k in weights}

"""Single files wherever they are: on this disk, in a folder, in a repository of the hub, behind an address there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .hub import local_folder

_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

# An address of a file, as browsers and download links have it.
_ADDRESS = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/(?:blob|resolve)/([^/]+)/([^?#]+)"
)


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


def original_file(link_or_path: str | Path, **hub: Any) -> Path:
    """A file on this disk: the path itself, or the file of an address on the hub.

    Raises:
        CheckpointError: there is no such file, here or there.
    """
    if address := _ADDRESS.fullmatch(str(link_or_path)):
        repository, revision, name = address.groups()
        return weights_file(repository, name, **{**hub, "revision": hub.get("revision") or revision})
    path = Path(link_or_path).expanduser()
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a file, or load the folder with from_pretrained.")
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; give a file, or its address (https://huggingface.co/owner/name/blob/main/file)."
        )
    return path

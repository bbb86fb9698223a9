"""The one place that asks the network: from an id to a folder on this disk."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError
from .folder import present
from .wanted import Wanted

Resolver = Callable[[str], Path | None]

# What ships inside the package, by the names it answers to.
BOX = {
    "toy": "toys/weights/text-to-video",
    "kinema/toy-text-to-video": "toys/weights/text-to-video",
    "toy-svd": "toys/weights/image-to-video",
    "kinema/toy-image-to-video": "toys/weights/image-to-video",
    "toy-i2vgen": "toys/weights/i2vgen",
    "kinema/toy-i2vgen": "toys/weights/i2vgen",
    "toy-animatediff": "toys/weights/animatediff",
    "kinema/toy-animatediff": "toys/weights/animatediff",
}


OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "use_safetensors")


def hub_options(given: Iterable[str], who: str) -> None:
    """Makes sure that these are names of arguments of `local_folder`, whether or not a path needs them.

    Raises:
        InputError: one is not.
    """
    for name in given:
        if name not in (*OPTIONS, "weight_name"):
            raise InputError(f"{who} has no argument {name}; of those for the hub it takes {', '.join(OPTIONS)}.")


def box(name: str) -> Path | None:
    """The folder of a model that ships with kinema, or None."""
    return Path(__file__).parents[1] / BOX[name] if name in BOX else None


def local_folder(
    path_or_id: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    weight_name: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    resolver: Resolver = box,
) -> Path:
    """A folder on this disk: the path itself, a name `resolver` knows, or a snapshot of a hub repository.

    Only the chosen component, variant and kind of weights are downloaded; of an adapter's repository, `weight_name`.

    Raises:
        CheckpointError: there is no such thing, here or there; the message says what to do.
    """
    name = str(path_or_id)
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; a folder in the published layout is expected; see from_single_file.")
    if found := resolver(name):
        return found
    if isinstance(path_or_id, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise CheckpointError(f"{path} does not exist; {present(path.parent)}.")
    return _snapshot(
        name,
        wanted=Wanted(subfolder, variant, use_safetensors, weight_name),
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only or offline(),
        force_download=force_download,
    )


def offline() -> bool:
    """Whether the environment forbids the network (`HF_HUB_OFFLINE`)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _snapshot(
    name: str,
    *,
    wanted: Wanted,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    import huggingface_hub as hub

    same: dict[str, Any] = {"revision": revision, "token": token}
    try:
        if local_files_only:
            return _cached(name, cache_dir, same)
        listed = hub.HfApi().model_info(name, **same)  # asks once; the hub's other ways to list retry for half a minute
        names = [file.rfilename for file in listed.siblings or ()]
        chosen = wanted.of(names)
        if not chosen:
            raise CheckpointError(f"{name!r} has nothing to load{wanted.told(names)}.")
        folder = hub.snapshot_download(
            name, cache_dir=cache_dir, force_download=force_download, allow_patterns=chosen, **same
        )
        return Path(folder)
    except CheckpointError:
        raise
    except Exception as error:  # of huggingface_hub, httpx, requests and the operating system
        if _is_network(error):
            with contextlib.suppress(Exception):
                return _cached(name, cache_dir, same)
        raise CheckpointError(_sentence(name, revision, error, local_files_only)) from error


def _cached(name: str, cache_dir: str | Path | None, same: dict[str, Any]) -> Path:
    """What is in the cache of a repository. Only part of it ever is; what is missing of that, the reader will name."""
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(name, cache_dir=cache_dir, local_files_only=True, **same))
    except FileNotFoundError as error:
        if partial := getattr(error, "snapshot_path", None):
            return Path(partial)
        raise


def _is_network(error: Exception) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & {"ConnectionError", "ConnectError", "TimeoutException", "Timeout", "OfflineModeIsEnabled"})


def _sentence(name: str, revision: str | None, error: Exception, local: bool) -> str:
    names = {cls.__name__ for cls in type(error).__mro__}
    if local:
        why = "is not in the cache and the network may not be asked; download it once without local_files_only"
        return f"{name!r} {why} and HF_HUB_OFFLINE, or give a folder."
    if "GatedRepoError" in names:
        return f"{name!r} is gated: accept its terms at https://huggingface.co/{name}, then give token=..."
    if "RevisionNotFoundError" in names:
        return f"{name!r} has no revision {revision!r}; look at https://huggingface.co/{name}/tree/main."
    if "RepositoryNotFoundError" in names:
        return f"{name!r} is neither a folder here nor a repository on the hub that this token may see; check the name."
    if _is_network(error):
        return f"{name!r} is not in the cache and the hub cannot be reached; check the network, or give a folder."
    return f"{name!r} cannot be fetched from the hub: {str(error).splitlines()[0]}."

"""The published folder layout: which files of a folder hold the weights that were asked for."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

log = logging.getLogger("kinema")

CONFIG = "config.json"
INDEX = "model_index.json"
_SAFE = (("diffusion_pytorch_model", ".safetensors"), ("model", ".safetensors"))
_PICKLED = (("diffusion_pytorch_model", ".bin"), ("pytorch_model", ".bin"))
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<a>[\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.(?P<b>[\w-]+))?"
    r"\.(safetensors|bin)$"
)


@dataclass(frozen=True)
class Located:
    """The files that together hold one component's weights."""

    files: tuple[Path, ...]
    variant: str | None
    names: dict[str, str] | None = None  # tensor name -> file name, where an index says so


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; {present(path.parent)}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(data).__name__}.")
    return data


# Folders in the box that leave out what a neighbour has, byte for byte; a pipeline that is saved is whole again.
_LEFT_OUT = {"animatediff": "text-to-video"}
_BOX = Path(__file__).parents[1] / "toys" / "weights"


def within(folder: Path, name: str) -> Path:
    """The folder of a pipeline's part: its own, or for models in the box a neighbour's where it has none."""
    path = folder / name
    neighbour = _LEFT_OUT.get(folder.name)
    if neighbour is None or path.is_dir() or folder.resolve().parent != _BOX.resolve():
        return path
    return _BOX / neighbour / name


def component(folder: str | Path, subfolder: str | None = None) -> Path:
    """The folder of one model.

    Raises:
        CheckpointError: it does not exist; the message says what does.
    """
    path = within(Path(folder), subfolder) if subfolder else Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; {present(path.parent)}.")
    return path


def present(folder: Path) -> str:
    """`in folder there are: a, b`, for messages."""
    if not folder.is_dir():
        return f"{folder} does not exist either"
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"in {folder} there are: {', '.join(names[:12])}{more}" if names else f"{folder} is empty"


def variants(folder: Path) -> set[str | None]:
    """The variants (`None` is the plain one) of which a component's folder holds weights."""
    found: set[str | None] = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _WEIGHTS.match(path.name):
            found.add(match["a"] or match["b"])
        elif match := re.match(r".+\.(?:safetensors|bin)\.index(?:\.([\w-]+))?\.json$", path.name):
            found.add(match[1])
    return found


def find(folder: Path, variant: str | None = None, use_safetensors: bool | None = None) -> Located:
    """The weights of the component in `folder`: safetensors before pickles, whole files before sharded ones.

    Where the pipeline around it has this variant of other components only, this one is taken plain, as published
    mixed folders mean it.

    Raises:
        CheckpointError: there is no such file, or shards are missing; the message says what there is.
    """
    kinds = _SAFE * (use_safetensors is not False) + _PICKLED * (use_safetensors is not True)
    for stem, suffix in kinds:
        if located := _whole(folder, stem, suffix, variant) or _sharded(folder, stem, suffix, variant):
            return located
    if variant is not None and _mixed(folder, variant):
        log.info("%s has no %s variant while others of its pipeline have: taking the plain one", folder, variant)
        return find(folder, None, use_safetensors)
    raise CheckpointError(_absent(folder, variant, use_safetensors))


def _whole(folder: Path, stem: str, suffix: str, variant: str | None) -> Located | None:
    path = folder / f"{stem}{'.' + variant if variant else ''}{suffix}"
    return Located((path,), variant) if path.is_file() else None


def _sharded(folder: Path, stem: str, suffix: str, variant: str | None) -> Located | None:
    index = folder / f"{stem}{suffix}.index{'.' + variant if variant else ''}.json"
    if not index.is_file():
        return None
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{index} has no usable weight_map; download it again.")
    for name in set(names.values()):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names the file {name!r}, which is not one beside it.")
    files = tuple(folder / name for name in sorted(set(names.values())))
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{index} names {', '.join(missing[:4])}, which is not there; {present(folder)}.")
    return Located(files, variant, names)


def _mixed(folder: Path, variant: str) -> bool:
    pipeline = folder.parent
    return (pipeline / INDEX).is_file() and any(
        variant in variants(p) for p in pipeline.iterdir() if p.is_dir() and p != folder
    )


def _absent(folder: Path, variant: str | None, use_safetensors: bool | None) -> str:
    there = variants(folder)
    kind = {True: "safetensors ", False: ".bin ", None: ""}[use_safetensors]
    if variant not in there and there:
        asked = f"no {variant!r} variant of the weights" if variant else "no plain weights"
        names = " and ".join(sorted("the plain ones (variant=None)" if v is None else f"variant={v!r}" for v in there))
        return f"There are {asked} in {folder}; these are there: {names}."
    return f"There are no {kind}weights in {folder}; {present(folder)}."

"""From a LoRA file of any kind to what it adds to each published weight."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import CheckpointError
from ..finite import finite
from .files import Weights, open_weights
from .fill import some
from .folder import present, read_json
from .kinds import kind_of
from .lora_delta import Delta
from .lora_names import PEFT, Entry, take_apart
from .lora_products import product

if TYPE_CHECKING:
    from .lora import Network

log = logging.getLogger("kinema")

FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)


CONFIG = "adapter_config.json"  # beside files that peft writes; it alone says their alpha


@dataclass(frozen=True)
class Alphas:
    """What a configuration beside the tensors says of their scale, by part ("" where it does not say)."""

    by_part: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def scale(self, part: str, module: str, rank: int, alpha: float | None) -> float:
        """alpha / rank; without an alpha anywhere, 1."""
        config = self.by_part.get(part) or self.by_part.get("") or {}
        if alpha is None:
            patterns = config.get("alpha_pattern") or {}
            known = (value for name, value in patterns.items() if module == name or module.endswith(f".{name}"))
            alpha = next(known, config.get("lora_alpha", rank))
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_lora(source: Any, networks: Mapping[str, Network]) -> dict[str, dict[str, Delta]]:
    """What a LoRA adds: part -> published key -> delta, all of it checked against the networks.

    Args:
        source: a file, a folder with one, or a mapping of its tensors.

    Raises:
        CheckpointError: it cannot be read, is no LoRA, or names or shapes are not those of the networks.
    """
    tensors, alphas, where = _opened(source)
    groups: dict[tuple[str, str], dict[str, Tensor]] = {}
    named: dict[tuple[str, str], Entry] = {}
    strange = []
    for key in tensors:
        entry = take_apart(key)
        target = _target(entry, networks) if entry else None
        if entry is None or target is None:
            strange.append(key)
        else:
            groups.setdefault(target, {})[entry.role] = tensors[key]
            named[target] = entry
    if len(strange) == len(tensors) and not any(take_apart(key) for key in strange):
        kind, _ = kind_of({key: tuple(x.shape) for key, x in tensors.items()})
        what = f"it is a file of the kind {kind!r}" if kind != "unknown" else f"it has {some(strange) or 'nothing'}"
        raise CheckpointError(f"{where} is no LoRA: {what}.")
    if any(".motion_modules." in key for _, key in groups):
        strange = _without_middle(strange, where)
    if strange:
        there = ", ".join(networks)
        raise CheckpointError(
            f"{where} does not fit: {some(strange)} {'has' if len(strange) == 1 else 'have'} no counterpart "
            f"in {there} ({len(tensors) - len(strange)} of {len(tensors)} entries fit); it is for {_others(tensors)}."
        )
    result: dict[str, dict[str, Delta]] = {}
    for (part, key), roles in groups.items():
        delta = _delta(roles, alphas, part, key, named[part, key].module, where)
        if misfit := delta.misfit(networks[part].shapes[key]):
            raise CheckpointError(f"{where} does not fit {part}: {key} {misfit}; it is for another model.")
        result.setdefault(part, {})[key] = delta
    return result


def _without_middle(strange: list[str], where: str) -> list[str]:
    """Motion LoRAs of v2 also change the motion in the middle, which v1 and v3 do not have."""
    middle = [key for key in strange if re.search(r"mid_block[._].*motion_modules", key)]
    if middle:
        log.info("%s changes motion in the middle of the U-Net, where this one has none; that part is left out", where)
    return [key for key in strange if key not in middle]


def _others(tensors: Mapping[str, Tensor]) -> str:
    """The models that a LoRA looks made for."""
    _, fits = kind_of({key: tuple(x.shape) for key, x in tensors.items()})
    return "another model" + f" ({fits})" * bool(fits and "unknown" not in fits)


def _target(entry: Entry, networks: Mapping[str, Network]) -> tuple[str, str] | None:
    for part in networks if entry.part is None else (entry.part,):
        if part in networks and (key := networks[part].names.find(entry)):
            return part, key
    return None


def _delta(roles: Mapping[str, Tensor], alphas: Alphas, part: str, key: str, module: str, where: str) -> Delta:
    made = product(roles)
    if isinstance(made, str):
        raise CheckpointError(f"{where} has no {made} matrix for {key}; the file is incomplete.")
    if not all(finite(x) for x in roles.values()):
        raise CheckpointError(f"{where}: the LoRA of {key} holds NaN or infinite numbers; get another copy.")
    alpha = float(roles["alpha"]) if "alpha" in roles else None
    scale = 1.0 if made.rank is None else alphas.scale(part, module, made.rank, alpha)
    return Delta(made, scale, roles.get("magnitude"))


def _opened(source: Any) -> tuple[Mapping[str, Tensor], Alphas, str]:
    if isinstance(source, Mapping):
        return source, Alphas(), "The LoRA"
    path = Path(source)
    if path.is_dir():
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise CheckpointError(f"There is no LoRA named {FILES[0]} or {FILES[1]} in {path}; {present(path)}.")
        path = file
    weights = open_weights(path)
    return weights, _alphas(path, weights), str(path)


def _alphas(path: Path, weights: Weights) -> Alphas:
    beside = path.parent / CONFIG
    if beside.is_file() and (path.stem == "adapter_model" or any(key.startswith(PEFT) for key in weights)):
        return Alphas({"": read_json(beside)})
    try:
        notes = json.loads(weights.metadata.get("lora_adapter_metadata", "{}"))
        by_part: dict[str, dict[str, Any]] = {}
        for name, value in notes.items():
            part, _, what = name.rpartition(".")  # without a part where one network was saved alone
            by_part.setdefault(part, {})[what] = value
        return Alphas(by_part)
    except (ValueError, TypeError, AttributeError):
        raise CheckpointError(f"{path} has a lora_adapter_metadata that is not JSON; get another copy.") from None

"""A CLIP model from its published configuration and tensors, strictly and without a copy: what both halves share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..finite import finite

M = TypeVar("M", bound=nn.Module)


def config_from(cls: type[Any], config: Mapping[str, Any], kinds: tuple[str, str], part: str, what: str) -> Any:
    """One half of CLIP's configuration; what its class does not know is carried along.

    Args:
        cls: transformers' configuration class.
        config: the published `config.json`, of this half or of a whole CLIP model.
        kinds: the `model_type` of a whole model, and of this half.
        part: the key of this half in a whole model's configuration.
        what: how to call it ("text encoder").

    Raises:
        CheckpointError: it describes something else.
    """
    kind = config.get("model_type", kinds[1])
    if kind not in kinds:
        raise CheckpointError(
            f"The {what}'s config.json says model_type {kind!r}; only CLIP's {what.split()[0]} model is read."
        )
    fields = dict(config.get(part) or {}) if kind == kinds[0] else dict(config)
    fields.pop("model_type", None)
    try:
        return cls.from_dict(fields)
    except Exception as problem:  # a checked dataclass in new versions, plain Python in old ones
        raise CheckpointError(f"The {what}'s config.json cannot be used: {problem}") from problem


def empty(cls: Callable[[Any], M], config: Any, what: str) -> M:
    """The model without memory for its weights."""
    try:
        with torch.device("meta"):
            return cls(config)
    except (KeyError, ValueError, TypeError, ZeroDivisionError, RuntimeError) as problem:
        raise CheckpointError(f"The {what}'s config.json describes no model: {problem}") from problem


def assembled(
    model: M,
    state: Mapping[str, Tensor],
    *,
    what: str,
    prefix: str,
    beside: tuple[str, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> M:
    """The empty model holding the tensors of `state`, in eval mode with gradients off.

    Args:
        prefix: what keys may begin with or not.
        beside: how keys begin that belong to something else, without the prefix.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape or not finite.
    """
    wanted = model.state_dict()
    names = {key.removeprefix(prefix) for key in wanted}
    given = {key.removeprefix(prefix): key for key in state}
    missing = [key for key in wanted if key.removeprefix(prefix) not in given]
    odd = [key for name, key in given.items() if name not in names and not name.startswith(beside)]
    if missing or odd:
        raise CheckpointError(
            f"The {what}'s weights do not fit its config.json: "
            f"{_few('missing', missing)}{_few('unexpected', odd)}check that both come from the same model."
        )
    tensors: dict[str, Tensor] = {}
    for key, like in wanted.items():
        tensor = state[given[key.removeprefix(prefix)]]
        if tensor.shape != like.shape:
            raise CheckpointError(
                f"The {what}'s {key} is {tuple(tensor.shape)} in the file and {tuple(like.shape)} by its "
                "config.json; check that both come from the same model."
            )
        tensors[key] = tensor.to(device=device, dtype=dtype)
        if not finite(tensors[key]):
            raise CheckpointError(
                f"The {what}'s {key} holds NaN or infinite numbers{f' as {dtype}' if dtype else ''}; "
                "get another copy of the file, or load it as float32."
            )
    return filled(model, tensors, device).requires_grad_(False)


def filled(model: M, tensors: Mapping[str, Tensor], device: torch.device | str) -> M:
    """The empty model with every tensor in its place, and the positions counted, which no file holds."""
    model.load_state_dict(tensors, strict=True, assign=True)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                _count(module, name, buffer, device)
    return model.eval()


def _count(module: nn.Module, name: str, buffer: Tensor, device: torch.device | str) -> None:
    if name != "position_ids":
        raise CheckpointError(f"This version of transformers expects {name!r} in CLIP, which kinema does not know.")
    setattr(module, name, torch.arange(buffer.shape[-1], device=device).expand(1, -1))


def _few(what: str, keys: list[str]) -> str:
    """`what` and the first of the keys, or nothing where there are none."""
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(keys[:3])}{more}; "

"""From published files to a model and back; what every model class of a published family can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import nn

from ..errors import CheckpointError, InputError
from .dtypes import to_dtype
from .files import read_ahead
from .fill import build, fill, gathered
from .folder import CONFIG, component, find, read_json
from .hub import hub_options, local_folder
from .save import save_model

__all__ = ["Pretrained", "build", "load_model", "save_model"]

M = TypeVar("M", bound=nn.Module)


def load_model(
    cls: type[M],
    folder: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: Any = None,
    device: str | torch.device = "cpu",
    use_safetensors: bool | None = None,
    check_finite: bool = True,
) -> M:
    """A model from its folder (config.json and weights), in eval mode and without gradients.

    Weights stay mapped from the file where dtype and device allow; else each is cast and moved alone.

    Args:
        dtype: the floating-point format to have; None keeps each tensor's own.
        check_finite: refuse weights with NaN or infinity (it reads every weight once).

    Raises:
        CheckpointError: a file is missing or broken, the weights are not those of `cls`, or a number is not finite.
        InputError: dtype is not known.
    """
    wanted = to_dtype(dtype)
    path = component(folder, subfolder)
    config = read_json(path / CONFIG)
    located = find(path, variant, use_safetensors)
    _check_class(cls, config, path)
    model = build(cls, config, str(path / CONFIG))
    state = gathered(located.files, located.names)
    return fill(model, state, where=str(path), dtype=wanted, device=device, check_finite=check_finite)


def _check_class(cls: type[nn.Module], config: Mapping[str, Any], path: Path) -> None:
    name = config.get("_class_name")
    if isinstance(name, str) and name not in {base.__name__ for base in cls.__mro__}:
        raise CheckpointError(f"{path} holds a {name}, not a {cls.__name__}; load it with that class.")


def _one_dtype(*names: Any) -> Any:
    """What was said under one of the names of the same argument."""
    said = [name for name in names if name is not None]
    if len(said) > 1:
        raise InputError("dtype, torch_dtype and mindspore_dtype are the same argument; give only dtype.")
    return said[0] if said else None


def _prevailing(state: Mapping[str, torch.Tensor]) -> torch.dtype | None:
    """The floating-point format of most tensors."""
    counts = Counter(x.dtype for x in state.values() if x.is_floating_point())
    return counts.most_common(1)[0][0] if counts else None


class Pretrained(nn.Module):
    """A model with a `config_class`, an `__init__(config)` and, where keys differ from the published ones, `KEYS`."""

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        mindspore_dtype: Any = None,
        device: str | torch.device = "cpu",
        use_safetensors: bool | None = None,
        **hub: Any,
    ) -> Self:
        """Loads a folder, a name of the box, or a hub id, in eval mode.

        Args:
            dtype: the number format to load in; `torch_dtype` and `mindspore_dtype` are its older names.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`: see `hub.local_folder`.

        Raises:
            CheckpointError: it is not there, broken, or not of this class.
            InputError: an argument is not known, or dtype is none.
        """
        hub.pop("low_cpu_mem_usage", None)  # it always is low
        hub_options(hub, f"{cls.__name__}.from_pretrained")
        wanted = _one_dtype(dtype, torch_dtype, mindspore_dtype)
        folder = local_folder(path_or_id, subfolder=subfolder, variant=variant, use_safetensors=use_safetensors, **hub)
        read_ahead(find(component(folder, subfolder), variant, use_safetensors).files)
        return load_model(
            cls,
            folder,
            subfolder=subfolder,
            variant=variant,
            dtype=wanted,
            device=device,
            use_safetensors=use_safetensors,
        )

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        config: str | Path | Mapping[str, Any] | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        mindspore_dtype: Any = None,
        device: str | torch.device = "cpu",
        **hub: Any,
    ) -> Self:
        """Loads one file as people share it (`mm_sd_v15_v2.ckpt`, a checkpoint of a model site), in eval mode.

        Its configuration is told from keys and shapes. `kinema inspect` says what a file is.

        Args:
            pretrained_model_link_or_path: a file, or its address on the hub.
            config: what no shape tells or tells wrongly: fields, a config.json or its folder.
            dtype: the number format to load in; by default the one most of the file's tensors have.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`: see `hub.local_folder`.

        Raises:
            CheckpointError: it is not there, broken, or not of this class; the message names what it is.
            InputError: an argument is not known, or dtype is none.
        """
        from .single import read_single
        from .sources import original_file

        hub_options(hub, f"{cls.__name__}.from_single_file")
        wanted = _one_dtype(dtype, torch_dtype, mindspore_dtype)
        found = read_single(cls.__name__, original_file(pretrained_model_link_or_path, **hub), config)
        model = build(cls, found.config, found.where)
        form = to_dtype(wanted) or _prevailing(found.state)
        return fill(model, found.state, where=found.where, dtype=form, device=device)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """A freshly initialised model from a configuration: our own, a dictionary, or another object's `.config`."""
        return cls(cls.config_class.read({**config, **overrides}, cls.__name__))  # type: ignore[attr-defined]

    @classmethod
    def without_weights(cls, config: Mapping[str, Any]) -> Self:
        """The model's shapes alone, without memory for parameters (for plans and inspections)."""
        return build(cls, config)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        variant: str | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Writes config.json and weights as published, readable by diffusers; see `save.save_model`."""
        save_model(self, folder, variant=variant, safe_serialization=safe_serialization, max_shard_size=max_shard_size)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the (first floating-point) weights."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the model has learnt."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

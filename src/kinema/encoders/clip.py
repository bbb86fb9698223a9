"""CLIP's text model and tokenizer from published files, through the public interface of `transformers` only."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError

if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# transformers writes keys with this prefix before 5.6 and without it since; files of both kinds are published.
_PREFIX = "text_model."

# What a file may hold beside the text model: the other half of CLIP, and a table old versions wrote out.
_BESIDE = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "embeddings.position_ids")


def load_tokenizer(folder: str | os.PathLike[str]) -> CLIPTokenizer:
    """The tokenizer of a published `tokenizer/` folder; nothing is asked of the network.

    Raises:
        CheckpointError: the folder holds no tokenizer that can be read.
    """
    from transformers import CLIPTokenizer

    names = os.listdir(folder) if os.path.isdir(folder) else []
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise CheckpointError(
            f"{os.fspath(folder)} holds no tokenizer; expected vocab.json and merges.txt, or tokenizer.json: "
            "name the folder that holds them."
        )
    try:
        return CLIPTokenizer.from_pretrained(os.fspath(folder), local_files_only=True)
    except Exception as problem:  # the library raises what its parts raise: JSON, Rust and type errors alike
        raise CheckpointError(
            f"The tokenizer in {os.fspath(folder)} cannot be read: {problem}; fetch it again."
        ) from problem


def text_encoder_from(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> CLIPTextModel:
    """CLIP's text model holding the tensors of `state`, in eval mode with gradients off.

    The model is built without memory and each tensor is put in its place as it is, so a mapped file in the wanted
    dtype is not copied, and nothing is initialised at random first.

    Args:
        config: the published `config.json` of the text model, or of a whole CLIP model.
        state: published keys, with or without the prefix `text_model.`; CLIP's vision half is left out.
        dtype: what to convert to; as stored by default.
        device: where the weights go.

    Raises:
        CheckpointError: the configuration is not CLIP's, or tensors are missing, left over, of another shape or not
            finite.
    """
    model = _empty(_config_from(config))
    wanted = model.state_dict()
    given = {_bare(key): key for key in state}
    missing = [key for key in wanted if _bare(key) not in given]
    odd = [k for b, k in given.items() if b not in {_bare(key) for key in wanted} and not b.startswith(_BESIDE)]
    if missing or odd:
        raise CheckpointError(
            "The text encoder's weights do not fit its config.json: "
            f"{_few('missing', missing)}{_few('unexpected', odd)}check that both come from the same model."
        )
    tensors: dict[str, Tensor] = {}
    for key, like in wanted.items():
        tensor = state[given[_bare(key)]]
        if tensor.shape != like.shape:
            raise CheckpointError(
                f"The text encoder's {key} is {tuple(tensor.shape)} in the file and {tuple(like.shape)} by its "
                "config.json; check that both come from the same model."
            )
        tensors[key] = tensor.to(device=device, dtype=dtype)
        if not bool(torch.stack(torch.aminmax(tensors[key])).isfinite().all()):
            raise CheckpointError(
                f"The text encoder's {key} holds NaN or infinite numbers{f' as {dtype}' if dtype else ''}; "
                "get another copy of the file, or load it as float32."
            )
    return _filled(model, tensors, device).requires_grad_(False)


def with_parts(model: CLIPTextModel, *, skip: int = 0, table: Tensor | None = None) -> CLIPTextModel:
    """A text model that shares `model`'s weights but leaves out its last layers or reads another token table.

    With fewer layers the model's own final norm follows the last one kept, which is what "clip skip" means. The
    result lives beside `model`, which does not change; it costs a few milliseconds and no memory but the table's.

    Args:
        skip: how many of the last layers to leave out, 0 to all of them.
        table: token embeddings, (tokens, d), to read instead of the model's own.

    Raises:
        InputError: there are not that many layers.
    """
    config = copy.deepcopy(model.config)
    if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip <= config.num_hidden_layers:
        raise InputError(
            f"clip_skip is {skip!r}; it must be a whole number of layers to leave out, 0 to {config.num_hidden_layers}."
        )
    config.num_hidden_layers -= skip
    tensors = dict(model.state_dict())
    if table is not None:
        own = model.get_input_embeddings().weight
        config.vocab_size = len(table)
        tensors[next(name for name, p in model.named_parameters() if p is own)] = table.to(own)
    view = _empty(config, type(model))
    return _filled(view, {key: tensors[key] for key in view.state_dict()}, model.device).requires_grad_(False)


def _config_from(config: Mapping[str, Any]) -> CLIPTextConfig:
    """The text part of a published configuration; what this class does not know is carried along."""
    from transformers import CLIPTextConfig

    kind = config.get("model_type", "clip_text_model")
    if kind not in ("clip", "clip_text_model"):
        raise CheckpointError(
            f"The text encoder's config.json says model_type {kind!r}; only CLIP's text model is read."
        )
    fields = dict(config.get("text_config") or {}) if kind == "clip" else dict(config)
    fields.pop("model_type", None)
    try:
        return CLIPTextConfig.from_dict(fields)
    except Exception as problem:  # a checked dataclass in new versions, plain Python in old ones
        raise CheckpointError(f"The text encoder's config.json cannot be used: {problem}") from problem


def _empty(config: CLIPTextConfig, cls: type[CLIPTextModel] | None = None) -> CLIPTextModel:
    """The model without memory for its weights."""
    from transformers import CLIPTextModel

    try:
        with torch.device("meta"):
            return (cls or CLIPTextModel)(config)
    except (KeyError, ValueError, TypeError, ZeroDivisionError, RuntimeError) as problem:
        raise CheckpointError(f"The text encoder's config.json describes no model: {problem}") from problem


def _filled(model: CLIPTextModel, tensors: Mapping[str, Tensor], device: torch.device | str) -> CLIPTextModel:
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


def _bare(key: str) -> str:
    return key.removeprefix(_PREFIX)


def _few(what: str, keys: list[str]) -> str:
    """`what` and the first of the keys, or nothing where there are none."""
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(keys[:3])}{more}; "

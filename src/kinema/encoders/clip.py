"""CLIP's text model and tokenizer from published files, through the public interface of `transformers` only."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from .published import assembled, config_from, empty, filled

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
    *,
    projected: bool = False,
) -> CLIPTextModel:
    """CLIP's text model holding the tensors of `state`, in eval mode with gradients off.

    The model is built without memory and each tensor is put in its place as it is, so a mapped file in the wanted
    dtype is not copied, and nothing is initialised at random first.

    Args:
        config: the published `config.json` of the text model, or of a whole CLIP model.
        state: published keys, with or without the prefix `text_model.`; CLIP's vision half is left out.
        dtype: what to convert to; as stored by default.
        device: where the weights go.
        projected: with the projection of the whole text, as SDXL's second encoder is (CLIPTextModelWithProjection).

    Raises:
        CheckpointError: the configuration is not CLIP's, or tensors are missing, left over, of another shape or not
            finite.
    """
    if projected:
        from transformers import CLIPTextModelWithProjection as Projected
    return assembled(
        _empty(_config_from(config), Projected if projected else None),
        state,
        what="text encoder",
        prefix=_PREFIX,
        beside=_BESIDE,
        dtype=dtype,
        device=device,
    )


def with_parts(model: CLIPTextModel, *, skip: int = 0, table: Tensor | None = None) -> CLIPTextModel:
    """A text model that shares `model`'s weights but leaves out its last layers or reads another token table.

    With fewer layers the model's own final norm follows the last one kept, which is what "clip skip" means. The
    result lives beside `model`, which does not change; it costs a few milliseconds and no memory but the table's.

    Args:
        skip: how many of the last layers to leave out, 0 to all of them.
        table: token embeddings, (tokens, d), to read instead of the model's own; the last is the end of a text.

    Raises:
        InputError: there are not that many layers.
    """
    if hasattr(model, "made_into"):  # a stand-in, which brings weights when they are needed
        made: CLIPTextModel = model.made_into(partial(with_parts, skip=skip, table=table))
        return made
    config = copy.deepcopy(model.config)
    if isinstance(skip, bool) or not isinstance(skip, int) or not 0 <= skip <= config.num_hidden_layers:
        raise InputError(
            f"clip_skip is {skip!r}; it must be a whole number of layers to leave out, 0 to {config.num_hidden_layers}."
        )
    config.num_hidden_layers -= skip
    tensors = dict(model.state_dict())
    if table is not None:
        own = model.get_input_embeddings().weight
        config.vocab_size, config.eos_token_id = len(table), len(table) - 1
        tensors[next(name for name, p in model.named_parameters() if p is own)] = table.to(own)
    view = _empty(config, type(model))
    return filled(view, {key: tensors[key] for key in view.state_dict()}, model.device).requires_grad_(False)


def _config_from(config: Mapping[str, Any]) -> CLIPTextConfig:
    """The text part of a published configuration."""
    from transformers import CLIPTextConfig

    made: CLIPTextConfig = config_from(
        CLIPTextConfig, config, ("clip", "clip_text_model"), "text_config", "text encoder"
    )
    return made


def _empty(config: CLIPTextConfig, cls: type[CLIPTextModel] | None = None) -> CLIPTextModel:
    """The model without memory for its weights."""
    from transformers import CLIPTextModel

    return empty(cls or CLIPTextModel, config, "text encoder")

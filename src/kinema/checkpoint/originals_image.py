"""The files of image models that people share (Stable Diffusion 1.x, 2.x, SDXL, ControlNet), read as they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .keys import OLD_ATTENTION, Drop, Rule, State, read, write
from .layouts import ldm_vae, open_clip_text
from .layouts_image import control_net, image_unet
from .originals import Original, Structure, count, shapes, structure, under
from .originals import vae as ldm_autoencoder

SD = "model.diffusion_model."
CONTROL = "control_model."
VAE = "first_stage_model."
TEXT = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")  # CLIP-L
TEXT_2 = "conditioner.embedders.1.model."  # OpenCLIP bigG of SDXL
_XL = re.compile(r"stable-diffusion-xl|(?<![a-z])(sd)?[-_.]?xl(?![a-uw-z])")
_FIRST, _HINT = "input_blocks.0.0.weight", "input_hint_block.0.weight"

# The scale at which latents have unit variance is not in the weights; autoencoders of both kinds have the same shapes.
SCALE, SCALE_XL = 0.18215, 0.13025


def unet(weights: Mapping[str, Tensor], where: str) -> Original:
    """An image U-Net in the published form, from a whole pipeline's file or alone, in either spelling.

    Raises:
        CheckpointError: it is no such U-Net.
    """
    state = _ldm(under(weights, SD), image_unet)
    first, last = shapes(state, where, _FIRST, "out.2.weight")
    made = structure(state, where, "0.op")
    config = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 128 if made.context == 2048 else 96 if _is_linear(state) else 64,
        "in_channels": first[1],
        "out_channels": last[0],
        **made.config("CrossAttnDownBlock2D", "DownBlock2D"),
        **_attention(state, made),
    }
    return Original(config, read(state, image_unet(made.levels, made.layers, made.cross)), where)


def control(weights: Mapping[str, Tensor], where: str) -> Original:
    """A ControlNet in the published form, from its own layout or diffusers'.

    Whether it gives one answer for the whole picture (as `shuffle` does) is in no weight, so the file's name says it.

    Raises:
        CheckpointError: it is no ControlNet.
    """
    state = under(weights, CONTROL)
    blocks = count(state, r"controlnet_cond_embedding\.blocks\.(\d+)\.")
    state = _ldm(state, partial(control_net, hints=blocks + 2))
    first, hint = shapes(state, where, _FIRST, _HINT)
    made = structure(state, where, "0.op")
    hints = [key for key in state if re.fullmatch(r"input_hint_block\.\d+\.weight", key)]
    widths = [state[f"input_hint_block.{4 * i}.weight"].shape[0] for i in range(len(hints) // 2)]
    config = {
        "_class_name": "ControlNetModel",
        "in_channels": first[1],
        "conditioning_channels": hint[1],
        "conditioning_embedding_out_channels": widths,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if "middle_block.1.norm.weight" in state else "UNetMidBlock2D",
        "global_pool_conditions": "shuffle" in _name(where),
        **made.config("CrossAttnDownBlock2D", "DownBlock2D"),
        **_attention(state, made),
    }
    del config["up_block_types"]
    return Original(config, read(state, control_net(made.levels, made.layers, made.cross, len(hints))), where)


def autoencoder(weights: Mapping[str, Tensor], where: str, scaling_factor: float | None = None) -> Original:
    """An image autoencoder in the published form, from a whole pipeline's file or alone, in either spelling.

    Args:
        scaling_factor: what latents are multiplied by. Autoencoders of SD1.5 and SDXL have the same shapes, so where
            this is not said, the pipeline around it, the file's notes or its name ("xl") say which it is.

    Raises:
        CheckpointError: it is no such autoencoder.
    """
    state = _ldm_vae(under(weights, VAE))
    scale = scaling_factor or (SCALE_XL if is_xl(weights, where) else SCALE)
    made = ldm_autoencoder(state, where, scale)
    return Original({**made.config, "force_upcast": True}, made.state, where)


def is_xl(weights: Mapping[str, Tensor], where: str) -> bool:
    """Whether a file is of SDXL, as far as its keys, its notes or its name tell."""
    if any(key.startswith(SD) for key in weights):
        return any(key.startswith(TEXT_2) for key in weights) or f"{SD}label_emb.0.0.weight" in weights
    noted = getattr(weights, "metadata", {}).get("modelspec.architecture", "")
    return bool(_XL.search(f"{noted} {_name(where)}".lower()))


def text(weights: Mapping[str, Tensor], where: str) -> Original:
    """CLIP-L's text model of SD1.5 and SDXL in the published form.

    Raises:
        CheckpointError: the file has none.
    """
    state: State = {}
    for prefix in TEXT:
        state |= {key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)}
    if not state:
        state = {
            key: weights[key] for key in weights if key.startswith(("text_model.", "embeddings.", "encoder.layers."))
        }
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in state.items()}
    state = read(state, (Drop(r"position_ids$|text_projection"),))
    names = ("token_embedding", "position_embedding")
    vocabulary, positions = shapes(state, where, *(f"text_model.embeddings.{name}.weight" for name in names))
    layers = count(state, r"text_model\.encoder\.layers\.(\d+)\.")
    config = {
        **_text_config(vocabulary, positions, layers),
        "architectures": ["CLIPTextModel"],
        "intermediate_size": _inner(state, "text_model.encoder.layers.0.mlp.fc1.weight", vocabulary),
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
    }
    return Original(config, state, where)


def text_2(weights: Mapping[str, Tensor], where: str) -> Original:
    """SDXL's second text model, OpenCLIP's with its projection, in the published form.

    Raises:
        CheckpointError: the file has none.
    """
    state = {key.removeprefix(TEXT_2): weights[key] for key in weights if key.startswith(TEXT_2)}
    names = ("token_embedding.weight", "positional_embedding", "text_projection")
    vocabulary, positions, projection = shapes(state, where, *names)
    layers = count(state, r"transformer\.resblocks\.(\d+)\.")
    config = {
        **_text_config(vocabulary, positions, layers),
        "architectures": ["CLIPTextModelWithProjection"],
        "intermediate_size": _inner(state, "transformer.resblocks.0.mlp.c_fc.weight", vocabulary),
        "hidden_act": "gelu",
        "projection_dim": projection[1],
    }
    ours = read(state, open_clip_text(layers, projected=True))
    ours["text_projection.weight"] = ours["text_projection.weight"].contiguous()  # as it lies where published
    return Original(config, ours, where)


def _text_config(vocabulary: tuple[int, ...], positions: tuple[int, ...], layers: int) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary[0],
        "hidden_size": vocabulary[1],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, vocabulary[1] // 64),
        "max_position_embeddings": positions[0],
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _name(where: str) -> str:
    return re.split(r"[\\/]", where)[-1]


def _inner(state: State, key: str, vocabulary: tuple[int, ...]) -> int:
    return state[key].shape[0] if key in state else 4 * vocabulary[1]


def _attention(state: State, made: Structure) -> dict[str, Any]:
    """The published fields about attention and added conditions, as shapes tell them."""
    firsts = [1 + level * (made.layers + 1) for level in range(made.levels)]
    depths = [max(1, count(state, rf"input_blocks\.{i}\.1\.transformer_blocks\.(\d+)\.")) for i in firsts]
    linear = _is_linear(state)
    attends = any(key.endswith(".attn2.to_k.weight") for key in state)
    fields: dict[str, Any] = {
        # nothing tells it of a ControlNet for SDXL without attention, and nothing uses it then
        "cross_attention_dim": made.context if attends else 2048,
        "use_linear_projection": linear,
        # heads in spite of its name; Stable Diffusion 1.x has eight everywhere, later models one for 64 channels
        "attention_head_dim": [max(1, width // 64) for width in made.widths] if linear else 8,
        "transformer_layers_per_block": depths if set(depths) != {1} else 1,
    }
    if (added := state.get("label_emb.0.0.weight")) is not None:
        # six numbers of 256 each, beside the text's summary
        fields |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": added.shape[1],
        }
    return fields


def _is_linear(state: State) -> bool:
    key = "middle_block.1.proj_in.weight"
    return key in state and state[key].dim() == 2


def _ldm(state: State, rules: Callable[[int, int, list[bool]], tuple[Rule, ...]]) -> State:
    """A U-Net in latent diffusion's names; files in diffusers' own are renamed."""
    if "conv_in.weight" not in state:
        return state
    levels = count(state, r"down_blocks\.(\d+)\.")
    layers = count(state, r"down_blocks\.0\.resnets\.(\d+)\.")
    cross = [f"down_blocks.{i}.attentions.0.norm.weight" in state for i in range(levels)]
    return write(state, rules(levels, layers, cross))


def _ldm_vae(state: State) -> State:
    if not any(key.startswith("encoder.down_blocks.") for key in state):
        return state
    levels, layers = (count(state, rf"encoder\.down_blocks\.{p}") for p in (r"(\d+)\.", r"0\.resnets\.(\d+)\."))
    return write(read(state, OLD_ATTENTION), ldm_vae(levels, layers))

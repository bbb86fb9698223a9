"""A trained model, written as the published models are: what ships in the package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint.save import save_model
from ..families.autoencoder_kl import AutoencoderKL
from ..families.modelscope import UNet3DConditionModel
from .diffusion import SCHEDULE

LOCAL = ("dtype", "torch_dtype", "transformers_version", "_name_or_path")  # keys of a config that say nothing of it
INDEX = {
    "_class_name": "TextToVideoSDPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def package(folder: Path, tokenizer: Path, tower: nn.Module, vae: AutoencoderKL, unet: UNet3DConditionModel) -> Path:
    """Writes the folder, whole or not at all, with weights in fp16.

    Args:
        tokenizer: the folder of the tokenizer's files.
        tower: the CLIP text model.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for name, model in {"unet": unet, "vae": vae}.items():
        save_model(half(model), part / name)
    _save_text(tower, part / "text_encoder")
    (part / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(tokenizer / name, part / "tokenizer" / name)
    _write(part / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", **SCHEDULE})
    _write(part / "model_index.json", INDEX)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return folder


def half(model: nn.Module) -> nn.Module:
    """The model with fp16 weights, which lie in memory as files have them."""
    for p in model.parameters():
        p.data = p.data.half().contiguous()
    return model


def _save_text(tower: nn.Module, folder: Path) -> None:
    """With the `text_model.` in front of every key that published text encoders have."""
    config: Mapping[str, Any] = tower.config.to_dict()  # type: ignore[union-attr, operator]
    kept = {k: v for k, v in config.items() if k not in LOCAL}
    _write(folder / "config.json", {**kept, "architectures": ["CLIPTextModel"], "torch_dtype": "float16"})
    state: dict[str, Tensor] = {}
    for key, value in tower.state_dict().items():
        if value.is_floating_point():
            state[key if key.startswith("text_model.") else f"text_model.{key}"] = value.to(torch.float16).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # it comes readable by its owner alone


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""Trained models, written as the published models are: what ships in the package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoint.save import save_model
from ..families.animatediff import ControlNetModel, MotionAdapter, UNet2DConditionModel
from ..families.autoencoder_kl import AutoencoderKL
from ..families.i2vgen import I2VGenXLUNet
from ..families.modelscope import UNet3DConditionModel
from ..families.stable_video import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from ..pipelines.preview_decoder import PreviewDecoder
from .animate import EULER
from .diffusion import SCHEDULE
from .vision import EXTRACTOR

LOCAL = ("dtype", "torch_dtype", "transformers_version", "_name_or_path")  # keys of a config that say nothing of it
INDEX = {
    "_class_name": "TextToVideoSDPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet3DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_EYES = {
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}
ANIMATE_INDEX = {
    **_EYES,
    "_class_name": "StableVideoDiffusionPipeline",
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}
I2VGEN_INDEX = {**INDEX, **_EYES, "_class_name": "I2VGenXLPipeline", "unet": ["diffusers", "I2VGenXLUNet"]}
ANIMATEDIFF_INDEX = {
    **INDEX,
    "_class_name": "AnimateDiffPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "motion_adapter": ["diffusers", "MotionAdapter"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}


def package(
    folder: Path,
    tokenizer: Path,
    tower: nn.Module,
    vae: AutoencoderKL,
    unet: UNet3DConditionModel,
    preview: PreviewDecoder,
) -> Path:
    """Writes the folder, whole or not at all, with weights in fp16.

    Args:
        tokenizer: the folder of the tokenizer's files.
        tower: the CLIP text model.
        preview: not a part of the pipeline, but beside it.
    """
    with _whole(folder) as part:
        _save_models(part, unet=unet, vae=vae, preview_decoder=preview)
        _save_text(tower, tokenizer, part)
        _save_settings(part, {"_class_name": "DDIMScheduler", **SCHEDULE}, INDEX)
    return folder


def package_image_to_video(
    folder: Path, eye: nn.Module, vae: AutoencoderKLTemporalDecoder, unet: UNetSpatioTemporalConditionModel
) -> Path:
    """The same for the model that is given a picture; `eye` is the CLIP image model."""
    with _whole(folder) as part:
        _save_models(part, unet=unet, vae=vae)
        _save_eye(eye, part)
        _save_settings(part, {"_class_name": "EulerDiscreteScheduler", **EULER}, ANIMATE_INDEX)
    return folder


def package_i2vgen(
    folder: Path, tokenizer: Path, tower: nn.Module, eye: nn.Module, vae: AutoencoderKL, unet: I2VGenXLUNet
) -> Path:
    """The same for the model that is given a picture and a text.

    Its text tower gets a last layer that does nothing: pipelines of this kind leave the last layer out by default.
    """
    with _whole(folder) as part:
        _save_models(part, unet=unet, vae=vae)
        _save_text(with_idle_layer(tower), tokenizer, part)
        _save_eye(eye, part)
        _save_settings(part, {"_class_name": "DDIMScheduler", **SCHEDULE}, I2VGEN_INDEX)
    return folder


def package_animatediff(
    folder: Path,
    tokenizer: Path,
    tower: nn.Module,
    vae: AutoencoderKL,
    unets: Mapping[str, UNet2DConditionModel],
    adapter: MotionAdapter,
    loras: Mapping[str, Mapping[str, Tensor]],
    controlnet: ControlNetModel,
) -> Path:
    """The same for an image model, what moves it, and what else plugs into it.

    Args:
        unets: the pipeline's own image denoiser under ""; further ones lie in subfolders of their names.
        loras: tensors as published, by name; they become `loras/<name>.safetensors`.
        controlnet: not a part of the pipeline, but beside it.
    """
    with _whole(folder) as part:
        _save_models(part, **{name or "unet": unet for name, unet in unets.items()})
        _save_models(part, vae=vae, motion_adapter=adapter, controlnet=controlnet)
        _save_text(tower, tokenizer, part)
        (part / "loras").mkdir()
        for name, state in loras.items():
            _save_tensors(state, part / "loras" / f"{name}.safetensors")
        _save_settings(part, {"_class_name": "DDIMScheduler", **SCHEDULE}, ANIMATEDIFF_INDEX)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Where to write what is to appear at `folder` once all of it is there."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _save_models(folder: Path, **models: nn.Module) -> None:
    for name, model in models.items():
        save_model(half(model), folder / name)


def _save_settings(folder: Path, scheduler: Mapping[str, Any], index: Mapping[str, Any]) -> None:
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write(folder / "model_index.json", index)


def half(model: nn.Module) -> nn.Module:
    """The model with fp16 weights, which lie in memory as files have them."""
    for p in model.parameters():
        p.data = p.data.half().contiguous()
    return model


def with_idle_layer(tower: nn.Module) -> nn.Module:
    """The same CLIP text model with one layer more, which adds nothing."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config: dict[str, Any] = tower.config.to_dict()  # type: ignore[union-attr, operator]
    layers = config["num_hidden_layers"]
    taller = CLIPTextModel(CLIPTextConfig(**{**config, "num_hidden_layers": layers + 1}))
    _, unexpected = taller.load_state_dict(tower.state_dict(), strict=False)
    assert not unexpected, unexpected
    for key, p in taller.named_parameters():
        if f"layers.{layers}." in key:
            nn.init.ones_(p) if "norm" in key and key.endswith("weight") else nn.init.zeros_(p)
    return taller.eval()


def _save_text(tower: nn.Module, tokenizer: Path, folder: Path) -> None:
    _save_tower(tower, folder / "text_encoder", "CLIPTextModel", "text_model.")
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(tokenizer / name, folder / "tokenizer" / name)


def _save_eye(tower: nn.Module, folder: Path) -> None:
    _save_tower(tower, folder / "image_encoder", "CLIPVisionModelWithProjection", "vision_model.")
    _write(folder / "feature_extractor" / "preprocessor_config.json", EXTRACTOR.to_dict())


def _save_tower(tower: nn.Module, folder: Path, name: str, prefix: str) -> None:
    """With the prefix in front of every key that published encoders of this kind have."""
    config: Mapping[str, Any] = tower.config.to_dict()  # type: ignore[union-attr, operator]
    kept = {k: v for k, v in config.items() if k not in LOCAL}
    _write(folder / "config.json", {**kept, "architectures": [name], "torch_dtype": "float16"})
    state: dict[str, Tensor] = {}
    for key, value in tower.state_dict().items():
        if value.is_floating_point():
            within = key.startswith((prefix, "visual_projection."))
            state[key if within else prefix + key] = value.to(torch.float16).contiguous()
    _save_tensors(state, folder / "model.safetensors")


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: value.contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # it comes readable by its owner alone


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")

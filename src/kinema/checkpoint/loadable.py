"""What loads each kind of file: the published class that holds its weights, and the call that takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """How a kind of file is used."""

    model: str = ""  # the published class that holds it
    call: str = "from_single_file"  # of that class; or a pipeline's method, for what changes a pipeline
    inside: tuple[str, ...] = ()  # further classes that take their part of it

    def __str__(self) -> str:
        return (
            f"{self.model}.{self.call}" if self.model and not self.call.startswith("load_") else f"pipeline.{self.call}"
        )


def way(kind: str) -> Way | None:
    """How a kind, as `kinds.kind_of` names it, is used; None where nothing takes it."""
    plain = kind.removesuffix(", original file")
    return (
        WAYS.get(kind) or WAYS.get(plain) or next((w for start, w in _STARTS.items() if kind.startswith(start)), None)
    )


def takes(model: str, kind: str) -> bool:
    """Whether a published class takes a file of this kind, or a part of it."""
    found = way(kind)
    return found is not None and (model == found.model or model in found.inside)


_IMAGE = ("UNet2DConditionModel", "AutoencoderKL")
_FOLDER = "from_pretrained"
_SVD = ("UNetSpatioTemporalConditionModel",)

WAYS = {
    # whole pipelines in one file
    "Stable Diffusion 1.x, single file": Way("AnimateDiffPipeline", inside=_IMAGE),
    "Stable Diffusion 1.x inpainting, single file": Way("UNet2DConditionModel", inside=_IMAGE),
    "Stable Diffusion 2.x, single file": Way("UNet2DConditionModel", inside=_IMAGE),
    "SDXL, single file": Way("AnimateDiffSDXLPipeline", inside=_IMAGE),
    "SDXL inpainting, single file": Way("UNet2DConditionModel", inside=_IMAGE),
    "SDXL refiner, single file": Way("UNet2DConditionModel", inside=_IMAGE),
    "ControlNet with its base model, original file": Way("ControlNetModel", inside=_IMAGE),
    "Stable Video Diffusion, original single file": Way(
        "StableVideoDiffusionPipeline", inside=(*_SVD, "AutoencoderKLTemporalDecoder")
    ),
    "Stable Video Diffusion with image decoder, original single file": Way(
        "StableVideoDiffusionPipeline", inside=(*_SVD, "AutoencoderKL")
    ),
    # networks
    "ModelScope U-Net": Way("UNet3DConditionModel", _FOLDER),
    "ModelScope U-Net, original file": Way("TextToVideoSDPipeline", inside=("UNet3DConditionModel",)),
    "I2VGen-XL U-Net": Way("I2VGenXLUNet", _FOLDER),
    "I2VGen-XL U-Net, original file": Way("I2VGenXLPipeline", inside=("I2VGenXLUNet",)),
    "Stable Video Diffusion U-Net": Way("UNetSpatioTemporalConditionModel", _FOLDER),
    "Stable Video Diffusion U-Net, original file": Way("StableVideoDiffusionPipeline", inside=_SVD),
    "Stable Video Diffusion autoencoder": Way("AutoencoderKLTemporalDecoder", _FOLDER),
    "Stable Video Diffusion autoencoder, original file": Way("AutoencoderKLTemporalDecoder"),
    "AnimateDiff U-Net, motion inside": Way("UNetMotionModel", _FOLDER, inside=("MotionAdapter",)),
    "SparseCtrl RGB": Way("SparseControlNetModel"),
    "SparseCtrl scribble": Way("SparseControlNetModel"),
    "ControlNet": Way("ControlNetModel"),
    "image U-Net": Way("UNet2DConditionModel"),
    "autoencoder": Way("AutoencoderKL"),
    "CLIP text encoder": Way("CLIPTextModel", _FOLDER),
    "CLIP vision encoder": Way("CLIPVisionModelWithProjection", _FOLDER),
    "HotshotXL motion module": Way("MotionAdapter"),
    "PIA adapter": Way("MotionAdapter"),
    "AnimateLCM motion module": Way("MotionAdapter"),
    # what changes a pipeline
    "textual inversion": Way(call="load_textual_inversion"),
    "motion LoRA": Way(call="load_lora_weights"),
}

_STARTS = {
    "AnimateDiff motion module": Way("MotionAdapter"),
    "LoRA": Way(call="load_lora_weights"),
    "IP-Adapter": Way(call="load_ip_adapter"),
}

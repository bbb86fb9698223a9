"""Text and pictures to video with open latent-diffusion models.

Names are imported when first touched, so that `import kinema` is quick and needs nothing but Python.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Each public name, and the module that has it.
_WHERE = {
    **dict.fromkeys(
        (
            "AnimateDiffControlNetPipeline",
            "AnimateDiffPAGPipeline",
            "AnimateDiffPipeline",
            "AnimateDiffSDXLPipeline",
            "AnimateDiffSparseControlNetPipeline",
            "AnimateDiffVideoToVideoControlNetPipeline",
            "AnimateDiffVideoToVideoPipeline",
            "AutoencoderKL",
            "AutoencoderKLTemporalDecoder",
            "ControlNetModel",
            "DiffusionPipeline",
            "I2VGenXLPipeline",
            "I2VGenXLUNet",
            "MotionAdapter",
            "PIAPipeline",
            "MultiControlNetModel",
            "SparseControlNetModel",
            "StableDiffusionVideoPipeline",
            "StableVideoDiffusionPipeline",
            "TextToVideoMSPipeline",
            "TextToVideoSDPipeline",
            "TextToVideoZeroPipeline",
            "TextToVideoZeroSDXLPipeline",
            "UNet2DConditionModel",
            "UNet3DConditionModel",
            "UNetMotionModel",
            "UNetSpatioTemporalConditionModel",
            "VideoToVideoSDPipeline",
        ),
        "families",
    ),
    **dict.fromkeys(
        (
            "DDIMScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "LCMScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "TCDScheduler",
            "UniPCMultistepScheduler",
        ),
        "sampling.schedulers",
    ),
    **dict.fromkeys(
        (
            "contact_sheet",
            "export_to_apng",
            "export_to_gif",
            "export_to_images",
            "export_to_video",
            "export_to_webp",
            "fit_picture",
            "load_image",
            "load_video",
            "measure_motion",
            "nearest_trained_size",
            "read_info",
            "save",
        ),
        "media",
    ),
    **dict.fromkeys(
        (
            "CheckpointError",
            "ClipKeptError",
            "InputError",
            "KinemaError",
            "MediaError",
            "MemoryBudgetError",
            "NumericsError",
            "ParallelError",
        ),
        "errors",
    ),
    "PreviewDecoder": "pipelines.preview_decoder",
    "VideoOutput": "pipelines.output",
    "inspect": "checkpoint.identify",
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name == "distributed":  # the one module people use by its name
        return importlib.import_module(f".{name}", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

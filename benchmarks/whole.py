"""Whole clips, from what a caller gives to what a caller gets."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .tools import Side, bytes_of, channels_last, random

CLIP: dict[str, Any] = {
    "height": 128,
    "width": 128,
    "num_frames": 64,
    "num_inference_steps": 2,
    "guidance_scale": 9.0,
    "output_type": "np",
}


def _clip(pipe: Any) -> Side:
    latents = random(1, 4, CLIP["num_frames"], CLIP["height"] // 8, CLIP["width"] // 8)
    pipe.set_progress_bar_config(disable=True)
    prompt = {"prompt": "a red circle moves left", "negative_prompt": "blue"}
    return lambda: pipe(**prompt, **CLIP, latents=latents.clone()).frames, bytes_of(
        pipe.unet, pipe.vae, pipe.text_encoder
    )


def kinema_text(folder: str) -> Side:
    from kinema import TextToVideoSDPipeline

    return _clip(TextToVideoSDPipeline.from_pretrained(folder))


def diffusers_text(folder: str, best: bool = False) -> Side:
    from diffusers import TextToVideoSDPipeline

    pipe = TextToVideoSDPipeline.from_pretrained(folder)
    if best:
        channels_last(pipe.unet)
        channels_last(pipe.vae)
        pipe.vae.enable_slicing()
        pipe.unet.enable_forward_chunking(chunk_size=1, dim=1)
    return _clip(pipe)


FROM_PICTURE: dict[str, Any] = {
    "height": 128,
    "width": 192,
    "num_frames": 8,
    "num_inference_steps": 4,
    "fps": 7,
    "output_type": "np",
}


def _to_file(pipe: Any) -> Side:
    """Both sides' frames are written by the same writer: the reference's needs packages that are not there."""
    import numpy as np
    import torch
    from PIL import Image

    from kinema import export_to_video

    pipe.set_progress_bar_config(disable=True)
    down, across = np.mgrid[: FROM_PICTURE["height"], : FROM_PICTURE["width"]]
    picture = Image.fromarray(np.stack([down, across, 255 - down], -1).astype(np.uint8))
    latents = random(1, FROM_PICTURE["num_frames"], 4, FROM_PICTURE["height"] // 8, FROM_PICTURE["width"] // 8)

    def run() -> Any:
        generator = torch.Generator().manual_seed(0)
        frames = pipe(picture, **FROM_PICTURE, latents=latents.clone(), generator=generator).frames
        with tempfile.TemporaryDirectory() as folder:
            export_to_video(frames[0], str(Path(folder, "clip.mp4")), fps=FROM_PICTURE["fps"])
        return frames

    return run, bytes_of(pipe.unet, pipe.vae, pipe.image_encoder)


def kinema_picture(folder: str) -> Side:
    from kinema import StableVideoDiffusionPipeline

    return _to_file(StableVideoDiffusionPipeline.from_pretrained(folder))


def diffusers_picture(folder: str) -> Side:
    from diffusers import StableVideoDiffusionPipeline

    return _to_file(StableVideoDiffusionPipeline.from_pretrained(folder))

"""Tiny pipelines of kinema and of the reference on the same random weights. Not a test."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from tests import reference

import kinema

SIZE = {"height": 16, "width": 24, "num_frames": 3, "num_inference_steps": 3}
SHARED: tuple[str, ...] = ("text_encoder", "tokenizer")


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="kinema-tokenizer-"))


def small_unet(seed: int = 0, **fields: Any) -> Any:
    return reference.unet3d(seed, **{"layers_per_block": 1, "attention_head_dim": 8, **fields})


def small_vae(seed: int = 0, **fields: Any) -> Any:
    return reference.autoencoder(seed, **{"block_out_channels": (8, 16), "norm_num_groups": 4, **fields})


def theirs(
    unet: dict[str, Any] | None = None, vae: dict[str, Any] | None = None, width: int = 32, seed: int = 0
) -> Any:
    """The reference's text-to-video pipeline."""
    pipe = diffusers.TextToVideoSDPipeline(
        vae=small_vae(seed, **(vae or {})),
        text_encoder=reference.text_encoder(width, seed=seed),
        tokenizer=reference.tokenizer(_folder()),
        unet=small_unet(seed, **{"cross_attention_dim": width, **(unet or {})}),
        scheduler=diffusers.DDIMScheduler(**reference.BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def twin(other: Any, cls: Any = None) -> Any:
    """kinema's pipeline on the weights of a pipeline of the reference."""
    nets = {}
    for name, model in (("unet", kinema.UNet3DConditionModel), ("vae", kinema.AutoencoderKL)):
        nets[name] = model(dict(getattr(other, name).config)).eval().requires_grad_(False)
        nets[name].load_state_dict(getattr(other, name).state_dict())
    pipe = (cls or kinema.TextToVideoSDPipeline)(
        **nets,
        **{name: getattr(other, name) for name in SHARED},
        scheduler=scheduler_like(other.scheduler),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler_like(scheduler: Any) -> Any:
    return getattr(kinema, type(scheduler).__name__).from_config(dict(scheduler.config))


def ours(**options: Any) -> Any:
    """kinema's tiny pipeline alone."""
    return twin(theirs(**options))


def as_video_pipe(pipe: Any) -> Any:
    """The same parts as video to video, ours or the reference's."""
    if isinstance(pipe, kinema.DiffusionPipeline):
        made = kinema.VideoToVideoSDPipeline.from_pipe(pipe)
    else:
        made = diffusers.VideoToVideoSDPipeline(**pipe.components)
    made.set_progress_bar_config(disable=True)
    return made


def clip(frames: int = 3, height: int = 16, width: int = 24, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return [random.random((height, width, 3), dtype=np.float32) for _ in range(frames)]


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def off(ours: Any, theirs: Any) -> float:
    """The largest difference, as a share of the reference's range."""
    mine, other = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    assert mine.shape == other.shape
    return float((mine - other).abs().max() / (other.max() - other.min()))

"""SDXL from one shared file, shown pictures, on the noise schedule its motion module was trained with."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from tests import sdxl_pipes as pipes
from tests import shared_tiny as tiny
from tests import svd_tiny
from tests import test_animatediff_ip_adapter as files
from tests.animatediff_tiny import text_widths
from tests.pipelines_tiny import gen, off

import kinema
from kinema import CheckpointError, InputError
from kinema.checkpoint.hub import box
from kinema.families.animatediff import MotionConditions
from kinema.families.animatediff.configs import MotionConfig
from kinema.families.animatediff.unet import motion_over_clip

FIELDS = {**tiny.SDXL, "cross_attention_dim": 256, "sample_size": 64}
CALL: dict[str, Any] = {"num_frames": 2, "height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An SDXL file, its tokenizers beside it, and the SDXL beta module in its authors' layout."""
    toy = box("toy")
    assert toy is not None
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).symlink_to(toy / "tokenizer")
    safetensors.torch.save_file(tiny.sdxl_file(FIELDS), tmp_path / "dreamy_xl.safetensors")
    module = tiny.motion(block_out_channels=(64, 128, 128), use_motion_mid_block=False)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save({"state_dict": tiny.motion_file(module)}, tmp_path / "mm_sdxl.ckpt")
    return tmp_path


def test_a_pipeline_from_one_file_makes_what_the_folder_of_the_same_weights_makes(folder: Path) -> None:
    file, adapter = folder / "dreamy_xl.safetensors", kinema.MotionAdapter.from_single_file(folder / "mm_sdxl.ckpt")
    pipe = kinema.AnimateDiffSDXLPipeline.from_single_file(file, motion_adapter=adapter)
    assert (pipe.scheduler.config.beta_schedule, pipe.scheduler.config.beta_end) == ("scaled_linear", 0.02)
    assert pipe.vae.config.scaling_factor == 0.13025
    frames = pipe("a red circle", generator=1, **CALL).frames

    pipe.save_pretrained(folder / "saved")
    again = kinema.AnimateDiffSDXLPipeline.from_pretrained(folder / "saved")
    torch.testing.assert_close(again("a red circle", generator=1, **CALL).frames, frames, atol=1e-5, rtol=0)
    found = kinema.DiffusionPipeline.from_single_file(file, motion_adapter=adapter)
    assert type(found).__name__ == "AnimateDiffSDXLPipeline"
    with pytest.raises(InputError, match="needs a motion_adapter for this image model"):
        kinema.AnimateDiffSDXLPipeline.from_single_file(file)
    with pytest.raises(CheckpointError, match="load it with AnimateDiffSDXLPipeline, not AnimateDiffPipeline"):
        kinema.AnimateDiffPipeline.from_single_file(file, motion_adapter=adapter)
    other = kinema.MotionAdapter.from_config({"block_out_channels": (32, 64)})
    with pytest.raises(CheckpointError, match="take two that belong"):
        kinema.AnimateDiffSDXLPipeline.from_single_file(file, motion_adapter=other)


# ------------------------------------------------------------------ pictures as prompts


@pytest.mark.parametrize("kinds", [("plain",), ("plus",), ("plain", "plus")], ids=" and ".join)
@pytest.mark.parametrize("guidance", [5.0, 1.0], ids=["guided", "unguided"])
def test_a_clip_shown_pictures_is_the_reference_s(
    kinds: tuple[str, ...], guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPImageProcessor

    eye = svd_tiny.vision()
    more = {"feature_extractor": CLIPImageProcessor(), "image_encoder": eye}
    theirs = pipes.theirs(**more)
    ours = pipes.ours(theirs, **more)
    widths = text_widths(theirs.unet)
    monkeypatch.setattr(files, "CONTEXT", sum(pipes.WIDTHS))
    made = []
    for seed, kind in enumerate(kinds):
        monkeypatch.setattr(files, "CLIP", eye.config.projection_dim if kind == "plain" else eye.config.hidden_size)
        made.append(files.file_of(kind, widths, seed))
    theirs.unet._load_ip_adapter_weights(made, low_cpu_mem_usage=False)
    ours.load_ip_adapter([files.flat(one) for one in made])
    for pipe in (theirs, ours):
        pipe.set_ip_adapter_scale([0.7, 0.4][: len(kinds)])
    shown = [svd_tiny.picture(seed, 48, 40) for seed in range(len(kinds))]
    call = {**pipes.CALL, "ip_adapter_image": shown, "guidance_scale": guidance}
    expected = theirs(**call, generator=gen(3)).frames
    got = ours(**call, generator=gen(3))
    assert off(got.frames, expected) <= 1e-4
    assert [one["kind"] for one in got.receipt["ip_adapters"]] == list(kinds)
    ours.unload_ip_adapter()
    assert off(ours(**pipes.CALL, generator=gen(3)).frames, expected) > 1e-3


# ------------------------------------------------------------------ what modules were trained with

SD15, SDXL = (320, 640, 1280, 1280), (320, 640, 1280)
OWN = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # of both image models


@pytest.mark.parametrize(
    ("widths", "places", "schedule", "end"),
    [
        (SD15, 32, "linear", 0.012),
        (SD15, 24, "linear", 0.012),
        (SDXL, 32, "scaled_linear", 0.02),  # the authors' module for SDXL
        (SDXL, 24, "scaled_linear", 0.012),  # Hotshot-XL's, trained with SDXL's own
        ((32, 64), 32, "scaled_linear", 0.012),  # nobody's: the image model's own stays
    ],
)
def test_the_noise_schedule_is_the_motion_modules(
    widths: tuple[int, ...], places: int, schedule: str, end: float, caplog: pytest.LogCaptureFixture
) -> None:
    config = SimpleNamespace(block_out_channels=widths, motion_max_seq_length=places)
    pipe: Any = SimpleNamespace(unet=SimpleNamespace(config=config), scheduler=kinema.EulerDiscreteScheduler(**OWN))
    with caplog.at_level(logging.WARNING, "kinema"):
        kinema.AnimateDiffPipeline._follow_motion(pipe, "a folder")
    told = pipe.scheduler.config
    assert (told.beta_schedule, told.beta_start, told.beta_end) == (schedule, 0.00085, end)
    assert isinstance(pipe.scheduler, kinema.EulerDiscreteScheduler)
    assert ("a folder comes with another noise schedule" in caplog.text) == (
        (schedule, end) != ("scaled_linear", 0.012)
    )


def test_the_original_numerics_of_sdxls_modules() -> None:
    """The authors' module was trained with norms over the clip, Hotshot-XL's with norms by frame."""
    original = MotionConditions(torch.zeros(1), 1, numerics="original")
    xl = {"addition_embed_type": "text_time"}
    assert motion_over_clip(MotionConfig(**xl), original)
    assert not motion_over_clip(MotionConfig(**xl, motion_max_seq_length=24), original)
    assert not motion_over_clip(MotionConfig(), original)

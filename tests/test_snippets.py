"""Programs people have run for years run here, with only the import and the checkpoint's name changed.

Where a line of the original says more frames or steps than a test has time for, the number is named in capitals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines_tiny import ours

import kinema

STEPS, FRAMES = 2, 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints by what they stand for, with half-precision files beside the whole ones."""
    folder = tmp_path_factory.mktemp("models")
    pipe = ours()
    for name in ("text-to-video-ms-1.7b", "zeroscope_v2_576w", "zeroscope_v2_XL"):
        pipe.save_pretrained(folder / name)
    pipe.to("float16").save_pretrained(folder / "text-to-video-ms-1.7b", variant="fp16")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def played(path: str) -> tuple[int, int, int]:
    """Frames, height and width of what a player sees."""
    frames = kinema.load_video(path)
    return len(frames), frames[0].height, frames[0].width


def test_the_model_card_s_first_program(models: dict[str, str]) -> None:
    from kinema import DiffusionPipeline, DPMSolverMultistepScheduler, export_to_video

    pipe = DiffusionPipeline.from_pretrained(models["text-to-video-ms-1.7b"], torch_dtype=torch.float16, variant="fp16")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.enable_model_cpu_offload()

    prompt = "Spiderman is surfing"
    video_frames = pipe(prompt, num_inference_steps=STEPS).frames
    video_path = export_to_video(video_frames)

    assert pipe.dtype == torch.float16
    assert played(video_path) == (16, 16, 16)


def test_the_model_card_s_program_for_long_videos(models: dict[str, str]) -> None:
    from kinema import DiffusionPipeline, DPMSolverMultistepScheduler, export_to_video

    pipe = DiffusionPipeline.from_pretrained(models["text-to-video-ms-1.7b"], torch_dtype=torch.float16, variant="fp16")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.enable_model_cpu_offload()
    pipe.enable_vae_slicing()

    prompt = "Spiderman is surfing. Darth Vader is also surfing and following Spiderman"
    video_frames = pipe(prompt, num_inference_steps=1, num_frames=200).frames
    video_path = export_to_video(video_frames)

    assert played(video_path) == (200, 16, 16)


def test_the_model_card_s_later_form_takes_the_first_clip(models: dict[str, str]) -> None:
    from kinema import DiffusionPipeline, DPMSolverMultistepScheduler, export_to_video

    pipe = DiffusionPipeline.from_pretrained(models["text-to-video-ms-1.7b"], torch_dtype=torch.float16, variant="fp16")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.enable_model_cpu_offload()
    pipe.enable_vae_slicing()
    video_frames = pipe("An astronaut riding a horse", num_inference_steps=STEPS, num_frames=FRAMES).frames[0]
    video_path = export_to_video(video_frames, "astronaut.mp4", fps=8)

    assert video_path == "astronaut.mp4" and played(video_path) == (FRAMES, 16, 16)


def test_text_to_video_at_zeroscope_s_size_and_its_upscaling(models: dict[str, str]) -> None:
    from PIL import Image

    from kinema import DiffusionPipeline, DPMSolverMultistepScheduler, VideoToVideoSDPipeline, export_to_video

    pipe = DiffusionPipeline.from_pretrained(models["zeroscope_v2_576w"], torch_dtype=torch.float32)
    pipe.enable_model_cpu_offload()
    pipe.unet.enable_forward_chunking(chunk_size=1, dim=1)
    pipe.enable_vae_slicing()
    prompt = "Darth Vader surfing a wave"
    output = pipe(prompt, num_frames=FRAMES, height=16, width=24, num_inference_steps=STEPS)
    video_frames = output.frames[0]
    assert played(export_to_video(video_frames)) == (FRAMES, 16, 24)

    del pipe
    pipe = VideoToVideoSDPipeline.from_pretrained(models["zeroscope_v2_XL"], torch_dtype=torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.enable_model_cpu_offload()
    pipe.unet.enable_forward_chunking(chunk_size=1, dim=1)
    pipe.enable_vae_slicing()
    # The original makes pictures of float frames, which PIL refuses; what was meant is to scale them.
    video = [Image.fromarray((frame * 255).astype(np.uint8)).resize((40, 24)) for frame in video_frames]
    video_frames = pipe(prompt, video=video, strength=0.6, num_inference_steps=4).frames[0]
    video_path = export_to_video(video_frames)

    assert played(video_path) == (FRAMES, 24, 40)


def test_a_program_from_mindspore(models: dict[str, str]) -> None:
    from kinema import TextToVideoSDPipeline, export_to_video

    mindspore: Any = type("mindspore", (), {"float16": "float16"})  # its dtypes; kinema takes names
    pipe = TextToVideoSDPipeline.from_pretrained(models["zeroscope_v2_576w"], mindspore_dtype=mindspore.float16)
    seed = 42
    generator = np.random.Generator(np.random.PCG64(seed))
    call = {"num_frames": FRAMES, "height": 16, "width": 24, "num_inference_steps": STEPS}
    video_frames = pipe("Spiderman is surfing", generator=generator, **call)[0][0]
    video_path = export_to_video(video_frames, "spiderman.mp4", fps=10)

    assert pipe.dtype == torch.float16
    assert played(video_path) == (FRAMES, 16, 24)
    again = pipe("Spiderman is surfing", generator=np.random.Generator(np.random.PCG64(seed)), **call)[0][0]
    assert np.array_equal(video_frames, again)


def test_a_program_with_a_generator_and_settings_of_its_own(models: dict[str, str]) -> None:
    from kinema import EulerDiscreteScheduler, TextToVideoMSPipeline

    pipe = TextToVideoMSPipeline.from_pretrained(models["text-to-video-ms-1.7b"], low_cpu_mem_usage=True)
    pipe = pipe.to("cpu")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    generator = torch.Generator(device="cpu").manual_seed(0)
    (frames,) = pipe(
        "a panda", negative_prompt="low quality", num_frames=FRAMES, num_inference_steps=STEPS, guidance_scale=12.5,
        generator=generator, output_type="pt", return_dict=False,
    )  # fmt: skip
    assert frames.shape == (1, FRAMES, 3, 16, 16)

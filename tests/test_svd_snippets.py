"""Programs written for Stable Video Diffusion run here, with only the import and the checkpoint's name changed.

Where a line of the original says more steps or a larger picture than a test has time for, the number is in capitals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.svd_tiny import ours, picture

import kinema

STEPS, FRAMES, HEIGHT, WIDTH = 1, 3, 16, 32
SMALL: dict[str, Any] = {"num_inference_steps": STEPS, "height": HEIGHT, "width": WIDTH}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The checkpoint, with half-precision files beside the whole ones, and a picture."""
    folder = tmp_path_factory.mktemp("models")
    pipe = ours()
    pipe.save_pretrained(folder / "stable-video-diffusion-img2vid-xt")
    pipe.to("float16").save_pretrained(folder / "stable-video-diffusion-img2vid-xt", variant="fp16")
    picture(0, 64, 40).save(folder / "rocket.png")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def played(path: str) -> tuple[int, int, int]:
    """Frames, height and width of what a player sees."""
    frames = kinema.load_video(path)
    return len(frames), frames[0].height, frames[0].width


def test_the_guide_s_first_program_and_its_way_to_less_memory(models: dict[str, str]) -> None:
    from kinema import StableVideoDiffusionPipeline, export_to_video, load_image

    pipe = StableVideoDiffusionPipeline.from_pretrained(
        models["stable-video-diffusion-img2vid-xt"], torch_dtype=torch.float16, variant="fp16"
    )
    pipe.enable_model_cpu_offload()

    image = load_image(models["rocket.png"])
    image = image.resize((WIDTH, HEIGHT))

    generator = torch.manual_seed(42)
    frames = pipe(image, decode_chunk_size=8, generator=generator, **SMALL).frames[0]
    export_to_video(frames, "generated.mp4", fps=7)
    assert pipe.dtype == torch.float16 and played("generated.mp4") == (FRAMES, HEIGHT, WIDTH)

    pipe.enable_model_cpu_offload()
    pipe.unet.enable_forward_chunking()
    frames = pipe(image, decode_chunk_size=2, generator=generator, num_frames=25, **SMALL).frames[0]
    assert len(frames) == 25


def test_the_guide_s_program_with_more_motion(models: dict[str, str]) -> None:
    from kinema import StableVideoDiffusionPipeline, export_to_video, load_image

    pipe = StableVideoDiffusionPipeline.from_pretrained(
        models["stable-video-diffusion-img2vid-xt"], torch_dtype=torch.float32, variant="fp16"
    )
    image = load_image(models["rocket.png"]).resize((WIDTH, HEIGHT))
    generator = torch.manual_seed(42)
    frames = pipe(
        image, decode_chunk_size=8, generator=generator, motion_bucket_id=180, noise_aug_strength=0.1, **SMALL
    ).frames[0]
    assert played(export_to_video(frames, "generated.mp4", fps=7)) == (FRAMES, HEIGHT, WIDTH)


def test_a_program_from_mindspore(models: dict[str, str]) -> None:
    from kinema import StableVideoDiffusionPipeline, export_to_video, load_image

    ms: Any = type("mindspore", (), {"float16": "float16"})  # its dtypes; kinema takes names
    pipeline = StableVideoDiffusionPipeline.from_pretrained(
        models["stable-video-diffusion-img2vid-xt"], mindspore_dtype=ms.float16, variant="fp16"
    )
    image = load_image(models["rocket.png"])
    image = image.resize((WIDTH, HEIGHT))

    call = {"decode_chunk_size": 8, "num_frames": 5, **SMALL}
    frames = pipeline(image, generator=np.random.Generator(np.random.PCG64(42)), **call)[0]
    export_to_video(frames, "generated.mp4", fps=7)
    assert played("generated.mp4") == (5, HEIGHT, WIDTH)

    pipeline.unet.enable_forward_chunking()
    again = pipeline(image, generator=np.random.Generator(np.random.PCG64(42)), **{**call, "decode_chunk_size": 5})[0][
        0
    ]
    assert [np.asarray(frame).shape for frame in again] == [(HEIGHT, WIDTH, 3)] * 5


def test_programs_from_the_first_days(models: dict[str, str]) -> None:
    """The pipeline's first name, the chunk's first name, and switches that later versions took away."""
    from kinema import StableDiffusionVideoPipeline

    pipe = StableDiffusionVideoPipeline.from_pretrained(models["stable-video-diffusion-img2vid-xt"])
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    image = picture(0, WIDTH, HEIGHT)
    early = pipe(image, frames_to_decode_at_once=2, generator=torch.manual_seed(0), **SMALL).frames
    later = pipe(image, decode_chunk_size=2, generator=torch.manual_seed(0), **SMALL).frames
    assert [np.asarray(f).tolist() for f in early[0]] == [np.asarray(f).tolist() for f in later[0]]
    (clips,) = pipe(image, generator=torch.manual_seed(0), return_dict=False, **SMALL)
    assert len(clips) == 1 and len(clips[0]) == FRAMES

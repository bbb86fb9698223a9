"""I2VGen-XL's published programs run here with only import, checkpoint and the picture's address changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.i2vgen_tiny import picture, theirs, twin

import kinema

STEPS, FRAMES, SMALL = 2, 3, {"height": 16, "width": 24, "num_frames": 3}

prompt = "Papers were floating in the air on a table in the library"
negative_prompt = (
    "Distorted, discontinuous, Ugly, blurry, low resolution, motionless, static, disfigured, disconnected limbs, "
    "Ugly faces, incomplete arms"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "i2vgen-xl"
    pipe = twin(theirs())
    pipe.save_pretrained(folder)
    pipe.to("float16").save_pretrained(folder, variant="fp16")
    return str(folder)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    picture(32, 48).save("img_0009.png")


def test_the_program_of_the_pipeline_s_page(model: str) -> None:
    from kinema import I2VGenXLPipeline, export_to_gif, load_image

    pipeline = I2VGenXLPipeline.from_pretrained(model, torch_dtype=torch.float16, variant="fp16")
    pipeline.enable_model_cpu_offload()
    image = load_image("img_0009.png").convert("RGB")
    generator = torch.manual_seed(8888)

    frames = pipeline(
        prompt=prompt,
        image=image,
        num_inference_steps=STEPS,
        negative_prompt=negative_prompt,
        guidance_scale=9.0,
        generator=generator,
        **SMALL,
    ).frames[0]
    path = export_to_gif(frames, "i2v.gif")

    assert pipeline.dtype == torch.float16
    assert [f.size for f in kinema.load_video(path)] == [(24, 16)] * FRAMES


@pytest.mark.parametrize(("seed", "guidance_scale"), [(8888, 9.0), (0, 1.0)])
def test_the_programs_of_the_mindspore_guide(model: str, seed: int, guidance_scale: float) -> None:
    from kinema import I2VGenXLPipeline, export_to_gif, load_image

    mindspore: Any = type("mindspore", (), {"float16": "float16"})  # its dtypes; kinema takes names
    pipeline = I2VGenXLPipeline.from_pretrained(model, mindspore_dtype=mindspore.float16, variant="fp16")
    image = load_image("img_0009.png").convert("RGB")
    image = image.resize((image.width // 2, image.height // 2))
    generator = np.random.Generator(np.random.PCG64(seed))

    def run() -> Any:
        return pipeline(
            prompt=prompt,
            image=image,
            height=image.height,
            width=image.width,
            num_inference_steps=STEPS,
            num_frames=FRAMES,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            generator=generator,
        )[0][0]

    frames = run()
    path = export_to_gif(frames, "i2v.gif")
    assert [f.size for f in kinema.load_video(path)] == [(24, 16)] * FRAMES
    generator = np.random.Generator(np.random.PCG64(seed))
    assert all(np.array_equal(a, b) for a, b in zip(frames, run(), strict=True))

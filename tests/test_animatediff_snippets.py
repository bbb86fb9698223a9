"""AnimateDiff's published programs run here with only import, checkpoints, sizes and steps changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests import animatediff_pipes as pipes

import kinema

SMALL: dict[str, Any] = {"height": 16, "width": 24}
prompt = "masterpiece, bestquality, highlydetailed, sunset, orange sky, warm lighting, fishing boats, ocean waves"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of an image model, a motion adapter and two motion LoRAs, as the reference writes them."""
    folder = tmp_path_factory.mktemp("models")
    theirs = pipes.theirs()
    diffusers.StableDiffusionPipeline(
        vae=theirs.vae,
        text_encoder=theirs.text_encoder,
        tokenizer=theirs.tokenizer,
        unet=pipes.tiny.reference_image_model(cross_attention_dim=pipes.WIDTH),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "image")
    theirs.motion_adapter.save_pretrained(folder / "motion")
    for seed, name in enumerate(("zoom-out", "pan-left")):
        lora = {}
        dice = torch.Generator().manual_seed(seed)
        for key, module in theirs.unet.named_modules():
            if isinstance(module, torch.nn.Linear) and "motion_modules" in key and ".attn" in key:
                wide, deep = module.weight.shape
                lora[f"unet.{key}.lora.down.weight"] = torch.randn(2, deep, generator=dice)
                lora[f"unet.{key}.lora.up.weight"] = torch.randn(wide, 2, generator=dice) * 0.1
        (folder / name).mkdir()
        save_file(lora, folder / name / "diffusion_pytorch_model.safetensors")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_program_of_the_guide(models: dict[str, str]) -> None:
    from kinema import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, export_to_gif

    adapter = MotionAdapter.from_pretrained(models["motion"], torch_dtype=torch.float16)
    model_id = models["image"]
    pipe = AnimateDiffPipeline.from_pretrained(model_id, motion_adapter=adapter, torch_dtype=torch.float16)
    scheduler = DDIMScheduler.from_pretrained(
        model_id,
        subfolder="scheduler",
        clip_sample=False,
        timestep_spacing="linspace",
        beta_schedule="linear",
        steps_offset=1,
    )
    pipe.scheduler = scheduler

    pipe.enable_vae_slicing()
    pipe.enable_model_cpu_offload()

    output = pipe(
        prompt=prompt,
        negative_prompt="bad quality, worse quality",
        num_frames=16,
        guidance_scale=7.5,
        num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(42),
        **SMALL,
    )
    frames = output.frames[0]
    path = export_to_gif(frames, "animation.gif")
    assert len(frames) == 16
    assert [f.size for f in kinema.load_video(path)] == [(24, 16)] * 16


def test_the_program_with_motion_loras(models: dict[str, str]) -> None:
    from kinema import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, export_to_gif

    adapter = MotionAdapter.from_pretrained(models["motion"], torch_dtype=torch.float32)
    model_id = models["image"]
    pipe = AnimateDiffPipeline.from_pretrained(model_id, motion_adapter=adapter, torch_dtype=torch.float32)

    def made() -> Any:
        call = {"num_frames": 4, "num_inference_steps": 2, **SMALL}
        return pipe(prompt=prompt, guidance_scale=7.5, generator=torch.Generator("cpu").manual_seed(42), **call)

    plain = made().frames[0]
    pipe.load_lora_weights(models["zoom-out"], adapter_name="zoom-out")
    pipe.load_lora_weights(models["pan-left"], adapter_name="pan-left")
    pipe.set_adapters(["zoom-out", "pan-left"], adapter_weights=[1.0, 1.0])
    scheduler = DDIMScheduler.from_pretrained(
        model_id, subfolder="scheduler", clip_sample=False, beta_schedule="linear", timestep_spacing="linspace"
    )
    pipe.scheduler = scheduler
    pipe.enable_vae_slicing()
    frames = made().frames[0]
    assert np.abs(np.stack(frames).astype(float) - np.stack(plain)).max() > 1
    export_to_gif(frames, "animation.gif")


def test_the_program_with_free_init(models: dict[str, str]) -> None:
    from kinema import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, export_to_gif

    adapter = MotionAdapter.from_pretrained(models["motion"])
    pipe = AnimateDiffPipeline.from_pretrained(models["image"], motion_adapter=adapter, torch_dtype=torch.float16)
    pipe.scheduler = DDIMScheduler.from_pretrained(
        models["image"],
        subfolder="scheduler",
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="linspace",
        steps_offset=1,
    )
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    pipe.enable_free_init(method="butterworth", use_fast_sampling=True)
    output = pipe(
        prompt="a panda playing a guitar, on a boat, in the ocean, high quality",
        negative_prompt="bad quality, worse quality",
        num_frames=4,
        guidance_scale=7.5,
        num_inference_steps=4,
        generator=torch.Generator("cpu").manual_seed(666),
        **SMALL,
    )
    pipe.disable_free_init()
    export_to_gif(output.frames[0], "animation.gif")


def test_the_program_of_the_mindspore_guide(models: dict[str, str]) -> None:
    from kinema import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, export_to_gif

    ms: Any = type("mindspore", (), {"float16": "float16"})  # its dtypes; kinema takes names
    adapter = MotionAdapter.from_pretrained(models["motion"], mindspore_dtype=ms.float16)
    model_id = models["image"]
    pipe = AnimateDiffPipeline.from_pretrained(model_id, motion_adapter=adapter, mindspore_dtype=ms.float16)
    pipe.scheduler = DDIMScheduler.from_pretrained(
        model_id,
        subfolder="scheduler",
        clip_sample=False,
        timestep_spacing="linspace",
        beta_schedule="linear",
        steps_offset=1,
    )

    def made() -> Any:
        return pipe(
            prompt=prompt,
            negative_prompt="bad quality, worse quality",
            num_frames=4,
            guidance_scale=7.5,
            num_inference_steps=2,
            generator=np.random.Generator(np.random.PCG64(42)),
            **SMALL,
        )[0][0]

    frames = made()
    path = export_to_gif(frames, "animation.gif")
    assert [f.size for f in kinema.load_video(path)] == [(24, 16)] * 4
    assert all(np.array_equal(a, b) for a, b in zip(frames, made(), strict=True))


def test_a_lightning_adapter_is_filled_from_its_file(models: dict[str, str]) -> None:
    from safetensors.torch import load_file

    from kinema import AnimateDiffPipeline, EulerDiscreteScheduler, MotionAdapter

    adapter = MotionAdapter(pipes.tiny.ADAPTER).to("cpu", torch.float16)
    adapter.load_state_dict(load_file(f"{models['motion']}/diffusion_pytorch_model.safetensors", device="cpu"))
    pipe = AnimateDiffPipeline.from_pretrained(models["image"], motion_adapter=adapter, torch_dtype=torch.float16)
    pipe.scheduler = EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", beta_schedule="linear"
    )
    output = pipe(prompt="A girl smiling", guidance_scale=1.0, num_inference_steps=4, num_frames=4, **SMALL)
    assert len(output.frames[0]) == 4

"""A file says what it is by its header alone: every public kind is told from every other, and faults are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet
from tests.headers import (
    Shapes,
    header_only,
    lora,
    motion,
    of,
    original_motion,
    prefixed,
    sparse,
    text,
    through,
    vae,
    without,
)

from kinema.checkpoint.files import Weights
from kinema.checkpoint.identify import inspect
from kinema.checkpoint.layouts import i2vgen_unet, ldm_vae, modelscope_unet, open_clip_text, svd_unet, temporal_vae
from kinema.checkpoint.originals import TEXT, UNET, VAE
from kinema.errors import CheckpointError
from kinema.families.autoencoder_kl import AutoencoderKL
from kinema.families.modelscope import UNet3DConditionModel

CROSS = [True, True, True, False]


def image_unet(width: int = 768, **fields: Any) -> Shapes:
    return of(lambda: diffusers.UNet2DConditionModel(cross_attention_dim=width, **fields))


def ldm_unet(inputs: int, width: int) -> Shapes:
    """The marks of an image U-Net in the original naming."""
    return {
        "input_blocks.0.0.weight": (320, inputs, 3, 3),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width),
        "middle_block.0.in_layers.0.weight": (1280,),
        "output_blocks.0.0.in_layers.0.weight": (2560,),
        "time_embed.0.weight": (1280, 320),
    }


LDM = "model.diffusion_model."
LDM_VAE = prefixed("first_stage_model.", through(vae(), ldm_vae(4, 2)))
CLIP_L = prefixed("cond_stage_model.transformer.", text(768))
OPEN_CLIP = {
    "transformer.resblocks.0.attn.in_proj_weight": (3072, 1024),
    "token_embedding.weight": (49408, 1024),
    "positional_embedding": (77, 1024),
    "visual.proj": (1280, 1024),
}
MODELSCOPE = of(diffusers.UNet3DConditionModel)
I2V = of(I2VGenXLUNet)
SVD = of(diffusers.UNetSpatioTemporalConditionModel)
SVD_DECODER = through(
    of(lambda: diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,), layers_per_block=2)), temporal_vae(1, 2)
)
SVD_FILE = {
    **prefixed(LDM, through(SVD, svd_unet(4, 2, CROSS))),
    **prefixed("conditioner.embedders.3.encoder.", through(vae(), ldm_vae(4, 2))),
    "conditioner.embedders.0.open_clip.model.visual.proj": (1280, 1024),
    "conditioner.embedders.0.open_clip.model.token_embedding.weight": (49408, 1024),
}
V1 = {"use_motion_mid_block": False, "motion_max_seq_length": 24}
V3 = {"use_motion_mid_block": False, "motion_max_seq_length": 32}
SDXL = {**V3, "block_out_channels": (320, 640, 1280)}
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OVER_TIME = "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"
MOTION_Q = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
)


CORPUS: dict[str, tuple[Callable[[], Shapes], str, str]] = {
    # name: (keys and shapes, kind, a part of what it fits)
    "text-to-video-ms-1.7b unet": (lambda: MODELSCOPE, "ModelScope U-Net", "zeroscope"),
    "text2video_pytorch_model.pth": (
        lambda: through(MODELSCOPE, modelscope_unet(4, 2, CROSS)),
        "ModelScope U-Net, original file",
        "zeroscope",
    ),
    "VQGAN_autoencoder.pth": (lambda: LDM_VAE, "autoencoder, original file", "ModelScope"),
    "open_clip_pytorch_model.bin": (lambda: OPEN_CLIP, "OpenCLIP", "ModelScope"),
    "text-to-video-ms-1.7b text encoder": (lambda: text(1024), "CLIP text encoder", "ModelScope"),
    "text encoder without prefix": (
        lambda: {k.removeprefix("text_model."): v for k, v in text(768).items()},
        "CLIP text encoder",
        "AnimateDiff",
    ),
    "vae": (vae, "autoencoder", "ModelScope"),
    "i2vgen-xl unet": (lambda: I2V, "I2VGen-XL U-Net", "I2VGen-XL"),
    "i2vgen_xl_00854500.pth": (
        lambda: through(I2V, i2vgen_unet(4, 2, CROSS)),
        "I2VGen-XL U-Net, original file",
        "I2VGen-XL",
    ),
    "svd unet": (
        lambda: SVD,
        "Stable Video Diffusion U-Net",
        "Stable Video Diffusion",
    ),
    "svd vae": (
        lambda: of(lambda: diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,))),
        "Stable Video Diffusion autoencoder",
        "Stable Video Diffusion",
    ),
    "svd_xt.safetensors": (
        lambda: SVD_FILE | prefixed("first_stage_model.", SVD_DECODER),
        "Stable Video Diffusion, original single file",
        "image to video",
    ),
    "svd_xt_image_decoder.safetensors": (
        lambda: SVD_FILE | LDM_VAE,
        "Stable Video Diffusion with image decoder, original single file",
        "image to video",
    ),
    "svd unet alone": (
        lambda: through(SVD, svd_unet(4, 2, CROSS)),
        "Stable Video Diffusion U-Net, original file",
        "Stable Video Diffusion",
    ),
    "svd autoencoder alone": (
        lambda: SVD_DECODER,
        "Stable Video Diffusion autoencoder, original file",
        "Stable Video Diffusion",
    ),
    "sv3d_u.safetensors": (
        lambda: SVD_FILE | {f"{LDM}label_emb.0.0.weight": (1280, 256)},
        "Stable Video 3D, original single file",
        "orbits",
    ),
    "svd image encoder": (
        lambda: {"vision_model.embeddings.class_embedding": (1280,), "visual_projection.weight": (1024, 1280)},
        "CLIP vision encoder",
        "Stable Video Diffusion",
    ),
    "motion-adapter-v1-5": (lambda: motion(**V1), "AnimateDiff motion module v1", "Stable Diffusion 1.5, up to 24"),
    "motion-adapter-v1-5-2": (motion, "AnimateDiff motion module v2", "up to 32"),
    "motion-adapter-v1-5-3": (lambda: motion(**V3), "AnimateDiff motion module v3", "up to 32"),
    "motion-adapter-sdxl-beta": (lambda: motion(**SDXL), "AnimateDiff motion module for SDXL", "SDXL, up to 32"),
    "mm_sd_v15.ckpt": (lambda: original_motion(motion(**V1)), "AnimateDiff motion module v1", "up to 24"),
    "mm_sd_v15_v2.ckpt": (lambda: original_motion(motion()), "AnimateDiff motion module v2", "up to 32"),
    "v3_sd15_mm.ckpt": (lambda: original_motion(motion(**V3)), "AnimateDiff motion module v3", "up to 32"),
    "mm_sdxl_v10_beta.ckpt": (lambda: original_motion(motion(**SDXL)), "AnimateDiff motion module for SDXL", "SDXL"),
    "AnimateLCM_sd15_t2v.ckpt": (
        lambda: without(original_motion(motion()), "pos_encoder"),
        "AnimateLCM motion module",
        "any number of frames",
    ),
    "PIA": (lambda: motion(conv_in_channels=9), "PIA adapter", "Stable Diffusion 1.5"),
    "hotshotxl": (
        lambda: {
            "down_blocks.0.temporal_attentions.0.transformer_blocks.0.pos_encoder.positional_encoding": (1, 24, 320),
            "down_blocks.2.temporal_attentions.0.proj_in.weight": (1280, 1280),
        },
        "HotshotXL motion module",
        "SDXL, up to 24",
    ),
    "animatediff unet": (
        lambda: of(lambda: diffusers.UNetMotionModel(cross_attention_dim=768)),
        "AnimateDiff U-Net, motion inside",
        "AnimateDiff",
    ),
    "sparsectrl-scribble": (
        lambda: sparse(conditioning_channels=3, use_simplified_condition_embedding=False),
        "SparseCtrl scribble",
        "v3",
    ),
    "sparsectrl-rgb": (
        lambda: sparse(conditioning_channels=4, use_simplified_condition_embedding=True),
        "SparseCtrl RGB",
        "v3",
    ),
    "controlnet": (lambda: of(lambda: diffusers.ControlNetModel(cross_attention_dim=768)), "ControlNet", "1.5"),
    "control_v11p_sd15_canny.pth": (
        lambda: prefixed("control_model.", {**ldm_unet(4, 768), "input_hint_block.0.weight": (16, 3, 3, 3)}),
        "ControlNet, original file",
        "1.5",
    ),
    "stable-diffusion-v1-5 unet": (image_unet, "image U-Net", "Stable Diffusion 1.5"),
    "sd-2-1 unet": (lambda: image_unet(1024), "image U-Net", "Stable Diffusion 2.x"),
    "v1-5-pruned.safetensors": (
        lambda: {**prefixed(LDM, ldm_unet(4, 768)), **LDM_VAE, **CLIP_L},
        "Stable Diffusion 1.x, single file",
        "AnimateDiff",
    ),
    "sd-v1-5-inpainting.ckpt": (
        lambda: {**prefixed(LDM, ldm_unet(9, 768)), **LDM_VAE, **CLIP_L},
        "Stable Diffusion 1.x inpainting, single file",
        "inpainting",
    ),
    "v2-1_512.safetensors": (
        lambda: {**prefixed(LDM, ldm_unet(4, 1024)), **prefixed("cond_stage_model.model.", OPEN_CLIP)},
        "Stable Diffusion 2.x, single file",
        "",
    ),
    "sd_xl_base_1.0.safetensors": (
        lambda: {
            **prefixed(LDM, ldm_unet(4, 2048)),
            **prefixed("conditioner.embedders.0.transformer.", text(768)),
            **prefixed("conditioner.embedders.1.model.", OPEN_CLIP),
        },
        "SDXL, single file",
        "SDXL",
    ),
    "ip-adapter_sd15": (
        lambda: {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)},
        "IP-Adapter",
        "Stable Diffusion 1.5",
    ),
    "diffusers lora": (lambda: lora(f"unet.{Q}.lora_X.weight", 768), "LoRA (diffusers)", "Stable Diffusion 1.5"),
    "older diffusers lora": (lambda: lora(f"unet.{Q}.lora.{{role}}.weight", 1024), "LoRA (diffusers)", "ModelScope"),
    "modelscope lora": (
        lambda: lora(f"unet.{Q.replace('.attentions', '.temp_attentions')}.lora_X.weight", 320),
        "LoRA (diffusers)",
        "zeroscope, I2VGen-XL",
    ),
    "svd lora": (
        lambda: lora(f"unet.{OVER_TIME}.lora_X.weight", 320),
        "LoRA (diffusers)",
        "Stable Video Diffusion",
    ),
    "svd kohya lora": (
        lambda: lora("lora_unet_input_blocks_1_1_time_stack_0_attn1_to_q.lora_{role}.weight", 320),
        "LoRA (kohya)",
        "Stable Video Diffusion",
    ),
    "i2vgen-xl peft lora": (
        lambda: lora("base_model.model.image_latents_proj_in.0.lora_X.weight", 4),
        "LoRA (peft)",
        "I2VGen-XL",
    ),
    "peft lora": (lambda: lora(f"base_model.model.{Q}.lora_X.weight", 2048), "LoRA (peft)", "SDXL"),
    "kohya lora": (
        lambda: lora(f"lora_unet_{Q.replace('.', '_')}.lora_{{role}}.weight", 768, alpha_of=()),
        "LoRA (kohya)",
        "Stable Diffusion 1.5",
    ),
    "v2_lora_PanLeft.ckpt": (lambda: lora(f"{MOTION_Q}.{{role}}.weight", 320), "motion LoRA", "v2"),
    "learned_embeds": (lambda: {"<cat-toy>": (768,)}, "textual inversion", "Stable Diffusion 1.5"),
    "a1111 embedding": (lambda: {"string_to_param.*": (4, 1024)}, "textual inversion", "ModelScope"),
    "sdxl embedding": (lambda: {"clip_l": (2, 768), "clip_g": (2, 1280)}, "textual inversion", "SDXL"),
    "nothing known": (lambda: {"layers.0.weight": (3, 3)}, "unknown", ""),
}


@pytest.fixture(autouse=True)
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Weights) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Weights, "_map", refuse)


@pytest.mark.parametrize("name", CORPUS)
def test_each_public_file_is_known_by_its_header(tmp_path: Path, name: str) -> None:
    make, kind, fits = CORPUS[name]
    shapes = make()
    report = inspect(header_only(tmp_path / "x.safetensors", shapes))
    assert (report.kind, fits in report.fits) == (kind, True), report.fits
    assert report.parameters == sum(torch.Size(s).numel() for s in shapes.values())
    assert (report.tensors, report.bytes) == (len(shapes), 2 * report.parameters)
    assert (report.dtype, report.format) == ("float16", "safetensors")
    assert report.problems == () or kind == "unknown"


def test_published_sizes_are_counted_right(tmp_path: Path) -> None:
    report = inspect(header_only(tmp_path / "x.safetensors", MODELSCOPE, "F32"))
    assert report.parameters == pytest.approx(1411.2e6, rel=1e-4) and report.tensors == 1480
    assert "1.411G parameters in 1480 tensors, 5.645 GB" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["kind"] == "ModelScope U-Net"


def test_pickled_files_are_known_and_said_to_be(tmp_path: Path) -> None:
    torch.save({"state_dict": {"<toy>": torch.ones(768)}}, tmp_path / "x.pt")
    report = inspect(tmp_path / "x.pt")
    assert report.kind == "textual inversion" and report.format == "pickled"
    assert "safetensors is safer" in report.problems[0]


# faults


def test_a_truncated_file_is_still_known(tmp_path: Path) -> None:
    path = header_only(tmp_path / "x.safetensors", MODELSCOPE)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    report = inspect(path)
    assert report.kind == "ModelScope U-Net"
    assert "is truncated" in report.problems[0]


def test_what_cannot_be_read_is_reported_not_raised(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"{}")
    report = inspect(tmp_path / "x.safetensors")
    assert report.kind == "unreadable" and "no weights" in report.problems[0]
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect(tmp_path / "none")


def test_mixed_and_wasteful_formats_are_named(tmp_path: Path) -> None:
    torch.save(
        {"model_ema.a": torch.ones(2), "b": torch.ones(2).double(), "c": torch.ones(3).half()}, tmp_path / "x.pt"
    )
    problems = " ".join(inspect(tmp_path / "x.pt").problems)
    for words in (
        "mixed number formats: 1 tensors float32",
        "float64",
        "model_ema",
        "no kind is known with keys such as",
    ):
        assert words in problems


def published(folder: Path) -> Path:
    """A small pipeline folder in the published layout."""
    torch.manual_seed(0)
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(32, 64, 64, 64), attention_head_dim=8, cross_attention_dim=24
    )
    unet.save_pretrained(folder / "unet")
    unet.half().save_pretrained(folder / "unet", variant="fp16")
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    diffusers.AutoencoderKL(block_out_channels=(32,), **blocks).save_pretrained(
        folder / "vae", safe_serialization=False
    )
    index = {
        "_class_name": "TextToVideoSDPipeline",
        "_diffusers_version": "0.15",
        "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_pipeline_folder_is_described_part_by_part(tmp_path: Path) -> None:
    report = inspect(
        published(tmp_path), {"UNet3DConditionModel": UNet3DConditionModel, "AutoencoderKL": AutoencoderKL}
    )
    assert report.kind == "TextToVideoSDPipeline pipeline"
    assert [part.kind for part in report.parts] == ["ModelScope U-Net", "autoencoder"]
    assert report.variants == ("fp16",) and report.parts[0].variants == ("fp16",)
    assert report.parameters == sum(part.parameters for part in report.parts)
    assert report.problems == ("model_index.json names tokenizer, but there is no folder tokenizer",)
    assert report.parts[0].problems == ()
    assert "pickled" in report.parts[1].problems[0]
    assert "  unet: ModelScope U-Net, for ModelScope text-to-video, zeroscope" in str(report)


def test_weights_are_compared_with_their_configuration(tmp_path: Path) -> None:
    folder = published(tmp_path) / "unet"
    config = json.loads((folder / "config.json").read_text())
    classes = {"UNet3DConditionModel": UNet3DConditionModel}
    (folder / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 16, "mystery": 1}))
    wrong, stale = inspect(folder, classes).problems
    assert "config and weights differ" in wrong and "mystery" in stale
    (folder / "config.json").write_text(json.dumps({**config, "layers_per_block": 1}))
    assert "too many" in inspect(folder, classes).problems[0]
    (folder / "config.json").write_text(json.dumps({**config, "layers_per_block": "two"}))
    assert "layers_per_block is 'two'" in inspect(folder, classes).problems[0]


def test_a_folder_of_originals_is_known(tmp_path: Path) -> None:
    header_only(tmp_path / UNET, through(MODELSCOPE, modelscope_unet(4, 2, CROSS)))
    header_only(tmp_path / VAE, LDM_VAE)
    report = inspect(tmp_path)
    assert report.kind == "ModelScope text-to-video, original files"
    assert report.problems == (f"{TEXT} is missing",)
    assert [part.kind for part in report.parts] == ["ModelScope U-Net, original file", "autoencoder, original file"]
    header_only(tmp_path / TEXT, through(text(1024, 1), open_clip_text(1)))
    assert inspect(tmp_path).problems == ()


def test_a_folder_of_i2vgen_originals_is_known(tmp_path: Path) -> None:
    header_only(tmp_path / "i2vgen_xl_00854500.pth", through(I2V, i2vgen_unet(4, 2, CROSS)))
    header_only(tmp_path / "open_clip_pytorch_model.safetensors", OPEN_CLIP)
    report = inspect(tmp_path)
    assert report.kind == "I2VGen-XL, original files"
    assert report.problems == ("v2-1_512-ema-pruned.ckpt is missing",)
    assert [part.kind for part in report.parts] == ["I2VGen-XL U-Net, original file", "OpenCLIP"]


def test_names_of_the_box_are_known() -> None:
    report = inspect("toy")
    assert report.kind == "TextToVideoSDPipeline pipeline" and report.problems == ()
    assert [part.kind for part in report.parts] == ["CLIP text encoder", "ModelScope U-Net", "autoencoder"]


def test_loose_files_are_listed(tmp_path: Path) -> None:
    header_only(tmp_path / "a.safetensors", lora(f"unet.{Q}.lora_X.weight", 768))
    header_only(tmp_path / "b.safetensors", {"clip_l": (2, 768), "clip_g": (2, 1280)})
    assert [part.kind for part in inspect(tmp_path).parts] == ["LoRA (diffusers)", "textual inversion"]
    (tmp_path / "empty").mkdir()
    assert inspect(tmp_path / "empty").problems == ("there are no weights in it",)

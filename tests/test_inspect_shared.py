"""Files that people share for image models and AnimateDiff are each named by their headers, with what takes them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.headers import Shapes, header_only, lora, motion, of, prefixed, sparse, text, through, vae, without

from kinema.checkpoint.files import Weights
from kinema.checkpoint.identify import inspect
from kinema.checkpoint.kinds import kind_of
from kinema.checkpoint.layouts import ldm_vae
from kinema.checkpoint.layouts_image import control_net, image_unet, motion_module
from kinema.checkpoint.loadable import takes, way
from kinema.checkpoint.single import READERS

SD, FIRST = "model.diffusion_model.", "first_stage_model."
CROSS, CROSS_XL = [True, True, True, False], [False, True, True]
XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@cache
def unet(width: int = 768, inputs: int = 4) -> Shapes:
    return of(lambda: diffusers.UNet2DConditionModel(cross_attention_dim=width, in_channels=inputs))


@cache
def unet_xl(inputs: int = 4) -> Shapes:
    return of(lambda: diffusers.UNet2DConditionModel(in_channels=inputs, **XL))


@cache
def control(width: int = 768) -> Shapes:
    return of(lambda: diffusers.ControlNetModel(cross_attention_dim=width))


def ldm(shapes: Shapes) -> Shapes:
    return through(shapes, image_unet(4, 2, CROSS))


def ldm_xl(shapes: Shapes) -> Shapes:
    return through(shapes, image_unet(3, 2, CROSS_XL))


@cache
def autoencoder() -> Shapes:
    return through(vae(), ldm_vae(4, 2))


@cache
def rest() -> Shapes:
    return {**prefixed(FIRST, autoencoder()), **prefixed("cond_stage_model.transformer.", text(768))}


@cache
def rest_xl() -> Shapes:
    open_clip = {
        "transformer.resblocks.0.attn.in_proj_weight": (3840, 1280),
        "token_embedding.weight": (49408, 1280),
        "positional_embedding": (77, 1280),
        "text_projection": (1280, 1280),
    }
    clip = prefixed("conditioner.embedders.0.transformer.", text(768))
    return {**prefixed(FIRST, autoencoder()), **clip, **prefixed("conditioner.embedders.1.model.", open_clip)}


@cache
def module(levels: int = 4, middle: int = 1, length: int = 32, hotshot: bool = False, **more: Any) -> Shapes:
    widths = (320, 640, 1280, 1280)[:levels]
    fields = {"use_motion_mid_block": middle > 0, "motion_max_seq_length": length, "block_out_channels": widths}
    return through(motion(**fields, **more), motion_module(levels, 2, middle, hotshot=hotshot))


def sparse_file(**fields: Any) -> Shapes:
    return through(sparse(**fields), motion_module(4, 2, 0, attentions=1))


def ip(projection: Shapes, context: int, numbers: int = 16, lora: bool = False) -> Shapes:
    found = prefixed("image_proj.", projection)
    for i in range(1, 2 * numbers, 2):
        found |= {f"ip_adapter.{i}.to_k_ip.weight": (320, context), f"ip_adapter.{i}.to_v_ip.weight": (320, context)}
        found |= {f"ip_adapter.{i}.to_q_lora.down.weight": (128, 320)} if lora else {}
    return found


RESAMPLED = {"proj_in.weight": (768, 1280), "proj_out.weight": (768, 768)}
FACE = {"proj.0.weight": (1024, 512), "proj.2.weight": (3072, 1024), "norm.weight": (768,)}
K2 = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
MOTION_Q = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
XL_K = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
SD15, ANY = "Stable Diffusion 1.5", ""

CORPUS: dict[str, tuple[Callable[[], Shapes], str, str, str]] = {
    # name: (keys and shapes, kind, a part of what it fits, what takes it)
    "dreamshaper_8.safetensors": (
        lambda: {**prefixed(SD, ldm(unet())), **rest()},
        "Stable Diffusion 1.x, single file",
        "AnimateDiff",
        "AnimateDiffPipeline.from_single_file",
    ),
    "v1-5-pruned.ckpt, with averages": (
        lambda: {**prefixed(SD, ldm(unet())), **rest(), "model_ema.diffusion_modelout2bias": (4,), "betas": (1000,)},
        "Stable Diffusion 1.x, single file",
        "AnimateDiff",
        "AnimateDiffPipeline.from_single_file",
    ),
    "an old merge, without text_model": (
        lambda: {
            **prefixed(SD, ldm(unet())),
            **{k.replace(".text_model", ""): v for k, v in rest().items()},
        },
        "Stable Diffusion 1.x, single file",
        "AnimateDiff",
        "AnimateDiffPipeline.from_single_file",
    ),
    "sd-v1-5-inpainting.ckpt": (
        lambda: {**prefixed(SD, ldm(unet(inputs=9))), **rest()},
        "Stable Diffusion 1.x inpainting, single file",
        "inpainting",
        "UNet2DConditionModel.from_single_file",
    ),
    "sd_xl_base_1.0.safetensors": (
        lambda: {**prefixed(SD, ldm_xl(unet_xl())), **rest_xl()},
        "SDXL, single file",
        "SDXL",
        "AnimateDiffSDXLPipeline.from_single_file",
    ),
    "sdxl inpainting": (
        lambda: {**prefixed(SD, ldm_xl(unet_xl(9))), **rest_xl()},
        "SDXL inpainting, single file",
        "inpainting",
        "UNet2DConditionModel.from_single_file",
    ),
    "sd_xl_refiner_1.0.safetensors": (
        lambda: {f"{SD}out.2.bias": (4,), "conditioner.embedders.0.model.token_embedding.weight": (49408, 1280)},
        "SDXL refiner, single file",
        "refinement",
        "UNet2DConditionModel.from_single_file",
    ),
    "a U-Net alone": (lambda: ldm(unet()), "image U-Net, original file", SD15, "UNet2DConditionModel.from_single_file"),
    "unet of SDXL in diffusers' names": (unet_xl, "image U-Net", "SDXL", "UNet2DConditionModel.from_single_file"),
    "unet of inpainting": (
        lambda: unet(inputs=9),
        "image U-Net",
        "Stable Diffusion 1.5, inpainting",
        "UNet2DConditionModel.from_single_file",
    ),
    "vae-ft-mse-840000-ema-pruned.ckpt": (
        autoencoder,
        "autoencoder, original file",
        "AnimateDiff",
        "AutoencoderKL.from_single_file",
    ),
    "kl-f8-anime2.vae.pt": (
        lambda: {**prefixed(FIRST, autoencoder()), "loss.logvar": ()},
        "autoencoder, original file",
        "AnimateDiff",
        "AutoencoderKL.from_single_file",
    ),
    "vae in diffusers' names": (vae, "autoencoder", "AnimateDiff", "AutoencoderKL.from_single_file"),
    # motion
    "mm_sd_v14.ckpt": (
        lambda: module(middle=0, length=24),
        "AnimateDiff motion module v1",
        "Stable Diffusion 1.5, up to 24 frames",
        "MotionAdapter.from_single_file",
    ),
    "mm_sd_v15.ckpt of several devices": (
        lambda: prefixed("module.", module(middle=0, length=24)),
        "AnimateDiff motion module v1",
        "up to 24 frames",
        "MotionAdapter.from_single_file",
    ),
    "mm_sd_v15_v2.ckpt": (
        module,
        "AnimateDiff motion module v2",
        "Stable Diffusion 1.5, up to 32 frames",
        "MotionAdapter.from_single_file",
    ),
    "v3_sd15_mm.ckpt": (
        lambda: module(middle=0),
        "AnimateDiff motion module v3",
        "up to 32 frames",
        "MotionAdapter.from_single_file",
    ),
    "mm_sdxl_v10_beta.ckpt": (
        lambda: module(levels=3, middle=0),
        "AnimateDiff motion module for SDXL",
        "SDXL, up to 32 frames",
        "MotionAdapter.from_single_file",
    ),
    "lt_long_mm_16_64_frames.ckpt": (
        lambda: module(middle=0, length=64),
        "AnimateDiff motion module, longer",
        "Stable Diffusion 1.5, up to 64 frames",
        "MotionAdapter.from_single_file",
    ),
    "hsxl_temporal_layers.f16.safetensors": (
        lambda: module(levels=3, middle=0, length=24, hotshot=True),
        "HotshotXL motion module",
        "SDXL, up to 24 frames",
        "MotionAdapter.from_single_file",
    ),
    "AnimateLCM_sd15_t2v.ckpt": (
        lambda: without(module(), "pos_encoder"),
        "AnimateLCM motion module",
        "any number of frames",
        "MotionAdapter.from_single_file",
    ),
    "AnimateLCM_sd15_i2v.ckpt": (
        lambda: {**without(module(), "pos_encoder"), "img_encoder.conv_in.weight": (320, 4, 3, 3)},
        "AnimateLCM-I2V motion module",
        SD15,
        "",
    ),
    "animatediff_lightning_4step_diffusers.safetensors": (
        motion,
        "AnimateDiff motion module v2",
        "up to 32 frames",
        "MotionAdapter.from_single_file",
    ),
    "animatediff_lightning_4step_comfyui.safetensors": (
        module,
        "AnimateDiff motion module v2",
        "up to 32 frames",
        "MotionAdapter.from_single_file",
    ),
    "pia.ckpt": (
        lambda: module(conv_in_channels=9),
        "PIA adapter",
        SD15,
        "MotionAdapter.from_single_file",
    ),
    "fancyvideo": (
        lambda: {**module(), "fps_embedding.linear.weight": (1280, 320), "motion_embedding.linear.weight": (1280, 320)},
        "FancyVideo motion module",
        SD15,
        "",
    ),
    "CameraCtrl_pruned.safetensors": (
        lambda: {"encoder_down_conv_blocks.0.0.block1.weight": (320, 640, 3, 3)},
        "CameraCtrl pose encoder",
        "v3",
        "",
    ),
    "v3_sd15_sparsectrl_rgb.ckpt": (
        lambda: sparse_file(conditioning_channels=4, use_simplified_condition_embedding=True),
        "SparseCtrl RGB",
        "v3",
        "SparseControlNetModel.from_single_file",
    ),
    "v3_sd15_sparsectrl_scribble.ckpt": (
        lambda: prefixed("module.", sparse_file(conditioning_channels=3, use_simplified_condition_embedding=False)),
        "SparseCtrl scribble",
        "v3",
        "SparseControlNetModel.from_single_file",
    ),
    # steering
    "control_v11p_sd15_canny.pth": (
        lambda: prefixed("control_model.", through(control(), control_net(4, 2, CROSS))),
        "ControlNet, original file",
        SD15,
        "ControlNetModel.from_single_file",
    ),
    "control_sd15_canny.pth, with its base": (
        lambda: {
            **prefixed("control_model.", through(control(), control_net(4, 2, CROSS))),
            **prefixed(SD, ldm(unet())),
            **rest(),
        },
        "ControlNet with its base model, original file",
        SD15,
        "ControlNetModel.from_single_file",
    ),
    "controlnet of SDXL": (lambda: control(2048), "ControlNet", "SDXL", "ControlNetModel.from_single_file"),
    "ip-adapter_sd15.bin": (
        lambda: ip({"proj.weight": (3072, 1024), "norm.weight": (768,)}, 768),
        "IP-Adapter",
        SD15,
        "pipeline.load_ip_adapter",
    ),
    "ip-adapter_sdxl_vit-h.safetensors": (
        lambda: ip({"proj.weight": (8192, 1024), "norm.weight": (2048,)}, 2048, 70),
        "IP-Adapter",
        "SDXL",
        "pipeline.load_ip_adapter",
    ),
    "ip-adapter-plus_sd15.bin": (
        lambda: ip({"latents": (1, 16, 768), **RESAMPLED}, 768),
        "IP-Adapter Plus",
        SD15,
        "pipeline.load_ip_adapter",
    ),
    "ip-adapter-full-face_sd15.bin": (
        lambda: ip({"proj.0.weight": (1280, 1280), "proj.2.weight": (768, 1280), "proj.3.weight": (768,)}, 768),
        "IP-Adapter Full",
        SD15,
        "pipeline.load_ip_adapter",
    ),
    "ip-adapter-faceid_sd15.bin": (
        lambda: ip(FACE, 768, lora=True),
        "IP-Adapter FaceID",
        SD15,
        "pipeline.load_ip_adapter",
    ),
    "ip-adapter-faceid-plusv2_sd15.bin": (
        lambda: ip({**FACE, **prefixed("perceiver_resampler.", RESAMPLED)}, 768, lora=True),
        "IP-Adapter FaceID Plus",
        SD15,
        "pipeline.load_ip_adapter",
    ),
    # LoRA
    "v2_lora_ZoomIn.ckpt": (
        lambda: {
            **lora(f"{MOTION_Q.replace('.attn1', '.attention_blocks.0')}_lora.{{role}}.weight", 320),
            **lora("mid_block.motion_modules.0.proj_in_lora.{role}.weight", 1280),
        },
        "motion LoRA",
        "motion module v2",
        "pipeline.load_lora_weights",
    ),
    "animatediff-motion-lora-zoom-in": (
        lambda: lora(f"unet.{MOTION_Q}.lora_X.weight", 320),
        "motion LoRA",
        "v1, v2 or v3",
        "pipeline.load_lora_weights",
    ),
    "v3_sd15_adapter.ckpt": (
        lambda: (
            lora(f"{K2.replace('.to_k', '.processor.to_q')}_lora.{{role}}.weight", 320)
            | lora(f"{K2.replace('.to_k', '.processor.to_k')}_lora.{{role}}.weight", 768)
        ),
        "LoRA (attention processors)",
        SD15,
        "pipeline.load_lora_weights",
    ),
    "kohya lora of SDXL": (
        lambda: lora(f"{XL_K}.lora_{{role}}.weight", 2048, **{f"{XL_K}.alpha": ()}),
        "LoRA (kohya)",
        "SDXL",
        "pipeline.load_lora_weights",
    ),
    "a DoRA with convolutions": (
        lambda: (
            lora("lora_unet_up_blocks_1_resnets_0_conv1.lora_{role}.weight", 640)
            | lora(f"lora_unet_{K2.replace('.', '_')}.lora_{{role}}.weight", 768)
            | {f"lora_unet_{K2.replace('.', '_')}.dora_scale": (320, 1)}
        ),
        "LoRA (kohya)",
        SD15,
        "pipeline.load_lora_weights",
    ),
    "a LoHa": (
        lambda: {f"lora_unet_{K2.replace('.', '_')}.hada_w{n}": (320, 4) for n in ("1_a", "1_b", "2_a", "2_b")},
        "LoRA (LyCORIS: LoHa, LoKr)",
        ANY,
        "pipeline.load_lora_weights",
    ),
    "an embedding of SDXL": (
        lambda: {"clip_l": (2, 768), "clip_g": (2, 1280)},
        "textual inversion",
        "SDXL",
        "pipeline.load_textual_inversion",
    ),
}


@pytest.fixture(autouse=True)
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Weights) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Weights, "_map", refuse)


@pytest.mark.parametrize("name", CORPUS)
def test_each_shared_file_is_named_with_what_takes_it(tmp_path: Path, name: str) -> None:
    make, kind, fits, load = CORPUS[name]
    shapes = make()
    assert kind_of(dict(sorted(shapes.items()))) == kind_of(dict(sorted(shapes.items(), reverse=True)))
    report = inspect(header_only(tmp_path / "x.safetensors", shapes))
    assert (report.kind, fits in report.fits, report.load) == (kind, True, load), report.fits
    assert (f"load it with {load}" in str(report)) == bool(load)
    assert (report.model or "pipeline") == load.partition(".")[0] or not load
    averaged = [p for p in report.problems if "model_ema" in p]
    assert list(report.problems) == averaged and bool(averaged) == ("averages" in name)


def test_at_least_25_kinds_are_told_apart() -> None:
    assert len(CORPUS) >= 40 and len({kind for _, kind, _, _ in CORPUS.values()}) >= 25


def test_the_class_that_is_named_reads_such_a_file() -> None:
    """Read it without weights: keys and shapes are enough to make the configuration."""
    for name, (make, kind, _, load) in CORPUS.items():
        model, _, call = load.partition(".")
        if call != "from_single_file" or model.endswith("Pipeline") or "refiner" in name:
            continue
        assert takes(model, kind)
        meta = {key: torch.empty(shape, device="meta") for key, shape in make().items()}
        if model == "MotionAdapter" and "AnimateLCM" not in name:
            continue  # positions are numbers, which headers do not hold
        found = READERS[model]({k: torch.zeros(v.shape) if k.endswith(".pe") else v for k, v in meta.items()}, name)
        assert found.config["_class_name"] == model


@pytest.mark.parametrize("ending", ["ckpt", "pt", "bin", "safetensors"])
def test_a_malicious_pickle_is_named_and_never_run(tmp_path: Path, ending: str) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch '{tmp_path / 'ran'}'",)

    key = "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"
    torch.save({"state_dict": {key: torch.ones(1)}, "callbacks": Evil()}, tmp_path / f"zipped.{ending}")
    (tmp_path / f"bare.{ending}").write_bytes(pickle.dumps({key: Evil()}))
    for name in ("zipped", "bare"):
        report = inspect(tmp_path / f"{name}.{ending}")
        assert report.kind == "unreadable" and report.problems
        assert ending == "safetensors" or "nothing in it ran" in report.problems[0]
    assert not (tmp_path / "ran").exists()


def test_few_steps_are_told_by_the_name(tmp_path: Path) -> None:
    report = inspect(header_only(tmp_path / "animatediff_lightning_4step_diffusers.safetensors", module()))
    assert report.kind == "AnimateDiff motion module v2" and report.fits.endswith("in 4 steps by its name")


def test_what_takes_nothing_is_said_so() -> None:
    assert way("FancyVideo motion module") is None and way("unknown") is None
    assert kind_of({"layers.0.weight": (3, 3)}) == ("unknown", "")

"""Files as people share them are read to the keys, tensors and configuration of the published folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers.loaders import single_file_utils as theirs
from tests import shared_tiny as tiny
from torch import Tensor, nn

import kinema
from kinema.checkpoint import originals_image, originals_motion
from kinema.checkpoint.files import open_weights
from kinema.checkpoint.originals import Original
from kinema.checkpoint.single import read_single
from kinema.errors import CheckpointError

UNETS = {"SD1.5": tiny.SD15, "inpainting": tiny.INPAINTING, "SDXL": tiny.SDXL}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) and found[k].shape == expected[k].shape for k in expected)


def is_like(found: Original, model: nn.Module) -> None:
    """The same tensors, and a configuration that says what the model's own says."""
    same(found.state, model.state_dict())
    for name, value in found.config.items():
        if name not in ("_class_name", "sample_size"):
            own = model.config[name]  # type: ignore[operator, index, union-attr]
            assert (list(own) if isinstance(own, tuple) else own) == value, name


def saved(path: Path, state: Mapping[str, Tensor], how: str = "safetensors") -> Path:
    file = path / f"file.{how.partition(' ')[0]}"
    if how == "safetensors":
        safetensors.torch.save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}, file)
    else:
        torch.save({"state_dict": dict(state), "global_step": 3} if "wrapped" in how else dict(state), file)
    return file


@pytest.mark.parametrize("how", ["safetensors", "ckpt", "ckpt wrapped"])
@pytest.mark.parametrize("name", UNETS)
def test_an_image_unet_is_read_from_a_whole_file(tmp_path: Path, name: str, how: str) -> None:
    model = tiny.unet(UNETS[name])
    whole = tiny.under(tiny.SD, tiny.unet_file(model, UNETS[name])) | {"model_ema.decay": torch.zeros(())}
    is_like(originals_image.unet(open_weights(saved(tmp_path, whole, how)), "x"), model)


@pytest.mark.parametrize("name", UNETS)
def test_an_image_unet_is_read_alone_in_either_spelling(name: str) -> None:
    model = tiny.unet(UNETS[name])
    is_like(originals_image.unet(tiny.unet_file(model, UNETS[name]), "x"), model)
    is_like(originals_image.unet(tiny.plain(model), "x"), model)


@pytest.mark.parametrize("name", UNETS)
def test_the_reference_reads_the_same_unet(name: str) -> None:
    fields = UNETS[name]
    file = tiny.under(tiny.SD, tiny.unet_file(tiny.unet(fields), fields))
    found = originals_image.unet(file, "x")
    config = {**dict(tiny.unet(fields).config), "class_embed_type": None}
    same(found.state, theirs.convert_ldm_unet_checkpoint(dict(file), config))


@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
@pytest.mark.parametrize("prefix", ["", "control_model."])
def test_a_controlnet_is_read_in_its_own_layout(name: str, prefix: str) -> None:
    model = tiny.control(UNETS[name])
    file = tiny.under(prefix, tiny.control_file(model, UNETS[name]))
    assert f"{prefix}input_hint_block.14.weight" in file and f"{prefix}zero_convs.0.0.weight" in file
    is_like(originals_image.control(file, "control_v11p_sd15_canny.pth"), model)
    is_like(originals_image.control(tiny.plain(model), "x"), model)


def test_the_reference_reads_the_same_controlnet() -> None:
    model = tiny.control()
    file = tiny.control_file(model)
    converted = theirs.convert_controlnet_checkpoint(tiny.under("control_model.", file), dict(model.config))
    same(originals_image.control(file, "x").state, converted)


def test_a_controlnet_that_pools_is_known_by_its_name() -> None:
    model = tiny.control(conditioning_channels=4, controlnet_conditioning_channel_order="bgr")
    found = originals_image.control(tiny.control_file(model), "models/control_v11e_sd15_shuffle.pth")
    assert found.config["global_pool_conditions"] and found.config["conditioning_channels"] == 4
    assert not originals_image.control(tiny.control_file(model), "shuffle/canny.pth").config["global_pool_conditions"]


SPELT = ["ckpt wrapped", "distributed", "hotshot", "diffusers"]


@pytest.mark.parametrize(("name", "how"), [*((n, "safetensors") for n in tiny.MOTION), *(("v2", how) for how in SPELT)])
def test_a_motion_module_is_read_in_every_spelling(tmp_path: Path, name: str, how: str) -> None:
    model = tiny.motion(**tiny.MOTION[name])
    file = tiny.plain(model) if how == "diffusers" else tiny.motion_file(model, hotshot=how == "hotshot")
    assert any("attention_blocks.1.pos_encoder" in key for key in file) == (how != "diffusers")
    if how == "distributed":
        file = tiny.under("module.", file) | {"animatediff_config": torch.zeros(1)}
    path = saved(tmp_path, file, how if how in ("safetensors", "ckpt wrapped") else "ckpt")
    is_like(originals_motion.motion_adapter(open_weights(path), "x"), model)


def test_the_reference_reads_the_same_motion_module() -> None:
    model = tiny.motion()
    converted = theirs.convert_animatediff_checkpoint_to_diffusers(tiny.motion_file(model))
    found = originals_motion.motion_adapter(tiny.motion_file(model), "x").state
    same({k: v for k, v in found.items() if not k.endswith(".pe")}, converted)


def test_positions_that_a_file_lacks_or_rounds_are_exact_and_others_kept() -> None:
    model = tiny.motion()
    exact = {k: v for k, v in model.state_dict().items() if k.endswith(".pe")}
    file = tiny.motion_file(model)
    for given in ({k: v for k, v in file.items() if "pos_encoder" not in k}, {k: v.half() for k, v in file.items()}):
        found = originals_motion.motion_adapter(given, "AnimateLCM_sd15_t2v.ckpt")
        assert found.config["motion_max_seq_length"] == 32
        same({k: v for k, v in found.state.items() if k.endswith(".pe")}, exact)
    learned = {k: v + 0.1 if "pos_encoder" in k else v for k, v in file.items()}
    found = originals_motion.motion_adapter(learned, "x")
    assert all(torch.equal(found.state[k], v + 0.1) for k, v in exact.items())


def test_of_a_file_that_holds_more_only_the_motion_is_taken() -> None:
    model = tiny.motion(**tiny.V3)
    noise = {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(3), "conv_in.weight": torch.zeros(32, 4, 3, 3)}
    is_like(originals_motion.motion_adapter(tiny.motion_file(model) | noise, "x"), model)


def test_what_is_no_motion_adapter_is_refused() -> None:
    file = tiny.motion_file(tiny.motion())
    with pytest.raises(CheckpointError, match="AnimateLCM-I2V, whose own picture encoder no published class has"):
        originals_motion.motion_adapter(file | {"img_encoder.conv.weight": torch.zeros(1)}, "x")
    with pytest.raises(CheckpointError, match="holds no motion module"):
        originals_motion.motion_adapter({"a": torch.zeros(1)}, "x")
    part = {k: v for k, v in file.items() if not k.startswith("down_blocks.1.")}
    with pytest.raises(CheckpointError, match=r"no down_blocks\.1\.motion_modules\.0\.norm\.weight, so it is no whole"):
        originals_motion.motion_adapter(part, "x")


SPARSE = {"rgb": {}, "scribble": {"use_simplified_condition_embedding": False, "conditioning_channels": 3}}


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("wrapper", ["controlnet", "state_dict", "module."])
def test_sparse_control_is_read(tmp_path: Path, name: str, wrapper: str) -> None:
    model = tiny.sparse(**SPARSE[name])
    file = tiny.sparse_file(model)
    assert not any("attention_blocks.1" in key for key in file)
    torch.save(tiny.under("module.", file) if "." in wrapper else {wrapper: file}, tmp_path / "x.ckpt")
    is_like(originals_motion.sparse_control(open_weights(tmp_path / "x.ckpt"), "x"), model)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_swapped_autoencoder_is_read_with_or_without_prefix(prefix: str) -> None:
    model = tiny.vae()
    file = tiny.under(prefix, tiny.vae_file(model) | {"loss.logvar": torch.zeros(())})
    is_like(originals_image.autoencoder(file, "vae-ft-mse-840000-ema-pruned.ckpt"), model)
    is_like(originals_image.autoencoder(tiny.plain(model), "vae.safetensors"), model)
    converted = theirs.convert_ldm_vae_checkpoint(dict(file), dict(model.config))
    assert converted.keys() == model.state_dict().keys()


def test_which_scale_an_autoencoder_has() -> None:
    file = tiny.vae_file(tiny.vae())
    scale = lambda weights, name, given=None: originals_image.autoencoder(weights, name, given).config["scaling_factor"]  # noqa: E731
    for name in (
        "sdxl_vae.safetensors",
        "a/sdxl.vae.safetensors",
        "xlVAEC_c1.safetensors",
        "sd_xl_base_1.0.safetensors",
    ):
        assert scale(file, name) == 0.13025, name
    for name in ("vae-ft-mse.ckpt", "xl/kl-f8.ckpt", "pixlart.safetensors", "sdvae_exlarge.pt"):
        assert scale(file, name) == 0.18215, name
    assert scale(tiny.sdxl_file(), "dreamy.safetensors") == 0.13025
    assert scale(tiny.sd15_file(), "dreamy-not-xl.safetensors") == 0.18215
    assert scale(file, "sdxl_vae.safetensors", 0.5) == 0.5


def test_text_encoders_are_read() -> None:
    for file in (tiny.sd15_file(), tiny.sdxl_file()):
        found = originals_image.text(file, "x")
        same(found.state, tiny.prefixed(tiny.text()))
    bare = {k.replace("transformer.text_model.", "transformer."): v for k, v in tiny.sd15_file().items()}
    same(originals_image.text(bare, "an old merge").state, found.state)
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert found.config[name] == getattr(tiny.text().config, name), name
    assert (found.config["hidden_act"], found.config["max_position_embeddings"]) == ("quick_gelu", 32)


def test_sdxls_second_text_encoder_is_read_as_the_reference_reads_it() -> None:
    model = tiny.text(projected=True, act="gelu")
    file = tiny.sdxl_file()
    assert file[f"{tiny.TEXT_XL_2}text_projection"].shape == (128, 16)
    found = originals_image.text_2(file, "x")
    same(found.state, tiny.prefixed(model))
    converted = theirs.convert_open_clip_checkpoint(model, dict(file), prefix=tiny.TEXT_XL_2)
    converted = {k if k.startswith("text_") else f"text_model.{k}": v for k, v in converted.items()}
    same({k: v for k, v in converted.items() if "position_ids" not in k}, found.state)
    assert (found.config["projection_dim"], found.config["hidden_act"]) == (16, "gelu")


CLASSES = {
    "UNet2DConditionModel": (tiny.unet, lambda: tiny.sd15_file()),
    "AutoencoderKL": (tiny.vae, lambda: tiny.sd15_file()),
    "MotionAdapter": (tiny.motion, lambda: tiny.motion_file(tiny.motion())),
    "ControlNetModel": (tiny.control, lambda: tiny.under("control_model.", tiny.control_file(tiny.control()))),
    "SparseControlNetModel": (tiny.sparse, lambda: tiny.sparse_file(tiny.sparse())),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_reference_class_takes_what_is_read(tmp_path: Path, name: str) -> None:
    make, file = CLASSES[name]
    found = read_single(name, saved(tmp_path, file()))
    model = getattr(diffusers, name).from_config(dict(found.config))
    assert model.load_state_dict(found.state, strict=True)
    same(found.state, make().state_dict())


def test_fields_may_be_given(tmp_path: Path) -> None:
    path = saved(tmp_path, tiny.vae_file(tiny.vae()))
    (tmp_path / "config.json").write_text('{"scaling_factor": 0.25}')
    for config in (tmp_path, tmp_path / "config.json", {"scaling_factor": 0.25}):
        found = read_single("AutoencoderKL", path, config)
        assert found.config["scaling_factor"] == 0.25 and found.config["layers_per_block"] == 1


@pytest.mark.parametrize(
    ("model", "state", "says"),
    [
        (
            "MotionAdapter",
            tiny.sd15_file,
            r"'Stable Diffusion 1.x, single file', for AnimateDiff; .*AnimateDiffPipeline",
        ),
        (
            "UNet2DConditionModel",
            lambda: tiny.motion_file(tiny.motion()),
            r"motion module v2', .*MotionAdapter.from_sing",
        ),
        (
            "ControlNetModel",
            lambda: tiny.sparse_file(tiny.sparse()),
            r"'SparseCtrl RGB', .*SparseControlNetModel.from_",
        ),
        ("AutoencoderKL", lambda: tiny.control_file(tiny.control()), r"'ControlNet, original file', .*ControlNetModel"),
        ("MotionAdapter", lambda: {"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, "load_textual_inv"),
    ],
)
def test_another_kind_of_file_is_refused_by_name(tmp_path: Path, model: str, state: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as told:
        read_single(model, saved(tmp_path, state()))
    assert str(told.value).count("\n") == 0


def test_a_controlnet_without_attention_is_read() -> None:
    fields = {
        "block_out_channels": (64, 128, 128),
        "down_block_types": ("DownBlock2D",) * 3,
        "mid_block_type": "UNetMidBlock2D",
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 16,
        "cross_attention_dim": 2048,
    }
    torch.manual_seed(0)
    model = diffusers.ControlNetModel(**fields)
    is_like(originals_image.control(tiny.plain(model), "diffusion_pytorch_model.safetensors"), model)


OURS = ["UNet2DConditionModel", "AutoencoderKL", "MotionAdapter", "ControlNetModel", "SparseControlNetModel"]


@pytest.mark.parametrize("name", OURS)
def test_a_model_comes_from_a_file_as_from_its_folder(tmp_path: Path, name: str) -> None:
    make, file = CLASSES[name]
    make().save_pretrained(tmp_path / "folder")
    cls = getattr(kinema, name)
    folder = cls.from_pretrained(tmp_path / "folder")
    single = cls.from_single_file(saved(tmp_path, file()))
    same(single.state_dict(), folder.state_dict())
    own = {k: v for k, v in folder.config.items() if k not in ("sample_size", "up_block_types")}
    assert {k: single.config[k] for k in own} == own
    assert not single.training and not any(p.requires_grad for p in single.parameters())


@pytest.mark.parametrize("name", OURS)
def test_the_number_format_is_the_files_or_the_one_asked_for(tmp_path: Path, name: str) -> None:
    file = saved(tmp_path, {k: v.half() if v.is_floating_point() else v for k, v in CLASSES[name][1]().items()})
    cls = getattr(kinema, name)
    assert {x.dtype for x in cls.from_single_file(file).state_dict().values()} == {torch.float16}
    full = cls.from_single_file(file, torch_dtype="float32").state_dict()
    assert {x.dtype for x in full.values()} == {torch.float32}
    exact = CLASSES[name][0]().state_dict()
    assert all(torch.equal(x, exact[k]) for k, x in full.items() if k.endswith(".pe"))


def test_adapters_and_base_models_from_files_go_together_or_are_refused(tmp_path: Path) -> None:
    unet = kinema.UNet2DConditionModel.from_single_file(saved(tmp_path, tiny.sdxl_file()))
    fits = {"block_out_channels": (64, 128, 128), "use_motion_mid_block": False}
    torch.save(tiny.motion_file(tiny.motion(**fits)), tmp_path / "fits.ckpt")
    torch.save(tiny.motion_file(tiny.motion()), tmp_path / "other.ckpt")
    adapter = kinema.MotionAdapter.from_single_file(tmp_path / "fits.ckpt")
    assert kinema.UNetMotionModel.from_unet2d(unet, adapter).config.motion_max_seq_length == 32
    with pytest.raises(CheckpointError, match=r"The motion module is for a model of 4 levels .* 3 levels"):
        kinema.UNetMotionModel.from_unet2d(unet, kinema.MotionAdapter.from_single_file(tmp_path / "other.ckpt"))

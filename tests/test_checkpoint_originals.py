"""ModelScope's original files are read to the very tensors, keys and configuration of the published folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint, convert_open_clip_checkpoint
from torch import Tensor

from kinema.checkpoint import originals
from kinema.checkpoint.files import open_weights
from kinema.checkpoint.keys import State, read, write
from kinema.checkpoint.layouts import ldm_vae, modelscope_unet, open_clip_text
from kinema.checkpoint.originals import is_modelscope, modelscope
from kinema.errors import CheckpointError

UNETS = {
    "as published": {"block_out_channels": (32, 64, 64, 64)},
    "shallow": {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    },
    "attending everywhere": {
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 3,
        "down_block_types": ("CrossAttnDownBlock3D",) * 3,
        "up_block_types": ("CrossAttnUpBlock3D",) * 3,
        "in_channels": 5,
        "out_channels": 3,
    },
}
VAES = {
    "as published": {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2},
    "shallow": {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 3},
}


def the_unet(fields: dict[str, Any]) -> diffusers.UNet3DConditionModel:
    torch.manual_seed(0)
    return diffusers.UNet3DConditionModel(attention_head_dim=8, cross_attention_dim=24, **fields)


def the_vae(fields: dict[str, Any]) -> diffusers.AutoencoderKL:
    n = len(fields["block_out_channels"])
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * n, "up_block_types": ("UpDecoderBlock2D",) * n}
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**blocks, **fields)


def the_text(layers: int = 2) -> transformers.CLIPTextModel:
    torch.manual_seed(0)
    fields = {"hidden_size": 128, "intermediate_size": 96, "vocab_size": 50, "max_position_embeddings": 11}
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(num_hidden_layers=layers, num_attention_heads=2, **fields)
    )


def prefixed(model: torch.nn.Module) -> dict[str, Tensor]:
    return {f"text_model.{k.removeprefix('text_model.')}": v for k, v in model.state_dict().items() if "ids" not in k}


def unet_rules(fields: dict[str, Any]) -> Any:
    types = fields.get("down_block_types", ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",))
    return modelscope_unet(len(types), fields.get("layers_per_block", 2), ["Cross" in name for name in types])


def same(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) and a[k].shape == b[k].shape for k in a)


@pytest.mark.parametrize("fields", UNETS.values(), ids=UNETS)
@pytest.mark.parametrize("wrap", [False, True])
def test_the_unet_is_read_with_its_configuration(tmp_path: Path, fields: dict[str, Any], wrap: bool) -> None:
    unet = the_unet(fields)
    state = write(unet.state_dict(), unet_rules(fields))
    torch.save({"state_dict": state, "step": 3} if wrap else state, tmp_path / "unet.pth")
    found = originals.unet(open_weights(tmp_path / "unet.pth"), "unet.pth")
    same(found.state, unet.state_dict())
    for name, value in found.config.items():
        if name not in ("_class_name", "sample_size"):
            assert (list(v) if isinstance(v := unet.config[name], tuple) else v) == value, name


def test_original_names_are_those_of_the_file() -> None:
    state = write(the_unet(UNETS["as published"]).state_dict(), unet_rules(UNETS["as published"]))
    for name, dims in {
        "time_embed.0.weight": 2,
        "input_blocks.0.0.weight": 4,
        "input_blocks.0.1.proj_in.weight": 3,
        "input_blocks.0.1.transformer_blocks.0.attn1.to_q.weight": 2,
        "input_blocks.1.0.in_layers.0.weight": 1,
        "input_blocks.1.0.emb_layers.1.bias": 1,
        "input_blocks.1.0.temopral_conv.conv1.2.weight": 5,
        "input_blocks.1.0.temopral_conv.conv4.3.weight": 5,
        "input_blocks.1.1.proj_in.weight": 2,
        "input_blocks.1.2.proj_in.weight": 3,
        "input_blocks.3.op.weight": 4,
        "input_blocks.4.0.skip_connection.weight": 4,
        "input_blocks.11.0.out_layers.3.weight": 4,
        "middle_block.0.in_layers.2.weight": 4,
        "middle_block.2.transformer_blocks.0.ff.net.0.proj.weight": 2,
        "middle_block.3.temopral_conv.conv2.0.bias": 1,
        "output_blocks.2.1.conv.weight": 4,
        "output_blocks.5.3.conv.bias": 1,
        "output_blocks.11.2.proj_out.weight": 3,
        "out.0.weight": 1,
        "out.2.weight": 4,
    }.items():
        assert state[name].dim() == dims, name
    roots = {name.split(".")[0] for name in state}
    assert roots == {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"}
    assert not any(word in name for name in state for word in ("resnets", "attentions", "samplers", "temp_convs"))


@pytest.mark.parametrize("fields", VAES.values(), ids=VAES)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_autoencoder_is_read_as_the_reference_reads_it(tmp_path: Path, fields: dict[str, Any], prefix: str) -> None:
    vae = the_vae(fields)
    levels = len(fields["block_out_channels"])
    original = write(vae.state_dict(), ldm_vae(levels, fields["layers_per_block"]))
    assert original["encoder.mid.attn_1.q.weight"].dim() == 4 and "decoder.up.0.block.0.norm1.weight" in original
    theirs = convert_ldm_vae_checkpoint(dict(original), dict(vae.config))
    same({k: v.flatten(1) if "attentions" in k and v.dim() == 4 else v for k, v in theirs.items()}, vae.state_dict())

    extra = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    state = {f"{prefix}{k}": v for k, v in original.items()} | extra
    torch.save({"state_dict": state}, tmp_path / "vae.pth")
    found = originals.vae(open_weights(tmp_path / "vae.pth"), "vae.pth")
    same(found.state, vae.state_dict())
    for name in ("block_out_channels", "layers_per_block", "latent_channels", "in_channels", "scaling_factor"):
        assert (list(v) if isinstance(v := vae.config[name], tuple) else v) == found.config[name], name


def original_text(model: transformers.CLIPTextModel, layers: int) -> State:
    """All of OpenCLIP: the layers used, one more, and the pictures' half."""
    state = write(prefixed(model), open_clip_text(layers))
    last = {k.replace(".0.", f".{layers}."): torch.randn_like(v) for k, v in state.items() if "resblocks.0." in k}
    more = {"text_projection": torch.eye(128), "logit_scale": torch.ones(()), "visual.class_embedding": torch.ones(3)}
    return {k: v.clone() for k, v in (state | last | more).items()}


def test_the_text_encoder_is_read_without_its_last_layer(tmp_path: Path) -> None:
    model = the_text(layers=3)
    original = original_text(model, 3)
    assert original["transformer.resblocks.0.attn.in_proj_weight"].shape == (3 * 128, 128)
    torch.save(original, tmp_path / "clip.bin")
    found = originals.text(open_weights(tmp_path / "clip.bin"), "clip.bin")
    same(found.state, prefixed(model))
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        assert found.config[name] == getattr(model.config, name), name
    assert found.config["max_position_embeddings"] == 11


def test_the_reference_reads_the_text_encoder_alike() -> None:
    model = the_text(layers=3)
    original = {f"p.{k}": v for k, v in original_text(model, 3).items()}
    theirs = convert_open_clip_checkpoint(model, original, prefix="p.")
    ours = read({k.removeprefix("p."): v for k, v in original.items()}, open_clip_text(3))
    for key, value in theirs.items():
        name = f"text_model.{key.removeprefix('text_model.')}"
        if name in ours:
            assert torch.equal(value, ours[name]), name
    assert sum(f"text_model.{key.removeprefix('text_model.')}" in ours for key in theirs) == len(ours)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save(write(the_unet(UNETS["shallow"]).state_dict(), unet_rules(UNETS["shallow"])), tmp_path / originals.UNET)
    vae = write(the_vae(VAES["shallow"]).state_dict(), ldm_vae(2, 1))
    torch.save({"state_dict": {f"first_stage_model.{k}": v for k, v in vae.items()}}, tmp_path / originals.VAE)
    torch.save(original_text(the_text(), 2), tmp_path / originals.TEXT)
    return tmp_path


def test_a_folder_of_originals_gives_all_parts(folder: Path) -> None:
    assert is_modelscope(folder)
    found = modelscope(folder)
    same(found["unet"].state, the_unet(UNETS["shallow"]).state_dict())
    same(found["vae"].state, the_vae(VAES["shallow"]).state_dict())
    same(found["text_encoder"].state, prefixed(the_text()))
    assert found["vae"].config["scaling_factor"] == 0.18215


def test_the_reference_models_take_what_is_read(folder: Path) -> None:
    found = modelscope(folder)
    unet = diffusers.UNet3DConditionModel.from_config(dict(found["unet"].config))
    assert unet.load_state_dict(found["unet"].state, strict=True)
    vae = diffusers.AutoencoderKL.from_config(dict(found["vae"].config))
    assert vae.load_state_dict(found["vae"].state, strict=True)


def test_a_missing_or_swapped_file_is_named(folder: Path) -> None:
    (folder / originals.VAE).rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match=r"lacks VQGAN_autoencoder.pth .* there are: .*elsewhere"):
        modelscope(folder)
    (folder / originals.UNET).rename(folder / originals.VAE)
    assert not is_modelscope(folder)
    (folder / "elsewhere").rename(folder / originals.UNET)
    with pytest.raises(CheckpointError, match=r"text2video_pytorch_model.pth has no input_blocks.0.0.weight"):
        modelscope(folder)

"""Stable Video Diffusion's and I2VGen-XL's original files are read to the very tensors of what is published."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet
from tests import originals_tiny as tiny
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from kinema.checkpoint import originals, originals_i2vgen, originals_svd
from kinema.checkpoint.files import open_weights
from kinema.checkpoint.keys import State, read, write
from kinema.checkpoint.layouts import i2vgen_unet, open_clip_vision, svd_unet, temporal_vae
from kinema.checkpoint.originals_i2vgen import i2vgen
from kinema.checkpoint.originals_svd import frames_of, stable_video
from kinema.errors import CheckpointError

CROSS = [True, True, True, False]


def same(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) and a[k].shape == b[k].shape for k in a)


def agrees(config: Mapping[str, Any], published: Mapping[str, Any]) -> None:
    """Every field that is read off a file is the published one."""
    for name, value in config.items():
        if name not in ("_class_name", "sample_size", "num_frames"):
            assert (list(v) if isinstance(v := published[name], tuple) else v) == value, name


def on_meta(make: Callable[[], nn.Module]) -> State:
    with torch.device("meta"):
        return dict(make().state_dict())


# Stable Video Diffusion


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_svd(tmp_path_factory.mktemp("svd") / "svd_xt.safetensors")


def test_an_svd_file_gives_all_networks(svd: Path) -> None:
    found = stable_video(svd)
    same(found["unet"].state, tiny.plain(tiny.svd_net()))
    same(found["vae"].state, tiny.plain(tiny.temporal_net()))
    same(found["image_encoder"].state, tiny.prefixed(tiny.picture_net(), "vision_model."))
    agrees(found["unet"].config, tiny.svd_net().config)
    agrees(found["vae"].config, tiny.temporal_net().config)
    assert found["unet"].config["num_frames"] == 25 and found["unet"].config["sample_size"] == 96
    for name, value in found["image_encoder"].config.items():
        if name not in ("architectures", "model_type"):
            assert getattr(tiny.picture_net().config, name) == value, name


def test_the_reference_models_take_what_is_read(svd: Path) -> None:
    found = stable_video(svd)
    unet = diffusers.UNetSpatioTemporalConditionModel.from_config(dict(found["unet"].config))
    unet.load_state_dict(found["unet"].state, strict=True)
    vae = diffusers.AutoencoderKLTemporalDecoder.from_config(dict(found["vae"].config))
    vae.load_state_dict(found["vae"].state, strict=True)
    fields = {k: v for k, v in found["image_encoder"].config.items() if k not in ("architectures", "model_type")}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**fields)).eval()
    bare = {k.removeprefix("vision_model."): v for k, v in found["image_encoder"].state.items()}
    own = encoder.state_dict()
    encoder.load_state_dict(
        {k: bare[k.removeprefix("vision_model.")] for k in own if "position_ids" not in k}, strict=False
    )
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(encoder(pixels).image_embeds, tiny.picture_net()(pixels).image_embeds)


def test_an_unusual_svd_unet_is_read_with_its_configuration(tmp_path: Path) -> None:
    state = write(tiny.plain(tiny.svd_net(tiny.ODD_SVD)), tiny.svd_rules(tiny.ODD_SVD))
    safetensors.torch.save_file(state, tmp_path / "svd_unet.safetensors")  # without the prefix, as cut out of a file
    found = originals_svd.unet(open_weights(tmp_path / "svd_unet.safetensors"), "svd_unet.safetensors")
    same(found.state, tiny.plain(tiny.svd_net(tiny.ODD_SVD)))
    agrees(found.config, tiny.svd_net(tiny.ODD_SVD).config)


def test_svd_names_are_those_of_the_file(svd: Path) -> None:
    names = open_weights(svd).stored
    for name, shape in {
        "model.diffusion_model.label_emb.0.0.weight": (256, 768),
        "model.diffusion_model.input_blocks.0.0.weight": (64, 8, 3, 3),
        "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.2.weight": (64, 64, 3, 1, 1),
        "model.diffusion_model.input_blocks.1.0.time_stack.emb_layers.1.bias": (64,),
        "model.diffusion_model.input_blocks.1.0.time_mixer.mix_factor": (1,),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (64, 64),
        "model.diffusion_model.input_blocks.1.1.time_stack.0.ff_in.net.0.proj.weight": (512, 64),
        "model.diffusion_model.input_blocks.1.1.time_stack.0.attn2.to_k.weight": (64, 24),
        "model.diffusion_model.input_blocks.1.1.time_pos_embed.2.weight": (64, 256),
        "model.diffusion_model.input_blocks.1.1.time_mixer.mix_factor": (1,),
        "model.diffusion_model.input_blocks.3.0.op.weight": (64, 64, 3, 3),
        "model.diffusion_model.input_blocks.7.0.skip_connection.weight": (128, 64, 1, 1),
        "model.diffusion_model.middle_block.2.time_stack.out_layers.3.weight": (128, 128, 3, 1, 1),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (128, 128, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.bias": (128,),
        "first_stage_model.decoder.up.1.block.0.time_stack.out_layers.3.weight": (64, 64, 3, 1, 1),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (32, 64, 1, 1),
        "first_stage_model.decoder.mid.block_1.mix_factor": (1,),
        "first_stage_model.decoder.mid.attn_1.q.weight": (64, 64, 1, 1),
        "first_stage_model.decoder.conv_out.time_mix_conv.weight": (3, 3, 3, 1, 1),
        "conditioner.embedders.3.encoder.quant_conv.weight": (8, 8, 1, 1),
        "conditioner.embedders.3.encoder.encoder.down.0.downsample.conv.weight": (32, 32, 3, 3),
        "conditioner.embedders.0.open_clip.model.visual.proj": (128, 24),
        "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.1.attn.in_proj_weight": (384, 128),
    }.items():
        assert names[name].shape == shape, name
    assert not [k for k in names if any(word in k for word in ("resnets", "attentions", "samplers", "res_block"))]


def test_an_image_decoder_file_gives_the_plain_autoencoder(tmp_path: Path) -> None:
    state = tiny.svd_file(tiny.svd_net(), tiny.image_vae(), tiny.picture_net())
    safetensors.torch.save_file(state, tmp_path / "svd_image_decoder.safetensors")
    found = stable_video(tmp_path / "svd_image_decoder.safetensors")
    same(found["vae"].state, tiny.plain(tiny.image_vae()))
    agrees(found["vae"].config, tiny.image_vae().config)
    assert found["vae"].config["_class_name"] == "AutoencoderKL" and found["unet"].config["num_frames"] == 14


def test_the_picture_is_encoded_as_the_conditioner_does_it(svd: Path) -> None:
    """Its encoder has a quant_conv; the first stage's has none, so one's must not follow the other."""
    weights = open_weights(svd)
    read = stable_video(svd)["vae"].state["encoder.conv_in.weight"]
    assert torch.equal(read, weights["conditioner.embedders.3.encoder.encoder.conv_in.weight"])
    assert not torch.equal(read, weights["first_stage_model.encoder.conv_in.weight"])


def test_without_the_conditioner_the_first_stage_encodes_alone() -> None:
    vae = tiny.temporal_net()
    original = write(tiny.plain(vae), temporal_vae(2, 2))
    alone = tiny.under("first_stage_model.", {k: v for k, v in original.items() if not k.startswith("quant_conv")})
    found = originals_svd.autoencoder(alone, "x")
    vae.load_state_dict(found.state, strict=True)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(vae.encode(x).latent_dist.parameters, vae.encoder(x))


def test_the_encoder_is_read_as_the_reference_reads_it() -> None:
    vae = tiny.temporal_net()
    original = write(tiny.plain(vae), temporal_vae(2, 2))
    fill = write(tiny.plain(tiny.image_vae()), originals.ldm_vae(2, 2))
    theirs = convert_ldm_vae_checkpoint(
        {**fill, **{k: v for k, v in original.items() if not k.startswith("decoder.")}}, dict(tiny.image_vae().config)
    )
    ours = read(original, temporal_vae(2, 2))
    for key in ours:
        if not key.startswith("decoder."):
            assert torch.equal(ours[key].flatten(), theirs[key].flatten()), key


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("svd.safetensors", 14),
        ("svd_xt.safetensors", 25),
        ("svd_xt_1_1.safetensors", 25),
        ("svd_image_decoder.safetensors", 14),
        ("svd_xt_image_decoder.safetensors", 25),
        ("svd-fp16.safetensors", 14),
        ("stable-video-diffusion-img2vid-xt.safetensors", 25),
    ],
)
def test_the_name_tells_the_frames(name: str, frames: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kinema"):
        assert frames_of(name) == frames
    assert not caplog.records


def test_a_name_that_does_not_tell_the_frames_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kinema"):
        assert frames_of("mine.safetensors") == 25
    assert "14 or 25 frames" in caplog.text and "num_frames" in caplog.text


# I2VGen-XL


@pytest.fixture(scope="module")
def i2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_i2vgen(tmp_path_factory.mktemp("i2vgen"), tiny.ODD_I2VGEN)


def test_an_i2vgen_folder_gives_all_networks(i2v: Path) -> None:
    found = i2vgen(i2v)
    same(found["unet"].state, tiny.plain(tiny.i2vgen_net(tiny.ODD_I2VGEN)))
    same(found["vae"].state, tiny.plain(tiny.image_vae()))
    same(found["text_encoder"].state, tiny.prefixed(tiny.text_net()))  # all layers: clip_skip chooses among them
    same(found["image_encoder"].state, tiny.prefixed(tiny.picture_net(width=128), "vision_model."))
    agrees(found["unet"].config, tiny.i2vgen_net(tiny.ODD_I2VGEN).config)
    I2VGenXLUNet.from_config(dict(found["unet"].config)).load_state_dict(found["unet"].state, strict=True)


def test_an_i2vgen_unet_as_published_is_read_with_its_configuration(tmp_path: Path) -> None:
    unet = tiny.i2vgen_net()
    state = write(tiny.plain(unet), tiny.i2vgen_rules())
    torch.save({"state_dict": state, "step": 854500}, tmp_path / "i2vgen_xl_00854500.pth")
    found = i2vgen(tmp_path / "i2vgen_xl_00854500.pth", ("unet",))["unet"]
    same(found.state, tiny.plain(unet))
    agrees(found.config, unet.config)


def test_i2vgen_names_are_those_of_the_file() -> None:
    state = write(tiny.plain(tiny.i2vgen_net()), tiny.i2vgen_rules())
    for name, shape in {
        "local_image_concat.0.weight": (16, 4, 3, 3),
        "local_image_embedding.5.bias": (1024,),
        "context_embedding.2.weight": (4096, 128),
        "fps_embedding.0.weight": (128, 32),
        "local_temporal_encoder.layers.0.0.norm.weight": (4,),
        "local_temporal_encoder.layers.0.0.fn.to_qkv.weight": (24, 4),
        "local_temporal_encoder.layers.0.0.fn.to_out.0.bias": (4,),
        "local_temporal_encoder.layers.0.1.net.0.0.weight": (16, 4),
        "local_temporal_encoder.layers.0.1.net.2.bias": (4,),
        "input_blocks.0.1.proj_in.weight": (64, 32, 1),
        "input_blocks.1.0.temopral_conv.conv1.2.weight": (32, 32, 3, 1, 1),
        "input_blocks.3.op.weight": (32, 32, 3, 3),
        "output_blocks.5.3.conv.bias": (64,),
    }.items():
        assert state[name].shape == shape, name
    assert not any(word in name for name in state for word in ("resnets", "attentions", "samplers", "image_latents"))


def test_a_missing_i2vgen_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    file = tiny.write_i2vgen(tmp_path, tiny.ODD_I2VGEN)
    (tmp_path / "v2-1_512-ema-pruned.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"v2-1_512-ema-pruned.ckpt beside it, or pass vae=.* there are: "):
        i2vgen(file)
    (tmp_path / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"OpenCLIP .* open_clip_pytorch_model.bin .*pass image_encoder and text"):
        i2vgen(file, ("unet", "text_encoder", "image_encoder"))
    assert set(i2vgen(file, ("unet",))) == {"unet"}


# what is published, without memory


def count(state: State) -> tuple[int, float]:
    return len(state), sum(x.numel() for x in state.values()) / 1e6


def test_published_sizes_are_read_without_a_key_too_many_or_too_few() -> None:
    for make, rules, tensors, millions, unet in (
        (diffusers.UNetSpatioTemporalConditionModel, svd_unet(4, 2, CROSS), 1428, 1524.6, originals_svd.unet),
        (I2VGenXLUNet, i2vgen_unet(4, 2, CROSS), 1511, 1420.5, originals_i2vgen.unet),
    ):
        published = on_meta(make)
        assert count(published) == (tensors, pytest.approx(millions, abs=0.05))
        original = write(published, rules)
        found = unet(original, "x")
        assert {k: v.shape for k, v in found.state.items()} == {k: v.shape for k, v in published.items()}
        with torch.device("meta"):
            agrees(found.config, make().config)


def test_the_published_autoencoder_and_vision_tower_are_read_whole() -> None:
    fields = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    made = on_meta(
        lambda: diffusers.AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, **fields)
    )
    assert count(made) == (374, pytest.approx(97.7, abs=0.05))
    assert {k: v.shape for k, v in read(write(made, temporal_vae(4, 2)), temporal_vae(4, 2)).items()} == {
        k: v.shape for k, v in made.items()
    }
    config = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=1024,
        hidden_act="gelu",
    )
    tower = on_meta(lambda: CLIPVisionModelWithProjection(config))
    named = {k if k.startswith(("vision_model.", "visual_")) else f"vision_model.{k}": v for k, v in tower.items()}
    named = {k: v for k, v in named.items() if "position_ids" not in k}
    assert count(named)[1] == pytest.approx(632.1, abs=0.05)
    found = originals.vision(tiny.under("visual.", write(named, open_clip_vision(32))), "x")
    assert {k: v.shape for k, v in found.state.items()} == {k: v.shape for k, v in named.items()}
    for name, value in found.config.items():
        if name not in ("architectures", "model_type"):
            assert getattr(config, name) == value, name


def test_the_schedules_are_those_published(svd: Path) -> None:
    from kinema.sampling.schedulers import DDIMScheduler, EulerDiscreteScheduler

    euler = EulerDiscreteScheduler.from_config(originals_svd.SCHEDULER)
    theirs = diffusers.EulerDiscreteScheduler.from_config(dict(originals_svd.SCHEDULER))
    euler.set_timesteps(25)
    theirs.set_timesteps(25)
    assert float(euler.init_noise_sigma) == pytest.approx(700.0007, abs=1e-4)
    torch.testing.assert_close(torch.as_tensor(euler.timesteps).float(), theirs.timesteps.float(), atol=1e-5, rtol=0)
    ddim = DDIMScheduler.from_config(originals_i2vgen.SCHEDULER)
    ddim.set_timesteps(50)
    assert int(ddim.timesteps[0]) == 981


def test_a_file_of_another_family_says_so(tmp_path: Path) -> None:
    for content in ({"a": torch.ones(2, 2)}, {"input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}):
        safetensors.torch.save_file(content, tmp_path / "svd.safetensors")
        with pytest.raises(CheckpointError, match="not what its name says"):
            stable_video(tmp_path / "svd.safetensors")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "svd.safetensors")
    with pytest.raises(CheckpointError, match="holds only the U-Net; pass image_encoder= too"):
        stable_video(tmp_path / "svd.safetensors", ("image_encoder",))
    broken: dict[str, Tensor] = {f"input_blocks.0.{i}.weight": torch.ones(4, 4, 3, 3) for i in range(2)}
    broken |= {"out.2.weight": torch.ones(4, 4), "label_emb.0.0.weight": torch.ones(4, 4)}
    with pytest.raises(CheckpointError, match="1 input blocks, which make no U-Net"):
        originals_svd.unet(broken, "x")

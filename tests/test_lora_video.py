"""A LoRA for a video U-Net, however it is spelt, adds s·B·A to the weights it names and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests import i2vgen_tiny, svd_tiny
from tests import originals_tiny as tiny
from torch import Tensor, nn

from kinema.checkpoint.keys import write
from kinema.checkpoint.lora import Adapters
from kinema.checkpoint.lora_ldm import ldm_names
from kinema.checkpoint.wanted import Wanted
from kinema.errors import CheckpointError
from kinema.families import I2VGenXLUNet, UNet3DConditionModel, UNetSpatioTemporalConditionModel
from kinema.pipelines.files import weights_file

SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
TYPES = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
TYPES_SVD = {k: tuple(n.replace("3D", "SpatioTemporal") for n in names) for k, names in TYPES.items()}


def svd() -> nn.Module:
    torch.manual_seed(0)
    fields = {"num_attention_heads": (1, 2), "cross_attention_dim": 12, "addition_time_embed_dim": 4}
    more = {"projection_class_embeddings_input_dim": 12}
    return UNetSpatioTemporalConditionModel({**SMALL, **TYPES_SVD, **fields, **more}).requires_grad_(False)


def i2vgen() -> nn.Module:
    torch.manual_seed(0)
    return I2VGenXLUNet({**SMALL, **TYPES, "attention_head_dim": 4, "cross_attention_dim": 12}).requires_grad_(False)


def modelscope() -> nn.Module:
    torch.manual_seed(0)
    fields = {"attention_head_dim": 4, "cross_attention_dim": 12}
    return UNet3DConditionModel({**SMALL, **TYPES, **fields}).requires_grad_(False)


MAKERS = {"Stable Video Diffusion": svd, "I2VGen-XL": i2vgen, "ModelScope": modelscope}
ORIGINAL = {  # a module by its published name and by its name in the original files
    "Stable Video Diffusion": {
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v": "middle_block.1.transformer_blocks.0.attn2.to_v",
        "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_out.0": (
            "input_blocks.1.1.time_stack.0.attn1.to_out.0"
        ),
        "mid_block.resnets.1.temporal_res_block.conv2": "middle_block.2.time_stack.out_layers.3",
        "up_blocks.0.resnets.1.spatial_res_block.conv1": "output_blocks.1.0.in_layers.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    },
    "I2VGen-XL": {
        "transformer_in.transformer_blocks.0.attn1.to_q": "input_blocks.0.1.transformer_blocks.0.attn1.to_q",
        "mid_block.temp_attentions.0.proj_in": "middle_block.2.proj_in",
        "down_blocks.0.temp_convs.0.conv2.3": "input_blocks.1.0.temopral_conv.conv2.3",
        "image_latents_proj_in.2": "local_image_concat.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.op",
    },
    "ModelScope": {"up_blocks.1.attentions.0.proj_out": "output_blocks.2.1.proj_out", "conv_in": "input_blocks.0.0"},
}

SPELLINGS = {
    "diffusers": ("unet.{m}.lora_A.weight", "unet.{m}.lora_B.weight", None),
    "older diffusers": ("unet.{m}.lora.down.weight", "unet.{m}.lora.up.weight", None),
    "peft": ("base_model.model.{m}.lora_A.weight", "base_model.model.{m}.lora_B.weight", None),
    "kohya": ("lora_unet_{u}.lora_down.weight", "lora_unet_{u}.lora_up.weight", "lora_unet_{u}.alpha"),
    "kohya, original names": ("lora_unet_{o}.lora_down.weight", "lora_unet_{o}.lora_up.weight", "lora_unet_{o}.alpha"),
    "original names": ("diffusion_model.{n}.lora_A.weight", "diffusion_model.{n}.lora_B.weight", None),
}


def published(model: nn.Module) -> dict[str, Tensor]:
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return write(state, tuple(getattr(type(model), "KEYS", ())))


def targets(state: dict[str, Tensor]) -> list[str]:
    """Every module with a weight matrix or a convolution, which is all that a LoRA can name."""
    return [key.removesuffix(".weight") for key, value in state.items() if key.endswith(".weight") and value.dim() > 1]


def lora(state: dict[str, Tensor], spelling: str, modules: list[str], rank: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(7)
    names = {module: name for name, module in ldm_names(state).items()}
    made: dict[str, Tensor] = {}
    for module in modules:
        weight = state[f"{module}.weight"]
        original = names.get(module, module)
        words = {"m": module, "u": module.replace(".", "_"), "n": original, "o": original.replace(".", "_")}
        down, up, alpha = SPELLINGS[spelling]
        made[down.format(**words)] = torch.randn(rank, *weight.shape[1:], generator=g)
        made[up.format(**words)] = torch.randn(len(weight), rank, *[1] * (weight.dim() - 2), generator=g)
        if alpha:
            made[alpha.format(**words)] = torch.tensor(3.0)
    return made


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_adds_exactly_the_product(family: str, spelling: str) -> None:
    model = MAKERS[family]()
    before = published(model)
    modules = targets(before)
    entries = lora(before, spelling, modules)
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(entries, "a"): 0.5})
    after = published(model)
    scale = 0.5 * (3 / 2 if "kohya" in spelling else 1)
    rows = iter(x for key, x in entries.items() if not key.endswith("alpha"))
    for module in modules:
        down, up = next(rows), next(rows)
        exact = (up.flatten(1).double() @ down.flatten(1).double()).view_as(before[f"{module}.weight"])
        wanted = before.pop(f"{module}.weight").double() + scale * exact
        torch.testing.assert_close(after.pop(f"{module}.weight").double(), wanted, atol=3e-6, rtol=0)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)  # all others
    adapters.unload()
    start = published(MAKERS[family]())
    assert all(torch.equal(x, start[k]) for k, x in published(model).items())


@pytest.mark.parametrize("family", MAKERS)
def test_original_names_are_those_of_the_files(family: str) -> None:
    names = ldm_names(published(MAKERS[family]()))
    for module, original in ORIGINAL[family].items():
        assert names[original] == module
    assert len(set(names.values())) == len(names)


def test_every_module_of_a_published_svd_unet_has_an_original_name() -> None:
    with torch.device("meta"):
        import diffusers

        published = diffusers.UNetSpatioTemporalConditionModel().state_dict()
    modules = {key.rpartition(".")[0] for key in published}
    assert set(ldm_names(published).values()) == modules


def test_other_networks_have_no_original_names() -> None:
    assert ldm_names(["text_model.encoder.layers.0.mlp.fc1.weight"]) == {}
    assert ldm_names(tiny.plain(tiny.image_vae())) == {}


def test_a_lora_of_another_family_is_refused_by_name() -> None:
    state = published(svd())
    wrong = lora(state, "diffusers", ["down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"])
    with pytest.raises(CheckpointError, match=r"no counterpart in unet .* it is for another model \(Stable Video Diff"):
        Adapters({"unet": modelscope()}).load(wrong)
    right = lora(state, "kohya, original names", ["mid_block.resnets.0.temporal_res_block.conv1"])
    with pytest.raises(CheckpointError, match="Stable Video Diffusion"):
        Adapters({"unet": i2vgen()}).load(right)


# where a LoRA lies


def peft_folder(folder: Path, name: str = "adapter_model.safetensors") -> dict[str, Tensor]:
    state = published(svd())
    entries = lora(state, "peft", ["conv_in"])
    safetensors.torch.save_file(entries, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 2}))
    return state


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "my_lora.safetensors"])
def test_the_alpha_beside_a_file_of_peft_is_read(tmp_path: Path, name: str) -> None:
    state = peft_folder(tmp_path, name)
    plain, scaled = svd(), svd()
    Adapters({"unet": plain}).set({})
    one, other = Adapters({"unet": plain}), Adapters({"unet": scaled})
    one.set({one.load(lora(state, "peft", ["conv_in"]), "a"): 1.0})
    other.set({other.load(weights_file(tmp_path, usual=("adapter_model.safetensors",)), "a"): 1.0})
    change = published(plain)["conv_in.weight"] - state["conv_in.weight"]
    torch.testing.assert_close(
        published(scaled)["conv_in.weight"], state["conv_in.weight"] + 4 * change, atol=1e-5, rtol=0
    )


def test_a_usual_name_is_chosen_among_several_files(tmp_path: Path) -> None:
    peft_folder(tmp_path)
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "optimizer.safetensors")
    assert weights_file(tmp_path, usual=("adapter_model.safetensors",)).name == "adapter_model.safetensors"
    with pytest.raises(CheckpointError, match="several files"):
        weights_file(tmp_path)


def test_the_alpha_of_a_hub_repository_is_fetched_with_its_lora() -> None:
    names = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "sub/adapter_config.json",
        "sub/a.safetensors",
    ]
    assert Wanted().of(names) == ["adapter_config.json", "adapter_model.safetensors"]
    for wanted in (Wanted(weight_name="sub/a.safetensors"), Wanted(subfolder="sub", weight_name="a.safetensors")):
        assert wanted.of(names) == ["sub/adapter_config.json", "sub/a.safetensors"]


# on a pipeline


@pytest.mark.parametrize("family", ["Stable Video Diffusion", "I2VGen-XL"])
def test_a_lora_on_a_pipeline_is_a_changed_network_and_comes_off_exactly(family: str) -> None:
    module: Any = svd_tiny if family == "Stable Video Diffusion" else i2vgen_tiny
    pipe = module.ours() if hasattr(module, "ours") else module.twin(module.theirs())
    call = {"image": module.picture(), **module.SIZE, "generator": 1, "output_type": "np"}
    call |= {"prompt": "a"} if family == "I2VGen-XL" else {}
    before, state = pipe(**call).frames, published(pipe.unet)
    ends = ("attn1.to_q", "attn2.to_v", "to_out.0", "conv1", "time_emb_proj", "image_latents_proj_in.0")
    chosen = [name for name in targets(state) if name.endswith(ends)]
    entries = {k: x / 8 for k, x in lora(state, "diffusers", chosen).items()}
    pipe.load_lora_weights(entries, adapter_name="mine")
    pipe.set_adapters("mine", 0.5)
    with_lora, changed = pipe(**call).frames, published(pipe.unet)
    assert pipe.get_active_adapters() == ["mine"] and abs(with_lora - before).max() > 1e-3
    pipe.unload_lora_weights()
    assert (pipe(**call).frames == before).all()
    pipe.unet.load_state_dict(changed)
    assert (pipe(**call).frames == with_lora).all()

"""The reference wraps layers and adds per call, kinema adds to weights once: both compute the same."""

from __future__ import annotations

import copy
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor, nn

from kinema.checkpoint.lora import Adapters

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def unet() -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(False)


def targets(model: nn.Module) -> list[str]:
    wanted = ("to_q", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.0.proj")
    return [name for name, _ in model.named_modules() if name.endswith(wanted)]


def lora(model: nn.Module, seed: int, rank: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name in targets(model):
        weight = model.get_submodule(name).weight
        ones = [1] * (weight.dim() - 2)
        state[f"unet.{name}.lora_A.weight"] = torch.randn(rank, *weight.shape[1:], generator=g) / 4
        state[f"unet.{name}.lora_B.weight"] = torch.randn(len(weight), rank, *ones, generator=g) / 4
    return state


def run(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(5)
    x, context = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 7, 12, generator=g)
    with torch.no_grad():
        return model(x, 3, context).sample


def test_outputs_agree_with_the_reference(unet: diffusers.UNet2DConditionModel) -> None:
    theirs, ours = copy.deepcopy(unet), copy.deepcopy(unet)
    first, second = lora(unet, 1), lora(unet, 2)
    theirs.load_lora_adapter(dict(first), prefix="unet", adapter_name="a")
    theirs.load_lora_adapter(dict(second), prefix="unet", adapter_name="b")
    theirs.set_adapters(["a", "b"], [0.8, -0.5])
    adapters = Adapters({"unet": ours})
    adapters.load(first, "a")
    adapters.load(second, "b")
    adapters.set({"a": 0.8, "b": -0.5})
    torch.testing.assert_close(run(ours), run(theirs), atol=2e-5, rtol=0)
    assert (run(ours) - run(unet)).abs().max() > 0.05
    adapters.unload()
    assert torch.equal(run(ours), run(unet))


@pytest.mark.parametrize("alpha", [3, 12])
def test_a_file_the_reference_saves_is_read_with_its_alpha(
    unet: diffusers.UNet2DConditionModel, tmp_path: Path, alpha: int
) -> None:
    from peft import LoraConfig

    theirs, ours = copy.deepcopy(unet), copy.deepcopy(unet)
    theirs.add_adapter(LoraConfig(r=3, lora_alpha=alpha, target_modules=["to_k", "conv2"], init_lora_weights=False))
    theirs.save_lora_adapter(tmp_path)
    adapters = Adapters({"unet": ours})
    adapters.set({adapters.load(tmp_path): 1.0})
    torch.testing.assert_close(run(ours), run(theirs), atol=2e-5, rtol=0)

"""LoRAs beside weights in eight bits: the sum is on weights as they are stored, and what is stored never changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests import animatediff_pipes
from tests.pipelines_tiny import off
from tests.test_weight_storage import clip, own
from torch import Tensor, nn

import kinema
from kinema import InputError
from kinema.checkpoint.lora import Adapters
from kinema.memory.needs import bytes_of, on_meta, trace
from kinema.memory.storage import packed, restore, store, stored

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def low_rank(key: str, module: nn.Module, size: float, seed: int = 0) -> dict[str, Tensor]:
    dice, weight = torch.Generator().manual_seed(seed), module.get_submodule(key.partition(".")[2]).weight
    out, wide = weight.shape[0], weight[0].numel()
    shapes = {"A": (2, wide), "B": (out, 2)}
    return {f"{key}.lora_{side}.weight": size * torch.randn(shape, generator=dice) for side, shape in shapes.items()}


def lora(pipe: Any, size: float = 0.6, seed: int = 0) -> dict[str, Tensor]:
    """One for the U-Net and for the text encoder, which is not stored."""
    name = next(name for name, _ in pipe.text_encoder.named_modules() if name.endswith("q_proj"))
    made = low_rank(f"unet.{ATTENTION}.to_q", pipe.unet, size, seed)
    return made | low_rank(f"text_encoder.{name}", pipe.text_encoder, size, seed + 1)


def bits(pipe: Any) -> dict[str, Tensor]:
    """All that networks hold, and LoRAs are not."""
    held = {}
    for part in ("unet", "text_encoder"):
        for name, x in (*getattr(pipe, part).named_parameters(), *getattr(pipe, part).named_buffers()):
            if "summed_" not in name:
                held[f"{part}.{name}"] = x.detach().clone()
    return held


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("keep", [True, False])
def test_loras_count_as_they_do_on_full_weights_and_leave_all_as_it_was(when: str, keep: bool) -> None:
    pipe, full = own(), own()
    untouched = bits(pipe)
    plain = clip(full).frames
    given = lora(pipe)
    full.load_lora_weights(given, "bold")
    if when == "before":
        pipe.load_lora_weights(given, "bold")
        pipe.enable_weight_storage("int8", keep_originals=keep)
        assert pipe.get_active_adapters() == ["bold"]
    else:
        pipe.enable_weight_storage("int8", keep_originals=keep)
        alone = bits(pipe)
        pipe.load_lora_weights(given, "bold")
    for weight in (1.0, 0.4, -0.5):
        for each in (pipe, full):
            each.set_adapters("bold", weight)
        made, expected = clip(pipe), clip(full).frames
        assert made.receipt["loras"] == {"bold": {"unet": weight, "text_encoder": weight}}
        assert off(made.frames, expected) < 0.15 * off(expected, plain)
    pipe.disable_lora()
    base = clip(pipe).frames
    assert off(base, plain) < 0.1
    if when == "after":
        assert same(bits(pipe), alone)
    pipe.enable_lora()
    pipe.delete_adapters("bold")
    assert np.array_equal(clip(pipe).frames, base) and pipe.get_list_adapters() == {}
    pipe.load_lora_weights(given, "again")
    pipe.disable_weight_storage()
    full.set_adapters("bold", 1.0)
    assert pipe.get_active_adapters() == ["again"]
    assert off(clip(pipe).frames, clip(full).frames) < (1e-6 if keep else 0.1)
    pipe.unload_lora_weights()
    if keep:
        assert same(bits(pipe), untouched) and np.array_equal(clip(pipe).frames, plain)
    text = {name: x for name, x in untouched.items() if name.startswith("text_encoder")}
    assert same({name: x for name, x in bits(pipe).items() if name in text}, text)


def test_a_small_lora_is_not_lost_to_rounding() -> None:
    """Sums that were rounded to eight bits again would be the weights alone."""
    layer = nn.Sequential(nn.Linear(64, 64, bias=False)).requires_grad_(False)
    store(layer, "int8")
    before = layer[0].weight
    adapters = Adapters({"unet": layer})
    ones = {"A": torch.ones(1, 64), "B": torch.full((64, 1), 1e-5)}
    adapters.load({f"unet.0.lora_{side}.weight": x for side, x in ones.items()}, "faint")
    adapters.set({"faint": 1.0})
    assert torch.allclose(layer[0].weight - before, torch.full((64, 64), 1e-5), atol=1e-7)
    assert torch.equal(packed(layer[0].weight, "int8")[0], layer[0].codes)


def test_sums_need_no_room_beside_the_product_and_follow_no_default_format() -> None:
    net = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Conv2d(64, 64, 3, bias=False)).requires_grad_(False)
    store(net.half().to(memory_format=torch.channels_last), "int8")
    adapters = Adapters({"unet": net})
    shapes = {"0.lora_A": (2, 512), "0.lora_B": (512, 2), "1.lora_A": (2, 64, 3, 3), "1.lora_B": (64, 2, 1, 1)}
    adapters.load({f"unet.{name}.weight": 0.01 * torch.randn(shape) for name, shape in shapes.items()}, "one")
    adapters.set({"one": 1.0})
    once = [layer.weight for layer in net]
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert all(torch.equal(layer.weight, before) for layer, before in zip(net, once, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)
    twin = on_meta(net)
    for layer in twin:
        taken = trace(lambda layer=layer: layer.weight, resident=[twin]).peak
        assert taken < 4.2 * layer.weight.nbytes, "in float32 the weight and the product"


def test_weights_are_not_loaded_under_a_lora_that_may_be_in_them() -> None:
    net = nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)
    store(net, "int8")
    adapters = Adapters({"unet": net})
    adapters.load({f"unet.0.lora_{side}.weight": torch.ones(8, 8) for side in "AB"}, "one")
    adapters.set({"one": 1.0})
    written = net.state_dict()
    with pytest.raises(InputError, match="unload_lora_weights"):
        net.load_state_dict(written)
    adapters.unload()
    net.load_state_dict(written)
    assert torch.allclose(net[0].weight, written["0.weight"], atol=0.05)


def kinds(rank: int = 2) -> dict[str, dict[str, Tensor]]:
    """Of every kind of LoRA, on a linear layer of 8 → 12 and a convolution of 6 → 10."""
    dice = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice)

    linear = {"unet.0.lora_A.weight": random(rank, 8), "unet.0.lora_B.weight": random(12, rank)}
    conv = {"unet.1.lora_A.weight": random(rank, 6, 3, 3), "unet.1.lora_B.weight": random(10, rank, 1, 1)}
    return {
        "low rank": {**linear, **conv},
        "with magnitudes": {**linear, "unet.0.lora_magnitude_vector.weight": random(12).abs()},
        "Hadamard": {f"unet.0.hada_w{n}_{h}": random(*s) for n in (1, 2) for h, s in (("a", (12, 2)), ("b", (2, 8)))},
        "Kronecker": {"unet.0.lokr_w1": random(3, 2), "unet.0.lokr_w2": random(4, 4)},
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_is_summed_as_on_the_same_full_weights(kind: str) -> None:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(8, 12), nn.Conv2d(6, 10, 3)).requires_grad_(False)
    made[1].to(memory_format=torch.channels_last)
    store(made, "int8")
    plain = copy.deepcopy(made)
    restore(plain)
    for net in (made, plain):
        adapters = Adapters({"unet": net})
        adapters.load(kinds()[kind], "one")
        adapters.load(kinds()["low rank"], "two")
        adapters.set({"one": 0.7, "two": -0.3})
    for one, other in zip(made, plain, strict=True):
        assert torch.allclose(one.weight, other.weight, atol=1e-6) and one.weight.stride() == other.weight.stride()
    twin, count = on_meta(made), sum(x.nbytes for x in made.buffers())
    assert twin[0].weight.shape == (12, 8) and bytes_of(twin) == count + sum(p.nbytes for p in made.parameters())
    codes = made[0].codes.clone()
    made.to(torch.bfloat16)
    assert made[0].weight.dtype == torch.bfloat16 and torch.equal(made[0].codes, codes)
    restore(made.to(torch.float32))
    assert not list(made.buffers()), "a layer that is plain again has nothing of it"


def test_a_strength_of_one_call_weights_from_the_host_and_pipelines_on_the_same_networks() -> None:
    pipe = own()
    pipe.enable_weight_storage("int8")
    plain = clip(pipe).frames
    other = kinema.VideoToVideoSDPipeline.from_pipe(pipe)
    pipe.load_lora_weights(lora(pipe), "bold")
    assert other.get_active_adapters() == ["bold"]
    full = clip(pipe).frames
    assert np.array_equal(clip(pipe, cross_attention_kwargs={"scale": 0.0}).frames, plain)
    assert not np.array_equal(clip(pipe, cross_attention_kwargs={"scale": 0.5}).frames, full)
    here, pipe.memory, brought = pipe._residency, None, set[int]()

    def bring(x: Tensor) -> Tensor:
        brought.add(x.data_ptr())
        return x.clone()

    for mode in ("model", "sequential"):
        pipe._residency, brought = replace(here, mode=mode, bring=bring), set()
        assert np.array_equal(clip(pipe).frames, full)
        summed = {x.data_ptr() for name, x in pipe.unet.named_buffers() if "summed_" in name}
        assert summed and summed <= brought
    pipe._residency = here
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert np.array_equal(clip(pipe).frames, full)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert np.array_equal(clip(pipe).frames, plain)


def test_a_pipeline_that_has_the_network_beside_others_keeps_it_from_being_stored_only_with_loras_on() -> None:
    pipe = own()
    other = type(pipe).from_pipe(pipe, text_encoder=copy.deepcopy(pipe.text_encoder))
    other.load_lora_weights(lora(pipe), "bold")
    with pytest.raises(InputError, match="Another pipeline has LoRAs"):
        pipe.enable_weight_storage()
    other.unload_lora_weights()
    pipe.enable_weight_storage(keep_originals=True)
    plain = clip(pipe).frames
    other.load_lora_weights(lora(pipe), "bold")
    assert not np.array_equal(clip(pipe).frames, plain)
    with pytest.raises(InputError, match="Another pipeline has LoRAs"):
        pipe.disable_weight_storage()
    other.unload_lora_weights()
    assert np.array_equal(clip(pipe).frames, plain)


def test_weights_by_frame_need_full_ones() -> None:
    pipe = animatediff_pipes.ours(animatediff_pipes.theirs())
    given = low_rank(f"unet.{ATTENTION}.to_q", pipe.unet, 0.5)
    pipe.load_lora_weights(given, "fading")
    fading = {"frames": {0: 1.0, 1: 0.0}}
    pipe.set_adapters("fading", fading)
    with pytest.raises(InputError, match="'fading' has weights by frame"):
        pipe.enable_weight_storage()
    assert stored(pipe.unet) is None and pipe.get_active_adapters() == ["fading"]
    pipe.set_adapters("fading", 1.0)
    pipe.enable_weight_storage()
    with pytest.raises(InputError, match="'fading' has weights by frame"):
        pipe.set_adapters("fading", fading)
    assert pipe.get_active_adapters() == ["fading"]

"""LoRAs are sums on weights: pipelines with the same networks know of the same LoRAs, whoever loaded them, and when."""

from __future__ import annotations

import contextlib
import copy
import gc
from functools import cache
from typing import Any

import pytest
import torch
from tests import pipelines_tiny

import kinema
from kinema import InputError

KEY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@cache
def made() -> Any:
    return pipelines_tiny.ours()


def own() -> Any:
    """A pipeline to change."""
    networks = {part: copy.deepcopy(module) for part, module in made().modules().items()}
    return type(made())(**{**made().components, **networks})


def lora(pipe: Any) -> dict[str, torch.Tensor]:
    width = pipe.unet.get_submodule(KEY).in_features
    return {
        f"unet.{KEY}.lora_{side}.weight": torch.ones(shape) for side, shape in (("A", (1, width)), ("B", (width, 1)))
    }


def weight(pipe: Any) -> torch.Tensor:
    held: torch.Tensor = pipe.unet.get_submodule(KEY).weight
    return held.detach().clone()


def by_from_pipe(pipe: Any) -> Any:
    return kinema.VideoToVideoSDPipeline.from_pipe(pipe)


def by_components(pipe: Any) -> Any:
    return kinema.VideoToVideoSDPipeline(**pipe.components)


def nothing(pipe: Any) -> None:
    pass


def stored_and_restored(pipe: Any) -> None:
    pipe.enable_weight_storage(components=("unet", "text_encoder"), keep_originals=True)
    pipe.disable_weight_storage()


def loaded_and_taken_off(pipe: Any) -> None:
    pipe.load_lora_weights(lora(pipe), adapter_name="before")
    pipe.unload_lora_weights()


@pytest.mark.parametrize("sibling", [by_from_pipe, by_components])
@pytest.mark.parametrize("meanwhile", [nothing, stored_and_restored, loaded_and_taken_off])
def test_a_lora_is_known_to_every_pipeline_with_its_networks(sibling: Any, meanwhile: Any) -> None:
    pipe = own()
    other = sibling(pipe)
    meanwhile(pipe)
    before = weight(pipe)
    pipe.load_lora_weights(lora(pipe), adapter_name="one")
    assert other.get_active_adapters() == ["one"] and "one" in other._receipt()["loras"]
    other.set_adapters("one", 0.5)
    torch.testing.assert_close(weight(pipe), before + 0.5)
    other.disable_lora()
    assert torch.equal(weight(pipe), before)
    pipe.enable_lora()
    torch.testing.assert_close(weight(pipe), before + 0.5)
    del pipe
    gc.collect()
    other.unload_lora_weights()
    assert torch.equal(weight(other), before)


def test_networks_of_its_own_have_loras_of_their_own() -> None:
    pipe = own()
    other = type(pipe).from_pipe(pipe, unet=copy.deepcopy(pipe.unet))
    third = by_from_pipe(pipe)
    before = weight(pipe)
    pipe.load_lora_weights(lora(pipe), adapter_name="one")
    assert other.get_active_adapters() == [] and torch.equal(weight(other), before)
    third.unet = other.unet
    third.load_lora_weights(lora(pipe), adapter_name="two")
    assert other.get_active_adapters() == ["two"] and pipe.get_active_adapters() == ["one"]
    pipe.unload_lora_weights()
    assert torch.equal(weight(pipe), before) and not torch.equal(weight(other), before)


@pytest.mark.parametrize("storage", [False, True])
def test_a_pipeline_with_some_of_the_networks_leaves_their_loras_alone(storage: bool) -> None:
    pipe = own()
    if storage:
        pipe.enable_weight_storage("int8")
    before = weight(pipe)
    part = type(pipe).from_pipe(pipe, text_encoder=copy.deepcopy(pipe.text_encoder))
    part.set_adapters([])  # what this pipeline has may be idle when another loads some
    pipe.load_lora_weights(lora(pipe), adapter_name="one")
    full = weight(pipe)
    assert part.get_active_adapters() == [] and part.get_list_adapters() == {} and "loras" not in part._receipt()
    part.disable_lora()
    part.enable_lora()
    part.unload_lora_weights()
    part.set_adapters([])
    with pytest.raises(InputError, match="Another pipeline has LoRAs"):
        part.load_lora_weights(lora(pipe))
    assert part.get_list_adapters() == {}
    assert torch.equal(weight(pipe), full) and not torch.equal(full, before)
    pipe.unload_lora_weights()
    assert torch.equal(weight(pipe), before)
    part.load_lora_weights(lora(pipe), adapter_name="two")
    with pytest.raises(InputError, match="Another pipeline has LoRAs"):
        pipe.load_lora_weights(lora(pipe), adapter_name="one")
    part.unload_lora_weights()
    assert torch.equal(weight(pipe), before)


def test_an_assigned_network_brings_what_is_known_of_its_loras() -> None:
    pipe = own()
    other = type(pipe).from_pipe(pipe, unet=copy.deepcopy(pipe.unet))
    pipe.load_lora_weights(lora(pipe), adapter_name="one")
    assert "loras" not in other._receipt()
    other.unet = pipe.unet
    assert "one" in other._receipt()["loras"]
    assert not torch.equal(other._with_lora("unet", other.unet, 0.5).get_submodule(KEY).weight, weight(pipe))
    pipe.unet = copy.deepcopy(made().unet)
    assert "loras" not in pipe._receipt() and pipe.get_active_adapters() == []


def test_pipelines_nobody_has_any_more_are_not_in_the_way(caplog: pytest.LogCaptureFixture) -> None:
    pipe = own()
    before = weight(pipe)
    other = type(pipe).from_pipe(pipe, text_encoder=copy.deepcopy(pipe.text_encoder))
    other.load_lora_weights(lora(pipe), adapter_name="one")
    other.itself = other  # only the garbage collector finds it gone
    del other
    pipe.load_lora_weights(lora(pipe), adapter_name="two")
    assert "LoRAs that no pipeline knows any more" in caplog.text
    torch.testing.assert_close(weight(pipe), before + 2)
    pipe.unload_lora_weights()
    torch.testing.assert_close(weight(pipe), before + 1)


def test_while_loras_are_off_others_still_know_of_them() -> None:
    pipe = own()
    pipe.load_lora_weights(lora(pipe), adapter_name="one")
    full = weight(pipe)
    with contextlib.suppress(MemoryError), pipe._adapters.off():
        other = by_from_pipe(pipe)
        assert other._with_lora("unet", other.unet, 0.5) is pipe.unet and other.get_active_adapters() == []
        raise MemoryError
    assert other.get_active_adapters() == ["one"] and torch.equal(weight(other), full)

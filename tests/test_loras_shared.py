"""LoRAs are sums on weights: pipelines with the same networks know of the same LoRAs, whoever loaded them, and when."""

from __future__ import annotations

import copy
import gc
from functools import cache
from typing import Any

import pytest
import torch
from tests import pipelines_tiny

import kinema

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

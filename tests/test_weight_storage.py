"""Weights in eight bits: less memory for a difference that is measured and told, the same files, the same plans."""

from __future__ import annotations

import copy
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import animatediff_pipes, i2vgen_tiny, pipelines_tiny, sdxl_pipes, svd_tiny
from tests.pipelines_tiny import off
from torch import nn

import kinema
from kinema import InputError
from kinema.memory.needs import bytes_of, on_meta
from kinema.memory.storage import FORMATS, packed, restore, store, stored, unpacked

TEXT: dict[str, Any] = {**pipelines_tiny.SIZE, "prompt": "a red circle", "num_inference_steps": 1}
PIPES: dict[str, Any] = {
    "ModelScope": (pipelines_tiny.ours, TEXT),
    "SVD": (svd_tiny.ours, {**svd_tiny.SIZE, "image": svd_tiny.picture()}),
    "I2VGen-XL": (lambda: i2vgen_tiny.twin(i2vgen_tiny.theirs()), {**TEXT, "image": i2vgen_tiny.picture()}),
    "AnimateDiff": (lambda: animatediff_pipes.ours(animatediff_pipes.theirs()), TEXT),
    "AnimateDiff XL": (lambda: sdxl_pipes.ours(sdxl_pipes.theirs()), {**TEXT, "height": 32, "width": 32}),
}
ERRORS = {"int8": 0.015, "float8": 0.04}  # of weights, at most


@cache
def _made(name: str) -> Any:
    return PIPES[name][0]()


def own(name: str = "ModelScope") -> Any:
    """A pipeline to change."""
    pipe = _made(name)
    parts = {part: copy.deepcopy(module) for part, module in pipe.modules().items()}
    made = type(pipe)(**{**pipe.components, **parts})
    made.set_progress_bar_config(disable=True)
    return made


def clip(pipe: Any, name: str = "ModelScope", **call: Any) -> Any:
    return pipe(**{**PIPES[name][1], "generator": 0, "output_type": "np", **call})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(64, 32), nn.Conv2d(8, 16, 3), nn.Conv3d(4, 4, (3, 1, 1), bias=False), nn.LayerNorm(8)
    ).requires_grad_(False)
    made[1].to(memory_format=torch.channels_last)
    return made


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_weight_is_near_in_every_format_and_rounded_once(format: Any, dtype: torch.dtype) -> None:
    weight = torch.randn(40, 64, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 1, 40).view(
        -1, 1, 1, 1
    )
    codes, scales = packed(weight.to(dtype), format)
    exact = unpacked(codes, scales, format, torch.float32)
    apart = (exact - weight.to(dtype).float()).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    assert apart.max() < ERRORS[format]
    assert torch.equal(unpacked(codes, scales, format, dtype), exact.to(dtype))


@pytest.mark.parametrize("format", FORMATS)
def test_channels_of_zeros_and_numbers_of_eight_bits_stay(format: Any) -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [127.0, -64.0, 0.0], [448.0, -2.0, 1.5]])[: 2 if format == "int8" else 3]
    assert torch.equal(unpacked(*packed(weight, format), format, torch.float32)[0], weight[0])
    assert torch.equal(unpacked(*packed(weight, format), format, torch.float32)[-1], weight[-1])


@pytest.mark.parametrize("format", FORMATS)
def test_memory_falls_and_conversions_leave_the_bits_alone(format: Any) -> None:
    made = net()
    full, said = bytes_of(made), store(made, format)
    small = sum(4 * len(w) + w.numel() for w in (net()[i].weight for i in range(3)))
    assert said.after == small and bytes_of(made) == full - said.before + small < full / 3
    assert bytes_of(on_meta(made, torch.float16)) == bytes_of(made.half()) < bytes_of(net().half())
    before = made[1].codes.clone(), made[1].scales.clone()
    assert made[1].weight.dtype == torch.float16
    made.bfloat16().float()
    assert all(torch.equal(x, y) for x, y in zip(before, (made[1].codes, made[1].scales), strict=True))
    assert made[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_states_have_plain_weights_and_take_them() -> None:
    made, plain = net(), net()
    store(made, "int8")
    state = made.state_dict()
    assert set(state) == set(plain.state_dict()) and torch.equal(state["0.weight"], made[0].weight)
    made.load_state_dict({name: 2 * x for name, x in plain.state_dict().items()})
    assert off(made[0].weight, 2 * plain[0].weight) < 0.01
    with pytest.raises(RuntimeError, match=r"1\.weight"):
        made.load_state_dict({name: x for name, x in plain.state_dict().items() if name != "1.weight"})


@pytest.mark.parametrize("keep", [True, False])
def test_layers_become_plain_again_and_exact_where_originals_were_kept(keep: bool) -> None:
    made, plain = net(), net()
    store(made, "int8", keep)
    assert restore(made) is keep and stored(made) is None
    assert [type(m) for m in made] == [type(m) for m in plain]
    assert list(dict(made.named_parameters())) == list(dict(plain.named_parameters()))
    same = [torch.equal(x, y) for x, y in zip(made.parameters(), plain.parameters(), strict=True)]
    assert all(same) is keep and bytes_of(made) == bytes_of(plain)


# ------------------------------------------------------------------ pipelines


@pytest.mark.parametrize("name", PIPES)
def test_clips_stay_near_and_the_error_is_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    pipe = own(name)
    exact, full = clip(pipe, name).frames, bytes_of(pipe.unet)
    with caplog.at_level(logging.WARNING, "kinema"):
        pipe.enable_weight_storage("int8")
    assert bytes_of(pipe.unet) < full / 2.5
    made = clip(pipe, name)
    told = made.receipt["weight_storage"]["unet"]
    assert told["format"] == "int8" and 0 < told["weights"] < 0.015 and 0 < told["prediction"] < 0.05
    assert f"of a prediction {told['prediction']:.2%}" in caplog.text
    assert 0 < off(made.frames, exact) < 0.1


def test_eight_bits_of_whole_numbers_are_nearer_than_of_small_floats() -> None:
    told = {}
    for format in FORMATS:
        pipe = own()
        pipe.enable_weight_storage(format, ["unet", "text_encoder"])
        told[format] = clip(pipe).receipt["weight_storage"]
        assert "prediction" not in told[format]["text_encoder"]
    assert told["int8"]["unet"]["prediction"] < told["float8"]["unet"]["prediction"] < 0.25


def test_it_goes_with_everything_that_moves_and_converts_weights() -> None:
    pipe = own()
    pipe.enable_weight_storage("int8")
    expected = clip(pipe).frames
    for offload in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        offload()
        assert np.array_equal(clip(pipe).frames, expected)
    pipe.disable_offload()
    assert off(clip(pipe.to(torch.bfloat16)).frames, expected) < 0.1
    assert off(clip(pipe.to(torch.float32)).frames, expected) < 0.05  # norms and biases stay rounded


def test_plans_count_bytes_as_they_are() -> None:
    pipe = own()
    size = {"height": 16, "width": 24, "num_frames": 3}
    before, full = pipe.plan(**size), bytes_of(pipe.unet)
    pipe.enable_weight_storage("int8")
    saved = full - bytes_of(pipe.unet)
    for one, other in zip(before.stages, pipe.plan(**size).stages, strict=True):
        assert one.weights - other.weights == saved and one.needs.flops == other.needs.flops


def test_files_are_those_of_the_rounded_weights(tmp_path: Path) -> None:
    pipe = own()
    pipe.enable_weight_storage("int8")
    expected = clip(pipe).frames
    pipe.unet.save_pretrained(tmp_path)
    pipe.unet = kinema.UNet3DConditionModel.from_pretrained(tmp_path)
    assert np.array_equal(clip(pipe).frames, expected)


def test_undoing_says_whether_it_is_exact(caplog: pytest.LogCaptureFixture) -> None:
    pipe = own()
    exact = clip(pipe).frames
    pipe.enable_weight_storage("float8", keep_originals=True)
    pipe.disable_weight_storage()
    assert np.array_equal(clip(pipe).frames, exact)
    caplog.clear()
    pipe.enable_weight_storage("float8")
    pipe.disable_weight_storage()
    pipe.disable_weight_storage()
    assert "originals were not kept" in caplog.text and caplog.text.count("rounding") == 1
    made = clip(pipe)
    assert not np.array_equal(made.frames, exact) and "weight_storage" not in made.receipt


def test_what_does_not_go_together_is_refused_by_name() -> None:
    pipe = own()
    for wrong, said in (({"format": "int4"}, "int4"), ({"components": "scheduler"}, "scheduler")):
        with pytest.raises(InputError, match=said):
            pipe.enable_weight_storage(**wrong)
    assert stored(pipe.unet) is None
    pipe.enable_weight_storage()
    with pytest.raises(InputError, match="int8"):
        pipe.enable_weight_storage()


def test_copies_for_plans_do_not_copy_what_is_kept_for_later():
    model = nn.Sequential(nn.Linear(8, 8))
    store(model, "int8", keep_originals=True)
    kept = model[0].original.tensor
    for twin in (copy.deepcopy(model), on_meta(model)):
        assert twin[0].original.tensor is kept
    assert restore(model) and torch.equal(model[0].weight, kept)

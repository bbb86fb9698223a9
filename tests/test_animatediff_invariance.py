"""An AnimateDiff clip depends on what was asked for it, and on nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests.pipelines_tiny import off

import kinema


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipes.ours(pipes.theirs())


def _lora(pipe: Any) -> dict[str, torch.Tensor]:
    dice, state = torch.Generator().manual_seed(1), {}
    for name, module in pipe.unet.named_modules():
        if isinstance(module, torch.nn.Linear) and ".attn" in name:
            wide, deep = module.weight.shape
            state[f"unet.{name}.lora_A.weight"] = torch.randn(2, deep, generator=dice)
            state[f"unet.{name}.lora_B.weight"] = torch.randn(wide, 2, generator=dice) * 0.2
    return state


def test_a_batch_is_each_of_its_clips_alone(pipe: Any) -> None:
    call = {**pipes.CALL, "negative_prompt": ["dull", "blue"], "eta": 0.5}
    prompts = ["a red circle", "a star"]
    both = pipe(**{**call, "prompt": prompts}, generator=[1, 2]).frames
    for i, prompt in enumerate(prompts):
        alone = {**call, "prompt": prompt, "negative_prompt": call["negative_prompt"][i]}
        assert off(pipe(**alone, generator=i + 1).frames[0], both[i]) <= 1e-5


def test_threads_do_not_meet(pipe: Any) -> None:
    seeds = range(6)
    alone = [pipe(**pipes.CALL, generator=seed).frames for seed in seeds]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda seed: pipe(**pipes.CALL, generator=seed).frames, seeds))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_slices_and_offloading_change_nothing(pipe: Any) -> None:
    plain = pipe(**pipes.CALL, generator=3).frames
    switched = type(pipe).from_pipe(pipe)
    switched.set_progress_bar_config(disable=True)
    switched.enable_attention_slicing("max")
    switched.unet.enable_forward_chunking(1)
    switched.enable_vae_slicing()
    switched.enable_vae_tiling()
    switched.enable_model_cpu_offload()
    try:
        assert off(switched(**pipes.CALL, generator=3).frames, plain) <= 1e-5
        switched.enable_sequential_cpu_offload(device="cpu")
        assert off(switched(**pipes.CALL, generator=3).frames, plain) <= 1e-5
    finally:
        switched.disable_attention_slicing()
        switched.unet.disable_forward_chunking()
        switched.disable_vae_slicing()
        switched.disable_vae_tiling()
        switched.disable_offload()


def test_a_lora_at_weight_nothing_is_the_base_to_the_bit_and_comes_off_exactly(pipe: Any) -> None:
    before = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    plain = pipe(**pipes.CALL, generator=3).frames
    pipe.load_lora_weights(_lora(pipe), "style")
    assert off(pipe(**pipes.CALL, generator=3).frames, plain) > 1e-3
    pipe.set_adapters("style", 0.0)
    assert (pipe(**pipes.CALL, generator=3).frames == plain).all()
    pipe.unload_lora_weights()
    assert all(torch.equal(p, before[name]) for name, p in pipe.unet.named_parameters())


def test_the_first_frames_noise_does_not_depend_on_how_many_follow(pipe: Any) -> None:
    starts = {}
    for frames in (16, 40):
        events = pipe.stream(**{**pipes.CALL, "num_frames": frames, "num_inference_steps": 2}, generator=4)
        job = pipe.begin(pipe._bind((), {**pipes.CALL, "num_frames": frames, "generator": 4}))
        events.close()
        starts[frames] = job.encode()[1]
    assert torch.equal(starts[16], starts[40][:, :16])


def test_more_frames_than_a_module_has_places_for_are_made_in_windows(pipe: Any, caplog: Any) -> None:
    with caplog.at_level("WARNING", logger="kinema"):
        clip = pipe(**{**pipes.CALL, "num_frames": 40, "num_inference_steps": 2}, generator=1).frames
    assert clip.shape[1] == 40
    assert "windows" in caplog.text


def test_every_count_of_frames_works(pipe: Any) -> None:
    for frames in (1, 2, 3, 31, 32, 33, 65):
        call = {**pipes.CALL, "num_frames": frames, "num_inference_steps": 1, "output_type": "latent"}
        assert pipe(**call, generator=1).frames.shape[2] == frames


def test_a_lora_counts_by_block_as_it_is_told(pipe: Any) -> None:
    plain = pipe(**pipes.CALL, generator=3).frames
    base = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    pipe.load_lora_weights(_lora(pipe), "style")
    try:
        full = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
        by_block = {"down": 0.0, "mid": 0.5, "up": {"block_1": [1.0, 0.0, 0.25], "block_2": 0.0}}
        pipe.set_adapters("style", {"unet": by_block})
        shares = {"down_blocks.0.": 0.0, "mid_block.attentions.": 0.5, "up_blocks.2.": 0.0}
        shares |= {f"up_blocks.1.attentions.{i}.": share for i, share in enumerate((1.0, 0.0, 0.25))}
        for name, p in pipe.unet.named_parameters():
            for where, share in shares.items():
                if name.startswith(where):
                    expected = base[name] + share * (full[name] - base[name])
                    torch.testing.assert_close(p.data, expected, rtol=0, atol=1e-6)
        assert off(pipe(**pipes.CALL, generator=3).frames, plain) > 1e-3
        for wrong in ({"left": 1.0}, {"up": {"block_9": 1.0}}, {"up": {"block_1": [1.0]}}, {"mid": "much"}):
            with pytest.raises(kinema.InputError):
                pipe.set_adapters("style", {"unet": wrong})
    finally:
        pipe.unload_lora_weights()
    assert (pipe(**pipes.CALL, generator=3).frames == plain).all()

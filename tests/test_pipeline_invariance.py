"""A clip depends on its prompt, its seed and the numbers asked for: not on its neighbours, on where weights live, on
how much is worked on at once, or on what other threads do."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.pipelines_tiny import SIZE, as_video_pipe, clip, gen, off, ours

import kinema

SAME = 1e-5  # of the range: what rounding does when matrices have other numbers of rows
CALL = {**SIZE, "num_inference_steps": 2, "num_frames": 2, "output_type": "latent"}
LONG = "a very long story of a red circle " * 5


@cache
def pipe() -> Any:
    """One for tests that only read it."""
    return ours(vae={"block_out_channels": (8, 8, 16)})


@pytest.fixture
def own() -> Any:
    """One to change."""
    shared = pipe()
    networks = {name: copy.deepcopy(module) for name, module in shared.modules().items()}
    made = kinema.TextToVideoSDPipeline(**{**shared.components, **networks})
    made.set_progress_bar_config(disable=True)
    return made


def stochastic() -> dict[str, Any]:
    config = dict(pipe().scheduler.config)
    names = ("DDIM", "EulerAncestralDiscrete", "LCM", "UniPCMultistep", "HeunDiscrete")
    made = {name: getattr(kinema, f"{name}Scheduler").from_config(config) for name in names}
    sde = kinema.DPMSolverMultistepScheduler.from_config(config, algorithm_type="sde-dpmsolver++")
    return {**made, "DPM++ SDE": sde}


@cache
def with_scheduler(name: str) -> Any:
    made = kinema.TextToVideoSDPipeline(**{**pipe().components, "scheduler": stochastic()[name]})
    made.set_progress_bar_config(disable=True)
    return made


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("scheduler", ["DDIM", "EulerAncestralDiscrete", "DPM++ SDE"])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_each_clip_of_a_batch_is_the_one_it_would_be_alone(scheduler: str, guidance_scale: float) -> None:
    run = with_scheduler(scheduler)
    prompts, negatives, seeds = ["a red circle", "b", LONG], ["", LONG + LONG, "bad"], [3, 4, 5]
    call = {**CALL, "guidance_scale": guidance_scale, "eta": 0.6}
    together = run(prompts, negative_prompt=negatives, generator=seeds, **call).frames
    for i in range(3):
        alone = run(prompts[i], negative_prompt=negatives[i], generator=seeds[i], **call).frames
        assert off(together[i : i + 1], alone) < SAME


@pytest.mark.parametrize(
    "generators",
    [
        lambda: [3, 4, 3],
        lambda: [gen(3), gen(4), gen(3)],
        lambda: [np.random.default_rng(s) for s in (3, 4, 3)],
        lambda: [np.int64(3), 4, gen(3)],
    ],
)
def test_each_clip_has_the_noise_of_its_own_seed_wherever_it_stands(generators: Any) -> None:
    run = with_scheduler("EulerAncestralDiscrete")
    first, second, third = run(["a", "b", "a"], generator=generators(), **CALL).frames
    assert off(first, third) < SAME < off(first, second)
    alone = run("b", generator=generators()[1], **CALL).frames[0]
    assert off(second, alone) < SAME


def test_one_int_seed_starts_every_prompt_alike() -> None:
    both = pipe()(["a", "b"], generator=3, **CALL).frames
    for i, prompt in enumerate("ab"):
        assert off(both[i], pipe()(prompt, generator=3, **CALL).frames[0]) < SAME


def test_an_int_seed_and_a_generator_started_with_it_are_one() -> None:
    assert torch.equal(*(pipe()("a", generator=g, **CALL).frames for g in (3, gen(3))))


def test_a_shared_generator_draws_for_the_whole_batch_at_once() -> None:
    """In the reference's order, which makes a clip depend on its place; lists and seeds do not."""
    both = pipe()(["a", "b"], generator=gen(3), **CALL).frames
    noise = torch.randn(2, 4, 2, 4, 6, generator=gen(3))
    for i, prompt in enumerate("ab"):
        assert off(both[i], pipe()(prompt, latents=noise[i : i + 1], **CALL).frames[0]) < SAME


def test_a_numpy_generator_gives_the_noise_it_gives() -> None:
    got = pipe()("a", generator=np.random.Generator(np.random.PCG64(5)), **CALL).frames
    noise = torch.from_numpy(np.random.Generator(np.random.PCG64(5)).standard_normal((1, 4, 2, 4, 6))).float()
    assert torch.equal(got, pipe()("a", latents=noise, **CALL).frames)


def test_videos_of_one_prompt_lie_together_and_count_their_seeds_up() -> None:
    run = with_scheduler("EulerAncestralDiscrete")
    made = run(["a", "b"], num_videos_per_prompt=2, generator=10, **CALL).frames
    order = [("a", 10), ("a", 11), ("b", 10), ("b", 11)]
    for got, (prompt, seed) in zip(made, order, strict=True):
        assert off(got, run(prompt, generator=seed, **CALL).frames[0]) < SAME
    listed = run(["a", "b"], num_videos_per_prompt=2, generator=[10, 11, 10, 11], **CALL).frames
    assert torch.equal(listed, made)
    by_prompt = run(["a", "b"], num_videos_per_prompt=2, generator=[10, 20], **CALL).frames
    assert torch.equal(by_prompt[:2], made[:2]) and off(by_prompt[3], run("b", generator=21, **CALL).frames[0]) < SAME


def test_each_changed_video_of_a_batch_is_the_one_it_would_be_alone() -> None:
    run, call = as_video_pipe(pipe()), {"num_inference_steps": 3, "output_type": "latent"}
    videos = [clip(2, seed=1), clip(2, seed=2)]
    together = run(["a", LONG], video=videos, generator=[3, 4], **call).frames
    for i, prompt in enumerate(["a", LONG]):
        assert off(together[i], run(prompt, video=videos[i], generator=3 + i, **call).frames[0]) < SAME


def test_the_noise_of_a_seed_does_not_depend_on_the_number_format(own: Any) -> None:
    starts = []
    for dtype in ("float32", "bfloat16", "float16"):
        own.to(dtype)
        events = own.stream("a", generator=7, **CALL)
        first = next(e for e in events if e.stage == "denoise")
        starts.append(first.latents)
        assert first.latents.dtype == torch.float32
    # One step from the same noise: what differs is what the network makes of it.
    assert off(starts[1], starts[0]) < 0.05 and off(starts[2], starts[0]) < 0.02


# ------------------------------------------------------------------ memory


def offloaded(pipe: Any, mode: str) -> None:
    """As on a machine with an accelerator: weights come as copies."""
    pipe._residency = replace(pipe._residency, mode=mode, bring=lambda t: t.clone())


SETTINGS = {
    "model offload": lambda p: offloaded(p, "model"),
    "sequential offload": lambda p: offloaded(p, "sequential"),
    "slicing": lambda p: p.enable_vae_slicing(),
    "attention slicing": lambda p: p.enable_attention_slicing(),
    "attention in single heads": lambda p: p.enable_attention_slicing("max"),
    "everything resident": lambda p: p.enable_model_cpu_offload(),
}
ROUNDED = {
    "tiling": lambda p: p.enable_vae_tiling(),
    "bands of two rows": lambda p: p.vae.enable_tiling(rows=2),
    "forward chunking": lambda p: p.unet.enable_forward_chunking(chunk_size=1, dim=1),
    "all at once": lambda p: [change(p) for change in (*SETTINGS.values(), *list(ROUNDED.values())[:3])],
}


@cache
def plain() -> Any:
    return pipe()("a cat", generator=3, **{**CALL, "output_type": "pt"}).frames


@pytest.mark.parametrize("name", [*SETTINGS, *ROUNDED])
def test_the_clip_does_not_depend_on(name: str, own: Any) -> None:
    weights = {k: v.clone() for m in own.modules().values() for k, v in m.state_dict().items()}
    (SETTINGS | ROUNDED)[name](own)
    got = own("a cat", generator=3, **{**CALL, "output_type": "pt"}).frames
    if "offload" in name or name == "everything resident":
        assert torch.equal(got, plain())
    assert off(got, plain()) < SAME
    after = {k: v for m in own.modules().values() for k, v in m.state_dict().items()}
    assert all(torch.equal(after[k], v) for k, v in weights.items())


@pytest.mark.parametrize("decode_chunk_size", [1, 2, 5])
def test_the_clip_does_not_depend_on_how_many_frames_are_decoded_at_once(decode_chunk_size: int) -> None:
    call = {**CALL, "output_type": "pt", "decode_chunk_size": decode_chunk_size}
    assert off(pipe()("a cat", generator=3, **call).frames, plain()) < SAME


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_a_changed_video_does_not_depend_on_offload(mode: str, own: Any) -> None:
    call = {"video": clip(2), "num_inference_steps": 2, "generator": 3, "output_type": "pt"}
    kept, moved = as_video_pipe(pipe()), as_video_pipe(own)
    offloaded(moved, mode)
    assert torch.equal(moved("a", **call).frames, kept("a", **call).frames)


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "bfloat16", torch.bfloat16, "bf16", "fp16"])
def test_number_formats_have_names(dtype: Any, own: Any) -> None:
    wanted = torch.float16 if "16" in str(dtype) and "b" not in str(dtype).removeprefix("torch.") else torch.bfloat16
    assert own.to(dtype).dtype == wanted
    assert {p.dtype for m in own.modules().values() for p in m.parameters()} == {wanted}


# ------------------------------------------------------------------ threads


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    prompts = ["a", "a red circle", LONG, "b", "c", "d", "e", "f"]
    for seed, prompt in enumerate(prompts):
        yield list(stochastic())[seed % len(stochastic())], {"prompt": prompt, "generator": seed, "eta": 0.5}


@pytest.mark.parametrize("place", ["resident", "model", "sequential"])
def test_eight_threads_on_one_pipeline_give_the_serial_clips_to_the_bit(place: str, own: Any) -> None:
    if place != "resident":
        offloaded(own, place)
    run = {"resident": ["DDIM", "DPM++ SDE"]}.get(place, ["EulerAncestralDiscrete"])
    for name in run:
        own.scheduler = stochastic()[name]
        calls = [{**CALL, **call} for _, call in jobs()]
        serial = [own(**call).frames for call in calls]
        with ThreadPoolExecutor(8) as pool:
            threaded = list(pool.map(lambda call: own(**call).frames, calls))
        assert all(torch.equal(a, b) for a, b in zip(serial, threaded, strict=True))


def test_threads_share_networks_whatever_their_schedulers() -> None:
    """One set of weights, a pipeline for each scheduler."""
    calls = [(name, {**CALL, **call}) for name, call in jobs()]
    serial = [with_scheduler(name)(**call).frames for name, call in calls]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(lambda job: with_scheduler(job[0])(**job[1]).frames, calls))
    assert all(torch.equal(a, b) for a, b in zip(serial, threaded, strict=True))


def attributes(thing: Any) -> dict[str, Any]:
    """Everything an object holds, by identity, and tensors by content too."""
    held = {}
    for name, value in vars(thing).items():
        values = value.items() if isinstance(value, dict) else [("", value)]
        for key, one in values:
            held[f"{name}.{key}"] = (id(one), one.clone() if isinstance(one, torch.Tensor) else None)
    return held


@pytest.mark.parametrize("scheduler", ["DDIM", "UniPCMultistep", "HeunDiscrete", "LCM"])
def test_a_call_changes_nothing_on_shared_objects(scheduler: str) -> None:
    run = with_scheduler(scheduler)
    parts = [run, run.scheduler, run.tokenizer, *(n for m in run.modules().values() for n in m.modules())]
    run("a", generator=3, **CALL)  # a tokenizer and the like may get ready once
    before = [attributes(part) for part in parts]
    run("another prompt", generator=4, **{**CALL, "output_type": "np"})
    for part, held in zip(parts, before, strict=True):
        now = attributes(part)
        assert now.keys() == held.keys(), type(part)
        for name, (identity, tensor) in held.items():
            assert now[name][0] == identity, f"{type(part).__name__}.{name}"
            assert tensor is None or torch.equal(now[name][1], tensor)


def test_a_pipeline_can_start_a_call_while_another_is_on_its_way() -> None:
    alone = [pipe()("a", generator=s, **CALL).frames for s in (1, 2)]
    streams = [pipe().stream("a", generator=s, **CALL) for s in (1, 2)]
    outputs: list[Any] = [None, None]
    for events in zip(*streams, strict=True):
        outputs = [e.output.frames if e.output else o for e, o in zip(events, outputs, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(alone, outputs, strict=True))

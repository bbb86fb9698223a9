"""LoRAs by frame: every frame goes through the weights that are its own, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import animatediff_tiny as tiny
from tests.pipelines_tiny import off
from torch import Tensor, nn
from torch.nn import functional as F

import kinema
from kinema import InputError
from kinema.families.animatediff import UNetMotionModel
from kinema.families.animatediff.unet import MotionConditions

FRAMES = pipes.CALL["num_frames"]
FADE = {0: 1.0, 3: 0.4}
EACH = [1.0, 0.8, 0.6, 0.4]  # what that is at each frame
CUT = {"frames": {0: 1.0, 1: 1.0, 2: 0.0}}


def lora_of(model: nn.Module, part: str = "", seed: int = 1, kinds: Any = (nn.Linear, nn.Conv2d)) -> dict[str, Tensor]:
    """A LoRA of every such layer whose name has `part` in it, but those that embed what all frames are told."""
    dice, state = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if isinstance(module, kinds) and part in name and not name.startswith(("time_embedding", "add_embedding")):
            o, i, *size = module.weight.shape
            ones = [1] * len(size)
            state[f"unet.{name}.lora_A.weight"] = torch.randn(2, i, *size, generator=dice) / (i * 9 ** len(ones)) ** 0.5
            state[f"unet.{name}.lora_B.weight"] = torch.randn(o, 2, *ones, generator=dice) * 0.3
    return state


@pytest.fixture(scope="module")
def base() -> Any:
    return pipes.ours(pipes.theirs(image=tiny.SMALL, adapter={"block_out_channels": (16, 32)}))


@pytest.fixture
def pipe(base: Any) -> Iterator[Any]:
    base.load_lora_weights(lora_of(base.unet, "attentions"), "style")
    base.load_lora_weights(lora_of(base.unet, "motion_modules", 2), "pan")
    base.load_lora_weights(lora_of(base.unet, "conv", 3), "ink")
    base.set_adapters([], [])
    yield base
    base.unload_lora_weights()


def clip(pipe: Any, **changes: Any) -> Any:
    return pipe(**{**pipes.CALL, "num_inference_steps": 2, "generator": 3, **changes}).frames


ALL = ["style", "pan", "ink"]


@pytest.mark.parametrize("constant", [{0: 0.7}, {0: 0.7, 3: 0.7}, [0.7] * FRAMES])
def test_the_same_weight_at_all_frames_is_that_weight_to_the_bit(pipe: Any, constant: Any) -> None:
    pipe.set_adapters(ALL, 0.7)
    plain = clip(pipe)
    pipe.set_adapters(ALL, {"frames": constant})
    assert (clip(pipe) == plain).all()


@pytest.mark.parametrize("name", ["style", "ink", "both"])
def test_where_frames_do_not_meet_each_is_the_plain_model_s_at_its_weight(pipe: Any, name: str) -> None:
    names = ["style", "ink"] if name == "both" else [name]
    pipe.set_adapters(names, {"frames": FADE})
    faded = clip(pipe, motion_scale=0.0)[0]
    for frame, weight in enumerate(EACH):
        pipe.set_adapters(names, weight)
        assert off(clip(pipe, motion_scale=0.0)[0][frame], faded[frame]) <= 1e-5


def test_adapters_with_and_without_weights_by_frame_add_up(pipe: Any) -> None:
    pipe.set_adapters(ALL, [{"frames": FADE}, 0.5, CUT])
    mixed = clip(pipe, motion_scale=0.0)[0]
    for frame, weight in enumerate(EACH):
        pipe.set_adapters(ALL, [weight, 0.5, float(frame < 2)])
        assert off(clip(pipe, motion_scale=0.0)[0][frame], mixed[frame]) <= 1e-5


def test_weights_by_frame_and_by_block_are_multiplied(pipe: Any) -> None:
    blocks = {"down": 0.5, "mid": 0.0, "up": {"block_1": [1.0, 0.0, 0.25]}}
    pipe.set_adapters("style", {"frames": FADE, **blocks})
    faded = clip(pipe, motion_scale=0.0)[0]
    pipe.set_adapters("style", {"unet": {"frames": FADE, **blocks}})
    assert (clip(pipe, motion_scale=0.0)[0] == faded).all()
    for frame, weight in enumerate(EACH):
        up = {"block_0": weight, "block_1": [weight, 0.0, 0.25 * weight]}
        pipe.set_adapters("style", {"unet": {"down": 0.5 * weight, "mid": 0.0, "up": up}})
        assert off(clip(pipe, motion_scale=0.0)[0][frame], faded[frame]) <= 1e-5


def by_hand(module: nn.Module, x: Tensor, weights: list[dict[str, Tensor]]) -> Tensor:
    """A motion module, (f, c, h, w) → the same, frame f with the weights of its own: every sum written out."""
    block, f = module.transformer_blocks[0], len(x)
    y = module.norm(x.transpose(0, 1).flatten(2)[None])[0].view(-1, f, *x.shape[2:]).permute(1, 2, 3, 0).flatten(1, 2)

    def linear(tokens: Tensor, name: str) -> Tensor:  # (f, n, c)
        own = [{**dict(module.named_parameters()), **w} for w in weights]
        return torch.stack([F.linear(t, w[f"{name}.weight"], w.get(f"{name}.bias")) for t, w in zip(tokens, own)])

    y = linear(y, "proj_in")
    for i in (1, 2):
        name = f"transformer_blocks.0.attn{i}"
        normed = getattr(block, f"norm{i}")(y) + block.pos_embed.pe[0, :f, None]
        q, k, v = (
            linear(normed, f"{name}.to_{one}").unflatten(-1, (block.attn1.heads, -1)).permute(1, 2, 0, 3)
            for one in "qkv"
        )
        found = ((q @ k.mT) / q.shape[-1] ** 0.5).softmax(-1) @ v  # (n, heads, f, d)
        y = y + linear(found.permute(2, 0, 1, 3).flatten(2), f"{name}.to_out.0")
    inner, gate = linear(block.norm3(y), "transformer_blocks.0.ff.net.0.proj").chunk(2, -1)
    y = y + linear(inner * F.gelu(gate), "transformer_blocks.0.ff.net.2")
    return x + linear(y, "proj_out").unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


@torch.no_grad()
@pytest.mark.parametrize("of", [[0, 1, 2, 0, 1], [0, 0, 1, 1, 1], [2, 2, 2, 2, 2]])
def test_in_motion_modules_every_token_has_the_weights_of_its_frame(of: list[int]) -> None:
    model = UNetMotionModel.from_unet2d(tiny.ours(tiny.reference_image_model()), tiny.ours(tiny.reference_adapter()))
    path = "down_blocks.0.motion_modules.0"
    module, dice = model.get_submodule(path), torch.Generator().manual_seed(1)
    linear = [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]
    sets: list[dict[str, Tensor]] = [{}, {}, {}]
    for one in sets[1:]:
        for name in linear:
            weight = module.get_submodule(name).weight
            one[f"{name}.weight"] = weight + 0.3 * torch.randn(weight.shape, generator=dice) / weight.shape[1] ** 0.5
    text = torch.randn(1, 7, 16, generator=dice)
    twin = model.weighted(of, [{f"{path}.{name}": x for name, x in one.items()} for one in sets])
    signal = twin.prepare(torch.tensor([37.0]), MotionConditions(text, 5)).at(0)
    x = torch.randn(5, 16, 6, 4, generator=dice)
    expected = by_hand(module, x, [sets[which] for which in of])
    torch.testing.assert_close(module(x, signal), expected, rtol=0, atol=1e-5)
    some = [1, 2, 4]
    torch.testing.assert_close(
        module(x[some], signal.at_frames(some)),
        by_hand(module, x[some], [sets[of[i]] for i in some]),
        rtol=0,
        atol=1e-5,
    )


def test_a_window_sees_the_weights_of_its_own_frames(pipe: Any) -> None:
    pipe.set_adapters(["style", "ink"], [{"frames": {0: 1.0, 9: 0.1}}, {"frames": {4: 0.0, 5: 1.0}}])
    call = {"num_frames": 10, "motion_scale": 0.0, "num_inference_steps": 2}
    whole = clip(pipe, **call)
    try:
        for settings in ({}, {"loop": True, "stride": 2}):
            pipe.enable_windows(length=4, overlap=2, **settings)
            assert off(clip(pipe, **call), whole) <= 1e-5
    finally:
        pipe.disable_windows()


def test_free_noise_s_windows_see_the_weights_of_their_own_frames(pipe: Any) -> None:
    call = {"num_frames": 10, "num_inference_steps": 2}
    try:
        pipe.enable_free_noise(4, 2)
        pipe.set_adapters("pan", {"frames": {0: 1.0, 1: 1.0, 2: 0.0}})
        early = clip(pipe, **call)
        pipe.set_adapters("pan", 0.0)
        plain = clip(pipe, **call)
    finally:
        pipe.disable_free_noise()
    assert off(early[0][0], plain[0][0]) > 1e-3
    assert off(early, plain) > 1e-3


def test_a_batch_is_each_of_its_clips_alone(pipe: Any) -> None:
    pipe.set_adapters(ALL, [{"frames": FADE}, CUT, 0.5])
    prompts = ["a red circle", {0: "a star", 3: "a red circle"}]
    both = clip(pipe, prompt=prompts, generator=[1, 2])
    for i, prompt in enumerate(prompts):
        assert off(clip(pipe, prompt=prompt, generator=i + 1)[0], both[i]) <= 1e-5
    assert off(clip(pipe, num_videos_per_prompt=2, generator=[1, 2], guidance_scale=1.0)[1],
               clip(pipe, generator=2, guidance_scale=1.0)[0]) <= 1e-5  # fmt: skip


def test_threads_and_offloading_change_nothing(pipe: Any) -> None:
    pipe.set_adapters(ALL, [{"frames": FADE}, CUT, {"frames": EACH}])
    alone = [clip(pipe, generator=seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda seed: clip(pipe, generator=seed), range(3)))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))
    moved = type(pipe).from_pipe(pipe)
    moved.set_progress_bar_config(disable=True)
    try:
        for enable in (moved.enable_model_cpu_offload, moved.enable_sequential_cpu_offload):
            enable(device="cpu")
            moved._residency = type(moved._residency)(
                moved._residency.components, mode=moved._residency.mode, bring=lambda t: t.clone()
            )
            assert off(clip(moved, generator=0), alone[0]) <= 1e-5
    finally:
        moved.disable_offload()


def test_everything_comes_off_to_the_bit(pipe: Any) -> None:
    base = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    plain = clip(pipe)
    pipe.set_adapters(ALL, [CUT, CUT, {"frames": FADE}])
    assert all(torch.equal(p, base[name]) for name, p in pipe.unet.named_parameters())
    assert off(clip(pipe), plain) > 1e-3
    pipe.disable_lora()
    assert (clip(pipe) == plain).all()
    pipe.enable_lora()
    assert off(clip(pipe), plain) > 1e-3
    pipe.unload_lora_weights()
    assert (clip(pipe) == plain).all()


def test_a_call_s_own_strength_counts_for_weights_by_frame_too(pipe: Any) -> None:
    pipe.set_adapters(["style", "ink"], [{"frames": FADE}, 1.0])
    half = clip(pipe, cross_attention_kwargs={"scale": 0.5})
    pipe.set_adapters(["style", "ink"], [{"frames": {0: 0.5, 3: 0.2}}, 0.5])
    assert off(clip(pipe), half) <= 1e-5


def test_frames_of_equal_weights_share_one_sum(pipe: Any) -> None:
    pipe.set_adapters(ALL, [CUT, CUT, 0.5])
    of, sets = pipe._adapters.along("unet", 16)
    assert of == [0, 0, *[1] * 14]
    assert len(sets) == 2 and sets[0] and not sets[1]


def test_frames_in_perturbed_attention_guidance_are_the_plain_model_s(pipe: Any) -> None:
    pag = kinema.AnimateDiffPAGPipeline.from_pipe(pipe)
    pag.set_pag_applied_layers(["mid_block.*attn1", r"up_blocks\.1\.attentions\.0\.transformer_blocks\.0\.attn1"])
    pag.set_progress_bar_config(disable=True)
    pipe.set_adapters("style", {"frames": FADE})
    faded = clip(pag, motion_scale=0.0)[0]
    for frame, weight in enumerate(EACH):
        pipe.set_adapters("style", weight)
        assert off(clip(pag, motion_scale=0.0)[0][frame], faded[frame]) <= 1e-5


def test_the_receipt_tells_of_frames(pipe: Any) -> None:
    pipe.set_adapters("style", {"frames": FADE, "down": 0.5})
    receipt = pipe(**pipes.CALL, generator=1).receipt
    assert receipt["loras"]["style"]["unet"] == {"frames": {"0": 1.0, "3": 0.4}, "down": 0.5}


@pytest.mark.parametrize(
    "weight",
    [
        {"frames": {}},
        {"frames": []},
        {"frames": 0.5},
        {"frames": {-1: 1.0}},
        {"frames": {0: "much"}},
        {"frames": {"a": 1.0}},
        {"frames": {0: 1.0, 2: 0.0}, "left": 1.0},
        {"text_encoder": {"frames": {0: 1.0, 2: 0.0}}},
    ],
)
def test_a_weight_that_cannot_be_is_refused_before_anything_changes(pipe: Any, weight: Any) -> None:
    pipe.set_adapters("style", 0.3)
    with pytest.raises(InputError, match="style"):
        pipe.set_adapters("style", weight)
    assert pipe._adapters.active == {"style": {"unet": 0.3}}


@pytest.mark.parametrize("frames", [{0: 1.0, FRAMES: 0.0}, [1.0, 0.0]])
def test_a_clip_without_the_frames_that_are_named_is_refused_at_once(pipe: Any, frames: Any) -> None:
    pipe.set_adapters("style", {"frames": frames})
    with pytest.raises(InputError, match="frames"):
        pipe.stream(**pipes.CALL)


def test_what_cannot_be_by_frame_is_refused_in_a_sentence(pipe: Any) -> None:
    pipe.set_adapters("style", CUT)
    with pytest.raises(InputError, match="fused"):
        pipe.fuse_lora()
    pipe.load_lora_weights({"unet.time_embedding.linear_1.lora_A.weight": torch.ones(1, 16),
                            "unet.time_embedding.linear_1.lora_B.weight": torch.ones(64, 1)}, "early")  # fmt: skip
    pipe.set_adapters("early", CUT)
    with pytest.raises(InputError, match=r"time_embedding\.linear_1.*one weight"):
        clip(pipe)
    pipe.set_numerics("original", over_clip=True)
    try:
        pipe.set_adapters("style", CUT)
        clip(pipe)
        pipe.set_adapters("ink", CUT)
        with pytest.raises(InputError, match="residual blocks"):
            clip(pipe)
    finally:
        pipe.set_numerics("reference")

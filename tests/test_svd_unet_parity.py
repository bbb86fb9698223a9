"""Stable Video Diffusion's denoiser gives the reference's numbers on shared weights, for less work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any

import diffusers
import pytest
import torch
from tests import reference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kinema import CheckpointError, UNetSpatioTemporalConditionModel
from kinema.families.stable_video import ImageConditions
from kinema.memory.needs import Needs, trace
from kinema.nn import ops
from kinema.nn.attention import CrossAttention

DOWN, CROSS_DOWN = "DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"
UP, CROSS_UP = "UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"
TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": (CROSS_DOWN, DOWN),
    "up_block_types": (UP, CROSS_UP),
    "layers_per_block": 1,
    "num_attention_heads": (2, 4),
    "cross_attention_dim": 24,
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
}
UNETS: dict[str, dict[str, Any]] = {
    "two levels": {"layers_per_block": 2},
    "deep transformers, one number of heads": {"transformer_layers_per_block": 2, "num_attention_heads": 8},
    "four levels": {
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": (CROSS_DOWN,) * 3 + (DOWN,),
        "up_block_types": (UP,) + (CROSS_UP,) * 3,
        "num_attention_heads": (1, 2, 4, 8),
    },
    "attention where published models have none": {
        "down_block_types": (DOWN, CROSS_DOWN),
        "up_block_types": (CROSS_UP, UP),
    },
    "each level its own": {
        "block_out_channels": (64, 32, 32),
        "down_block_types": (CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP),
        "layers_per_block": (1, 2, 1),
        "transformer_layers_per_block": (2, 1, 1),
        "num_attention_heads": (4, 2, 1),
        "cross_attention_dim": (20, 20, 20),
    },
    "other channels and numbers": {
        "in_channels": 10,
        "out_channels": 6,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 128,
    },
    "few groups": {"norm_num_groups": 4},
}
# Clips, frames, height, width, tokens a picture. Four levels down a lone frame must have more than one pixel left: what
# a norm makes of one number, less itself, is all rounding.
SHAPES = [(1, 4, 7, 10, 1), (2, 1, 13, 12, 1), (2, 3, 6, 9, 3)]


def their_unet(seed: int = 0, **fields: Any) -> Any:
    """The reference's, at random; it has no setting for groups, but its norms do."""
    groups = fields.pop("norm_num_groups", 32)
    model = reference.randomized(diffusers.UNetSpatioTemporalConditionModel(**{**TINY, **fields}), seed)
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups
    return model


def twin(theirs: Any, **fields: Any) -> UNetSpatioTemporalConditionModel:
    ours = UNetSpatioTemporalConditionModel({**theirs.config, **fields}).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the output's range."""
    return float((ours - theirs).abs().max() / (theirs.max() - theirs.min()))


def some(theirs: Any, b: int, f: int, h: int, w: int, k: int) -> tuple[Tensor, ImageConditions]:
    """Noisy latents and what two guidance branches are told: the first sees no picture."""
    g = torch.Generator().manual_seed(1)
    config = theirs.config
    width = config.cross_attention_dim if isinstance(config.cross_attention_dim, int) else config.cross_attention_dim[0]
    count = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    x = torch.randn(b, f, 4, h, w, generator=g)
    image, picture = torch.randn(b, k, width, generator=g), torch.randn(b, 1, config.in_channels - 4, h, w, generator=g)
    numbers = torch.rand(b, count, generator=g) * torch.tensor([29, 255, 1, 8])[:count]
    both = [torch.cat([torch.zeros_like(t), t]) for t in (image, picture)]
    return x, ImageConditions(*both, numbers, f)


def told(theirs: Any, x: Tensor, time: Tensor, c: ImageConditions) -> Tensor:
    branches = len(c.image) // len(x)
    x = torch.cat([x.repeat(branches, 1, 1, 1, 1), c.latents.expand(-1, c.frames, -1, -1, -1)], 2)
    predicted: Tensor = theirs(x, time, c.image, c.numbers.repeat(branches, 1)).sample
    return predicted


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize(("b", "f", "h", "w", "k"), SHAPES)
@torch.no_grad()
def test_a_denoiser_matches_the_reference(name: str, b: int, f: int, h: int, w: int, k: int) -> None:
    fields = UNETS[name]
    theirs = their_unet(**fields)
    ours = twin(theirs, **fields)
    x, conditions = some(theirs, b, f, h, w, k)
    times = torch.tensor([1.6378, -0.4])
    prepared = ours.prepare(times, conditions)
    for i, t in enumerate(times):
        expected = told(theirs, x, t, conditions)
        assert off(ours(x, prepared.at(i)), expected) < 1e-4
    alone = ImageConditions(conditions.image[b:], conditions.latents[b:], conditions.numbers, f)
    assert off(ours(x, ours.prepare(times, alone).at(1)), expected[b:]) < 1e-4


@torch.no_grad()
def test_clips_may_be_at_different_noise_levels() -> None:
    theirs = their_unet()
    x, c = some(theirs, 2, 3, 6, 8, 1)
    c = ImageConditions(c.image[2:], c.latents[2:], c.numbers, 3)
    times = torch.tensor([0.7, -1.1])
    ours = twin(theirs)
    assert off(ours(x, ours.prepare(times[None], c).at(0)), told(theirs, x, times, c)) < 1e-4


@torch.no_grad()
def test_pictures_latents_may_differ_from_frame_to_frame_and_numbers_may_be_given_once() -> None:
    theirs = their_unet()
    x, c = some(theirs, 2, 3, 6, 8, 1)
    beside = torch.randn(4, 3, 4, 6, 8, generator=torch.Generator().manual_seed(2))
    expected = told(theirs, x, torch.tensor(0.3), ImageConditions(c.image, beside, c.numbers[:1].repeat(2, 1), 3))
    ours = twin(theirs)
    signal = ours.prepare(torch.tensor([0.3]), ImageConditions(c.image, beside, c.numbers[:1], 3)).at(0)
    assert off(ours(x, signal), expected) < 1e-4


@pytest.mark.parametrize("name", UNETS)
def test_a_denoiser_holds_the_published_tensors_and_configuration(name: str) -> None:
    theirs = their_unet(**UNETS[name])
    ours = UNetSpatioTemporalConditionModel({**theirs.config, **UNETS[name]})
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    written = ours.config.write()
    published = {k: list(v) if isinstance(v, tuple) else v for k, v in theirs.config.items() if not k.startswith("_")}
    assert {k: v for k, v in written.items() if k != "norm_num_groups"} == published


@torch.no_grad()
def test_what_is_saved_loads_here_and_in_the_reference(tmp_path) -> None:
    theirs = their_unet()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    back = diffusers.UNetSpatioTemporalConditionModel.from_pretrained(tmp_path / "ours").state_dict()
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_out_channels": (32, 64)}, "block_out_channels has 2"),
        ({"num_attention_heads": (5, 10)}, "num_attention_heads has 2 levels"),
        ({"layers_per_block": (2, 2, 2)}, "layers_per_block has 3 levels"),
        ({"transformer_layers_per_block": 0}, "transformer_layers_per_block is 0"),
        ({"num_attention_heads": 7}, "multiples of num_attention_heads=7"),
        ({"cross_attention_dim": (1024, 1024, 512, 512)}, "all levels see one picture"),
        ({"norm_num_groups": 48}, "norm_num_groups"),
        ({"projection_class_embeddings_input_dim": 700}, "multiple of addition_time_embed_dim=256"),
        ({"down_block_types": ("DownBlock3D",) * 4}, "down_block_types"),
        ({"num_attention_heads": "many"}, "num_attention_heads"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(fields: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        UNetSpatioTemporalConditionModel.without_weights(fields)


def test_every_weight_can_be_trained() -> None:
    """With one token, what would choose between tokens gets no gradient: there is nothing to choose."""
    theirs = their_unet()
    ours = twin(theirs).train().requires_grad_(True)
    for tokens in (2, 1):
        x, conditions = some(theirs, 1, 3, 6, 8, tokens)
        ours.zero_grad()
        ours(x, ours.prepare(torch.tensor([0.5]), conditions).at(0)).square().mean().backward()
        idle = {name for name, p in ours.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
        choosing = {n for n, _ in ours.named_parameters() if ".norm2." in n and "transformer" in n}
        choosing |= {n for n, _ in ours.named_parameters() if ".attn2.to_q." in n or ".attn2.to_k." in n}
        assert idle == (choosing if tokens == 1 else set())


def test_gradients_are_the_references() -> None:
    theirs = their_unet()
    ours = twin(theirs).requires_grad_(True)
    x, c = some(theirs, 1, 3, 6, 8, 1)
    theirs.requires_grad_(True)
    told(theirs, x, torch.tensor(0.5), c).square().mean().backward()
    ours(x, ours.prepare(torch.tensor([0.5]), c).at(0)).square().mean().backward()
    largest = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    others = dict(theirs.named_parameters())
    for name, mine in ours.named_parameters():
        if mine.grad is not None:
            assert float((mine.grad - others[name].grad).abs().max()) < 1e-4 * largest, name


class Watch(TorchDispatchMode):
    """The operations that run, with the number of dimensions a convolution has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen.add(f"{name} {args[0].ndim}" if "convolution" in name else name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_no_three_dimensional_convolution_is_ever_run() -> None:
    ours = UNetSpatioTemporalConditionModel(TINY)
    x, conditions = some(ours, 1, 3, 8, 8, 1)
    with Watch() as watch:
        ours(x, ours.prepare(torch.tensor([1.0]), conditions).at(0))
    assert {name for name in watch.seen if "convolution" in name} == {"convolution 4"}


@torch.no_grad()
def test_a_lone_token_is_dealt_with_once_a_clip() -> None:
    """No cross-attention, no norm before it and no embedding of frames runs at a step."""
    ours = UNetSpatioTemporalConditionModel(TINY).eval()
    x, conditions = some(ours, 1, 3, 8, 8, 1)
    signal = ours.prepare(torch.tensor([1.0]), conditions).at(0)
    ran: list[str] = []

    def note(name: str, *_: Any) -> None:
        ran.append(name)

    idle = ("attn2", "norm2", "time_pos_embed")
    hooks = [
        m.register_forward_hook(partial(note, n))
        for n, m in ours.named_modules()
        if "attentions" in n and any(part in n.split(".") for part in idle)
    ]
    assert len(hooks) > 10
    ours(x, signal)
    assert not ran
    assert all(signal.memory[m].answer is not None for m in ours.modules() if isinstance(m, CrossAttention))


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.float16)


def test_a_guided_step_of_svd_xt_takes_at_most_0965_of_the_references_arithmetic_and_045_of_its_memory() -> None:
    with torch.device("meta"):
        ours = UNetSpatioTemporalConditionModel().half().eval()
        theirs = diffusers.UNetSpatioTemporalConditionModel().to("meta", torch.float16).eval()
    assert round(ours.num_parameters() / 1e6, 1) == 1524.6
    assert len(ours.state_dict()) == 1428
    f, h, w = 25, 72, 128
    conditions = ImageConditions(empty(2, 1, 1024), empty(2, 1, 4, h, w), empty(1, 3), f)
    signal = ours.prepare(torch.empty(30, device="meta"), conditions).at(0)

    def needs(call: Callable[[], Any], model: nn.Module) -> Needs:
        return trace(call, resident=[model])

    mine = needs(lambda: ours(empty(1, f, 4, h, w), signal), ours)
    time, numbers = torch.empty((), device="meta"), empty(2, 3)
    other = needs(lambda: theirs(empty(2, f, 8, h, w), time, empty(2, 1, 1024), numbers).sample, theirs)
    assert mine.flops <= 0.937 * other.flops
    assert mine.peak <= 0.45 * other.peak


@torch.no_grad()
def test_slices_and_chunks_change_nothing() -> None:
    ours = twin(their_unet())
    x, conditions = some(ours, 1, 4, 9, 7, 3)
    signal = ours.prepare(torch.tensor([0.2]), conditions).at(0)
    whole = ours(x, signal)
    for size in ("auto", "max", 3):
        ours.set_attention_slice(size)
        assert (ours(x, signal) - whole).abs().max() < 1e-5
    ours.enable_forward_chunking(chunk_size=1, dim=1)
    assert (ours(x, signal) - whole).abs().max() < 1e-5


@pytest.mark.parametrize(("b", "tokens"), [(1, 1), (2, 3)])
@torch.no_grad()
def test_how_many_tokens_go_together_changes_nothing(monkeypatch, b: int, tokens: int) -> None:
    ours = twin(their_unet())
    x, conditions = some(ours, b, 3, 6, 8, tokens)
    signal = ours.prepare(torch.tensor([0.2]), conditions).at(0)
    whole = ours(x, signal)
    monkeypatch.setattr(ops, "CACHE", 1)
    for together in (5, 60):
        monkeypatch.setattr(ops, "LOCAL", together)
        assert (ours(x, signal) - whole).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_no_further_from_single_than_the_reference(dtype: torch.dtype) -> None:
    mine, other = [], []
    for seed in range(3):
        theirs = their_unet(seed)
        x, c = some(theirs, 1, 3, 6, 8, 1)
        exact = told(theirs, x, torch.tensor(0.3), c)
        ours = twin(theirs).to(dtype)
        half = ImageConditions(c.image.to(dtype), c.latents.to(dtype), c.numbers, 3)
        mine.append(ours(x.to(dtype), ours.prepare(torch.tensor([0.3]), half).at(0)).float() - exact)
        other.append(told(theirs.to(dtype), x.to(dtype), torch.tensor(0.3), half).float() - exact)
    assert torch.cat(mine).square().mean() <= 1.05 * torch.cat(other).square().mean()


@torch.no_grad()
def test_threads_that_share_a_denoiser_do_not_disturb_each_other() -> None:
    ours = twin(their_unet())
    jobs = [some(ours, 1, f, h, 6, 1) for f, h in ((2, 4), (5, 6))]

    def run(x: Tensor, conditions: ImageConditions) -> Tensor:
        with torch.no_grad():
            return ours(x, ours.prepare(torch.tensor([0.9]), conditions).at(0))

    alone = [run(*job) for job in jobs]
    found: dict[int, Tensor] = {}
    threads = [Thread(target=lambda i=i: found.update({i: run(*jobs[i % 2])})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], alone[i % 2]) for i in range(4))

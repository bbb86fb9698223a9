"""SparseCtrl against the reference's on the same weights, alone and on a denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kinema import InputError
from kinema.checkpoint.keys import write
from kinema.families.animatediff import (
    Control,
    Controlled,
    MotionConditions,
    SparseControl,
    SparseControlNetModel,
    UNetMotionModel,
)
from kinema.sampling.wrappers import Windowed

from . import animatediff_tiny as tiny

F, SIZE = 5, (12, 8)
SCRIBBLE = {"use_simplified_condition_embedding": False, "conditioning_channels": 3}
CASES: dict[str, dict[str, Any]] = {
    "rgb": {},
    "scribble": SCRIBBLE,
    "scribble, bgr": {**SCRIBBLE, "controlnet_conditioning_channel_order": "bgr"},
    "no mask": {"concat_conditioning_mask": False},
    "pooled": {"global_pool_conditions": True},
    "deep": {
        "transformer_layers_per_block": 2,
        "temporal_transformer_layers_per_block": 2,
        "motion_num_attention_heads": (2, 4, 8),
        "motion_max_seq_length": 8,
    },
    "deep middle, a layer a level": {
        "layers_per_block": 1,
        "transformer_layers_per_mid_block": 2,
        "use_linear_projection": True,
    },
}


def close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def pictures(net: SparseControlNetModel, count: int, clips: int = 1) -> Tensor:
    size = SIZE if net.reads_latents else (8 * SIZE[0], 8 * SIZE[1])
    channels = net.config.conditioning_channels
    return torch.rand(clips, count, channels, *size, generator=torch.Generator().manual_seed(4))


def said_by_reference(net: Any, latents: Tensor, text: Tensor, shown: Tensor, frames: list[int], **more: Any) -> Any:
    """Residuals of the reference, whose pipeline's way of spreading pictures over frames is written out here."""
    spread = torch.zeros(len(shown), shown.shape[2], F, *shown.shape[3:])
    mask = torch.zeros(len(shown), 1, F, *shown.shape[3:])
    for i, frame in enumerate(frames):
        spread[:, :, frame], mask[:, :, frame] = shown[:, i], 1
    every = text.repeat_interleave(F, 0)
    found = net(latents.transpose(1, 2), torch.tensor(37), every, spread, conditioning_mask=mask, **more)
    return [*found.down_block_res_samples, found.mid_block_res_sample]


@pytest.fixture(params=CASES, scope="module")
def reference(request: pytest.FixtureRequest) -> Any:
    return tiny.reference_sparse_control(**CASES[request.param])


@torch.no_grad()
@pytest.mark.parametrize("frames", [[0], [4, 1, 2]], ids=str)
def test_residuals_are_the_reference_s(reference: Any, frames: list[int]) -> None:
    net = tiny.ours(reference)
    latents, text, *_ = tiny.told(F)
    latents = latents.transpose(1, 2)
    shown = pictures(net, len(frames))
    expected = said_by_reference(reference, latents, text, shown, frames)
    control = SparseControl(net, shown, frames)
    got = net(latents, control.prepare(torch.tensor([37.0]), MotionConditions(text, F)).at(0))
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        close(ours.repeat(len(theirs) // len(ours), 1, 1, 1), theirs)
    assert set(write(net.state_dict(), net.KEYS)) == set(reference.state_dict())


@torch.no_grad()
def test_it_says_the_same_whatever_the_latents(reference: Any) -> None:
    net = tiny.ours(reference)
    latents, text, *_ = tiny.told(F)
    latents = latents.transpose(1, 2)
    signal = SparseControl(net, pictures(net, 1)).prepare(torch.tensor([37.0]), MotionConditions(text, F)).at(0)
    for one, other in zip(net(latents, signal), net(torch.randn_like(latents), signal), strict=True):
        assert torch.equal(one, other)


def test_a_saved_one_is_read_by_both(reference: Any, tmp_path: Any) -> None:
    from diffusers import SparseControlNetModel as Reference

    net = tiny.ours(reference)
    net.save_pretrained(tmp_path)
    for name, value in Reference.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
    again = SparseControlNetModel.from_pretrained(tmp_path)
    assert again.config == net.config
    for name, value in again.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


class Case:
    """A guided clip with a SparseCtrl, here and in the reference."""

    def __init__(self, **config: Any):
        image, adapter = tiny.reference_image_model(), tiny.reference_adapter()
        self.reference = tiny.reference_motion_model(image, adapter)
        self.unet = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter))
        self.theirs = tiny.reference_sparse_control(**config)
        self.net = tiny.ours(self.theirs)
        latents, self.text, *_ = tiny.told(F)
        self.latents = latents.transpose(1, 2)[:1]
        self.conditions = MotionConditions(self.text, F)

    def expected(self, residuals: list[Tensor]) -> Tensor:
        every = self.text.repeat_interleave(F, 0)
        steer = {"down_block_additional_residuals": residuals[:-1], "mid_block_additional_residual": residuals[-1]}
        both = self.latents.repeat(2, 1, 1, 1, 1).transpose(1, 2)
        out: Tensor = self.reference(both, torch.tensor(37), every, **steer).sample
        return out.transpose(1, 2)

    def said(self, frames: list[int], **more: Any) -> list[Tensor]:
        shown, both = pictures(self.net, len(frames)), self.latents.repeat(2, 1, 1, 1, 1)
        found: list[Tensor] = said_by_reference(self.theirs, both, self.text, shown, frames, **more)
        return found

    def got(self, *controls: Any) -> Tensor:
        model = Controlled(self.unet, controls)
        return model(self.latents, model.prepare(torch.tensor([37.0]), self.conditions).at(0))


@torch.no_grad()
@pytest.mark.parametrize("config", [{}, SCRIBBLE], ids=["rgb", "scribble"])
def test_a_denoiser_is_steered_as_in_the_reference(config: dict[str, Any]) -> None:
    case, frames = Case(**config), [0, 3]
    expected = case.expected(case.said(frames, conditioning_scale=0.7))
    close(case.got(SparseControl(case.net, pictures(case.net, 2), frames, 0.7)), expected)


@torch.no_grad()
def test_guessing_steers_the_conditional_branch_alone() -> None:
    case = Case()
    within = case.said([1], conditioning_scale=0.8, guess_mode=True)
    said = [torch.cat([torch.zeros_like(half[0]), half[1]]) for half in (r.chunk(2) for r in within)]
    close(case.got(SparseControl(case.net, pictures(case.net, 1), [1], 0.8, guess=True)), case.expected(said))


@torch.no_grad()
def test_it_goes_together_with_a_control_net() -> None:
    case = Case()
    theirs = tiny.reference_control()
    shown = torch.rand(1, F, 3, 8 * SIZE[0], 8 * SIZE[1], generator=torch.Generator().manual_seed(8))
    both = torch.cat([case.latents, case.latents]).flatten(0, 1), torch.cat([shown, shown]).flatten(0, 1)
    found = theirs(both[0], torch.tensor(37), case.text.repeat_interleave(F, 0), both[1])
    beside = [*found.down_block_res_samples, found.mid_block_res_sample]
    said = [a + b for a, b in zip(case.said([2]), beside, strict=True)]
    controls = SparseControl(case.net, pictures(case.net, 1), [2]), Control(tiny.ours(theirs), shown)
    close(case.got(*controls), case.expected(said))


@torch.no_grad()
def test_a_window_is_told_which_of_its_frames_are_known() -> None:
    case = Case()
    model = Controlled(case.unet, [SparseControl(case.net, pictures(case.net, 1), [3])])
    whole = model.prepare(torch.tensor([37.0]), case.conditions).at(0)
    part = Controlled(case.unet, [SparseControl(case.net, pictures(case.net, 1), [1])])
    alone = part.prepare(torch.tensor([37.0]), MotionConditions(case.text, 3)).at(0)
    some = case.latents[:, [2, 3, 4]]
    torch.testing.assert_close(model(some, whole.at_frames([2, 3, 4])), part(some, alone))
    windowed = Windowed(model, length=3, overlap=1)
    out = windowed(case.latents, windowed.prepare(torch.tensor([37.0]), case.conditions).at(0))
    assert out.shape == (2, *case.latents.shape[1:])


def test_what_cannot_be_used_is_refused_in_one_sentence() -> None:
    net = tiny.ours(tiny.reference_sparse_control())
    for shown, frames in ((pictures(net, 2), [0]), (pictures(net, 2), [1, 1])):
        with pytest.raises(InputError, match="one for each"):
            SparseControl(net, shown, frames)
    with pytest.raises(InputError, match="they must be"):
        SparseControl(net, torch.rand(1, 1, 3, 8, 8))
    with pytest.raises(InputError, match="frame 5 of 5"):
        SparseControl(net, pictures(net, 1), [5]).prepare(
            torch.tensor([1.0]), MotionConditions(torch.zeros(1, 7, 16), 5)
        )


@pytest.mark.parametrize("weights", [True, False])
def test_a_new_one_begins_as_the_denoiser_as_in_the_reference(weights: bool) -> None:
    from diffusers import SparseControlNetModel as Reference

    image = tiny.reference_image_model(down_block_types=list(tiny.SD15["down_block_types"]))  # it writes into the list
    mine = SparseControlNetModel.from_unet(tiny.ours(image), load_weights_from_unet=weights)
    theirs = Reference.from_unet(image, load_weights_from_unet=weights)
    assert {k: mine.config[k] for k in mine.config if k in theirs.config and k != "sample_size"} == {
        k: tuple(v) if isinstance(v := theirs.config[k], list) else v
        for k in mine.config
        if k in theirs.config and k != "sample_size"
    }
    own, other = write(mine.state_dict(), mine.KEYS), theirs.state_dict()
    assert own.keys() == other.keys()
    copied = [k for k in own if k in image.state_dict() and not k.startswith("conv_in")]
    assert copied and all(torch.equal(own[k], image.state_dict()[k]) == weights for k in copied if "norm" not in k)
    for name, parameter in own.items():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding")):
            assert not parameter.any(), name  # it says nothing yet

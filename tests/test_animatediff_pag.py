"""Guidance away from a perturbed prediction, against the reference's on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kinema import InputError
from kinema.families.animatediff import Control, Controlled, MotionConditions, Perturbed, UNetMotionModel
from kinema.sampling.guidance import ClassifierFree, perturbed_guidance
from kinema.sampling.wrappers import Windowed

from . import animatediff_tiny as tiny

F, SIZE = 3, (6, 4)
LAYERS: dict[str, list[str]] = {
    "the middle": ["mid_block.*attn1"],
    "motion in the middle": ["mid_block.motion_modules.*attn2"],
    "up and middle": ["up_blocks.1", "mid"],
    "down": [r"down_blocks\.(0|1)\..*attentions.*attn1"],
    "all": ["attn"],
}


class Case:
    """A clip here and in the reference, whose way of perturbing is switched on at given layers."""

    def __init__(self) -> None:
        image, adapter = tiny.reference_image_model(**tiny.SMALL), tiny.reference_adapter(block_out_channels=(16, 32))
        self.reference = tiny.reference_motion_model(image, adapter)
        self.unet = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter))
        latents, self.text, *_ = tiny.told(F, size=SIZE)
        self.latents = latents.transpose(1, 2)[:1]

    def conditions(self, guided: bool) -> MotionConditions:
        return MotionConditions(self.text if guided else self.text[1:], F)

    def mixin(self, layers: list[str], guided: bool) -> Any:
        from diffusers.pipelines.pag.pag_utils import PAGMixin

        mixin = PAGMixin()
        mixin.unet = self.reference
        mixin.set_pag_applied_layers(layers)
        mixin._set_pag_attn_processor(mixin.pag_applied_layers, guided)
        return mixin

    def expected(self, layers: list[str], guided: bool) -> Tensor:
        mixin = self.mixin(layers, guided)
        text = mixin._prepare_perturbed_attention_guidance(self.text[1:], self.text[:1], guided)
        latents = self.latents.transpose(1, 2).repeat(len(text), 1, 1, 1, 1)
        out: Tensor = self.reference(latents, torch.tensor(37), text.repeat_interleave(F, 0)).sample
        return out.transpose(1, 2)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@torch.no_grad()
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "not guided"])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_predictions_are_the_reference_s(layers: list[str], guided: bool) -> None:
    case = Case()
    model = Perturbed(case.unet, layers)
    expected = case.expected(layers, guided)
    got = model(case.latents, model.prepare(torch.tensor([37.0]), case.conditions(guided)).at(0))
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (got.chunk(len(got))[-1] - got.chunk(len(got))[-2]).abs().max() > 1e-3


@torch.no_grad()
def test_the_denoiser_itself_stays_as_it_was(case: Case) -> None:
    plain = case.unet(case.latents, case.unet.prepare(torch.tensor([37.0]), case.conditions(True)).at(0))
    model = Perturbed(case.unet, ["attn"])
    model(case.latents, model.prepare(torch.tensor([37.0]), case.conditions(True)).at(0))
    again = case.unet(case.latents, case.unet.prepare(torch.tensor([37.0]), case.conditions(True)).at(0))
    assert torch.equal(plain, again)


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "not guided"])
@pytest.mark.parametrize("adaptive", [0.0, 0.004, 0.5])
def test_guidance_is_the_reference_s(guided: bool, adaptive: float) -> None:
    from diffusers.pipelines.pag.pag_utils import PAGMixin

    mixin = PAGMixin()
    mixin._pag_scale, mixin._pag_adaptive_scale, mixin.pag_applied_layers = 3.0, adaptive, ["mid"]
    times = torch.tensor([999.0, 500.0, 37.0])
    guidance = perturbed_guidance(7.5 if guided else 1.0, 3.0, adaptive, times)
    assert guidance.branches == 1 + guided
    predicted = torch.randn(2 * (2 + guided), F, 4, 6, 5)
    for i, t in enumerate(times):
        expected = mixin._apply_perturbed_attention_guidance(predicted, guided, 7.5, t)
        torch.testing.assert_close(guidance(predicted, i), expected)


def test_without_strength_it_is_classifier_free() -> None:
    predicted = torch.randn(3, F, 4, 6, 5)
    guidance = perturbed_guidance(7.5, 0.0, 0.0, torch.tensor([500.0]), 0.7)
    torch.testing.assert_close(guidance(predicted, 0), ClassifierFree(7.5, 0.7)(predicted[:2], 0))


@torch.no_grad()
def test_it_goes_together_with_control_nets_and_windows(case: Case) -> None:
    net = tiny.ours(tiny.reference_control(**tiny.SMALL))
    shown = torch.rand(1, F, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    control = Control(net, shown)
    both = Controlled(Perturbed(case.unet), [control])
    plain = Controlled(case.unet, [control])
    time, told = torch.tensor([37.0]), case.conditions(True)
    got = both(case.latents, both.prepare(time, told).at(0))
    torch.testing.assert_close(got[:2], plain(case.latents, plain.prepare(time, told).at(0)))
    early = Controlled(Perturbed(case.unet, ["down_blocks.1", "mid"]), [control])
    assert early(case.latents, early.prepare(time, told).at(0)).shape == got.shape
    windowed = Windowed(both, length=2, overlap=1)
    assert windowed(case.latents, windowed.prepare(time, told).at(0)).shape == got.shape


@torch.no_grad()
def test_several_clips_go_together(case: Case) -> None:
    latents = torch.randn(2, *case.latents.shape[1:], generator=torch.Generator().manual_seed(2))
    text = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(1))
    model = Perturbed(case.unet, ["mid", "up_blocks.0"])
    both = model(latents, model.prepare(torch.tensor([37.0]), MotionConditions(text, F)).at(0))
    for i in range(2):
        one = model(latents[i : i + 1], model.prepare(torch.tensor([37.0]), MotionConditions(text[i::2], F)).at(0))
        torch.testing.assert_close(one, both[i::2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", ["mid_block.*attn2", "blocks.9", "("])
def test_layers_that_are_not_there_are_refused(case: Case, layers: str) -> None:
    unet = case.unet
    with pytest.raises(InputError, match="pag_applied_layers"):
        Perturbed(unet, layers if layers != "mid_block.*attn2" else "mid_block.attentions.*attn2")

"""ControlNets against the reference's on the same weights, alone, several at once, and on a denoiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kinema import CheckpointError, InputError
from kinema.checkpoint.keys import write
from kinema.families.animatediff import (
    Control,
    Controlled,
    ControlNetModel,
    MotionConditions,
    MultiControlNetModel,
    UNetMotionModel,
)
from kinema.sampling.wrappers import Windowed

from . import animatediff_tiny as tiny

F, SIZE = 5, (12, 8)
CASES: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sdxl": {"xl": True},
    "no attention in the middle": {"mid_block_type": "UNetMidBlock2D"},
    "pooled": {"global_pool_conditions": True},
    "bgr, other widths": {
        "controlnet_conditioning_channel_order": "bgr",
        "conditioning_embedding_out_channels": (2, 4, 6, 8),
    },
    "a layer a level, linear": {"layers_per_block": 1, "use_linear_projection": True},
}


def pictures(clips: int = 2, seed: int = 5) -> Tensor:
    return torch.rand(clips, F, 3, 8 * SIZE[0], 8 * SIZE[1], generator=torch.Generator().manual_seed(seed))


def said_by_reference(net: Any, latents: Tensor, text: Tensor, shown: Tensor, told: Any = None, **more: Any) -> Any:
    """Residuals of the reference for latents (b, f, c, h, w), text (b, k, c) and pictures (b, f, 3, H, W) at 37."""
    added = {}
    if told is not None and net.config.addition_embed_type:
        pooled, numbers = (x.repeat_interleave(F, 0) for x in told)
        added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": numbers}}
    every = text.repeat_interleave(F, 0)
    found = net(latents.flatten(0, 1), torch.tensor(37), every, shown.flatten(0, 1), **added, **more)
    return [*found.down_block_res_samples, found.mid_block_res_sample]


def close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture(params=CASES, scope="module")
def reference(request: pytest.FixtureRequest) -> Any:
    return tiny.reference_control(**CASES[request.param])


@torch.no_grad()
def test_residuals_are_the_reference_s(reference: Any) -> None:
    net = tiny.ours(reference)
    latents, text, *told = tiny.told(F)
    latents = latents.transpose(1, 2)
    expected = said_by_reference(reference, latents, text, pictures(), told)
    got = net(latents, net.prepare(torch.tensor([37.0]), MotionConditions(text, F, *told), pictures()).at(0))
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        close(ours, theirs)
    assert set(write(net.state_dict(), net.KEYS)) == set(reference.state_dict())


@torch.no_grad()
def test_a_saved_one_is_read_by_both(reference: Any, tmp_path: Any) -> None:
    from diffusers import ControlNetModel as Reference

    net = tiny.ours(reference)
    net.save_pretrained(tmp_path)
    for name, value in Reference.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
    again = ControlNetModel.from_pretrained(tmp_path)
    assert again.config == net.config
    for name, value in again.state_dict().items():
        assert torch.equal(value, net.state_dict()[name]), name


@torch.no_grad()
def test_branches_share_what_they_have_in_common(reference: Any) -> None:
    net = tiny.ours(reference)
    latents, text, *told = tiny.told(F)
    latents = latents.transpose(1, 2)[:1]
    got = net(latents, net.prepare(torch.tensor([37.0]), MotionConditions(text, F, *told), pictures(1)).at(0))
    both = latents.repeat(2, 1, 1, 1, 1), pictures(1).repeat(2, 1, 1, 1, 1)
    for ours, theirs in zip(got, said_by_reference(reference, both[0], text, both[1], told), strict=True):
        close(ours.repeat(len(theirs) // len(ours), 1, 1, 1), theirs)


class Steered:
    """A clip that is guided, and steered by several ControlNets, here and in the reference."""

    def __init__(self, nets: int = 1, xl: bool = False):
        config = tiny.SDXL if xl else {}
        image, adapter = tiny.reference_image_model(**config), tiny.reference_adapter()
        self.reference = tiny.reference_motion_model(image, adapter)
        self.unet = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter))
        self.theirs = [tiny.reference_control(seed=9 + i, xl=xl) for i in range(nets)]
        self.nets = [tiny.ours(net) for net in self.theirs]
        latents, self.text, *self.told = tiny.told(F)
        self.latents = latents.transpose(1, 2)[:1]
        self.both = self.latents.repeat(2, 1, 1, 1, 1)
        self.conditions = MotionConditions(self.text, F, *(self.told if xl else ()))

    def expected(self, residuals: list[Tensor] | None) -> Tensor:
        steer = {}
        if residuals is not None:
            steer = {"down_block_additional_residuals": residuals[:-1], "mid_block_additional_residual": residuals[-1]}
        if self.reference.config.addition_embed_type:
            steer["added_cond_kwargs"] = dict(zip(("text_embeds", "time_ids"), self.told, strict=True))
        every = self.text.repeat_interleave(F, 0)
        out: Tensor = self.reference(self.both.transpose(1, 2), torch.tensor(37), every, **steer).sample
        return out.transpose(1, 2)

    def said(self, i: int, **more: Any) -> list[Tensor]:
        shown = pictures(1, seed=i).repeat(2, 1, 1, 1, 1)
        found: list[Tensor] = said_by_reference(self.theirs[i], self.both, self.text, shown, self.told, **more)
        return found

    def got(self, *controls: Control, step: int = 0, steps: int = 1) -> Tensor:
        model = Controlled(self.unet, controls)
        prepared = model.prepare(torch.full((steps,), 37.0), self.conditions)
        return model(self.latents, prepared.at(step))


@torch.no_grad()
@pytest.mark.parametrize("xl", [False, True])
def test_one_control_steers_as_in_the_reference(xl: bool) -> None:
    case = Steered(xl=xl)
    close(
        case.got(Control(case.nets[0], pictures(1, seed=0), 0.6)), case.expected(case.said(0, conditioning_scale=0.6))
    )


@torch.no_grad()
def test_what_several_say_is_summed() -> None:
    case = Steered(nets=3)
    scales = [0.7, 1.0, 1.3]
    said = [case.said(i, conditioning_scale=scale) for i, scale in enumerate(scales)]
    controls = [Control(net, pictures(1, seed=i), scales[i]) for i, net in enumerate(case.nets)]
    close(case.got(*controls), case.expected([sum(some) for some in zip(*said, strict=True)]))


@torch.no_grad()
def test_guessing_steers_the_conditional_branch_alone() -> None:
    """The reference would add one branch's residuals to two, and fails; Stable Diffusion's own adds zeros."""
    case = Steered()
    within = case.said(0, conditioning_scale=0.8, guess_mode=True)
    said = [torch.cat([torch.zeros_like(half[0]), half[1]]) for half in (r.chunk(2) for r in within)]
    with pytest.raises(RuntimeError):
        case.expected([r.chunk(2)[1] for r in within])
    close(case.got(Control(case.nets[0], pictures(1, seed=0), 0.8, guess=True)), case.expected(said))


@torch.no_grad()
def test_pooled_residuals_steer_the_conditional_branch_alone() -> None:
    case = Steered(nets=0)
    case.theirs = [tiny.reference_control(global_pool_conditions=True)]
    case.nets = [tiny.ours(net) for net in case.theirs]
    said = [torch.cat([torch.zeros_like(half[0]), half[1]]) for half in (r.chunk(2) for r in case.said(0))]
    said = [r.expand(-1, -1, *size) for r, size in zip(said, _sizes(case), strict=True)]
    close(case.got(Control(case.nets[0], pictures(1, seed=0))), case.expected(said))


def _sizes(case: Steered) -> list[torch.Size]:
    plain = tiny.ours(tiny.reference_control())
    shown = plain.prepare(torch.tensor([37.0]), case.conditions, pictures(1))
    return [r.shape[2:] for r in plain(case.latents, shown.at(0))]


@torch.no_grad()
@pytest.mark.parametrize(("start", "end", "steps"), [(0.0, 1.0, 4), (0.25, 0.75, 4), (0.1, 0.6, 7), (0.3, 0.31, 5)])
def test_a_range_of_steps_is_the_reference_s(start: float, end: float, steps: int) -> None:
    case = Steered()
    control = Control(case.nets[0], pictures(1, seed=0), 1.0, start, end)
    prepared = Controlled(case.unet, [control]).prepare(torch.full((steps,), 37.0), case.conditions)
    for i in range(steps):
        keeps = 1.0 - float(i / steps < start or (i + 1) / steps > end)
        assert len(prepared.at(i).steered) == keeps


@torch.no_grad()
def test_outside_its_steps_and_at_scale_zero_nothing_is_steered() -> None:
    case = Steered()
    plain = case.unet(case.latents, case.unet.prepare(torch.tensor([37.0]), case.conditions).at(0))
    late = Control(case.nets[0], pictures(1), start=0.5)
    torch.testing.assert_close(case.got(late, steps=2, step=0), plain)
    assert (case.got(late, steps=2, step=1) - plain).abs().max() > 1e-3
    assert torch.equal(case.got(Control(case.nets[0], pictures(1), scale=0.0)), plain)
    assert torch.equal(case.got(), plain)


@torch.no_grad()
def test_a_window_is_told_of_its_own_pictures() -> None:
    case = Steered()
    model = Controlled(case.unet, [Control(case.nets[0], pictures(1))])
    whole = model.prepare(torch.tensor([37.0]), case.conditions).at(0)
    part = Controlled(case.unet, [Control(case.nets[0], pictures(1)[:, [1, 3]])])
    alone = part.prepare(torch.tensor([37.0]), MotionConditions(case.text, 2)).at(0)
    some = case.latents[:, [1, 3]]
    torch.testing.assert_close(model(some, whole.at_frames([1, 3])), part(some, alone))
    windowed = Windowed(model, length=3, overlap=1)
    out = windowed(case.latents, windowed.prepare(torch.tensor([37.0]), case.conditions).at(0))
    assert out.shape == (2, *case.latents.shape[1:])


@torch.no_grad()
def test_text_of_every_frame_and_two_clips_go_together() -> None:
    case = Steered()
    text = torch.randn(4, F, 7, 16, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(2, *case.latents.shape[1:], generator=torch.Generator().manual_seed(2))
    shown = pictures(2)
    for guess in (False, True):
        model = Controlled(case.unet, [Control(case.nets[0], shown, guess=guess)])
        both = model(latents, model.prepare(torch.tensor([37.0]), MotionConditions(text, F)).at(0))
        for i in range(2):
            one = Controlled(case.unet, [Control(case.nets[0], shown[i : i + 1], guess=guess)])
            prepared = one.prepare(torch.tensor([37.0]), MotionConditions(text[i::2], F))
            torch.testing.assert_close(one(latents[i : i + 1], prepared.at(0)), both[i::2], rtol=1e-4, atol=1e-5)


def test_several_are_saved_and_loaded_as_published(tmp_path: Any) -> None:
    nets = [tiny.ours(tiny.reference_control(seed=i)) for i in range(3)]
    MultiControlNetModel(nets).save_pretrained(tmp_path / "controlnet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["controlnet", "controlnet_1", "controlnet_2"]
    again = MultiControlNetModel.from_pretrained(tmp_path / "controlnet")
    for old, new in zip(nets, again.nets, strict=True):
        assert torch.equal(old.conv_in.weight, new.conv_in.weight)
    with pytest.raises(CheckpointError, match="not a folder"):
        MultiControlNetModel.from_pretrained(tmp_path / "nowhere")


@torch.no_grad()
@pytest.mark.parametrize("config", [{}, tiny.SDXL], ids=["sd15", "sdxl"])
def test_a_new_one_begins_as_the_denoiser_and_says_nothing(config: dict[str, Any]) -> None:
    from diffusers import ControlNetModel as Reference

    image = tiny.reference_image_model(**config)
    net = ControlNetModel.from_unet(tiny.ours(image))
    theirs = Reference.from_unet(image)
    assert set(write(net.state_dict(), net.KEYS)) == set(theirs.state_dict())
    for name, value in write(net.state_dict(), net.KEYS).items():
        if not name.startswith("controlnet"):
            assert torch.equal(value, theirs.state_dict()[name]), name
    latents, text, *told = tiny.told(F)
    prepared = net.prepare(torch.tensor([37.0]), MotionConditions(text, F, *told), pictures())
    assert not any(r.any() for r in net(latents.transpose(1, 2), prepared.at(0)))


def test_what_cannot_be_used_is_refused_in_one_sentence() -> None:
    case = Steered(xl=True)
    net = tiny.ours(tiny.reference_control(block_out_channels=(16, 32, 64)))
    with pytest.raises(CheckpointError, match="ControlNet is for"):
        Controlled(case.unet, [Control(net, pictures())])
    with pytest.raises(InputError, match="5 pictures for 4 frames"):
        Controlled(case.unet, [Control(case.nets[0], pictures())]).prepare(
            torch.tensor([37.0]), MotionConditions(case.text, 4, *case.told)
        )
    for wrong in ({"start": 0.5, "end": 0.5}, {"start": -0.1}, {"end": 1.1}, {"scale": float("nan")}):
        with pytest.raises(InputError):
            Control(net, pictures(), **wrong)
    with pytest.raises(InputError, match="they must be"):
        Control(net, pictures()[0])

"""IP-Adapters of every kind against the reference's, of the same files: alone, scaled, masked, several at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kinema import CheckpointError, InputError
from kinema.families.animatediff import (
    Control,
    Controlled,
    IPAdapter,
    MotionConditions,
    Perturbed,
    Shown,
    UNetMotionModel,
)
from kinema.families.animatediff.ip_adapter import check_scale
from kinema.families.animatediff.picture_words import FacePlusWords

from . import animatediff_tiny as tiny

F, SIZE = 3, (6, 4)
CONTEXT, CLIP, FACE, HIDDEN = 16, 12, 20, 16
KINDS = ("plain", "plus", "full", "faceid", "faceid-plus")


def resampler(make: Any, prefix: str, seen: int, layers: int = 4) -> None:
    (
        make(f"{prefix}proj_in", HIDDEN, seen),
        make(f"{prefix}proj_out", CONTEXT, HIDDEN),
        make(f"{prefix}norm_out", CONTEXT),
    )
    for i in range(layers):
        at = f"{prefix}layers.{i}"
        make(f"{at}.0.norm1", HIDDEN), make(f"{at}.0.norm2", HIDDEN), make(f"{at}.1.0", HIDDEN)
        for name, out, width in (("0.to_q", 128, HIDDEN), ("0.to_kv", 256, HIDDEN), ("0.to_out", HIDDEN, 128)):
            make(f"{at}.{name}", out, width, bias=False)
        make(f"{at}.1.1", 4 * HIDDEN, HIDDEN, bias=False), make(f"{at}.1.3", HIDDEN, 4 * HIDDEN, bias=False)


def file_of(kind: str, widths: list[int], seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """What a published file of a kind holds, nested as in a `.bin`."""
    dice = torch.Generator().manual_seed(seed)
    image: dict[str, Tensor] = {}

    def make(name: str, out: int, width: int | None = None, bias: bool = True) -> None:
        shape = (out,) if width is None else (out, width)
        spread = 0.1 if width is None else 0.9 / width**0.5
        image[f"{name}.weight"] = float(width is None) + spread * torch.randn(shape, generator=dice)
        if bias:
            image[f"{name}.bias"] = 0.1 * torch.randn(out, generator=dice)

    if kind == "plain":
        make("proj", 4 * CONTEXT, CLIP), make("norm", CONTEXT)
    elif kind == "plus":
        image["latents"] = torch.randn(1, 6, HIDDEN, generator=dice)
        resampler(make, "", CLIP)
    elif kind == "full":
        make("proj.0", CLIP, CLIP), make("proj.2", CONTEXT, CLIP), make("proj.3", CONTEXT)
    elif kind == "faceid":
        make("proj.0", 2 * FACE, FACE), make("proj.2", 4 * CONTEXT, 2 * FACE), make("norm", CONTEXT)
    else:
        make("proj.0", 2 * FACE, FACE), make("proj.2", 4 * HIDDEN, 2 * FACE), make("norm", HIDDEN)
        resampler(make, "perceiver_resampler.", CLIP)
    pairs = {
        f"{2 * i + 1}.{name}.weight": torch.randn(width, CONTEXT, generator=dice) * 0.4
        for i, width in enumerate(widths)
        for name in ("to_k_ip", "to_v_ip")
    }
    return {"image_proj": image, "ip_adapter": pairs}


def flat(file: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{key}": value for part, state in file.items() for key, value in state.items()}


class Case:
    """A guided clip, here and in the reference, whose conditional branch is shown pictures."""

    def __init__(self, *kinds: str):
        image = tiny.reference_image_model(**tiny.SMALL)
        adapter = tiny.reference_adapter(block_out_channels=(16, 32))
        self.reference = tiny.reference_motion_model(image, adapter)
        self.unet = UNetMotionModel.from_unet2d(tiny.ours(image), tiny.ours(adapter))
        widths = [
            m.to_out[0].out_features
            for stage in ("down_blocks", "up_blocks", "mid_block")
            for name, m in self.reference.named_modules()
            if name.startswith(stage) and name.endswith(".attn2") and "motion" not in name
        ]
        files = [file_of(kind, widths, seed) for seed, kind in enumerate(kinds)]
        self.reference._load_ip_adapter_weights(files, low_cpu_mem_usage=False)
        self.reference.eval()
        self.adapters = [IPAdapter.load(flat(file), self.unet) for file in files]
        latents, self.text, *_ = tiny.told(F, size=SIZE)
        self.latents = latents.transpose(1, 2)[:1]

    def pictures(self, i: int, count: int) -> dict[str, Tensor]:
        """What the encoders say of so many pictures, (2, n, …); the branch that is not guided sees nothing."""
        dice = torch.Generator().manual_seed(50 + i)
        kind = self.adapters[i].kind
        tokens = () if kind == "plain" else (7,)
        said = {}
        if kind != "faceid":
            said["image"] = torch.randn(2, count, *tokens, CLIP, generator=dice)
        if kind.startswith("face"):
            said["face"] = torch.randn(2, count, FACE, generator=dice)
        for x in said.values():
            x[0] = 0
        return said

    def expected(self, counts: list[int], masks: list[Tensor] | None = None) -> Tensor:
        embeds = []
        for i, count in enumerate(counts):
            said = self.pictures(i, count)
            if self.adapters[i].kind == "faceid-plus":
                self.reference.encoder_hid_proj.image_projection_layers[i].clip_embeds = said["image"]
            embeds.append(said.get("face", said.get("image")))
        more = {} if masks is None else {"cross_attention_kwargs": {"ip_adapter_masks": masks}}
        both = self.latents.repeat(2, 1, 1, 1, 1).transpose(1, 2)
        every = self.text.repeat_interleave(F, 0)
        out: Tensor = self.reference(
            both, torch.tensor(37), every, added_cond_kwargs={"image_embeds": embeds}, **more
        ).sample
        return out.transpose(1, 2)

    def scaled(self, scales: list[Any]) -> None:
        """Sets the reference's scales through the pipelines' own method."""
        from diffusers.loaders.ip_adapter import IPAdapterMixin

        mixin = IPAdapterMixin()
        mixin.unet, mixin.unet_name = self.reference, "unet"
        mixin.set_ip_adapter_scale(scales)

    def conditions(
        self, counts: list[int], scales: list[Any] | None = None, masks: list[Tensor] | None = None
    ) -> MotionConditions:
        shown = [
            Shown(
                adapter,
                adapter.words(**self.pictures(i, counts[i])),
                1.0 if scales is None else scales[i],
                None if masks is None else masks[i],
            )
            for i, adapter in enumerate(self.adapters)
        ]
        return MotionConditions(self.text, F, pictures=shown)

    def got(self, *args: Any) -> Tensor:
        prepared = self.unet.prepare(torch.tensor([37.0]), self.conditions(*args))
        out: Tensor = self.unet(self.latents, prepared.at(0))
        return out


def close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_with_a_picture_is_the_reference_s(kind: str) -> None:
    case = Case(kind)
    close(case.got([1]), case.expected([1]))


@torch.no_grad()
def test_two_adapters_scaled_by_block_with_several_pictures_are_the_reference_s() -> None:
    case = Case("plus", "plain")
    for scales in ([0.6, 1.3], [{"down": {"block_0": [0.0, 0.7]}, "mid": 0.4}, {"up": {"block_1": [0.0, 1.0, 0.5]}}]):
        case.scaled(scales)
        close(case.got([1, 2], scales), case.expected([1, 2]))


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 32), (24, 20)], ids=["as the clip", "another ratio"])
@pytest.mark.filterwarnings("ignore:The aspect ratio")
def test_masks_say_where_pictures_count_as_in_the_reference(size: tuple[int, int]) -> None:
    case = Case("plain", "plus")
    dice = torch.Generator().manual_seed(3)
    masks = [(torch.rand(1, n, *size, generator=dice) > 0.5).float() for n in (2, 1)]
    scales = [[0.7, 1.2], 0.9]
    case.scaled(scales)
    close(case.got([2, 1], scales, masks), case.expected([2, 1], masks))


@torch.no_grad()
def test_version_two_of_faceid_plus_counts_who_it_is_beside_what_it_looks_like() -> None:
    case = Case("faceid-plus")
    words = case.adapters[0].image_proj
    assert isinstance(words, FacePlusWords) and words.shortcut is None
    words.shortcut = 0.6
    theirs = case.reference.encoder_hid_proj.image_projection_layers[0]
    theirs.shortcut, theirs.shortcut_scale = True, 0.6
    close(case.got([1]), case.expected([1]))


@torch.no_grad()
def test_pictures_that_count_nothing_change_nothing() -> None:
    case = Case("plain")
    plain = case.unet(case.latents, case.unet.prepare(torch.tensor([37.0]), MotionConditions(case.text, F)).at(0))
    assert torch.equal(case.got([1], [0.0]), plain)
    assert (case.got([1]) - plain).abs().max() > 1e-3


@torch.no_grad()
def test_pictures_go_together_with_text_by_frame_control_nets_and_perturbation() -> None:
    case = Case("plain")
    by_frame = MotionConditions(case.text[:, None].repeat(1, F, 1, 1), F, pictures=case.conditions([1]).pictures)
    close(case.unet(case.latents, case.unet.prepare(torch.tensor([37.0]), by_frame).at(0)), case.got([1]))
    net = tiny.ours(tiny.reference_control(**tiny.SMALL))
    model = Controlled(Perturbed(case.unet), [Control(net, torch.rand(1, F, 3, 48, 32), guess=True)])
    told = case.conditions([1], [0.5], [torch.ones(1, 1, 48, 32)])
    whole = model.prepare(torch.tensor([37.0]), told).at(0)
    assert model(case.latents, whole).shape == (3, *case.latents.shape[1:])
    assert model(case.latents[:, [0, 2]], whole.at_frames([0, 2])).shape[1] == 2


@torch.no_grad()
def test_each_of_two_clips_has_its_own_pictures() -> None:
    case = Case("plain")
    latents = torch.randn(2, *case.latents.shape[1:], generator=torch.Generator().manual_seed(2))
    text = torch.randn(4, 7, CONTEXT, generator=torch.Generator().manual_seed(1))
    words = case.adapters[0].words(torch.randn(4, 1, CLIP, generator=torch.Generator().manual_seed(4)))
    masks = torch.rand(4, 1, 48, 32, generator=torch.Generator().manual_seed(5))

    def made(rows: slice, some: Tensor) -> Tensor:
        told = MotionConditions(text[rows], F, pictures=[Shown(case.adapters[0], words[rows], 0.8, masks[rows])])
        out: Tensor = case.unet(some, case.unet.prepare(torch.tensor([37.0]), told).at(0))
        return out

    both = made(slice(None), latents)
    for i in range(2):
        torch.testing.assert_close(made(slice(i, None, 2), latents[i : i + 1]), both[i::2], rtol=1e-4, atol=1e-5)


def test_an_adapter_s_state_has_the_published_keys() -> None:
    case = Case("plus")
    widths = [pair.to_k_ip.out_features for pair in case.adapters[0].ip_adapter.values()]
    file = flat(file_of("plus", widths))
    state = case.adapters[0].state_dict()
    assert set(state) == set(file)
    assert all(torch.equal(state[key], value) for key, value in file.items())


def test_what_cannot_be_used_is_refused_in_one_sentence() -> None:
    case = Case("plain")
    widths = [pair.to_k_ip.out_features for pair in case.adapters[0].ip_adapter.values()]
    with pytest.raises(CheckpointError, match="made for another base model"):
        IPAdapter.load(flat(file_of("plain", widths[:-1])), case.unet)
    with pytest.raises(InputError, match="an image's embedding"):
        case.adapters[0].words(face=torch.zeros(2, 1, FACE))
    with pytest.raises(InputError, match="needs masks"):
        case.unet.prepare(torch.tensor([37.0]), case.conditions([2], [[0.5, 0.5]]))
    with pytest.raises(InputError, match="one of each for every picture"):
        case.unet.prepare(torch.tensor([37.0]), case.conditions([2], None, [torch.ones(1, 1, 8, 8)]))
    for wrong in (
        {"left": 1.0},
        {"up": {"block_0": 1.0}},
        {"down": {"block_0": [1.0, 0.5, 0.1]}},
        {"down": {"block_1": 1.0}},
        "all",
    ):
        with pytest.raises(InputError, match="IP-Adapter's scale"):
            check_scale(wrong, case.adapters[0])  # type: ignore[arg-type]
    for right in (0.5, [0.5, 1.0], {"up": 0.3, "mid": 1.0}, {"down": {"block_0": [0.1, 0.2]}}):
        check_scale(right, case.adapters[0])

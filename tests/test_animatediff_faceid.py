"""IP-Adapter FaceID in whole pipelines: who it is, what the picture looks like, and the LoRA that comes with it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import animatediff_pipes as pipes
from tests import svd_tiny
from tests import test_animatediff_ip_adapter as files
from tests.pipelines_tiny import gen, off
from torch import Tensor

import kinema
from kinema import CheckpointError, InputError

CLOSE, RANK, FACE = 1e-4, 3, files.FACE
PROJECTIONS = ("q", "k", "v", "out")
Nested = dict[str, dict[str, Tensor]]


def attentions(unet: Any) -> list[str]:
    """Of the image model, as files count them: down, up, middle."""
    names = [
        name.removesuffix(".processor")
        for name in unet.attn_processors
        if "transformer_blocks" in name and "motion_modules" not in name
    ]
    return sorted(names, key=lambda name: ("down", "up", "mid").index(name.partition("_")[0]))


def face_file(unet: Any, kind: str, seed: int) -> tuple[Nested, dict[str, Tensor]]:
    """A FaceID file without its LoRA, and that LoRA as `ip_adapter` entries would hold it."""
    names = attentions(unet)
    widths = [unet.get_submodule(name).to_out[0].out_features for name in names if name.endswith("attn2")]
    dice = torch.Generator().manual_seed(100 + seed)
    lora: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        attention = unet.get_submodule(name)
        for p in PROJECTIONS:
            out, width = (attention.to_out[0] if p == "out" else getattr(attention, f"to_{p}")).weight.shape
            lora[f"{i}.to_{p}_lora.down.weight"] = torch.randn(RANK, width, generator=dice) / width**0.5
            lora[f"{i}.to_{p}_lora.up.weight"] = torch.randn(out, RANK, generator=dice) * 0.3
    return files.file_of(kind, widths, seed), lora


def named(lora: Mapping[str, Tensor], unet: Any) -> dict[str, Tensor]:
    """The same LoRA as a file of its own has it."""
    names = attentions(unet)
    return {f"unet.{names[int(k.partition('.')[0])]}.{k.partition('.')[2]}": v for k, v in lora.items()}


def whole(file: Nested, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published file, flat."""
    return files.flat({**file, "ip_adapter": {**file["ip_adapter"], **lora}})


def face(guided: bool = True, count: int = 1, seed: int = 7) -> Tensor:
    """What a face recogniser says, behind nothing where guided."""
    said = torch.randn(1, count, FACE, generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.zeros_like(said), said]) if guided else said


class Pair:
    """The reference's pipeline and ours, both with the same FaceID files."""

    def __init__(self, *kinds: str):
        from transformers import CLIPImageProcessor

        eye = svd_tiny.vision()
        more = {"feature_extractor": CLIPImageProcessor(), "image_encoder": eye}
        self.theirs = pipes.theirs(**more)
        self.ours, self.bare = (pipes.ours(self.theirs, **more) for _ in range(2))
        made = [face_file(self.theirs.unet, kind, seed) for seed, kind in enumerate(kinds)]
        self.files = [whole(*one) for one in made]
        # The reference counts motion modules among the attentions, and so loads no LoRA of a FaceID file into such a
        # denoiser, or into the wrong places; here it is given the LoRA by its names.
        self.theirs.unet._load_ip_adapter_weights([file for file, _ in made], low_cpu_mem_usage=False)
        for i, (_, lora) in enumerate(made):
            self.theirs.load_lora_weights(named(lora, self.theirs.unet), adapter_name=f"faceid_{i}")
        self.theirs.set_adapters([f"faceid_{i}" for i in range(len(made))])


@pytest.fixture(autouse=True)
def _widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CONTEXT", pipes.WIDTH)
    monkeypatch.setattr(files, "HIDDEN", pipes.WIDTH)  # of words that are added to those of who it is
    monkeypatch.setattr(files, "CLIP", svd_tiny.vision().config.hidden_size)


@pytest.mark.parametrize("more", [{}, {"guidance_scale": 1.0}], ids=["guided", "unguided"])
def test_a_face_is_shown_as_in_the_reference_with_the_lora_of_its_file(more: dict[str, Any]) -> None:
    pair = Pair("faceid")
    pair.ours.load_ip_adapter(pair.files[0])
    assert pair.ours.get_active_adapters() == ["faceid_0"]
    for pipe in (pair.theirs, pair.ours):
        pipe.set_ip_adapter_scale(0.6)
    call = {**pipes.CALL, **more, "ip_adapter_image_embeds": [face(not more)]}
    expected = pair.theirs(**call, generator=gen(3)).frames
    assert off(pair.ours(**call, generator=gen(3)).frames, expected) <= CLOSE


def test_the_lora_of_a_face_counts_and_can_be_turned_down() -> None:
    pair = Pair("faceid")
    pair.ours.load_ip_adapter(pair.files[0])
    call = {**pipes.CALL, "ip_adapter_image_embeds": [face()], "generator": 3}
    whole = pair.ours(**call).frames
    pair.ours.set_adapters("faceid_0", 0.0)
    without = pair.ours(**call).frames
    assert off(without, whole) > 1e-2
    bare = pair.bare
    bare.load_ip_adapter({k: v for k, v in pair.files[0].items() if "_lora." not in k})
    assert off(bare(**call).frames, without) <= 1e-6


def test_a_face_and_a_style_are_active_together(tmp_path: Path) -> None:
    pair = Pair("faceid")
    pipe = pair.ours
    _, style = face_file(pair.theirs.unet, "faceid", 9)
    pipe.load_lora_weights(named(style, pair.theirs.unet), adapter_name="style")
    pipe.load_ip_adapter(pair.files[0])
    assert pipe.get_active_adapters() == ["style", "faceid_0"]
    pipe.set_adapters(["style", "faceid_0"], [0.3, 1.0])
    made = pipe(**pipes.CALL, ip_adapter_image_embeds=[face()], generator=1)
    assert {"style", "faceid_0"} <= set(made.receipt["loras"])
    pipe.unload_ip_adapter()
    assert pipe.get_active_adapters() == ["style"]


@pytest.mark.parametrize("second", [False, True], ids=["version 1", "version 2"])
@pytest.mark.parametrize("looked", [False, True], ids=["a picture", "what the encoder says"])
def test_a_face_with_its_picture_is_the_reference_s(tmp_path: Path, second: bool, looked: bool) -> None:
    pair = Pair("faceid-plus")
    path = tmp_path / f"ip-adapter-faceid-plus{'v2' if second else ''}_sd15.bin"
    inside = {"image_proj.": {}, "ip_adapter.": {}}  # type: dict[str, dict[str, Tensor]]
    for key, value in pair.files[0].items():
        prefix = next(p for p in inside if key.startswith(p))
        inside[prefix][key.removeprefix(prefix)] = value
    torch.save({prefix.rstrip("."): part for prefix, part in inside.items()}, path)
    pair.ours.load_ip_adapter(path)
    shown = svd_tiny.picture(2, 48, 40)
    (states,) = pair.theirs.prepare_ip_adapter_image_embeds([shown], None, torch.device("cpu"), 1, True)
    projection = pair.theirs.unet.encoder_hid_proj.image_projection_layers[0]
    projection.clip_embeds, projection.shortcut = states, second
    call = {**pipes.CALL, "generator": gen(3)}
    expected = pair.theirs(**call, ip_adapter_image_embeds=[face()]).frames
    call["generator"] = gen(3)
    told = (face(), states if looked else shown)
    assert off(pair.ours(**call, ip_adapter_image_embeds=[told]).frames, expected) <= CLOSE


def test_an_image_encoder_without_a_feature_extractor_gets_one_of_its_size() -> None:
    pair = Pair("faceid-plus")
    pair.ours.feature_extractor = None
    pair.ours.load_ip_adapter(pair.files[0])
    assert pair.ours.feature_extractor.side == (pair.ours.image_encoder.config.image_size,) * 2


def test_two_faces_each_have_their_lora() -> None:
    pair = Pair("faceid", "faceid")
    pair.ours.load_ip_adapter(pair.files)
    assert pair.ours.get_active_adapters() == ["faceid_0", "faceid_1"]
    for pipe in (pair.theirs, pair.ours):
        pipe.set_ip_adapter_scale([0.6, 0.3])
    call = {**pipes.CALL, "ip_adapter_image_embeds": [face(), face(count=2, seed=8)]}
    expected = pair.theirs(**call, generator=gen(3)).frames
    assert off(pair.ours(**call, generator=gen(3)).frames, expected) <= CLOSE


def test_taken_off_a_face_leaves_nothing_whatever_went_before() -> None:
    pair = Pair("faceid")
    pipe, weights = pair.ours, {k: v.clone() for k, v in pair.ours.unet.state_dict().items()}
    plain = pipe(**pipes.CALL, generator=1).frames
    for before in (lambda: None, pipe.unload_lora_weights, pipe.fuse_lora):
        pipe.load_ip_adapter(pair.files[0])
        before()
        pipe.load_ip_adapter(pair.files[0])  # again, in its own place
        pipe.unload_ip_adapter()
        assert pipe.get_list_adapters() == {}
        assert all(torch.equal(v, weights[k]) for k, v in pipe.unet.state_dict().items())
    assert (pipe(**pipes.CALL, generator=1).frames == plain).all()


def test_a_file_whose_lora_does_not_fit_changes_nothing() -> None:
    pair = Pair("faceid")
    pipe = pair.ours
    pipe.load_ip_adapter(pair.files[0])
    key = next(k for k in pair.files[0] if k.endswith("to_q_lora.up.weight"))
    other = face_file(pair.theirs.unet, "faceid", 5)
    with pytest.raises(CheckpointError):
        pipe.load_ip_adapter({**whole(*other), key: torch.zeros(5, RANK)})
    assert pipe.get_active_adapters() == ["faceid_0"] and len(pipe.ip_adapters) == 1
    held = pipe.ip_adapters[0].state_dict()["image_proj.proj.0.weight"]
    assert torch.equal(held, pair.files[0]["image_proj.proj.0.weight"])


def test_other_pipelines_on_the_same_weights_keep_the_face() -> None:
    pair = Pair("faceid")
    pair.ours.load_ip_adapter(pair.files[0])
    call = {**pipes.CALL, "ip_adapter_image_embeds": [face()], "generator": 3}
    expected = pair.ours(**call).frames
    other = kinema.AnimateDiffPAGPipeline.from_pipe(pair.ours)
    assert other.get_active_adapters() == ["faceid_0"]
    assert off(other(**call, pag_scale=0.0).frames, expected) <= 1e-6


@cache
def loaded(kind: str) -> Pair:
    pair = Pair(kind)
    pair.ours.load_ip_adapter(pair.files[0])
    return pair


@pytest.mark.parametrize(
    ("kind", "call", "says"),
    [
        ("faceid", lambda: {"ip_adapter_image": svd_tiny.picture()}, "face recogniser"),
        ("faceid-plus", lambda: {"ip_adapter_image": svd_tiny.picture()}, "face recogniser"),
        ("faceid-plus", lambda: {"ip_adapter_image_embeds": [face()]}, "both as a pair"),
        ("faceid", lambda: {"ip_adapter_image_embeds": [torch.zeros(2, 1, FACE + 1)]}, f"of {FACE} channels"),
        ("faceid", lambda: {"ip_adapter_image_embeds": [face(guided=False)]}, r"\(2, pictures, channels\)"),
        ("faceid-plus", lambda: {"ip_adapter_image_embeds": [(face(), torch.zeros(2, 1, 3))]}, "channels"),
    ],
)
def test_what_a_face_adapter_cannot_read_is_refused_by_name(kind: str, call: Any, says: str) -> None:
    pair = loaded(kind)
    with pytest.raises(InputError, match=says):
        pair.ours(**pipes.CALL, **call())

"""What people plug into an image model: LoRAs in every spelling, IP-Adapters, and what may not be put together."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch
from tests import shared_tiny as tiny
from torch import Tensor, nn

import kinema
from kinema.checkpoint.fill import fill
from kinema.checkpoint.ip_adapter import attentions, read_ip_adapter
from kinema.checkpoint.keys import State, write
from kinema.checkpoint.lora import Adapters
from kinema.checkpoint.pairing import check_pairing
from kinema.encoders.inversion import read_inversion
from kinema.errors import CheckpointError

MOTION = "down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.to_out.0"
_INSIDE = "temporal_transformer.transformer_blocks.0.attention_blocks.1.processor.to_out"
MOTION_FILE = f"down_blocks.0.motion_modules.1.{_INSIDE}"
SPACE = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_k"


@cache
def _video(middle: bool) -> diffusers.UNetMotionModel:
    fields = {**tiny.SD15, "layers_per_block": 2}
    adapter = tiny.motion(block_out_channels=(32, 64), use_motion_mid_block=middle)
    return diffusers.UNetMotionModel.from_unet2d(tiny.unet(fields), adapter).eval()


def video(middle: bool = True) -> kinema.UNetMotionModel:
    """kinema's own: some of its weights have other shapes than the published ones."""
    model = _video(middle)
    return fill(kinema.UNetMotionModel(model.config), tiny.plain(model), where="the reference")


def published(module: nn.Module) -> State:
    return {k: v.clone() for k, v in write(module.state_dict(), getattr(module, "KEYS", ())).items()}


def pair(weight: Tensor, rank: int = 3) -> tuple[Tensor, Tensor]:
    """(down, up) for a weight, linear or a convolution."""
    torch.manual_seed(len(weight))
    down, up = torch.randn(rank, *weight.shape[1:]), torch.randn(weight.shape[0], rank)
    return down, up[(...,) + (None,) * (weight.dim() - 2)]


def product(down: Tensor, up: Tensor) -> Tensor:
    return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def adds(unet: nn.Module, state: State | Path, name: str, expected: Tensor) -> None:
    """Loaded at half its weight it adds half of this to that weight, changes no other, and comes off to the bit."""
    before = published(unet)
    adapters = Adapters({"unet": unet})
    adapters.set({adapters.load(state): 0.5})
    after = published(unet)
    assert [k for k in before if not torch.equal(before[k], after[k])] == [f"{name}.weight"]
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 0.5 * expected)
    adapters.unload()
    assert all(torch.equal(before[k], v) for k, v in published(unet).items())


@pytest.mark.parametrize("spelt", ["original", "distributed", "diffusers", "older diffusers", "hotshot", "kohya"])
def test_a_motion_lora_is_known_in_every_spelling(tmp_path: Path, spelt: str) -> None:
    unet = video()
    down, up = pair(published(unet)[f"{MOTION}.weight"])
    plain = MOTION.removesuffix(".0")
    flat = MOTION_FILE.replace(".processor", "").replace(".", "_")
    hotshot = MOTION_FILE.replace("motion_modules.1.temporal_transformer", "temporal_attentions.1")
    names = {
        "original": f"{MOTION_FILE}_lora.{{}}.weight",
        "distributed": f"module.{MOTION_FILE}_lora.{{}}.weight",
        "diffusers": f"unet.{plain}.lora_{{}}.weight",
        "older diffusers": f"unet.{plain.replace('.to_out', '.processor.to_out')}_lora.{{}}.weight",
        "hotshot": f"{hotshot}_lora.{{}}.weight",
        "kohya": f"lora_unet_{flat}_0.lora_{{}}.weight",
    }
    roles = ("A", "B") if spelt == "diffusers" else ("down", "up")
    torch.save(
        {"state_dict": dict(zip(map(names[spelt].format, roles), (down, up)))}, tmp_path / "v2_lora_PanLeft.ckpt"
    )
    adds(unet, tmp_path / "v2_lora_PanLeft.ckpt", MOTION, product(down, up))


def test_the_middle_of_a_motion_lora_is_left_out_where_there_is_none(caplog: pytest.LogCaptureFixture) -> None:
    unet = video(middle=False)
    down, up = pair(published(unet)[f"{MOTION}.weight"])
    inside = _INSIDE.replace("blocks.1.processor.to_out", "blocks.0.processor.to_q_lora.{}.weight")
    middle = f"mid_block.motion_modules.0.{inside}"
    file = {f"{MOTION_FILE}_lora.down.weight": down, f"{MOTION_FILE}_lora.up.weight": up}
    file |= {middle.format("down"): torch.randn(3, 64), middle.format("up"): torch.randn(64, 3)}
    with caplog.at_level(logging.INFO, "kinema"):
        adds(unet, file, MOTION, product(down, up))
    assert "motion in the middle" in caplog.text
    with pytest.raises(CheckpointError, match="does not fit"):
        Adapters({"unet": tiny.unet()}).load(file)


def test_the_domain_adapter_is_a_lora_on_space() -> None:
    unet = video()
    down, up = pair(published(unet)[f"{SPACE}.weight"])
    name = SPACE.replace(".to_k", ".processor.to_k_lora.{}.weight")
    adds(unet, {name.format("down"): down, name.format("up"): up}, SPACE, product(down, up))


ORIGINAL = {  # published module: what latent diffusion calls it
    "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_k": "input_blocks.2.1.transformer_blocks.0.attn1.to_k",
    "down_blocks.0.resnets.1.conv1": "input_blocks.2.0.in_layers.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "up_blocks.1.resnets.0.time_emb_proj": "output_blocks.3.0.emb_layers.1",
}


@pytest.mark.parametrize("name", ORIGINAL)
@pytest.mark.parametrize("spelt", ["kohya", "kohya of SDXL", "comfy", "peft"])
def test_image_loras_are_known_by_both_names(name: str, spelt: str) -> None:
    unet = video()
    down, up = pair(published(unet)[f"{name}.weight"])
    called = ORIGINAL[name] if spelt in ("kohya of SDXL", "comfy") else name
    prefix = {
        "kohya": f"lora_unet_{called.replace('.', '_')}",
        "kohya of SDXL": f"lora_unet_{called.replace('.', '_')}",
        "comfy": f"diffusion_model.{called}",
        "peft": f"base_model.model.{called}",
    }[spelt]
    roles = ("lora_A", "lora_B") if spelt == "peft" else ("lora_down", "lora_up")
    file = {f"{prefix}.{role}.weight": x for role, x in zip(roles, (down, up))}
    if spelt != "peft":
        file[f"{prefix}.alpha"] = torch.tensor(6.0)
    adds(unet, file, name, product(down, up) * (1 if spelt == "peft" else 2))


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize(
    "name", ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.resnets.0.conv1"]
)
def test_dora_sets_the_length_of_each_row_or_column(name: str, axis: str) -> None:
    unet = video()
    weight = published(unet)[f"{name}.weight"]
    down, up = pair(weight)
    key = f"lora_unet_{name.replace('.', '_')}"
    kept = 0 if axis == "output" else 1
    shape = [n if i == kept else 1 for i, n in enumerate(weight.shape)]
    size = torch.rand(shape) + 0.5
    file = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.dora_scale": size}
    whole = weight + product(down, up)
    others = [i for i in range(whole.dim()) if i != kept]
    adds(unet, file, name, size * whole / whole.pow(2).sum(others, keepdim=True).sqrt() - weight)


def test_a_convolution_may_be_taken_apart_into_three() -> None:
    unet, name = video(), "mid_block.resnets.0.conv1"
    down, mid, up = torch.randn(3, 64, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(64, 3, 1, 1)
    key = f"lora_unet_{name.replace('.', '_')}"
    file = {f"{key}.lora_{role}.weight": x for role, x in (("down", down), ("mid", mid), ("up", up))}
    image = torch.randn(1, 64, 5, 5)
    conv = nn.functional.conv2d
    delta = torch.einsum("or,rshw,si->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    apart = conv(conv(conv(image, down), mid, padding=1), up)
    torch.testing.assert_close(conv(image, delta, padding=1), apart, rtol=1e-3, atol=1e-2)
    adds(unet, file, name, delta)
    with pytest.raises(CheckpointError, match="has taps of shape"):
        Adapters({"unet": unet}).load({**file, f"{key}.lora_mid.weight": mid[:2]})


LINEAR, CONV = SPACE, "mid_block.resnets.0.conv1"


def low_rank(name: str, shape: torch.Size, taps: bool) -> State:
    """Two matrices, or three where a convolution is taken apart, of rank 2."""
    if not taps:
        return {f"{name}_a": torch.randn(shape[0], 2), f"{name}_b": torch.randn(2, *shape[1:]).flatten(1)}
    outer = {f"{name}_a": torch.randn(2, shape[0]), f"{name}_b": torch.randn(2, shape[1])}
    return {**outer, name.replace("_w", "_t"): torch.randn(2, 2, *shape[2:])}


def multiplied(x: State, name: str, shape: torch.Size) -> Tensor:
    a, b = x[f"{name}_a"], x[f"{name}_b"]
    t = x.get(name.replace("_w", "_t"))
    return (a @ b).view(shape) if t is None else torch.einsum("rshw,ro,si->oihw", t, a, b)


@pytest.mark.parametrize(("name", "taps"), [(LINEAR, False), (CONV, False), (CONV, True)])
def test_a_loha_multiplies_two_products(name: str, taps: bool) -> None:
    unet = video()
    shape = published(unet)[f"{name}.weight"].shape
    parts = low_rank("hada_w1", shape, taps) | low_rank("hada_w2", shape, taps) | {"alpha": torch.tensor(1.0)}
    file = {f"lora_unet_{name.replace('.', '_')}.{role}": x for role, x in parts.items()}
    adds(unet, file, name, multiplied(parts, "hada_w1", shape) * multiplied(parts, "hada_w2", shape) / 2)
    with pytest.raises(CheckpointError, match="has no hada_w2_b matrix"):
        Adapters({"unet": unet}).load({k: v for k, v in file.items() if not k.endswith("w2_b")})
    with pytest.raises(CheckpointError, match="it is for another model"):
        Adapters({"unet": unet}).load({k: v[:, :-1] if k.endswith("_b") else v for k, v in file.items()})


@pytest.mark.parametrize("whole", [(), ("1",), ("1", "2")])
@pytest.mark.parametrize(("name", "taps"), [(LINEAR, False), (CONV, False), (CONV, True)])
def test_a_lokr_weighs_blocks(name: str, taps: bool, whole: tuple[str, ...]) -> None:
    unet = video()
    o, i, *kernel = published(unet)[f"{name}.weight"].shape
    shapes = {"1": torch.Size((4, 2)), "2": torch.Size((o // 4, i // 2, *kernel))}
    parts: State = {"alpha": torch.tensor(1.0)}
    factors = {}
    for n, shape in shapes.items():
        more = {f"lokr_w{n}": torch.randn(shape)} if n in whole else low_rank(f"lokr_w{n}", shape, taps and n == "2")
        parts |= more
        factors[n] = more[f"lokr_w{n}"] if n in whole else multiplied(more, f"lokr_w{n}", shape)
    blocks = [[factors["1"][a, b] * factors["2"] for b in range(2)] for a in range(4)]
    expected = torch.cat([torch.cat(row, dim=1) for row in blocks])
    file = {f"lora_unet_{name.replace('.', '_')}.{role}": x for role, x in parts.items()}
    adds(unet, file, name, expected if len(whole) == 2 else expected / 2)


def test_text_encoders_take_their_part() -> None:
    parts = {"unet": tiny.unet(), "text_encoder": tiny.text(), "text_encoder_2": tiny.text(projected=True)}
    layer = "encoder_layers_1_self_attn_q_proj"
    file: State = {}
    for part in ("te1", "te2"):
        file |= {f"lora_{part}_text_model_{layer}.lora_down.weight": torch.ones(2, 128)}
        file |= {f"lora_{part}_text_model_{layer}.lora_up.weight": torch.ones(128, 2)}
    adapters = Adapters(parts)
    before = {part: tiny.plain(module) for part, module in parts.items()}
    adapters.set({adapters.load(file): 1.0})
    changed = {p: [k for k, v in m.state_dict().items() if not torch.equal(v, before[p][k])] for p, m in parts.items()}
    assert {p: [k.removeprefix("text_model.") for k in ks] for p, ks in changed.items()} == {
        "unet": [],
        "text_encoder": ["encoder.layers.1.self_attn.q_proj.weight"],
        "text_encoder_2": ["encoder.layers.1.self_attn.q_proj.weight"],
    }


# ---------------------------------------------------------------- IP-Adapter


def ip_file(unet: nn.Module, projection: State, lora: bool = False) -> dict[str, State]:
    """As the authors write it: the weights of each cross-attention, counted with the self-attentions between."""
    inside: State = {}
    for number, name in enumerate(unet.attn_processors):  # type: ignore[attr-defined, arg-type]
        query = unet.get_submodule(name.removesuffix(".processor")).to_q.weight
        if name.endswith("attn2.processor"):
            inside |= {f"{number}.to_{x}_ip.weight": torch.randn(len(query), 24) for x in "kv"}
        if lora:
            inside |= {f"{number}.to_q_lora.down.weight": torch.randn(2, query.shape[1])}
            inside |= {f"{number}.to_q_lora.up.weight": torch.randn(query.shape[0], 2)}
    return {"image_proj": projection, "ip_adapter": inside}


def linear(name: str, outputs: int, inputs: int) -> State:
    return {f"{name}.weight": torch.randn(outputs, inputs), f"{name}.bias": torch.randn(outputs)}


PROJECTIONS = {  # kind: (weights, tokens, width of the picture, of a face)
    "plain": (linear("proj", 4 * 24, 48) | {"norm.weight": torch.ones(24)}, 4, 48, None),
    "plus": ({"latents": torch.randn(1, 16, 64), **linear("proj_in", 64, 80)}, 16, 80, None),
    "full": (linear("proj.0", 80, 80) | linear("proj.2", 24, 80) | {"proj.3.weight": torch.ones(24)}, 257, 80, None),
    "faceid": (linear("proj.0", 64, 32) | linear("proj.2", 4 * 24, 64) | {"norm.weight": torch.ones(24)}, 4, 0, 32),
    "faceid-plus": (
        linear("proj.0", 64, 32) | linear("proj.2", 4 * 24, 64) | linear("perceiver_resampler.proj_in", 24, 80),
        4,
        80,
        32,
    ),
}


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("flat", [False, True])
def test_an_ip_adapter_says_what_it_is(tmp_path: Path, kind: str, flat: bool) -> None:
    projection, tokens, image, face = PROJECTIONS[kind]
    nested = ip_file(tiny.unet(), projection)
    path = tmp_path / ("x.safetensors" if flat else "x.bin")
    if flat:
        safetensors.torch.save_file({f"{a}.{b}": v for a, part in nested.items() for b, v in part.items()}, path)
    else:
        torch.save(nested, path)
    found = read_ip_adapter(path)
    told = (found.kind, found.tokens, found.image_width, found.face_width, found.context_width)
    assert told == (kind, tokens, image, face, 24)
    assert found.projection.keys() == projection.keys()


@pytest.mark.parametrize("motion", [False, True])
def test_each_attention_gets_its_own_weights_of_an_ip_adapter(motion: bool) -> None:
    unet = _video(middle=True) if motion else tiny.unet({**tiny.SD15, "layers_per_block": 2})
    spatial = tiny.unet({**tiny.SD15, "layers_per_block": 2})
    file = ip_file(spatial, PROJECTIONS["faceid"][0], lora=True)
    found = read_ip_adapter({f"{a}.{b}": v for a, part in file.items() for b, v in part.items()})
    names = [name.removesuffix(".processor") for name in spatial.attn_processors]
    assert attentions(unet.state_dict()) == names
    placed = found.placed(unet.state_dict())
    assert list(placed) == [name for name in names if name.endswith("attn2")]
    for name, (k, v) in placed.items():
        number = names.index(name)
        assert torch.equal(k, file["ip_adapter"][f"{number}.to_k_ip.weight"])
        assert torch.equal(v, file["ip_adapter"][f"{number}.to_v_ip.weight"])
    adapters = Adapters({"unet": video() if motion else unet})
    adapters.load(found.lora_of(unet.state_dict()), "face")
    assert len(adapters.loaded["face"]["unet"]) == len(names)


def test_ip_adapters_of_other_models_and_other_files_are_refused() -> None:
    file = ip_file(tiny.unet(), PROJECTIONS["plain"][0])
    flat = {f"{a}.{b}": v for a, part in file.items() for b, v in part.items()}
    with pytest.raises(CheckpointError, match="made for another base model"):
        read_ip_adapter(flat).placed(tiny.unet(tiny.SDXL).state_dict())
    with pytest.raises(CheckpointError, match="is no IP-Adapter"):
        read_ip_adapter({"image_proj.proj.weight": torch.zeros(4, 4)})
    broken = {k: v for k, v in flat.items() if "1.to_v_ip" not in k}
    with pytest.raises(CheckpointError, match="the file is incomplete"):
        read_ip_adapter(broken)


# ---------------------------------------------------------------- what belongs together

SD15, SDXL, SD2 = (
    {"block_out_channels": channels, "layers_per_block": 2, "cross_attention_dim": width}
    for channels, width in (((320, 640, 1280, 1280), 768), ((320, 640, 1280), 2048), ((320, 640, 1280, 1280), 1024))
)
MM15 = {"block_out_channels": (320, 640, 1280, 1280), "motion_layers_per_block": 2}
MMXL = {"block_out_channels": [320, 640, 1280], "motion_layers_per_block": (2, 2, 2)}


@pytest.mark.parametrize(
    ("what", "adapter", "base", "says"),
    [
        ("MotionAdapter", MM15, SD15, None),
        ("MotionAdapter", MM15, SD2, None),
        ("MotionAdapter", MMXL, SDXL, None),
        ("MotionAdapter", MMXL, SD15, "The motion module is for SDXL and the base model is Stable Diffusion 1.5; take"),
        (
            "MotionAdapter",
            MM15,
            SDXL,
            "is for Stable Diffusion 1.5 or 2.x and the base model is SDXL; take",
        ),
        (
            "MotionAdapter",
            {**MM15, "motion_layers_per_block": 1},
            SD15,
            "1 blocks a level .* one of 2 blocks",
        ),
        ("MotionAdapter", {**MM15, "block_out_channels": (32, 64)}, SD15, r"a model of 2 levels \(32, 64 channels\)"),
        ("ControlNetModel", SD15, SD15, None),
        ("ControlNetModel", SD2, SD15, "The ControlNet is for Stable Diffusion 2.x and .* Stable Diffusion 1.5"),
        ("SparseControlNetModel", SD15, SDXL, "The SparseCtrl is for Stable Diffusion 1.5 and the base model is SDXL"),
        ("IPAdapter", {"cross_attention_dim": 2048}, SD15, "The IP-Adapter is for SDXL and .* Stable Diffusion 1.5"),
        ("IPAdapter", {"cross_attention_dim": 768}, SD15, None),
    ],
)
def test_a_wrong_pairing_is_refused_in_one_sentence(what: str, adapter: Any, base: Any, says: str | None) -> None:
    if says is None:
        return check_pairing(what, adapter, base)
    with pytest.raises(CheckpointError, match=says) as told:
        check_pairing(what, adapter, base)
    assert str(told.value).count(". ") == 0
    return None


def test_each_text_encoder_of_sdxl_gets_its_half_of_an_embedding() -> None:
    file = {"clip_l": torch.ones(2, 768), "clip_g": torch.zeros(2, 1280)}
    assert read_inversion(file, "<style>", half="clip_l")["<style>"].shape == (2, 768)
    assert read_inversion(file, "<style>", half="clip_g")["<style>"].shape == (2, 1280)
    with pytest.raises(CheckpointError, match="the two text encoders of SDXL"):
        read_inversion(file, "<style>")

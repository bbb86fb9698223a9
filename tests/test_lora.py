"""LoRA is arithmetic on weights: what is added is what the formula says, and it comes off to the bit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from kinema.checkpoint.keys import Fuse, Rename, Squeeze
from kinema.checkpoint.lora import Adapters
from kinema.errors import CheckpointError, InputError


class Attention(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(c, c, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(c, c)])


class Inner(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.attn1, self.attn_2 = Attention(c), Attention(c)
        self.proj_in = nn.Linear(c, c)  # published as a 1×1 convolution
        self.conv1 = nn.Conv2d(c, 2 * c, 3, padding=1)
        self.time_conv = nn.Conv3d(c, c, (3, 1, 1))
        self.norm = nn.GroupNorm(2, c)


class Net(nn.Module):
    KEYS = (Squeeze(r"proj_in\.weight$"),)

    def __init__(self, c: int = 6):
        super().__init__()
        self.down_blocks = nn.ModuleList([Inner(c), Inner(c)])

    def forward(self, x: Tensor) -> Tensor:
        return self.down_blocks[0].attn1.to_q(x)


class FusedInner(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.to_qk = nn.Linear(c, 2 * c, bias=False)
        self.out = nn.Linear(c, c)


class FusedNet(nn.Module):
    KEYS = (Rename(".to_out.0.", ".out."), Fuse((".to_q.", ".to_k."), ".to_qk."))

    def __init__(self, c: int = 6):
        super().__init__()
        self.attn = FusedInner(c)


class Layer(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.self_attn = nn.ModuleDict({n: nn.Linear(c, c) for n in ("q_proj", "k_proj", "v_proj", "out_proj")})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(c, 4 * c), "fc2": nn.Linear(4 * c, c)})


class Text(nn.Module):
    def __init__(self, prefixed: bool, c: int = 4):
        super().__init__()
        encoder = nn.ModuleDict({"encoder": nn.ModuleDict({"layers": nn.ModuleList([Layer(c)])})})
        for name, module in ({"text_model": encoder} if prefixed else encoder).items():
            self.add_module(name, module)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().requires_grad_(False)


def pair(weight: Tensor, rank: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=g)
    up = torch.randn(len(weight), rank, *(1 for _ in weight.shape[2:]), generator=g)
    return down, up


def product(down: Tensor, up: Tensor) -> Tensor:
    """B·A by its definition, element by element of the rank."""
    out = torch.zeros(len(up), *down.shape[1:], dtype=torch.float64)
    for r in range(len(down)):
        for o in range(len(up)):
            out[o] += up[o, r].double().reshape(()) * down[r].double()
    return out.float()


Q = "down_blocks.0.attn1.to_q"
OUT = "down_blocks.1.attn_2.to_out.0"
SPELLINGS = {
    "diffusers": ("unet.{m}.lora_A.weight", "unet.{m}.lora_B.weight"),
    "named": ("unet.{m}.lora_A.default_0.weight", "unet.{m}.lora_B.default_0.weight"),
    "peft": ("base_model.model.{m}.lora_A.weight", "base_model.model.{m}.lora_B.weight"),
    "peft with part": ("base_model.model.unet.{m}.lora_A.weight", "base_model.model.unet.{m}.lora_B.weight"),
    "bare": ("{m}.lora_A.weight", "{m}.lora_B.weight"),
    "older": ("unet.{m}.lora.down.weight", "unet.{m}.lora.up.weight"),
    "processor": ("unet.{p}.processor.{n}_lora.down.weight", "unet.{p}.processor.{n}_lora.up.weight"),
    "bare processor": ("{p}.processor.{n}_lora.down.weight", "{p}.processor.{n}_lora.up.weight"),
    "kohya": ("lora_unet_{u}.lora_down.weight", "lora_unet_{u}.lora_up.weight"),
}


def spelt(spelling: str, module: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    plain = module.removesuffix(".0") if "processor" in spelling else module
    parent, _, last = plain.rpartition(".")
    names = {"m": module, "p": parent, "n": last, "u": module.replace(".", "_")}
    return {key.format(**names): x for key, x in zip(SPELLINGS[spelling], (down, up))}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("module", [Q, OUT])
def test_every_spelling_adds_the_same(spelling: str, module: str) -> None:
    model, before = net(), net()
    weight = model.get_submodule(module).weight
    down, up = pair(weight)
    adapters = Adapters({"unet": model})
    name = adapters.load(spelt(spelling, module, down, up), "a")
    assert torch.equal(weight, before.get_submodule(module).weight)  # loading changes nothing
    adapters.set({name: 0.7})
    expected = before.get_submodule(module).weight + 0.7 * product(down, up)
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)
    others = {k for k, v in model.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert others == {f"{module}.weight"}


@pytest.mark.parametrize("module", ["conv1", "time_conv"])
def test_convolutions_are_changed_too(module: str) -> None:
    model, before = net(), net()
    weight = getattr(model.down_blocks[1], module).weight
    down, up = pair(weight, rank=3)
    lora = {
        f"lora_unet_down_blocks_1_{module}.lora_down.weight": down,
        f"lora_unet_down_blocks_1_{module}.lora_up.weight": up,
        f"lora_unet_down_blocks_1_{module}.alpha": torch.tensor(1.5),
    }
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(lora): 1.0})
    expected = getattr(before.down_blocks[1], module).weight + 0.5 * product(down, up)
    torch.testing.assert_close(weight, expected, atol=1e-5, rtol=0)


def test_a_changed_convolution_computes_what_two_convolutions_would() -> None:
    model, before = net(), net()
    conv, x = model.down_blocks[0].conv1, torch.randn(1, 6, 5, 7)
    down, up = pair(conv.weight)
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(spelt("kohya", "down_blocks.0.conv1", down, up)): 1.0})
    beside = nn.functional.conv2d(nn.functional.conv2d(x, down, padding=1), up)
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), before.down_blocks[0].conv1(x) + beside, atol=1e-4, rtol=0)


@pytest.mark.parametrize("as_conv", [False, True])
def test_one_by_one_convolutions_and_linear_layers_are_one_thing(as_conv: bool) -> None:
    model, before = net(), net()
    weight = model.down_blocks[0].proj_in.weight
    down, up = pair(weight)
    shaped = [x[..., None, None] for x in (down, up)] if as_conv else [down, up]
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(spelt("diffusers", "down_blocks.0.proj_in", *shaped)): 2.0})
    expected = before.down_blocks[0].proj_in.weight + 2 * product(down, up)
    torch.testing.assert_close(weight, expected, atol=1e-5, rtol=0)


def test_fused_projections_are_changed_by_their_published_parts() -> None:
    torch.manual_seed(0)
    model = FusedNet().requires_grad_(False)
    before = model.attn.to_qk.weight.clone()
    down, up = pair(before[6:])
    adapters = Adapters({"unet": model})
    lora = spelt("diffusers", "attn.to_k", down, up) | spelt("processor", "attn.to_out.0", down, up)
    adapters.set({adapters.load(lora): 1.0})
    assert torch.equal(model.attn.to_qk.weight[:6], before[:6])
    torch.testing.assert_close(model.attn.to_qk.weight[6:], before[6:] + product(down, up), atol=1e-5, rtol=0)
    adapters.unload()
    assert torch.equal(model.attn.to_qk.weight, before)


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", ".lora_{AB}.weight"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj", ".lora_{AB}.weight"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", ".lora_linear_layer.{du}.weight"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_q", "_lora.{du}.weight"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", ".lora_{du}.weight"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", ".lora_{du}.weight"),
    ],
)
def test_text_encoders_are_changed_under_any_name(key: str, pattern: str, prefixed: bool) -> None:
    torch.manual_seed(0)
    unet, text = net(), Text(prefixed).requires_grad_(False)
    weight = next(v for k, v in text.state_dict().items() if k.endswith("q_proj.weight"))
    before = weight.clone()
    down, up = pair(weight)
    lora = {
        key + pattern.replace("{AB}", "A").replace("{du}", "down"): down,
        key + pattern.replace("{AB}", "B").replace("{du}", "up"): up,
    }
    adapters = Adapters({"unet": unet, "text_encoder": text})
    adapters.set({adapters.load(lora): 1.0})
    after = next(v for k, v in text.state_dict().items() if k.endswith("q_proj.weight"))
    torch.testing.assert_close(after, before + product(down, up), atol=1e-5, rtol=0)


def everything(model: nn.Module, seed: int) -> dict[str, Tensor]:
    lora: dict[str, Tensor] = {}
    for i, (name, module) in enumerate(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            lora |= spelt("diffusers", name, *pair(module.weight, seed=100 * seed + i))
    return lora


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weight_zero_and_unloading_are_the_base_to_the_bit(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    before, pointers = bits(model), {k: v.data_ptr() for k, v in model.state_dict().items()}
    adapters = Adapters({"unet": model})
    a, b = adapters.load(everything(model, 1)), adapters.load(everything(model, 2))
    adapters.set({a: 0.0})
    assert same(bits(model), before)
    adapters.set({a: 0.3, b: -1})
    assert not any(torch.equal(v, before[k]) for k, v in bits(model).items() if v.dim() > 1)
    assert all(v.dtype == dtype for v in bits(model).values())
    adapters.set({b: 1})
    adapters.unload()
    assert same(bits(model), before)
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == pointers  # not even a copy
    assert not adapters.loaded and not adapters.active


def test_two_adapters_add_up_in_any_order() -> None:
    model, base = net(), bits(net())
    adapters = Adapters({"unet": model})
    a, b = adapters.load(everything(model, 1)), adapters.load(everything(model, 2))
    changes = []
    for weights in ({a: 0.5}, {b: -0.25}, {a: 0.5, b: -0.25}, {b: -0.25, a: 0.5}):
        adapters.set(weights)
        changes.append({k: v - base[k] for k, v in bits(model).items()})
    for key in base:
        torch.testing.assert_close(changes[2][key], changes[0][key] + changes[1][key], atol=2e-6, rtol=0)
    assert same(changes[2], changes[3])


def test_removing_one_leaves_the_other() -> None:
    model = net()
    adapters = Adapters({"unet": model})
    a, b = adapters.load(everything(model, 1), "a"), adapters.load(everything(model, 2), "b")
    adapters.set({b: 1.0})
    alone = bits(model)
    adapters.set({a: 1.0, b: 1.0})
    adapters.remove("a")
    assert same(bits(model), alone)
    assert set(adapters.loaded) == set(adapters.active) == {"b"}


def test_a_half_precision_weight_is_rounded_once() -> None:
    model = net().half()
    base = bits(model)
    lora = everything(model, 1)
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(lora): 0.3})
    down, up = lora[f"unet.{Q}.lora_A.weight"], lora[f"unet.{Q}.lora_B.weight"]
    exact = base[f"{Q}.weight"].double() + 0.3 * (up.double() @ down.double())
    error = (bits(model)[f"{Q}.weight"].double() - exact).abs()
    assert (error <= exact.abs() * 2.0**-11 * 1.001 + 1e-7).all()


def test_fused_adapters_survive_unloading_and_come_off_on_request() -> None:
    model, base = net(), bits(net())
    adapters = Adapters({"unet": model})
    a = adapters.load(everything(model, 1))
    adapters.set({a: 0.5})
    on = bits(model)
    adapters.fuse()
    assert same(bits(model), on)
    adapters.unload()
    assert same(bits(model), on)
    adapters.unfuse()
    assert same(bits(model), on) and adapters.active == {a: {"unet": 0.5}}
    adapters.unload()
    assert same(bits(model), base)


def test_a_call_has_its_own_strength_and_changes_nothing() -> None:
    model, base = net(), bits(net())
    adapters = Adapters({"unet": model})
    assert adapters.scaled("unet", 0.5) is model
    a = adapters.load(everything(model, 1))
    adapters.set({a: 0.5})
    half = bits(model)
    adapters.set({a: 1.0})
    whole = bits(model)
    copy = adapters.scaled("unet", 0.5)
    assert same(bits(copy), half) and same(bits(model), whole)
    assert copy.down_blocks[0].norm.weight.data_ptr() == model.down_blocks[0].norm.weight.data_ptr()
    assert same(bits(adapters.scaled("unet", 0)), base)
    assert adapters.scaled("unet", 1) is model


def test_parts_have_their_own_weights() -> None:
    torch.manual_seed(0)
    unet, text = net(), Text(True).requires_grad_(False)
    before = bits(text)
    key = "text_model.encoder.layers.0.mlp.fc1"
    down, up = pair(text.get_submodule(key).weight)
    lora = everything(unet, 1) | {f"text_encoder.{key}.lora_A.weight": down, f"text_encoder.{key}.lora_B.weight": up}
    adapters = Adapters({"unet": unet, "text_encoder": text})
    a = adapters.load(lora)
    adapters.set({a: {"unet": 1.0}})
    assert same(bits(text), before) and not same(bits(unet), bits(net()))
    adapters.set({a: {"unet": 0.0, "text_encoder": 1.0}})
    assert not same(bits(text), before) and same(bits(unet), bits(net()))


def test_moving_and_casting_the_model_keeps_adapters_and_base() -> None:
    model, base = net(), net().half()
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(everything(model, 1)): 1.0})
    model.half()
    adapters.unload()
    assert same(bits(model), bits(base))


# scales


@pytest.mark.parametrize("alpha", [1.0, 4.0, 0.5])
def test_kohya_scales_by_alpha_over_rank(alpha: float) -> None:
    model, base = net(), net()
    down, up = pair(base.get_submodule(Q).weight, rank=2)
    lora = spelt("kohya", Q, down, up) | {f"lora_unet_{Q.replace('.', '_')}.alpha": torch.tensor(alpha)}
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(lora): 1.0})
    expected = base.get_submodule(Q).weight + alpha / 2 * product(down, up)
    torch.testing.assert_close(model.get_submodule(Q).weight, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"alpha_pattern": {"attn1.to_q": 12}}])
def test_a_peft_folder_says_its_alpha_beside(tmp_path: Path, more: dict[str, object]) -> None:
    model, base = net(), net()
    down, up = pair(base.get_submodule(Q).weight, rank=4)
    safetensors.torch.save_file(spelt("peft", Q, down, up), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **more}))
    scale = 12 / 4 if "alpha_pattern" in more else 8 / math.sqrt(4) if more else 8 / 4
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(tmp_path): 1.0})
    expected = base.get_submodule(Q).weight + scale * product(down, up)
    torch.testing.assert_close(model.get_submodule(Q).weight, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"])
def test_a_diffusers_folder_is_read(tmp_path: Path, name: str) -> None:
    model, base = net(), net()
    down, up = pair(base.get_submodule(Q).weight, rank=4)
    state, notes = spelt("diffusers", Q, down, up), {"unet.r": 4, "unet.lora_alpha": 2}
    scale = 1.0
    if name.endswith(".bin"):
        torch.save(state, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name, {"lora_adapter_metadata": json.dumps(notes)})
        scale = 0.5
    adapters = Adapters({"unet": model})
    adapters.set({adapters.load(tmp_path): 1.0})
    expected = base.get_submodule(Q).weight + scale * product(down, up)
    torch.testing.assert_close(model.get_submodule(Q).weight, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["kohya per input", "kohya per output", "peft"])
@pytest.mark.parametrize("module", [Q, "down_blocks.0.conv1"])
def test_a_magnitude_rescales_the_sum(form: str, module: str) -> None:
    model, base = net(), net()
    weight = base.get_submodule(module).weight
    down, up = pair(weight, rank=2)
    axis = 1 if form == "kohya per input" else 0
    size = torch.rand(weight.shape[axis]) + 0.5
    key = module.replace(".", "_")
    if form == "peft":
        lora = spelt("diffusers", module, down, up) | {f"unet.{module}.lora_magnitude_vector.weight": size}
    else:
        shape = [1] * weight.dim()
        shape[axis] = -1
        lora = spelt("kohya", module, down, up) | {f"lora_unet_{key}.dora_scale": size.reshape(shape)}
    adapters = Adapters({"unet": model})
    name = adapters.load(lora)
    adapters.set({name: 1.0})
    after = model.get_submodule(module).weight
    lengths = after.transpose(0, axis).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, size, atol=1e-5, rtol=0)
    direction = (weight + product(down, up)).transpose(0, axis).flatten(1)
    torch.testing.assert_close(
        nn.functional.normalize(after.transpose(0, axis).flatten(1)),
        nn.functional.normalize(direction),
        atol=1e-5,
        rtol=0,
    )
    adapters.unload()
    assert torch.equal(model.get_submodule(module).weight, weight)


# refusals


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing() -> None:
    model, base = net(), bits(net())
    down, up = pair(model.get_submodule(Q).weight)
    adapters = Adapters({"unet": model})
    good = spelt("diffusers", Q, down, up)
    for lora, says in [
        (spelt("diffusers", "mid_block.attn1.to_q", down, up), r"mid_block.attn1.to_q.lora_A.weight"),
        (spelt("kohya", "down_blocks_7_x", down, up), r"lora_unet_down_blocks_7_x"),
        (good | spelt("kohya", "elsewhere", down, up), r"2 of 4 entries fit"),
        ({"text_encoder.encoder.x.lora_A.weight": down}, "no counterpart in unet"),
        (spelt("diffusers", Q, torch.ones(2, 9), up), rf"{Q}.weight makes a change of shape \[6, 9\].*\[6, 6\]"),
        (spelt("diffusers", Q, down, torch.ones(5, 2)), r"makes a change of shape \[5, 6\]"),
        (spelt("diffusers", Q, down, torch.ones(6, 3)), "do not multiply"),
        ({k: v for k, v in good.items() if "lora_A" in k}, f"no up matrix for {Q}"),
        (good | {f"unet.{Q}.lora_A.weight": down * float("nan")}, "NaN"),
        ({"conv_in.weight": torch.ones(2)}, "is no LoRA: it has conv_in.weight"),
        ({}, "is no LoRA"),
    ]:
        with pytest.raises(CheckpointError, match=says):
            adapters.load(lora)
    assert not adapters.loaded and same(bits(model), base)


def test_unknown_names_and_weights_are_refused() -> None:
    model = net()
    adapters = Adapters({"unet": model})
    adapters.load(everything(model, 1), "style")
    with pytest.raises(InputError, match=r"No LoRA is named 'stile'; loaded: 'style'"):
        adapters.set({"stile": 1.0})
    with pytest.raises(InputError, match=r"already"):
        adapters.load(everything(model, 2), "style")
    for weight in (float("nan"), float("inf"), "1", True, None):
        with pytest.raises(InputError, match="finite number"):
            adapters.set({"style": weight})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no part 'vae'"):
        adapters.set({"style": {"vae": 1.0}})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    adapters = Adapters({"unet": net()})
    with pytest.raises(CheckpointError, match="does not exist"):
        adapters.load(tmp_path / "no.safetensors")
    with pytest.raises(CheckpointError, match=r"There is no LoRA named pytorch_lora_weights.safetensors"):
        adapters.load(tmp_path)

"""The networks give the reference's numbers on shared weights."""

from __future__ import annotations

import pytest
import torch
from tests import reference

from kinema import AutoencoderKL, CheckpointError, UNet3DConditionModel
from kinema.families.modelscope import TextConditions

UNETS = {
    "two levels": {},
    "one layer, wide heads": {"layers_per_block": 1, "attention_head_dim": 16},
    "three levels": {
        "block_out_channels": (16, 32, 48),
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    },
    "few groups, other epsilon": {"norm_num_groups": 4, "norm_eps": 1e-3},
    "attention where published models have none": {
        "down_block_types": ("DownBlock3D", "CrossAttnDownBlock3D"),
        "up_block_types": ("CrossAttnUpBlock3D", "UpBlock3D"),
    },
    "other channels": {"in_channels": 8, "out_channels": 6, "cross_attention_dim": 20, "layers_per_block": 3},
    "four levels": {
        "block_out_channels": (32, 32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        "layers_per_block": 1,
    },
}
VAES = {
    "two levels": {},
    "three levels, few groups": {"block_out_channels": (16, 32, 24), "norm_num_groups": 8, "layers_per_block": 2},
    "no attention, no outer convolutions": {
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "many latent channels": {"latent_channels": 16, "block_out_channels": (32, 32, 64), "norm_num_groups": 16},
    "one level": {"block_out_channels": (32,), "layers_per_block": 3},
    "four levels": {"block_out_channels": (8, 16, 16, 32), "norm_num_groups": 4},
}


def twin(ours: type, theirs: torch.nn.Module) -> torch.nn.Module:
    model = ours(dict(theirs.config)).eval()
    model.load_state_dict(theirs.state_dict())
    return model


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the output's range."""
    return float((ours - theirs).abs().max() / (theirs.max() - theirs.min()))


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize(("b", "f", "h", "w"), [(1, 5, 14, 18), (2, 1, 7, 9), (2, 8, 8, 12)])
@torch.no_grad()
def test_a_denoiser_matches_the_reference(name: str, b: int, f: int, h: int, w: int) -> None:
    theirs = reference.unet3d(**UNETS[name])
    ours = twin(UNet3DConditionModel, theirs)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(b, theirs.config.in_channels, f, h, w, generator=g)
    text = torch.randn(2 * b, 11, theirs.config.cross_attention_dim, generator=g)
    times = torch.tensor([801.0, 17.5])
    prepared = ours.prepare(times, TextConditions(text, f))
    for i, t in enumerate(times):
        expected = theirs(torch.cat([x, x]), t, text).sample
        got = ours(x.transpose(1, 2), prepared.at(i)).transpose(1, 2)
        assert off(got, expected) < 1e-4
        unguided = ours(x.transpose(1, 2), ours.prepare(times, TextConditions(text[b:], f)).at(i)).transpose(1, 2)
        assert off(unguided, expected[b:]) < 1e-4


@pytest.mark.parametrize("name", UNETS)
def test_a_denoiser_holds_the_published_tensors(name: str) -> None:
    theirs = reference.unet3d(**UNETS[name])
    ours = UNet3DConditionModel(dict(theirs.config))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_out_channels": (32, 64)}, "block_out_channels has 2"),
        ({"block_out_channels": (30, 64, 64, 64)}, "norm_num_groups"),
        ({"attention_head_dim": 48}, "attention_head_dim"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"down_block_types": ("DownBlock2D",) * 4}, "down_block_types"),
        ({"layers_per_block": "two"}, "layers_per_block"),
    ],
)
def test_an_impossible_configuration_is_refused_by_name(fields: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        UNet3DConditionModel.without_weights(fields)


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize(("n", "h", "w"), [(1, 40, 56), (3, 24, 32)])
@torch.no_grad()
def test_an_autoencoder_matches_the_reference(name: str, n: int, h: int, w: int) -> None:
    theirs = reference.autoencoder(**VAES[name])
    ours = twin(AutoencoderKL, theirs)
    x = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(2))
    mine, other = ours.encode(x).latent_dist, theirs.encode(x).latent_dist
    assert off(mine.mode(), other.mode()) < 1e-4
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert off(mine.sample(seeds[0]), other.sample(seeds[1])) < 1e-4
    latents = other.mode()
    expected = theirs.decode(latents).sample
    assert off(ours.decode(latents).sample, expected) < 1e-4
    ours.enable_slicing()
    assert off(ours.decode(latents).sample, expected) < 1e-4
    ours.enable_tiling(rows=5)
    assert off(ours.decode(latents).sample, expected) < 1e-4
    assert off(ours.encode(x).latent_dist.mode(), other.mode()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_is_no_further_from_single_than_the_reference(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(4)
    x, text = torch.randn(1, 4, 4, 6, 10, generator=g), torch.randn(2, 9, 32, generator=g)
    mine, other = [], []
    for seed in range(3):
        theirs = reference.unet3d(seed)
        exact = theirs(torch.cat([x, x]), 500, text).sample
        ours = twin(UNet3DConditionModel, theirs).to(dtype)
        prepared = ours.prepare(torch.tensor([500.0]), TextConditions(text.to(dtype), 4))
        got = ours(x.transpose(1, 2).to(dtype), prepared.at(0)).transpose(1, 2).float()
        half = theirs.to(dtype)(torch.cat([x, x]).to(dtype), 500, text.to(dtype)).sample.float()
        mine.append(float((got - exact).square().mean()))
        other.append(float((half - exact).square().mean()))
    assert sum(mine) <= 1.05 * sum(other)


@torch.no_grad()
def test_slices_and_chunks_change_nothing() -> None:
    ours = twin(UNet3DConditionModel, reference.unet3d(block_out_channels=(32, 64), attention_head_dim=8))
    x = torch.randn(1, 5, 4, 24, 20)
    signal = ours.prepare(torch.tensor([300.0]), TextConditions(torch.randn(2, 5, 32), 5)).at(0)
    whole = ours(x, signal)
    for size in ("auto", "max", 3):
        ours.set_attention_slice(size)
        assert (ours(x, signal) - whole).abs().max() < 1e-5
    ours.enable_forward_chunking(chunk_size=1, dim=1)
    assert (ours(x, signal) - whole).abs().max() < 1e-5


def test_no_three_dimensional_convolution_is_ever_run() -> None:
    """Macs and AMD cards cannot run them well."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.overloadpacket.__name__ in ("convolution", "_convolution"):
                assert args[0].ndim == 4
            return func(*args, **(kwargs or {}))

    ours = UNet3DConditionModel(dict(reference.unet3d().config))
    with torch.no_grad(), Watch():
        signal = ours.prepare(torch.tensor([1.0]), TextConditions(torch.randn(1, 4, 32), 3)).at(0)
        ours(torch.randn(1, 3, 4, 8, 8), signal)


def test_the_published_sizes_have_the_published_number_of_parameters() -> None:
    published = UNet3DConditionModel.without_weights({"sample_size": 32})
    assert round(published.num_parameters() / 1e6, 1) == 1411.2
    assert len(published.state_dict()) == 1480

"""Folders go both ways between kinema and the reference without a changed bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import safetensors.torch
import torch

import kinema.families.autoencoder_kl
import kinema.families.modelscope
from kinema.checkpoint.load import load_model

CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "unet": (
        diffusers.UNet3DConditionModel,
        kinema.families.modelscope.UNet3DConditionModel,
        {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 24, "attention_head_dim": 8, "sample_size": 9},
    ),
    "vae": (
        diffusers.AutoencoderKL,
        kinema.families.autoencoder_kl.AutoencoderKL,
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "scaling_factor": 0.3,
        },
    ),
}


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    x, y = a.state_dict(), b.state_dict()
    assert x.keys() == y.keys()
    assert all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "2MB"])
def test_what_the_reference_saves_is_read(tmp_path: Path, case: str, variant: str | None, size: str) -> None:
    theirs, ours, fields = CASES[case]
    torch.manual_seed(0)
    reference = theirs(**fields)
    reference.save_pretrained(tmp_path, variant=variant, max_shard_size=size)
    loaded = load_model(ours, tmp_path, variant=variant)
    same(reference, loaded)
    assert all(plain(loaded.config[k]) == plain(reference.config[k]) for k in fields)


@pytest.mark.parametrize("case", CASES)
def test_pickled_weights_of_the_reference_are_read(tmp_path: Path, case: str) -> None:
    theirs, ours, fields = CASES[case]
    reference = theirs(**fields).half()
    reference.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    same(reference, load_model(ours, tmp_path))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("variant", "size", "safe"), [(None, "10GB", True), ("fp16", "2MB", True), (None, "1GB", False)]
)
def test_the_reference_reads_what_is_saved(
    tmp_path: Path, case: str, variant: str | None, size: str, safe: bool
) -> None:
    theirs, ours, fields = CASES[case]
    torch.manual_seed(0)
    theirs(**fields).save_pretrained(tmp_path / "a")
    loaded = load_model(ours, tmp_path / "a", dtype="float16")
    loaded.save_pretrained(tmp_path / "b", variant=variant, max_shard_size=size, safe_serialization=safe)
    back, info = theirs.from_pretrained(
        tmp_path / "b", variant=variant, use_safetensors=safe, torch_dtype=torch.float16, output_loading_info=True
    )
    same(back, loaded)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(plain(back.config[k]) == plain(loaded.config[k]) for k in fields)


def test_the_autoencoders_older_names_are_read(tmp_path: Path) -> None:
    theirs, ours, fields = CASES["vae"]
    reference = theirs(**fields)
    reference.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = safetensors.torch.load_file(file)
    for new, old in older.items():
        state = {k.replace(new, old): v for k, v in state.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in state
    safetensors.torch.save_file(state, file, {"format": "pt"})
    same(reference, load_model(ours, tmp_path))

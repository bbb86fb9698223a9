"""The parts of an AnimateDiff pipeline come from one shared file as they come from the published folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tests import shared_tiny as tiny

import kinema
from kinema.checkpoint.hub import box
from kinema.checkpoint.keys import write
from kinema.errors import CheckpointError, InputError
from kinema.families.animatediff import original_files
from kinema.families.animatediff.original_files import ORIGINALS, ORIGINALS_XL, from_originals
from kinema.pipelines.originals import made_of
from kinema.pipelines.parts import Source

SD15 = {"unet", "vae", "text_encoder", "scheduler"}
SDXL = {*SD15, "text_encoder_2"}


def shared(folder: Path, state: Any) -> Source:
    safetensors.torch.save_file(state, folder / "dreamy.safetensors")
    return Source(folder, dtype=torch.float32, file=folder / "dreamy.safetensors")


def loaded(source: Source, wanted: set[str]) -> dict[str, Any]:
    assert source.file is not None
    return from_originals(source, source.file, wanted)


def same(module: Any, expected: Any) -> None:
    own = write(module.state_dict(), getattr(module, "KEYS", ()))
    own = {k.removeprefix("text_model."): v for k, v in own.items() if "position_ids" not in k}
    theirs = {k.removeprefix("text_model."): v for k, v in expected.state_dict().items() if "position_ids" not in k}
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], v) for k, v in theirs.items())


def test_all_parts_of_stable_diffusion_come_from_one_file(tmp_path: Path) -> None:
    parts = loaded(shared(tmp_path, tiny.sd15_file()), SD15)
    assert parts.keys() == SD15
    same(parts["unet"], tiny.unet())
    same(parts["vae"], tiny.vae())
    same(parts["text_encoder"], tiny.text())
    assert parts["vae"].config.scaling_factor == 0.18215
    assert parts["text_encoder"].config.hidden_act == "quick_gelu"


def test_all_parts_of_sdxl_come_from_one_file(tmp_path: Path) -> None:
    parts = loaded(shared(tmp_path, tiny.sdxl_file()), SDXL)
    same(parts["unet"], tiny.unet(tiny.SDXL))
    same(parts["text_encoder"], tiny.text())
    same(parts["text_encoder_2"], tiny.text(projected=True, act="gelu"))
    assert parts["vae"].config.scaling_factor == 0.13025
    tokens = torch.tensor([[3, 5, 697, 0]])
    theirs = tiny.text(projected=True, act="gelu")(tokens).text_embeds
    torch.testing.assert_close(parts["text_encoder_2"](tokens).text_embeds, theirs)


def test_betas_are_those_of_motion_modules_and_velocity_is_told_by_its_mark(tmp_path: Path) -> None:
    scheduler = loaded(shared(tmp_path, tiny.sd15_file()), {"scheduler"})["scheduler"]
    assert (scheduler.config.beta_schedule, scheduler.config.prediction_type) == ("linear", "epsilon")
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    scheduler = loaded(shared(tmp_path, tiny.sdxl_file() | marks), {"scheduler"})["scheduler"]
    assert (scheduler.config.prediction_type, scheduler.config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert (scheduler.config.beta_schedule, scheduler.config.beta_end) == ("scaled_linear", 0.02)


def test_the_tokenizer_lies_beside_or_in_the_cache_or_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = shared(tmp_path, {"a": torch.zeros(1)})
    toy = box("toy")
    assert toy is not None

    def nowhere(name: str, **options: Any) -> Path:
        assert options == {"local_files_only": True}
        raise CheckpointError("not in the cache")

    monkeypatch.setattr(original_files, "local_folder", nowhere)
    with pytest.raises(CheckpointError, match=r"put the folder tokenizer_2/ of .* beside it, or pass tokenizer_2="):
        loaded(source, {"tokenizer_2"})
    monkeypatch.setattr(original_files, "local_folder", lambda name, **options: toy / "tokenizer")
    with caplog.at_level(logging.INFO, "kinema"):
        parts = loaded(source, {"tokenizer", "tokenizer_2"})
    assert "from the cache of the hub" in caplog.text and parts["tokenizer_2"].pad_token == "!"
    monkeypatch.setattr(original_files, "local_folder", nowhere)
    (tmp_path / "tokenizer").symlink_to(toy / "tokenizer")
    assert len(loaded(source, {"tokenizer"})["tokenizer"]) == len(parts["tokenizer"])


@pytest.mark.parametrize(("part", "prefix"), [("vae", tiny.FIRST), ("text_encoder", tiny.TEXT), ("unet", tiny.SD)])
def test_what_a_file_lacks_is_named(tmp_path: Path, part: str, prefix: str) -> None:
    state = {k: v for k, v in tiny.sd15_file().items() if not k.startswith(prefix)}
    source = shared(tmp_path, state)
    with pytest.raises(CheckpointError, match=rf"holds no .*; pass {part}= too"):
        loaded(source, SD15)
    assert loaded(source, SD15 - {part}).keys() == SD15 - {part}


def test_a_file_leads_to_the_pipeline_of_its_kind(tmp_path: Path) -> None:
    class Moving:
        parts, originals = {"unet": 1}, ORIGINALS

    class MovingXL:
        parts, originals = {"unet": 1}, ORIGINALS_XL

    class Any_:
        parts, originals = {}, None

    known = (Moving, MovingXL)
    for state, right, wrong in ((tiny.sd15_file(), Moving, MovingXL), (tiny.sdxl_file(), MovingXL, Moving)):
        file = shared(tmp_path, state).file
        assert file is not None
        assert made_of(file, Any_, known) is right and made_of(file, right, known) is right
        with pytest.raises(CheckpointError, match=f"load it with {right.__name__}, not {wrong.__name__}"):
            made_of(file, wrong, known)
    file = shared(tmp_path, tiny.sd15_file(tiny.INPAINTING)).file
    assert file is not None
    with pytest.raises(CheckpointError, match=r"inpainting.*UNet2DConditionModel.from_single_file, and a pipeline"):
        made_of(file, Moving, known)
    torch.save(tiny.motion_file(tiny.motion()), tmp_path / "mm.ckpt")
    with pytest.raises(CheckpointError, match=r"motion module v2.*MotionAdapter.from_single_file, and a pipeline"):
        made_of(tmp_path / "mm.ckpt", Moving, known)
    assert kinema.MotionAdapter.from_single_file(tmp_path / "mm.ckpt").config.motion_max_seq_length == 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside the file, the tokenizer of the model in the box, whose vocabulary the tiny text encoder has."""
    toy = box("toy")
    assert toy is not None
    (tmp_path / "tokenizer").symlink_to(toy / "tokenizer")
    return tmp_path


def test_a_pipeline_from_one_file_makes_what_the_folder_of_the_same_weights_makes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {**tiny.SD15, "cross_attention_dim": 128, "sample_size": 64}
    source = shared(folder, tiny.sd15_file(fields))
    module = tiny.motion(block_out_channels=(32, 64), motion_layers_per_block=1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save({"state_dict": tiny.motion_file(module)}, folder / "mm.ckpt")
    call: dict[str, Any] = {"num_frames": 3, "height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}

    adapter = kinema.MotionAdapter.from_single_file(folder / "mm.ckpt")
    assert source.file is not None
    pipe = kinema.AnimateDiffPipeline.from_single_file(source.file, motion_adapter=adapter)
    assert pipe.scheduler.config.beta_schedule == "linear"
    frames = pipe("a red circle", generator=1, **call).frames

    pipe.save_pretrained(folder / "saved")
    again = kinema.AnimateDiffPipeline.from_pretrained(folder / "saved")
    torch.testing.assert_close(again("a red circle", generator=1, **call).frames, frames, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="needs a motion_adapter for this image model"):
        kinema.AnimateDiffPipeline.from_single_file(source.file)
    assert type(kinema.DiffusionPipeline.from_single_file(source.file, motion_adapter=adapter)).__name__ == (
        "AnimateDiffPipeline"
    )
    monkeypatch.setattr(original_files, "fill", lambda *args, **options: pytest.fail("weights were read before"))
    other = kinema.MotionAdapter.from_config({"block_out_channels": (32, 64, 64)})
    with pytest.raises(CheckpointError, match=r"The motion module is for a model of 3 levels .* take two that belong"):
        kinema.AnimateDiffPipeline.from_single_file(source.file, motion_adapter=other)

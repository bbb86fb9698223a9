"""A pipeline comes from its authors' own file as it comes from the published folder, and from no other file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from tests import i2vgen_tiny, svd_tiny
from tests import originals_tiny as tiny
from torch import Tensor

import kinema
from kinema.checkpoint import sources
from kinema.checkpoint.keys import write
from kinema.errors import CheckpointError, InputError
from kinema.families import (
    AutoencoderKL,
    DiffusionPipeline,
    I2VGenXLPipeline,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    VideoToVideoSDPipeline,
)


def same(module: Any, state: Mapping[str, Tensor]) -> None:
    own = write(module.state_dict(), tuple(getattr(type(module), "KEYS", ())))
    assert own.keys() == state.keys()
    assert all(torch.equal(own[k], state[k]) for k in own)


def bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("vision_model.").removeprefix("text_model."): v for k, v in state.items()}


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_svd(tmp_path_factory.mktemp("svd") / "svd.safetensors", tiny.SMALL_SVD)


@pytest.fixture(scope="module")
def i2vgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tiny.write_i2vgen(tmp_path_factory.mktemp("i2vgen"), tiny.ODD_I2VGEN)
    box = DiffusionPipeline.from_pretrained("toy")
    box.tokenizer.save_pretrained(str(file.parent / "tokenizer"))
    return file


def is_svd(pipe: Any) -> None:
    assert type(pipe) is StableVideoDiffusionPipeline
    same(pipe.unet, tiny.plain(tiny.svd_net(tiny.SMALL_SVD)))
    same(pipe.vae, tiny.plain(tiny.temporal_net()))
    assert pipe.unet.config.num_frames == 14 and pipe.unet.config.num_attention_heads == (1, 2)
    pictures = bare(pipe.image_encoder.state_dict())
    theirs = bare(tiny.prefixed(tiny.picture_net(), "vision_model."))
    assert all(torch.equal(pictures[k], theirs[k]) for k in theirs)
    assert pipe.scheduler.config.prediction_type == "v_prediction" and pipe.scheduler.config.sigma_max == 700
    assert pipe.feature_extractor.side == (28, 28)  # what the encoder was trained to see
    assert not pipe.unet.training and not any(p.requires_grad for p in pipe.unet.parameters())


def test_svd_comes_from_its_file_and_from_a_folder_with_it(svd: Path) -> None:
    is_svd(StableVideoDiffusionPipeline.from_single_file(svd))
    is_svd(DiffusionPipeline.from_single_file(str(svd), torch_dtype="float32"))
    is_svd(DiffusionPipeline.from_pretrained(svd.parent))
    assert DiffusionPipeline.from_single_file(svd, dtype=torch.bfloat16).dtype == torch.bfloat16


def processor() -> transformers.CLIPImageProcessor:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def copied(pipe: Any) -> Any:
    """With weights in memory of their own: products of numbers mapped from odd addresses are rounded otherwise."""
    for module in pipe.modules().values():
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
    return pipe


def test_svd_makes_the_clip_of_the_networks_the_file_was_made_of(svd: Path) -> None:
    published = diffusers.StableVideoDiffusionPipeline(
        unet=tiny.svd_net(tiny.SMALL_SVD),
        vae=tiny.temporal_net(),
        image_encoder=tiny.picture_net(),
        scheduler=diffusers.EulerDiscreteScheduler(**svd_tiny.SCHEDULER),
        feature_extractor=processor(),
    )
    call = {"image": svd_tiny.picture(), **svd_tiny.SIZE, "generator": 3, "output_type": "np"}
    own = copied(StableVideoDiffusionPipeline.from_single_file(svd))
    np.testing.assert_array_equal(own(**call).frames, svd_tiny.twin(published)(**call).frames)


def test_i2vgen_makes_the_clip_of_the_networks_the_files_were_made_of(i2vgen: Path) -> None:
    own = copied(I2VGenXLPipeline.from_single_file(i2vgen))
    published = diffusers.I2VGenXLPipeline(
        unet=tiny.i2vgen_net(tiny.ODD_I2VGEN),
        vae=tiny.image_vae(),
        text_encoder=tiny.text_net(),
        image_encoder=tiny.picture_net(width=128),
        tokenizer=own.tokenizer,
        scheduler=diffusers.DDIMScheduler(**i2vgen_tiny.SCHEDULER),
        feature_extractor=processor(),
    )
    call = {"prompt": "a", "image": i2vgen_tiny.picture(), **i2vgen_tiny.SIZE, "generator": 3, "output_type": "np"}
    np.testing.assert_array_equal(own(**call).frames, i2vgen_tiny.twin(published)(**call).frames)


def test_what_is_saved_after_that_is_the_published_folder(svd: Path, tmp_path: Path) -> None:
    pipe = StableVideoDiffusionPipeline.from_single_file(svd)
    pipe.save_pretrained(tmp_path / "saved")
    is_svd(DiffusionPipeline.from_pretrained(tmp_path / "saved"))


def test_an_image_decoder_file_gives_a_pipeline_with_the_plain_autoencoder(tmp_path: Path) -> None:
    rules = tiny.svd_rules(tiny.SMALL_SVD)
    state = tiny.svd_file(tiny.svd_net(tiny.SMALL_SVD), tiny.image_vae(), tiny.picture_net(), rules)
    safetensors.torch.save_file(state, tmp_path / "svd_image_decoder.safetensors")
    pipe = StableVideoDiffusionPipeline.from_single_file(tmp_path / "svd_image_decoder.safetensors")
    assert type(pipe.vae) is AutoencoderKL
    same(pipe.vae, tiny.plain(tiny.image_vae()))


def test_a_denoiser_alone_needs_the_other_networks(svd: Path, tmp_path: Path) -> None:
    state = write(tiny.plain(tiny.svd_net(tiny.SMALL_SVD)), tiny.svd_rules(tiny.SMALL_SVD))
    file = tmp_path / "svd_tuned.safetensors"
    safetensors.torch.save_file(state, file)
    with pytest.raises(CheckpointError, match="holds only the U-Net; pass vae= and image_encoder= too"):
        StableVideoDiffusionPipeline.from_single_file(file)
    whole = StableVideoDiffusionPipeline.from_single_file(svd)
    others = {name: part for name, part in whole.components.items() if name not in ("unet", "scheduler")}
    pipe = StableVideoDiffusionPipeline.from_single_file(file, **others)
    assert pipe.vae is whole.vae
    is_svd(pipe)


def test_i2vgen_comes_from_its_file_and_those_beside_it(i2vgen: Path) -> None:
    for pipe in (I2VGenXLPipeline.from_single_file(i2vgen), DiffusionPipeline.from_pretrained(i2vgen.parent)):
        assert type(pipe) is I2VGenXLPipeline
        same(pipe.unet, tiny.plain(tiny.i2vgen_net(tiny.ODD_I2VGEN)))
        same(pipe.vae, tiny.plain(tiny.image_vae()))
        assert pipe.text_encoder.config.num_hidden_layers == 2  # all: the call says how many to leave out
        assert (
            pipe.scheduler.config.rescale_betas_zero_snr and pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
        )


def test_what_lies_beside_is_not_needed_where_it_is_passed(i2vgen: Path, tmp_path: Path) -> None:
    alone = tmp_path / i2vgen.name
    alone.write_bytes(i2vgen.read_bytes())
    with pytest.raises(CheckpointError, match="have no tokenizer; put the folder tokenizer/ of i2vgen-xl beside"):
        I2VGenXLPipeline.from_single_file(alone)
    whole = I2VGenXLPipeline.from_single_file(i2vgen)
    given = {name: part for name, part in whole.components.items() if name != "unet"}
    with pytest.raises(CheckpointError, match=r"v2-1_512-ema-pruned.ckpt beside it, or pass vae="):
        I2VGenXLPipeline.from_single_file(alone, **{k: v for k, v in given.items() if k != "vae"})
    assert I2VGenXLPipeline.from_single_file(alone, **given).vae is whole.vae


# what is refused, by name


def test_a_file_of_another_family_is_refused_with_the_pipeline_to_use(svd: Path, i2vgen: Path) -> None:
    for cls in (TextToVideoSDPipeline, VideoToVideoSDPipeline, I2VGenXLPipeline):
        with pytest.raises(CheckpointError, match=f"StableVideoDiffusionPipeline, not {cls.__name__}"):
            cls.from_single_file(svd)
        with pytest.raises(CheckpointError, match=f"original files of StableVideo.*, not {cls.__name__}"):
            cls.from_pretrained(svd.parent)
    for cls in (TextToVideoSDPipeline, StableVideoDiffusionPipeline):
        with pytest.raises(CheckpointError, match=f"I2VGenXLPipeline, not {cls.__name__}"):
            cls.from_single_file(i2vgen)
        with pytest.raises(CheckpointError, match=f"original files of I2VGenXL.*, not {cls.__name__}"):
            cls.from_pretrained(i2vgen.parent)


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "a LoRA": (
        {
            "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 4),
            "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.lora_B.weight": torch.ones(4, 2),
        },
        r"'LoRA \(diffusers\)', for Stable Video Diffusion; load a pipeline, then this with load_lora_weights",
    ),
    "a published network": (
        {"transformer_in.norm.weight": torch.ones(2), "down_blocks.0.temp_convs.0.conv1.0.weight": torch.ones(2)},
        r"'ModelScope U-Net', .* UNet3DConditionModel.from_pretrained",
    ),
    "part of an image model": (
        {"model.diffusion_model.a": torch.ones(2), "cond_stage_model.transformer.b": torch.ones(2)},
        "holds no autoencoder; pass vae= too",
    ),
    "nothing known": ({"a": torch.ones(2, 3, 4)}, "no kind of weights that kinema knows; from_single_file takes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    state, message = REFUSED[name]
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        DiffusionPipeline.from_single_file(tmp_path / "x.safetensors")


def test_what_is_no_file_or_no_argument_is_refused(svd: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder; give a file, or load the folder with from_pretrained"):
        DiffusionPipeline.from_single_file(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist; give a file, or its address"):
        DiffusionPipeline.from_single_file(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"StableVideoDiffusionPipeline.from_single_file has no argument text_encoder"):
        DiffusionPipeline.from_single_file(svd, text_encoder=None)
    with pytest.raises(CheckpointError, match=r"from_single_file"):
        StableVideoDiffusionPipeline.from_pretrained(svd)


def test_several_originals_in_a_folder_must_be_told_apart(svd: Path, tmp_path: Path) -> None:
    for name in ("svd.safetensors", "svd_xt.safetensors", "svd_lora.safetensors"):
        (tmp_path / name).write_bytes(svd.read_bytes())
    with pytest.raises(CheckpointError, match=r"\(svd.safetensors, svd_xt.safetensors\); say which with from_single_f"):
        DiffusionPipeline.from_pretrained(tmp_path)
    assert DiffusionPipeline.from_single_file(tmp_path / "svd_xt.safetensors").unet.config.num_frames == 25


def test_addresses_on_the_hub_are_taken_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def fetch(repository: str, name: str, **hub: Any) -> Path:
        asked.append((repository, name, hub["revision"]))
        return tmp_path

    monkeypatch.setattr(sources, "weights_file", fetch)
    sources.original_file("https://huggingface.co/some/model/blob/main/svd_xt.safetensors", revision=None)
    sources.original_file("https://hf.co/some/model/resolve/v1.0/sub/x.pth", revision=None)
    assert asked == [("some/model", "svd_xt.safetensors", "main"), ("some/model", "sub/x.pth", "v1.0")]


def test_inspect_and_loading_call_files_the_same(svd: Path, i2vgen: Path) -> None:
    assert kinema.inspect(svd).kind in StableVideoDiffusionPipeline.originals.kinds
    assert kinema.inspect(i2vgen).kind in I2VGenXLPipeline.originals.kinds
    assert kinema.inspect(i2vgen.parent).problems == ()

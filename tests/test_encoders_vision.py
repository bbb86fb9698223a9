"""An image encoder comes from published files as they are, and pictures reach it as the files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.svd_tiny import vision
from transformers import CLIPImageProcessor

from kinema.encoders.vision import MEAN, STD, FeatureExtractor, resized, vision_encoder_from
from kinema.errors import CheckpointError

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Any:
    return vision(side=32)


@pytest.fixture
def config(model: Any) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return said


@pytest.fixture
def state(model: Any) -> dict[str, torch.Tensor]:
    return {key.removeprefix("vision_model."): value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_either_spelling_of_the_keys_gives_the_same_model(
    model: Any, config: dict[str, Any], state: dict[str, torch.Tensor], prefix: str
) -> None:
    given = {key if key.startswith("visual_projection") else prefix + key: value for key, value in state.items()}
    given[prefix + "embeddings.position_ids"] = torch.arange(17)[None]
    given |= {"text_model.embeddings.token_embedding.weight": torch.ones(2, 2), "logit_scale": torch.ones(())}
    ours = vision_encoder_from(config, given)
    assert torch.equal(ours(PIXELS).image_embeds, model(PIXELS).image_embeds)
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert not any(t.is_meta for t in (*ours.parameters(), *ours.buffers()))


def test_a_whole_clip_configuration_gives_its_image_half(
    model: Any, config: dict[str, Any], state: dict[str, torch.Tensor]
) -> None:
    half = {key: value for key, value in config.items() if key != "projection_dim"}
    whole = {"model_type": "clip", "vision_config": half, "text_config": {"hidden_size": 8}, "projection_dim": 16}
    assert torch.equal(vision_encoder_from(whole, state)(PIXELS).image_embeds, model(PIXELS).image_embeds)


def test_weights_that_do_not_fit_are_named(config: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"image encoder's weights .*missing .*visual_projection\.weight"):
        vision_encoder_from(config, {k: v for k, v in state.items() if k != "visual_projection.weight"})
    with pytest.raises(CheckpointError, match="unexpected odd"):
        vision_encoder_from(config, {**state, "odd": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"\(2, 2\) in the file and \(16, 32\)"):
        vision_encoder_from(config, {**state, "visual_projection.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match="model_type 't5'; only CLIP's image model"):
        vision_encoder_from({**config, "model_type": "t5"}, state)


def test_a_feature_extractor_is_read_written_and_means_what_the_library_s_means(tmp_path: Path) -> None:
    theirs = CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], crop_size=32)
    ours = FeatureExtractor.of(theirs)
    assert ours.mean == (0.1, 0.2, 0.3) and ours.side == (32, 32)
    assert FeatureExtractor.read(ours.to_dict()) == ours == FeatureExtractor.of(ours)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FeatureExtractor().to_dict()))
    read = CLIPImageProcessor.from_pretrained(tmp_path)
    assert tuple(read.image_mean) == MEAN and tuple(read.image_std) == STD
    picture = torch.rand(1, 3, 32, 32)
    plain = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "return_tensors": "pt"}
    assert torch.allclose(ours.normalize(picture), theirs(picture, **plain).pixel_values, atol=1e-6)


@pytest.mark.parametrize(
    "field", [{"image_mean": [0.5]}, {"image_std": [0, 1, 1]}, {"crop_size": {"width": 3}}, {"image_mean": "grey"}]
)
def test_a_feature_extractor_that_cannot_be_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="three numbers of each colour"):
        FeatureExtractor.read(field)


def test_shrinking_keeps_a_plain_colour_and_enlarging_the_corners() -> None:
    plain = torch.full((1, 3, 70, 90), 0.25)
    assert torch.allclose(resized(plain, (7, 9)), torch.full((1, 3, 7, 9), 0.25), atol=1e-6)
    small = torch.rand(1, 3, 3, 4)
    assert torch.allclose(resized(small, (9, 9))[..., ::8, ::8], small[..., ::2, ::3], atol=1e-6)

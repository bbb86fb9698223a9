"""A text encoder comes from published files as they are: either spelling of keys, any dtype, no network, no copy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import encoders_tiny as tiny
from transformers import CLIPTextModel

from kinema.encoders.clip import load_tokenizer, text_encoder_from, with_parts
from kinema.encoders.prompts import encode
from kinema.errors import CheckpointError


@pytest.fixture(scope="module")
def model():
    return tiny.text_encoder()


@pytest.fixture
def config(model):
    return json.loads(model.config.to_json_string(use_diff=False))


@pytest.fixture
def state(model):
    return {key.removeprefix("text_model."): value.clone() for key, value in model.state_dict().items()}


@pytest.fixture
def tok(tmp_path):
    return load_tokenizer(tiny.tokenizer_folder(tmp_path / "tokenizer"))


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("extra", [False, True])
def test_either_spelling_of_the_keys_gives_the_same_model(model, config, state, tok, prefix, extra):
    given = {prefix + key: value for key, value in state.items()}
    if extra:  # what old files hold beside the weights, and the other half of CLIP
        given[prefix + "embeddings.position_ids"] = torch.arange(77)[None]
        given |= {"vision_model.embeddings.class_embedding": torch.ones(3), "text_projection.weight": torch.ones(2, 2)}
        given |= {"visual_projection.weight": torch.ones(2, 2), "logit_scale": torch.ones(())}
    ours = text_encoder_from(config, given)
    assert torch.equal(encode(tok, ours, ["a red circle"]), encode(tok, model, ["a red circle"]))
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert not any(t.is_meta for t in (*ours.parameters(), *ours.buffers()))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_written_by_the_library_is_read(model, tok, tmp_path, variant):
    source = model if variant is None else tiny.text_encoder().half()
    source.save_pretrained(tmp_path, variant=variant)
    name = "model.safetensors" if variant is None else "model.fp16.safetensors"
    ours = text_encoder_from(json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / name))
    assert ours.dtype == source.dtype
    assert torch.equal(encode(tok, ours, ["a cat"]), encode(tok, source, ["a cat"]))


def test_what_kinema_loads_the_library_reads_back(config, state, tok, tmp_path):
    ours = text_encoder_from(config, state)
    ours.save_pretrained(tmp_path)
    theirs = CLIPTextModel.from_pretrained(tmp_path, local_files_only=True).eval()
    assert torch.equal(encode(tok, ours, ["a cat"]), encode(tok, theirs, ["a cat"]))


def test_a_whole_clip_configuration_gives_its_text_half(model, config, state, tok):
    whole = {"model_type": "clip", "text_config": config, "vision_config": {"hidden_size": 8}, "projection_dim": 8}
    ours = text_encoder_from(whole, state)
    assert torch.equal(encode(tok, ours, ["a cat"]), encode(tok, model, ["a cat"]))


def test_stale_keys_of_published_configurations_are_ignored(config, state):
    stale = {"torch_dtype": "float16", "transformers_version": "4.20.0", "_name_or_path": "x", "dropout": 0.0}
    assert text_encoder_from({**config, **stale, "nobody_knows": [1]}, state).dtype == torch.float32


def test_weights_are_taken_as_they_are_or_converted_once(config, state):
    as_stored = text_encoder_from(config, state)
    assert {p.data_ptr() for p in as_stored.parameters()} == {t.data_ptr() for t in state.values()}
    assert text_encoder_from(config, state, torch.float16).dtype == torch.float16


def test_loading_draws_no_random_numbers(config, state):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    text_encoder_from(config, state)
    assert torch.equal(torch.rand(1), expected)


def test_weights_that_do_not_fit_are_named(config, state):
    first = "encoder.layers.0.mlp.fc1.weight"
    with pytest.raises(CheckpointError, match=rf"missing .*{first}"):
        text_encoder_from(config, {key: value for key, value in state.items() if key != first})
    with pytest.raises(CheckpointError, match=r"unexpected layers\.9\.odd"):
        text_encoder_from(config, {**state, "layers.9.odd": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"unexpected encoder\.layers\.4\.\S+, .* and 13 more"):
        text_encoder_from({**config, "num_hidden_layers": 4}, state)
    with pytest.raises(CheckpointError, match=rf"{first} is \(2, 2\) in the file and \(37, 32\)"):
        text_encoder_from(config, {**state, first: torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=rf"{first} holds NaN"):
        text_encoder_from(config, {**state, first: torch.full((37, 32), float("nan"))})
    with pytest.raises(CheckpointError, match=rf"{first} holds .* as torch\.float16"):
        text_encoder_from(config, {**state, first: torch.full((37, 32), 1e5)}, torch.float16)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 5},
        {"hidden_act": "sine"},
        {"model_type": "t5"},
        {"vocab_size": -1},
    ],
)
def test_a_configuration_that_is_not_clips_is_refused(config, state, change):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        text_encoder_from({**config, **change}, state)


def test_a_tokenizer_folder_without_files_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    (tiny.tokenizer_folder(tmp_path / "broken") / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(tmp_path / "broken")


def test_a_tokenizer_saved_in_one_file_reads_the_same(tok, tmp_path):
    tok.save_pretrained(tmp_path / "again")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "again" / name).unlink(missing_ok=True)
    again = load_tokenizer(tmp_path / "again")
    assert again("a Red circle!")["input_ids"] == tok("a Red circle!")["input_ids"]
    assert again.model_max_length == 77


def test_a_lighter_model_shares_the_weights(model):
    light = with_parts(model, skip=2)
    assert len([n for n in light.state_dict() if n.endswith("fc1.weight")]) == 3
    assert {p.data_ptr() for p in light.parameters()} < {p.data_ptr() for p in model.parameters()}
    assert all(p.requires_grad for p in model.parameters())


def test_importing_the_encoders_does_not_import_transformers():
    code = "import kinema.encoders.prompts, sys; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_mapped_files_are_read_without_a_copy(config, state, tok, model, tmp_path):
    save_file({"text_model." + key: value for key, value in state.items()}, tmp_path / "model.safetensors")
    mapped = load_file(tmp_path / "model.safetensors")
    ours = text_encoder_from(config, mapped)
    assert {p.data_ptr() for p in ours.parameters()} == {t.data_ptr() for t in mapped.values()}
    assert torch.equal(encode(tok, ours, ["a"]), encode(tok, model, ["a"]))

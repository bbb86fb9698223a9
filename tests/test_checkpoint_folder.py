"""Which files of a published folder are read, and what is said when they are not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kinema.checkpoint.folder import component, find, read_json, variants
from kinema.errors import CheckpointError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names(folder: Path, *args: object) -> list[str]:
    return [file.name for file in find(folder, *args).files]  # type: ignore[arg-type]


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    touch(tmp_path, "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors")
    assert names(tmp_path) == ["diffusion_pytorch_model.safetensors"]
    assert names(tmp_path, None, False) == ["diffusion_pytorch_model.bin"]


def test_components_of_transformers_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "pytorch_model.bin", "pytorch_model.fp16.bin", "model.fp16.safetensors")
    assert names(tmp_path) == ["pytorch_model.bin"]
    assert names(tmp_path, "fp16") == ["model.fp16.safetensors"]
    assert variants(tmp_path) == {None, "fp16"}


@pytest.mark.parametrize("spelling", ["{stem}.fp16-{i}.safetensors", "{stem}-{i}.fp16.safetensors"])
def test_shards_are_named_by_their_index_in_either_spelling(tmp_path: Path, spelling: str) -> None:
    files = [spelling.format(stem="diffusion_pytorch_model", i=f"0000{i}-of-00002") for i in (1, 2)]
    touch(tmp_path, *files)
    index = {"weight_map": {"a": files[0], "b": files[1], "c": files[0]}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(index))
    located = find(tmp_path, "fp16")
    assert [file.name for file in located.files] == files and located.names == index["weight_map"]
    assert variants(tmp_path) == {"fp16"}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00002.safetensors, .* not there; .*there are"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_may_name_only_files_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not one beside it"):
        find(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="no usable weight_map"):
        find(tmp_path)


def test_a_variant_that_is_not_there_says_which_are(tmp_path: Path) -> None:
    touch(tmp_path, "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"no 'fp16' variant .* these are there: the plain ones \(variant=None\)"):
        find(tmp_path, "fp16")
    touch(tmp_path / "x", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.bin")
    with pytest.raises(CheckpointError, match=r"no plain weights .* variant='fp16' and variant='non_ema'"):
        find(tmp_path / "x")


def test_a_variant_of_some_components_leaves_the_others_plain(tmp_path: Path) -> None:
    touch(tmp_path, "model_index.json")
    touch(tmp_path / "unet", "diffusion_pytorch_model.fp16.safetensors")
    touch(tmp_path / "vae", "diffusion_pytorch_model.safetensors")
    assert names(tmp_path / "vae", "fp16") == ["diffusion_pytorch_model.safetensors"]
    with pytest.raises(CheckpointError, match="no 'bf16' variant"):
        find(tmp_path / "vae", "bf16")


def test_no_weights_at_all_says_what_there_is(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "notes.txt")
    with pytest.raises(CheckpointError, match=r"no weights in .*; in .* there are: config.json, notes.txt"):
        find(tmp_path)
    touch(tmp_path, "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        find(tmp_path, None, True)
    with pytest.raises(CheckpointError, match=r"unett is not a folder; in .* there are: .*config.json"):
        component(tmp_path, "unett")


@pytest.mark.parametrize(
    ("content", "says"), [("", "not valid JSON"), ("[]", "must hold a JSON object"), ("[" * 100_000, "not valid JSON")]
)
def test_json_that_cannot_be_used_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(tmp_path / "model_index.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_json(tmp_path / "bytes.json")

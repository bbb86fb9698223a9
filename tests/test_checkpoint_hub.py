"""From an id to a folder: what is here comes first, only what is needed is fetched, each failure says what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from kinema.checkpoint.hub import BOX, box, local_folder
from kinema.checkpoint.wanted import Wanted
from kinema.errors import CheckpointError

MS = [
    ".gitattributes",
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/pytorch_model.fp16.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.safetensors",
    "samples/clip.gif",
]


def weights(names: list[str]) -> list[str]:
    return [n for n in names if n.endswith((".bin", ".safetensors", ".pth", ".ckpt"))]


def test_safetensors_of_the_chosen_variant_alone_are_fetched() -> None:
    assert weights(Wanted().of(MS)) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert weights(Wanted(variant="fp16").of(MS)) == [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",  # there is no other
    ]
    assert weights(Wanted(variant="fp16", use_safetensors=False).of(MS)) == [
        "text_encoder/pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.fp16.bin",
        "vae/diffusion_pytorch_model.bin",
    ]


def test_configurations_and_vocabularies_come_along_and_samples_do_not() -> None:
    rest = set(Wanted().of(MS)) - set(weights(MS))
    assert rest == {n for n in MS if n.endswith((".json", ".txt"))}


def test_one_component_is_fetched_alone() -> None:
    assert Wanted(subfolder="unet").of(MS) == ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]


def test_shards_of_either_spelling_come_with_their_index() -> None:
    plain = ["diffusion_pytorch_model.safetensors.index.json"]
    plain += [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    ours = ["diffusion_pytorch_model.safetensors.index.fp16.json"]
    ours += [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    theirs = [f"diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
    names = ["config.json", *plain, *ours, *theirs]
    assert weights(Wanted().of(names)) == sorted(weights(plain))
    assert set(weights(Wanted(variant="fp16").of(names))) == set(weights(ours + theirs))


def test_original_and_adapter_repositories_are_known() -> None:
    from kinema.checkpoint.originals import TEXT, UNET, VAE

    assert set(weights(Wanted().of([UNET, VAE, TEXT, "configuration.json", "other.ckpt"]))) == {UNET, VAE, TEXT}
    release = ["i2vgen_xl_00854500.pth", "open_clip_pytorch_model.bin", "v2-1_512-ema-pruned.ckpt"]
    assert weights(Wanted().of([*release, "stable_diffusion_image_key_temporal_attention_x1.json", "x.pth"])) == release
    assert weights(Wanted().of(["pytorch_lora_weights.safetensors", "other.safetensors"])) == [
        "pytorch_lora_weights.safetensors"
    ]
    assert Wanted(weight_name="b.safetensors").of(["a.safetensors", "b.safetensors"]) == ["b.safetensors"]
    assert Wanted("in", weight_name="b.bin").of(["b.bin", "in/b.bin"]) == ["in/b.bin"]
    assert weights(Wanted().of(["learned_embeds.bin", "learned_embeds.safetensors"])) == ["learned_embeds.safetensors"]
    with pytest.raises(CheckpointError, match=r"several files .* \(a.safetensors, b.safetensors\).*weight_name"):
        Wanted().of(["a.safetensors", "b.safetensors"])


# from a name to a folder


@pytest.fixture(autouse=True)
def no_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


class Hub:
    """Stands for huggingface_hub and notes what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, names: Any = MS, error: Exception | None = None):
        self.asked: list[dict[str, Any]] = []
        self.folder, self.names, self.error = folder, names, error
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)

    def model_info(self, name: str, **more: Any) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in self.names])

    def snapshot_download(self, name: str, **more: Any) -> str:
        self.asked.append({"name": name, **more})
        if more.get("local_files_only") and not self.folder.exists():
            raise errors.LocalEntryNotFoundError("not cached")
        return str(self.folder)


def test_a_folder_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_folder("a/b") == Path("a/b")
    assert local_folder(tmp_path) == tmp_path
    assert not hub.asked


def test_the_box_answers_to_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert {name: local_folder(name) for name in BOX} == {name: box(name) for name in BOX}
    assert local_folder("mine", resolver=lambda name: tmp_path if name == "mine" else None) == tmp_path
    assert not hub.asked


def test_an_id_is_fetched_with_all_that_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, tmp_path)
    folder = local_folder(
        "ali/ms", variant="fp16", revision="r", token="t", cache_dir=tmp_path / "cache", force_download=True
    )
    assert folder == tmp_path
    (asked,) = hub.asked
    assert asked["allow_patterns"] == Wanted(variant="fp16").of(MS)
    assert (asked["revision"], asked["token"], asked["cache_dir"]) == ("r", "t", tmp_path / "cache")
    assert asked["force_download"] is True


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_only_the_cache_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    hub = Hub(monkeypatch, tmp_path, error=AssertionError("the network was asked"))
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    more = {"local_files_only": True} if how == "argument" else {}
    assert local_folder("ali/ms", **more) == tmp_path
    assert hub.asked[0]["local_files_only"] is True
    hub.folder = tmp_path / "none"
    with pytest.raises(CheckpointError, match=r"'ali/ms' is not in the cache.*HF_HUB_OFFLINE"):
        local_folder("ali/ms", **more)


def test_the_cache_of_the_hub_is_found_without_a_network(tmp_path: Path) -> None:
    repo = tmp_path / "models--ali--ms"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc" / "unet").mkdir(parents=True)
    found = local_folder("ali/ms", cache_dir=tmp_path, local_files_only=True)
    assert found == repo / "snapshots" / "abc"


def test_a_cache_with_a_part_of_a_repository_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Incomplete(FileNotFoundError):
        snapshot_path = str(tmp_path)

    def snapshot_download(name: str, **more: Any) -> str:
        raise Incomplete

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert local_folder("ali/ms", local_files_only=True) == tmp_path


def test_without_a_network_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, tmp_path, error=ConnectionError("unreachable"))
    assert local_folder("ali/ms") == tmp_path
    hub.folder = tmp_path / "none"
    with pytest.raises(CheckpointError, match="not in the cache and the hub cannot be reached"):
        local_folder("ali/ms")


def refusal(cls: type[Exception]) -> Exception:
    """An error of the hub, without the answer of a server that its constructor wants."""
    return cls.__new__(cls, "refused")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refusal(errors.RepositoryNotFoundError), "neither a folder here nor a repository"),
        (refusal(errors.GatedRepoError), "is gated: accept its terms .* token="),
        (refusal(errors.RevisionNotFoundError), "no revision 'r'"),
        (OSError("disk\nlong story"), "cannot be fetched from the hub: disk."),
    ],
)
def test_each_failure_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    Hub(monkeypatch, tmp_path / "none", error=error)
    with pytest.raises(CheckpointError, match=says):
        local_folder("ali/ms", revision="r")


def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, tmp_path)
    (tmp_path / "there").mkdir()
    for name in (tmp_path / "nope", f"{tmp_path}/nope", "./no/where", "../x", "nope", "a/b/c", "~/nope"):
        with pytest.raises(CheckpointError, match="does not exist"):
            local_folder(name)
    with pytest.raises(CheckpointError, match=r"there are: there/"):
        local_folder(tmp_path / "nope")
    (tmp_path / "f.safetensors").write_text("")
    with pytest.raises(CheckpointError, match="is a file; a folder"):
        local_folder(tmp_path / "f.safetensors")
    assert not hub.asked


def test_a_component_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing to load by the name 'motion'; it holds .*README"):
        local_folder("ali/ms", subfolder="motion")

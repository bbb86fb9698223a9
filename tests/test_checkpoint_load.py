"""A model goes to its folder and comes back exactly, and everything wrong with a folder is said in one sentence."""

from __future__ import annotations

import json
import resource
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from kinema.checkpoint.keys import Alias, Drop, Fuse, Rename
from kinema.checkpoint.load import Pretrained, build, load_model, save_model
from kinema.config import Config
from kinema.errors import CheckpointError, InputError


@dataclass(frozen=True, kw_only=True)
class TinyConfig(Config):
    width: int = 8
    layers: int = 3


class Tiny(Pretrained):
    config_class = TinyConfig
    KEYS = (
        Drop(r"position_ids"),
        Alias(r"\.old_name\.", ".norm."),
        Rename(".out.0.", ".out."),
        Fuse((".q.", ".k."), ".qk."),
    )

    def __init__(self, config: TinyConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.layers))
        self.register_buffer("waves", torch.arange(5.0).exp(), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.qk = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.GroupNorm(4, width)
        self.conv = nn.Conv3d(width, width, (3, 1, 1))
        self.mix = nn.Parameter(torch.randn(1))


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny(TinyConfig()).eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("limit", ["10GB", "2KB"])
def test_what_is_saved_loads_the_same(tmp_path: Path, tiny: Tiny, safe: bool, variant: str | None, limit: str) -> None:
    save_model(tiny, tmp_path, variant=variant, safe_serialization=safe, max_shard_size=limit)
    loaded = load_model(Tiny, tmp_path, variant=variant)
    assert same(loaded, tiny)
    assert loaded.config == tiny.config
    assert len(list(tmp_path.glob("*-of-*"))) == (0 if limit == "10GB" else 3)


def test_a_loaded_model_is_for_running_and_has_its_constants(tmp_path: Path, tiny: Tiny) -> None:
    tiny.save_pretrained(tmp_path)
    loaded = Tiny.from_pretrained(tmp_path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.waves, torch.arange(5.0).exp())
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert loaded.num_parameters() == sum(p.numel() for p in tiny.parameters())
    assert loaded.device.type == "cpu"


def test_published_names_are_in_the_file(tmp_path: Path, tiny: Tiny) -> None:
    tiny.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert {"blocks.0.q.weight", "blocks.0.k.bias", "blocks.2.out.0.weight"} <= state.keys()
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "Tiny"


def test_old_spellings_and_idle_keys_are_read(tmp_path: Path, tiny: Tiny) -> None:
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = {k.replace(".norm.", ".old_name."): v for k, v in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(state | {"position_ids": torch.arange(3)}, file)
    assert same(load_model(Tiny, tmp_path), tiny)


@pytest.mark.parametrize("name", ["float16", "fp16", "torch.float16", torch.float16])
def test_a_dtype_goes_by_any_of_its_names(tmp_path: Path, tiny: Tiny, name: object) -> None:
    tiny.save_pretrained(tmp_path)
    for word in ("dtype", "torch_dtype", "mindspore_dtype"):
        assert Tiny.from_pretrained(tmp_path, **{word: name}).dtype == torch.float16
    assert load_model(Tiny, tmp_path, dtype=name).count.dtype == torch.int64
    with pytest.raises(InputError, match="not known"):
        load_model(Tiny, tmp_path, dtype="float17")


def test_building_draws_no_random_number_and_takes_no_memory() -> None:
    before = torch.get_rng_state()
    model = build(Tiny, {"width": 40_000})
    assert torch.equal(before, torch.get_rng_state())
    assert model.blocks[0].qk.weight.is_meta and not model.waves.is_meta


def test_loading_in_one_thread_leaves_others_alone() -> None:
    seen = []
    from kinema.checkpoint.fill import _Unfilled

    with _Unfilled():
        thread = threading.Thread(target=lambda: seen.append(torch.empty(2).is_meta))
        thread.start()
        thread.join()
    assert seen == [False]


def test_casting_never_holds_a_second_copy(tmp_path: Path) -> None:
    big = Tiny(TinyConfig(width=512, layers=12))  # about 90 MB in fp32
    big.half().save_pretrained(tmp_path)
    Tiny(TinyConfig()).save_pretrained(tmp_path / "small")
    size = sum(p.numel() * 4 for p in big.parameters())
    largest = max(p.numel() * 4 for p in big.parameters())
    del big
    script = f"""
import resource, sys, torch
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1] / "src")]!r}
from test_checkpoint_load import Tiny
from kinema.checkpoint.load import load_model

def anonymous():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024

warm = load_model(Tiny, {str(tmp_path / "small")!r}, dtype="float32")  # what libraries take once does not count
before, peak = anonymous(), 0
import kinema.checkpoint.fill as module
placed = module._placed
def watched(*args):
    global peak
    out = placed(*args)
    peak = max(peak, anonymous())
    return out
module._placed = watched
model = load_model(Tiny, {str(tmp_path)!r}, dtype="float32")
print(peak - before)
"""
    import subprocess
    import sys

    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(out.stdout) < size + 2 * largest + 4e6


def test_weights_of_the_same_format_stay_mapped(tmp_path: Path, tiny: Tiny) -> None:
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    loaded = load_model(Tiny, tmp_path)
    storages = {loaded.blocks[i].conv.weight.untyped_storage().data_ptr() for i in range(3)}
    assert len(storages) == 1
    with torch.no_grad():
        loaded.blocks[0].conv.weight.zero_()
    assert file.read_bytes() == before


# what is wrong is said


def broken(tmp_path: Path, tiny: Tiny, change: object) -> Path:
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    change(state)  # type: ignore[operator]
    safetensors.torch.save_file(state, file)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("blocks.1.norm.weight"), "lacks blocks.1.norm.weight"),
        (lambda s: s.update({"motion": torch.ones(1)}), "has motion too many"),
        (lambda s: s.update({"blocks.0.mix": torch.ones(2)}), r"blocks.0.mix has the shape \[2\].* says \[1\]"),
        (lambda s: s["blocks.2.conv.bias"].fill_(float("nan")), "blocks.2.conv.bias holds NaN"),
        (lambda s: s["blocks.2.conv.bias"][3:4].fill_(float("-inf")), "blocks.2.conv.bias holds NaN or infinite"),
        (lambda s: s.pop("blocks.0.q.weight"), "lacks blocks.0.q.weight"),
    ],
)
def test_wrong_weights_are_refused_by_name(tmp_path: Path, tiny: Tiny, change: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load_model(Tiny, broken(tmp_path, tiny, change))


def test_numbers_too_large_for_the_format_are_refused(tmp_path: Path, tiny: Tiny) -> None:
    folder = broken(tmp_path, tiny, lambda s: s["blocks.0.mix"].fill_(1e6))
    assert load_model(Tiny, folder).blocks[0].mix.item() == 1e6
    with pytest.raises(CheckpointError, match=r"blocks.0.mix does not fit float16.*bfloat16"):
        load_model(Tiny, folder, dtype="float16")


def test_another_class_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    class Other(Tiny):
        pass

    Other(TinyConfig()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a Other, not a Tiny"):
        load_model(Tiny, tmp_path)


def test_a_wrong_configuration_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    tiny.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"width": "wide"}')
    with pytest.raises(CheckpointError, match=r"config.json: width is 'wide'"):
        load_model(Tiny, tmp_path)
    (tmp_path / "config.json").write_text('{"width": ')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_model(Tiny, tmp_path)


def test_an_unwritable_folder_leaves_nothing(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        tiny.save_pretrained(tmp_path / "taken")


@pytest.mark.parametrize("safe", [True, False])
def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path, tiny: Tiny, safe: bool) -> None:
    tiny.save_pretrained(tmp_path, safe_serialization=safe)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, old[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            tiny.save_pretrained(tmp_path, safe_serialization=safe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_saving_again_removes_shards_that_no_longer_belong(tmp_path: Path, tiny: Tiny) -> None:
    tiny.save_pretrained(tmp_path, max_shard_size="2KB")
    tiny.save_pretrained(tmp_path, variant="fp16", max_shard_size="2KB")
    tiny.save_pretrained(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert not any(n.startswith("diffusion_pytorch_model-") for n in names)
    assert "diffusion_pytorch_model.safetensors" in names
    assert sum(n.startswith("diffusion_pytorch_model.fp16-") for n in names) == 3

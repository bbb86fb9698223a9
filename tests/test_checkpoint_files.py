"""Files of weights are mapped, read without running them, and refused with one sentence when something is wrong."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from kinema.checkpoint.files import open_weights
from kinema.checkpoint.save import write_safetensors
from kinema.errors import CheckpointError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


def some_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {f"a.{i}": torch.randn(3, i + 1).mul(9).to(dtype) for i, dtype in enumerate(DTYPES)}
    base = torch.randn(6, 5)
    return state | {
        "view": base[1:4, 2:],
        "transposed": base.T,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }


def check(path: Path, state: dict[str, torch.Tensor]) -> None:
    weights = open_weights(path)
    assert set(weights) == set(state)
    for name, x in state.items():
        assert weights[name].dtype == x.dtype
        assert torch.equal(weights[name], x)
        assert weights.stored[name].shape == tuple(x.shape)


def test_safetensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    state = {k: v.contiguous().clone() for k, v in some_state().items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", {"note": "hello"})
    check(tmp_path / "w.safetensors", state)
    assert open_weights(tmp_path / "w.safetensors").metadata == {"note": "hello"}


def test_what_is_written_the_safetensors_library_reads(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", some_state(), {"note": "hello"})
    check(tmp_path / "w.safetensors", some_state())
    read = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(read[k], v) for k, v in some_state().items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".bin", ".pth", ".ckpt", ".pt"])
def test_pickled_tensors_are_read(tmp_path: Path, legacy: bool, suffix: str) -> None:
    torch.save(some_state(), tmp_path / f"w{suffix}", _use_new_zipfile_serialization=not legacy)
    check(tmp_path / f"w{suffix}", some_state())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_any_protocol_is_read(tmp_path: Path, protocol: int, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(some_state(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    check(path, some_state())


@pytest.mark.parametrize("legacy", [False, True])
def test_trainers_files_are_read_for_their_weights(tmp_path: Path, legacy: bool) -> None:
    linear = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(linear.parameters())
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "global_step": 12,
        "state_dict": collections.OrderedDict(linear.state_dict()),
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {"best": torch.tensor(1.0)},
        "hyper_parameters": collections.defaultdict(dict, size=torch.Size([3])),
        "dtype": torch.float16,
    }
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
    check(tmp_path / "w.ckpt", dict(linear.state_dict()))
    assert open_weights(tmp_path / "w.ckpt").metadata["global_step"] == 12


@pytest.mark.parametrize("legacy", [False, True])
def test_modules_parameters_and_shared_storages_are_read(tmp_path: Path, legacy: bool) -> None:
    p = torch.nn.Parameter(torch.randn(2, 3))
    state = {"p": p, "same": p, "part": p.data[1], "module.norm.weight": torch.nn.Parameter(torch.ones(2))}
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    check(tmp_path / "w.pth", state)


def test_idle_extras_become_placeholders(tmp_path: Path) -> None:
    import numpy as np

    content = {"weights": torch.ones(2), "best": np.float64(0.3), "path": Path("x"), "size": torch.Size([2])}
    torch.save(content, tmp_path / "w.pth")
    check(tmp_path / "w.pth", {"weights": torch.ones(2)})


def test_nothing_is_read_before_it_is_touched(tmp_path: Path) -> None:
    x = torch.randn(1000)
    for path in (tmp_path / "w.pth", tmp_path / "w.safetensors"):
        torch.save({"x": x}, path) if path.suffix == ".pth" else write_safetensors(path, {"x": x})
        a, b = open_weights(path), open_weights(path)
        assert a["x"].data_ptr() != b["x"].data_ptr()
        assert a["x"].data_ptr() == a["x"].data_ptr()  # one mapping a file, no copies
        a["x"].zero_()
        assert torch.equal(b["x"], x) and torch.equal(open_weights(path)["x"], x)


# hostile


class Evil:
    def __init__(self, what: Any, *args: Any):
        self.what = what, args

    def __reduce__(self) -> Any:
        return self.what


def zipped(path: Path, program: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", b"3")
        for name, data in entries.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", data)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((os.system, "touch {}"), "posix.system"),
        ((eval, "open('{}', 'w')"), "builtins.eval"),
        ((exec, "open('{}', 'w')"), "builtins.exec"),
        ((torch.load, "{}"), "torch.serialization.load"),
        ((getattr, "x", "upper"), "builtins.getattr"),
        ((__import__, "os"), "builtins.__import__"),
        ((torch.hub.load, "{}"), "torch.hub.load"),
        ((open, "{}", "w"), "io.open"),
        ((torch.nn.Linear, 2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_hostile_pickle_never_runs(tmp_path: Path, call: Any, name: str, nested: bool, legacy: bool) -> None:
    trace = tmp_path / "it ran"
    evil: Any = Evil(call[0], *(a.format(trace) if isinstance(a, str) else a for a in call[1:]))
    content = {"state_dict": {"w": torch.ones(2), "x": [evil]}} if nested else evil
    torch.save(content, tmp_path / "w.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=f"asks for {name}.*nothing in it ran"):
        open_weights(tmp_path / "w.bin")
    assert not trace.exists()


def test_a_hostile_plain_pickle_never_runs(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Evil(os.system, f"touch '{trace}'")))
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        open_weights(tmp_path / "w.pth")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"(S'touch x'\nios\nsystem\n.", "instruction INST"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02cos\nsystem\n.", "asks for os.system"),
        (b"\x80\x04\x8c\x05torch\x8c\x0ehub.load_state\x93.", "asks for torch.hub.load_state"),
        (b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.", "holds no tensors|no file of tensors"),
        (b"\x80\x02K\x01K\x02R.", "calls something|no name"),
        (b"\x80\x02N", "truncated"),
        (b"\x80\x02u.", "truncated"),
        (b"\x80\x02]\x8c\xffabc", "truncated"),
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x00.", "truncated"),
        (b"h\x05.", "truncated"),
        (b"", "truncated"),
        (b"}.", "holds no tensors"),
    ],
)
def test_a_malformed_program_is_refused(tmp_path: Path, program: bytes, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        open_weights(zipped(tmp_path / "w.pth", program))
    (tmp_path / "old.pth").write_bytes(program.ljust(16, b"."))
    with pytest.raises(CheckpointError):
        open_weights(tmp_path / "old.pth")


def rebuilt(numel: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A program that asks for one tensor, with numbers of one's choice."""

    storage = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if obj is storage else None

    class Fake:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, {})

    out = io.BytesIO()
    Pickler(out, 2).dump({"x": Fake()})
    return out.getvalue()


def test_a_tensor_stays_within_its_storage(tmp_path: Path) -> None:
    data = torch.arange(6.0).numpy().tobytes()
    good = zipped(tmp_path / "good.pth", rebuilt(6, 1, (2, 2), (3, 1)), data_0=data)
    assert open_weights(good)["x"].tolist() == [[1, 2], [4, 5]]
    for numel, offset, shape, strides in [
        (6, 0, (7,), (1,)),
        (6, 3, (2, 2), (3, 1)),
        (6, -1, (2,), (1,)),
        (6, 0, (2, 2), (-1, 1)),
        (6, 0, (2,), (1, 1)),
        (600, 0, (600,), (1,)),
        (6, 0, (2**40, 2**40), (0, 0)),
        (6, 0, (2**80,), (0,)),
    ]:
        with pytest.raises(CheckpointError):
            open_weights(zipped(tmp_path / "bad.pth", rebuilt(numel, offset, shape, strides), data_0=data))


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", rebuilt(2**22, 0, (2**22,), (1,)))
        archive.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(CheckpointError, match="compressed"):
        open_weights(path)


def test_lists_of_lists_of_lists_end(tmp_path: Path) -> None:
    inner: list[Any] = []
    for _ in range(6):
        inner = [inner] * 2000
    with pytest.raises(CheckpointError, match="more entries than any model"):
        open_weights(zipped(tmp_path / "w.pth", pickle.dumps(inner, 2)))


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "w.pt", pickle.dumps({}, 2), code_model=b"def f(): ...")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        open_weights(path)


# broken


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_of_a_pickled_file_is_noticed(tmp_path: Path, legacy: bool) -> None:
    torch.save(
        {"x": torch.randn(40), "y": torch.ones(3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy
    )
    whole = (tmp_path / "w.pth").read_bytes()
    for n in [*range(0, len(whole), 7), len(whole) - 1]:
        (tmp_path / "cut.pth").write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=r"cut\.pth"):
            open_weights(tmp_path / "cut.pth")


def test_every_truncation_of_safetensors_is_noticed(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", {"x": torch.randn(40), "y": torch.ones(3)})
    whole = (tmp_path / "w.safetensors").read_bytes()
    for n in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=r"cut.safetensors"):
            open_weights(tmp_path / "cut.safetensors")


def raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "do not agree"),
        ({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, "do not agree"),
        ({"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, "do not agree"),
        ({"x": {"dtype": "F32", "shape": [2**61], "data_offsets": [0, 2**63]}}, "do not agree"),
        ({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "do not agree"),
        ({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "'F99', which is not known"),
        ({"x": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, "malformed"),
        ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, "malformed"),
        ({"x": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "malformed"),
        ({"x": 3}, "malformed"),
        ([1], "not a JSON object"),
        (b"{nonsense", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        ({f"{n}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "xy"}, "overlaps"),
        ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "truncated"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: Any, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        open_weights(raw(tmp_path / "w.safetensors", header, bytes(12)))


def test_an_absurd_header_length_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        open_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (bytes(100), "truncated or no file of tensors|nothing torch wrote|not one torch wrote"),
        (b"PK\x03\x04" + bytes(60), "truncated|damaged"),
    ],
)
def test_files_that_are_something_else_are_called_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        open_weights(tmp_path / "w.bin")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_weights(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        open_weights(tmp_path)


def test_odd_addresses_are_read(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    for pad in range(4):
        text = json.dumps(header).encode() + b" " * pad
        path = raw(tmp_path / f"{pad}.safetensors", text, struct.pack("<2f", 1.5, -2))
        assert open_weights(path)["x"].tolist() == [1.5, -2]

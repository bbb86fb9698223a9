"""Says from headers alone what a file or folder of weights is, what it fits, and what is wrong with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from .dtypes import short
from .files import Stored, open_weights
from .fill import build, misfit
from .folder import CONFIG, INDEX, find, read_json, variants, within
from .hub import box
from .keys import read
from .kinds import kind_of
from .loadable import way
from .originals import TEXT, UNET, VAE, is_modelscope
from .originals_i2vgen import ENCODERS, VAES, i2vgen_files

_ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
MOST_FILES = 24  # of a folder of loose files
_LIGHTNING = re.compile(r"lightning\D*(\d)-?_?step")  # AnimateDiff-Lightning differs from version 2 in numbers only

Classes = Mapping[str, type[nn.Module]]


@dataclass(frozen=True)
class Report:
    """What was found. `str()` is a short text for people."""

    path: str
    kind: str
    fits: str = ""
    model: str = ""  # the class it belongs to, by its published name
    format: str = ""  # "safetensors", "pickled", "folder"
    dtype: str = ""  # "float16", or "float16 and float32" where they mix
    parameters: int = 0
    tensors: int = 0
    bytes: int = 0
    variants: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    parts: tuple[Report, ...] = ()
    load: str = ""  # the call that takes it

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(self._lines(""))

    def _lines(self, indent: str) -> list[str]:
        amount = f"{_count(self.parameters)} parameters in {self.tensors} tensors, {_size(self.bytes)}"
        facts = [self.model, self.format, self.dtype, amount] if self.tensors else [self.format]
        lines = [f"{indent}{Path(self.path).name or self.path}: {self.kind}{f', for {self.fits}' * bool(self.fits)}"]
        lines.append(f"{indent}  {', '.join(fact for fact in facts if fact)}")
        lines += [f"{indent}  load it with {self.load}"] * bool(self.load and self.format in ("safetensors", "pickled"))
        lines += [f"{indent}  variants: {', '.join(self.variants)}"] * bool(self.variants)
        lines += [f"{indent}  ! {problem}" for problem in self.problems]
        return lines + [line for part in self.parts for line in part._lines(indent + "  ")]


def inspect(path: str | Path, classes: Classes | None = None) -> Report:
    """What a file or folder is; no weight is read.

    Args:
        path: where it is, or a name of a model in the box ("toy", "toy-svd").
        classes: model classes by their published names, to compare weights with configurations.

    Raises:
        CheckpointError: there is nothing at this path.
    """
    path = box(str(path)) or Path(path).expanduser()
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist.")
    if (path / INDEX).is_file():
        return _pipeline(path, classes or {})
    if (path / CONFIG).is_file():
        return _component(path, classes or {})
    return _loose(path)


def _file(path: Path) -> Report:
    form = "safetensors" if path.suffix == ".safetensors" else "pickled"
    problems = []
    try:
        stored = open_weights(path).stored
    except CheckpointError as error:
        problems.append(str(error))
        try:
            stored = open_weights(path, complete=False).stored
        except CheckpointError:
            return Report(str(path), "unreadable", format=form, bytes=path.stat().st_size, problems=tuple(problems))
    report = _described(str(path), stored, form)
    if report.model == "MotionAdapter" and (steps := _LIGHTNING.search(path.name.lower())):
        report = replace(report, fits=f"{report.fits}, in {steps[1]} steps by its name")
    return replace(report, problems=(*problems, *report.problems))


def _described(path: str, stored: Mapping[str, Stored], form: str) -> Report:
    kind, fits = kind_of({name: at.shape for name, at in stored.items()})
    floats = Counter(at.dtype for at in stored.values() if at.dtype.is_floating_point)
    use = way(kind)
    problems = []
    if kind == "unknown":
        problems.append(f"no kind is known with keys such as {', '.join(list(stored)[:3])}")
    if len(floats) > 1:
        counts = ", ".join(f"{n} tensors {short(dtype)}" for dtype, n in floats.most_common())
        problems.append(f"mixed number formats: {counts}")
    if any(dtype.itemsize == 8 for dtype in floats):
        problems.append("float64 weights take twice the space and gain nothing")
    if any(name.startswith("model_ema.") for name in stored):
        problems.append("a second, averaged set of weights (model_ema) takes space and is not used")
    if form == "pickled":
        problems.append("pickled: kinema reads it without running it, others may not; safetensors is safer")
    return Report(
        path,
        kind,
        fits,
        use.model if use else "",
        form,
        " and ".join(short(dtype) for dtype, _ in floats.most_common()),
        sum(at.numel for at in stored.values()),
        len(stored),
        sum(at.nbytes for at in stored.values()),
        problems=tuple(problems),
        load=str(use) if use else "",
    )


def _component(folder: Path, classes: Classes) -> Report:
    """A folder with one model: config.json and weights."""
    problems: list[str] = []
    config: dict[str, Any] = {}
    names = tuple(sorted(v for v in variants(folder) if v))
    try:
        config = read_json(folder / CONFIG)
        located = find(folder, None if None in variants(folder) or not names else names[0])
        reports = [_file(file) for file in located.files]
        stored = {name: at for file in located.files for name, at in open_weights(file, complete=False).stored.items()}
    except CheckpointError as error:
        return Report(str(folder), "unreadable", format="folder", variants=names, problems=(str(error),))
    report = _described(str(folder), stored, reports[0].format)
    for one in reports:
        problems += [p for p in one.problems if p not in problems and p not in report.problems and "no kind" not in p]
    name = str(config.get("_class_name") or (config.get("architectures") or [""])[0])
    if lost := sorted(set(located.names or ()) - set(stored)):
        problems.append(f"the index promises {len(lost)} tensors that no shard has, such as {lost[0]}")
    if cls := classes.get(name):
        problems += _against(cls, config, stored, str(folder))
    form = f"folder with {report.format}"
    load = f"{report.model}.from_pretrained" if report.model else ""
    problems += report.problems
    return replace(report, format=form, variants=names, load=load, problems=tuple(problems))


def _against(cls: type[nn.Module], config: Mapping[str, Any], stored: Mapping[str, Stored], where: str) -> list[str]:
    """What does not fit between a configuration and the weights beside it."""
    try:
        model = build(cls, config, where)
        unknown = cls.config_class.read(config, where).unknown if hasattr(cls, "config_class") else {}
    except (CheckpointError, ValueError, ArithmeticError) as error:
        return [str(error)]
    rules = tuple(getattr(model, "KEYS", ()))
    state = read({k: torch.empty(at.shape, dtype=at.dtype, device="meta") for k, at in stored.items()}, rules)
    wrong = misfit(state, model.state_dict(), rules, cls.__name__, where)
    unused = sorted(key for key in unknown if not key.startswith("_"))
    stale = [f"config.json has keys that nothing uses: {', '.join(unused)}"] if unused else []
    return ([wrong] if wrong else []) + stale


def _pipeline(folder: Path, classes: Classes) -> Report:
    try:
        index = read_json(folder / INDEX)
    except CheckpointError as error:
        return Report(str(folder), "unreadable", format="folder", problems=(str(error),))
    parts, problems, names = [], [], set[str]()
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            continue
        part = within(folder, name)
        if not part.is_dir():
            problems.append(f"{INDEX} names {name}, but there is no folder {name}")
        elif (part / CONFIG).is_file() or variants(part):
            parts.append(_component(part, classes))
            names |= set(parts[-1].variants)
    return _together(folder, f"{index.get('_class_name')} pipeline", parts, problems, tuple(sorted(names)))


def _loose(folder: Path) -> Report:
    """A folder without configurations: an original release, or a collection of files."""
    if is_modelscope(folder):
        return _release(folder, "ModelScope text-to-video, original files", ((UNET,), (VAE,), (TEXT,)))
    if unets := i2vgen_files(folder):
        return _release(folder, "I2VGen-XL, original files", ((unets[0].name,), VAES, ENCODERS))
    files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS)
    problems = [] if files else ["there are no weights in it"]
    if len(files) > MOST_FILES:
        problems.append(f"{len(files) - MOST_FILES} more files are not shown")
    kind = "files of weights" if files else "unknown"
    return _together(folder, kind, [_file(file) for file in files[:MOST_FILES]], problems)


def _release(folder: Path, kind: str, wanted: Iterable[tuple[str, ...]]) -> Report:
    """A release of several files, each by one of its names."""
    parts, problems = [], []
    for names in wanted:
        there = [folder / name for name in names if (folder / name).is_file()]
        parts += [_file(file) for file in there[:1]]
        problems += [f"{names[0]} is missing"] * (not there)
    return _together(folder, kind, parts, problems)


def _together(folder: Path, kind: str, parts: list[Report], problems: list[str], names: tuple[str, ...] = ()) -> Report:
    formats = dict.fromkeys(part.dtype for part in parts if part.dtype)
    return Report(
        str(folder),
        kind,
        format="folder",
        dtype=", ".join(formats),
        parameters=sum(part.parameters for part in parts),
        tensors=sum(part.tensors for part in parts),
        bytes=sum(part.bytes for part in parts),
        variants=names,
        problems=tuple(problems),
        parts=tuple(parts),
    )


def _count(n: float) -> str:
    for unit in ("", "k", "M"):
        if n < 1000:
            return f"{n:.4g}{unit}"
        n /= 1000
    return f"{n:.4g}G"


def _size(n: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.4g} {unit}"
        n /= 1000
    return f"{n:.4g} GB"

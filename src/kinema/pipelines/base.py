"""What every pipeline can do whatever its family: come from files and go back to them, move, and bound its memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self
from weakref import WeakSet

import torch
from torch import nn

from ..checkpoint.dtypes import to_dtype
from ..checkpoint.folder import INDEX, read_json
from ..checkpoint.hub import local_folder
from ..checkpoint.save import readable_errors, write_json
from ..errors import CheckpointError, InputError
from ..memory.moving import move
from ..memory.residency import Mode, Residency
from ..memory.room import Memory, checked, numbered
from .compat import familiar_names, unknown_argument
from .originals import Originals, made_of, original_file
from .parts import Part, Source, Target, begin_reading

_PIPELINES: WeakSet[DiffusionPipeline] = WeakSet()  # all there are: they may have networks in common
_lock = Lock()


class DiffusionPipeline:
    """A pipeline: named parts and what to do with them. Loaded through this class, the folder says which it is."""

    parts: ClassVar[Mapping[str, Part]] = {}  # in the order a call needs them
    published: ClassVar[tuple[str, ...]] = ()  # other class names by which folders call this pipeline
    originals: ClassVar[Originals | None] = None  # how files are read that its authors first published
    known: ClassVar[dict[str, type[DiffusionPipeline]]] = {}
    accepts: ClassVar[frozenset[str]] = frozenset()  # other pipelines' folders that hold what this one needs
    settings: ClassVar[Mapping[str, Any]] = {}  # what a folder's index says beside the parts, and what goes without it

    # What `from_pipe` hands on beside the parts, and beside what a class's parents name.
    inherited: ClassVar[tuple[str, ...]] = (
        "name_or_path",
        "_progress",
        "inversions",
        "_memory",
        "_moved_by_plan",
    )

    name_or_path: str = ""

    _memory: Memory = "auto"
    _moved_by_plan: bool = False  # whether weights come from the host because a plan said so, and nobody else

    vae: Any
    unet: Any
    scheduler: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.parts:
            DiffusionPipeline.known |= dict.fromkeys((cls.__name__, *cls.published), cls)

    def __init__(self, **components: Any):
        if unknown := sorted(set(components) - {*self.parts, *self.settings}):
            raise InputError(unknown_argument(unknown[0], (*self.parts, *self.settings), type(self).__name__))
        needed = sorted(name for name, part in self.parts.items() if not part.optional)
        if missing := [name for name in needed if components.get(name) is None]:
            raise InputError(f"{type(self).__name__} needs {', '.join(missing)} too.")
        for name in self.parts:
            setattr(self, name, components.get(name))
        for name, default in self.settings.items():
            setattr(self, name, components.get(name, default))
        self._progress: dict[str, Any] = {}
        self._residency = Residency(Networks(self))
        with _lock:
            _PIPELINES.add(self)

    # ---------------------------------------------------------------- files

    @classmethod
    @familiar_names
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype: Any = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        memory: Memory = "auto",
        **components: Any,
    ) -> Self:
        """Loads a pipeline from a folder, from the hub, or from what ships with kinema.

        Args:
            pretrained_model_name_or_path: a folder in the published layout or with a family's original files; a hub
                id; or a name of a model in the box ("toy", "toy-svd").
            dtype: the number format of all networks, a torch dtype or its name, float32 by default; `torch_dtype`
                is its older name.
            variant: which of several published sets of weights ("fp16").
            use_safetensors: True for those only, False for `.bin` only; by default the first that there is.
            revision, token, cache_dir, local_files_only, force_download: as huggingface_hub has them.
            memory: what calls may take of the device they run on; see `memory`.
            **components: parts to use instead of the folder's (`scheduler=`, `unet=`, …).

        Raises:
            CheckpointError: something is missing, broken, or another model's; the message says what to do.
            InputError: an argument is unknown, or dtype is none.
        """
        dtype, memory = to_dtype(dtype) or torch.float32, checked(memory)
        folder = local_folder(
            pretrained_model_name_or_path,
            variant=variant,
            use_safetensors=use_safetensors,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        chosen, index = cls._chosen(folder)
        source = Source(folder, variant, dtype, use_safetensors)
        pipe = chosen._from(source, index, components, f"{pretrained_model_name_or_path}")
        pipe.memory = memory
        return pipe

    @classmethod
    @familiar_names
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        dtype: Any = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        memory: Memory = "auto",
        **components: Any,
    ) -> Self:
        """Loads a pipeline from the file its authors first published (`svd_xt.safetensors`, `i2vgen_xl_00854500.pth`).

        What such a file does not hold is looked for beside it, or passed. `kinema inspect` tells what a file is.

        Args:
            pretrained_model_link_or_path: a file, or its address on the hub
                (`https://huggingface.co/owner/name/blob/main/file`).
            dtype: the number format of all networks, as for `from_pretrained`.
            revision, token, cache_dir, local_files_only, force_download: as huggingface_hub has them.
            memory: what calls may take of the device they run on; see `memory`.
            **components: parts to use instead of the file's, or that it does not hold (`tokenizer=`, `vae=`, …).

        Raises:
            CheckpointError: the file is missing, broken, or another model's; the message names what it is.
            InputError: an argument is unknown, or dtype is none.
        """
        dtype, memory = to_dtype(dtype) or torch.float32, checked(memory)
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir}
        more = {"local_files_only": local_files_only, "force_download": force_download}
        file = original_file(pretrained_model_link_or_path, **hub, **more)
        chosen = made_of(file, cls, dict.fromkeys(cls.known.values()))
        made: Self = chosen._from(Source(file.parent, dtype=dtype, file=file), {}, components, str(file))
        made.memory = memory
        return made

    @classmethod
    def _from(cls, source: Source, index: Mapping[str, Any], components: Mapping[str, Any], name: str) -> Self:
        """The pipeline of a source, with some components given."""
        if unknown := sorted(set(components) - {*cls.parts, *cls.settings}):
            who = f"{cls.__name__}.{'from_single_file' if source.file else 'from_pretrained'}"
            raise InputError(unknown_argument(unknown[0], (*cls.parts, *cls.settings), who))
        cls._check(source.folder, index, given=set(components))
        loaded = cls._load(source, index, set(cls.parts) - set(components))
        settings = {name: components.get(name, index.get(name, default)) for name, default in cls.settings.items()}
        pipe = cls(**{name: components.get(name, loaded.get(name)) for name in cls.parts}, **settings)
        pipe.name_or_path = name
        return pipe

    @classmethod
    def _load(cls, source: Source, index: Mapping[str, Any], wanted: set[str]) -> dict[str, Any]:
        """The wanted parts of a folder, or of original files where there is no index."""
        if not index and cls.originals is not None:
            return cls.originals.of(source, wanted)
        there = {name for name, entry in index.items() if isinstance(entry, (list, tuple)) and entry[-1] is not None}
        parts = {
            name: part
            for name, part in cls.parts.items()
            if name in wanted and (name in there or not (part.optional and index))
        }
        begin_reading(source, [name for name, part in parts.items() if part.is_module])
        return {name: part.load(source, name) for name, part in parts.items()}

    @classmethod
    def _chosen(cls, folder: Path) -> tuple[type[Self], Mapping[str, Any]]:
        """The class to build: this one, or the one the folder names where this is the common parent."""
        if not (folder / INDEX).is_file():
            made: Any = [p for p in dict.fromkeys(cls.known.values()) if p.has_original_files(folder)]
            if cls in made or (made and not cls.parts):
                return (cls if cls in made else made[0]), {}
            if made:
                name = made[0].__name__
                raise CheckpointError(
                    f"{folder} has the original files of {name}; load it with that, not {cls.__name__}."
                )
        index = read_json(folder / INDEX)
        name = str(index.get("_class_name"))
        found = cls.known.get(name)
        if name in cls.accepts:
            return cls, index
        if found is None:
            names = ", ".join(sorted(cls.known))
            raise CheckpointError(f"{folder} is a {name}, which kinema does not know; it knows {names}.")
        if not cls.parts:
            return found, index  # type: ignore[return-value]
        if set(found.parts) != set(cls.parts):
            raise CheckpointError(f"{folder} is a {name}; load it with {found.__name__}, not {cls.__name__}.")
        return cls, index

    @classmethod
    def has_original_files(cls, folder: Path) -> bool:
        """Whether the folder holds this family's weights as its authors first published them."""
        return cls.originals is not None and bool(cls.originals.files(folder))

    @classmethod
    def _check(cls, folder: Path, index: Mapping[str, Any], given: set[str]) -> None:
        for name, part in cls.parts.items():
            entry = index.get(name)
            if not index or name in given:
                continue
            if part.optional and (index.get(name) or [None])[-1] is None:
                continue
            if not isinstance(entry, (list, tuple)) or len(entry) != 2 or entry[1] is None:
                raise CheckpointError(f"{folder / INDEX} has no {name}; pass one: from_pretrained(…, {name}=…).")
            if part.classes and entry[1] not in part.classes:
                expected = " or ".join(part.classes)
                raise CheckpointError(f"The {name} of {folder} is a {entry[1]}; {cls.__name__} needs a {expected}.")

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        variant: str | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Writes the folder layout of the hub, which diffusers reads as well.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        to = Target(Path(save_directory), variant, safe_serialization, max_shard_size)
        index: dict[str, Any] = {"_class_name": type(self).__name__}
        index |= {name: getattr(self, name) for name in self.settings}
        with readable_errors(to.folder):
            to.folder.mkdir(parents=True, exist_ok=True)
        for name, part in sorted(self.parts.items()):
            component = getattr(self, name)
            if component is None:
                index[name] = [None, None]
                continue
            part.save(component, to, name)
            index[name] = [part.library, part.called(component)]
        with readable_errors(to.folder):
            write_json(to.folder / INDEX, index)

    # ---------------------------------------------------------------- parts and places

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name: `OtherPipeline(**pipe.components)` shares them."""
        return {name: getattr(self, name) for name in self.parts}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **components: Any) -> Self:
        """This kind of pipeline on another one's parts, no weight loaded twice; what was set on it holds here too.

        What is set later (windows, FreeNoise, FreeU, numerics, IP-Adapters and their scales) is each pipeline's own.
        LoRAs are sums on the weights: pipelines with the same networks list and weigh the same ones, for all their
        clips. One that shares some networks and not others refuses LoRAs on those where another has some.
        """
        settings = {name: getattr(pipeline, name) for name in cls.settings if hasattr(pipeline, name)}
        made = cls(**{**{k: v for k, v in pipeline.components.items() if k in cls.parts}, **settings, **components})
        for name in {name for kind in cls.__mro__ for name in vars(kind).get("inherited", ())}:
            if hasattr(pipeline, name):
                setattr(made, name, getattr(pipeline, name))
        made._residency = replace(pipeline._residency, components=Networks(made))
        return made

    def _shares(self) -> bool:
        """Whether another pipeline has one of the networks; pipelines that nobody has any more do not count."""
        own = set(self.modules().values())

        def found() -> bool:
            return any(not own.isdisjoint(other.modules().values()) for other in self._other_pipelines())

        return found() and (gc.collect() >= 0 and found())

    def _other_pipelines(self) -> list[DiffusionPipeline]:
        with _lock:
            return [other for other in _PIPELINES if other is not self]

    def modules(self) -> Mapping[str, nn.Module]:
        """The networks among the parts, in the order a call needs them."""
        return Networks(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for m in self.modules().values() for p in m.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next((p.dtype for m in self.modules().values() for p in m.parameters()), torch.float32)

    @property
    def execution_device(self) -> torch.device:
        """Where a call computes, which is elsewhere than the weights while they are offloaded."""
        return self._residency.device if self._residency.moves else self.device

    def to(self, *target: Any, device: Any = None, dtype: Any = None) -> Self:
        """Moves and converts all networks: `to("cuda")`, `to(torch.float16)`, `to("cuda", "float16")`.

        Raises:
            InputError: a target is neither a device nor a number format, or the device is not there.
            MemoryBudgetError: they do not fit there; then they stay where they were.
        """
        for one in target:
            if isinstance(one, (torch.device, int)) or (isinstance(one, str) and _is_device(one)):
                device = one
            elif one is not None:
                dtype = one
        wanted = to_dtype(dtype)
        try:
            move(self.modules(), None if device is None else torch.device(device), wanted)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"The pipeline cannot go to {device}: {str(error).splitlines()[0]}") from error
        if device is not None:
            self.disable_offload()
        return self

    # ---------------------------------------------------------------- memory

    @property
    def memory(self) -> Memory:
        """What a call may take of the device it runs on, its weights included.

        "auto", what is free when it begins; bytes, or a size such as "6GB" or "5.5GiB"; None for no limit. Where a call
        would take more, it is made in another way that fits, the fastest there is, with the same result: guidance
        branches apart, decoding in little memory, weights from the host. What fits in no way is refused before it
        begins. What `enable_model_cpu_offload` and its like were told stays as told.
        """
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        self._memory = checked(memory)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keeps only the network at work on the accelerator. Exact; without an accelerator nothing changes."""
        self._offload_to("model", gpu_id, device)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keeps only the layer at work on the accelerator: least memory, slow. Exact."""
        self._offload_to("sequential", gpu_id, device)

    def disable_offload(self) -> None:
        """All networks stay where they are."""
        self._residency, self._moved_by_plan = Residency(Networks(self)), False

    def _offload_to(self, mode: Mode, index: int | None, device: Any) -> None:
        place = torch.device(device) if device is not None else accelerator()
        place = numbered(place if index is None or place.type == "cpu" else torch.device(place.type, index))
        self._residency, self._moved_by_plan = Residency(Networks(self), place, mode), False
        self._residency.settle()

    def _each(self, method: str, *arguments: Any) -> Iterator[None]:
        for module in self.modules().values():
            if hasattr(module, method):
                getattr(module, method)(*arguments)
                yield

    def enable_vae_slicing(self) -> None:
        """The autoencoder takes one picture at a time. Exact."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """The autoencoder's widest layers work on bands of a picture. Exact up to rounding."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        self.vae.disable_tiling()

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Fewer attention heads at once. Exact."""
        list(self._each("set_attention_slice", slice_size))

    def disable_attention_slicing(self) -> None:
        self.enable_attention_slicing(None)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options for tqdm, `disable=True` among them."""
        self._progress = options


class Networks(Mapping[str, nn.Module]):
    """A pipeline's networks by name, always those it has now."""

    def __init__(self, pipe: DiffusionPipeline):
        self._pipe = pipe

    def __getitem__(self, name: str) -> nn.Module:
        if name not in set(self):
            raise KeyError(name)
        module: nn.Module = getattr(self._pipe, name)
        return module

    def __iter__(self) -> Iterator[str]:
        parts = self._pipe.parts
        return (name for name, part in parts.items() if part.is_module and getattr(self._pipe, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def accelerator() -> torch.device:
    """The machine's accelerator, or the CPU where it has none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True

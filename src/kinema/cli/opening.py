"""From the options of a command to a pipeline: its model, what plugs into it, and where it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import lengths, names

# Pipelines of one family that share their weights, by what they take beside a prompt.
KINDS = {
    ("TextToVideoSDPipeline", "VideoToVideo"): "VideoToVideoSDPipeline",
    ("AnimateDiff", "VideoToVideo"): "AnimateDiffVideoToVideoPipeline",
    ("AnimateDiff", "ControlNet"): "AnimateDiffControlNetPipeline",
    ("AnimateDiff", "VideoToVideoControlNet"): "AnimateDiffVideoToVideoControlNetPipeline",
}


@dataclass(frozen=True)
class Setup:
    """Which model, where it runs and how it is changed; checked before anything is loaded."""

    model: str = "toy"
    device: str = "auto"
    dtype: str = "auto"
    variant: str | None = None
    scheduler: tuple[str, Mapping[str, Any]] | None = None  # class name, settings on top of the model's own
    loras: tuple[tuple[str, float], ...] = ()  # file, weight
    from_video: bool = False
    offload: str = "none"
    module: str | None = None  # a motion module for an image model
    cameras: tuple[tuple[str, float], ...] = ()  # motion LoRA, weight
    controls: tuple[tuple[str, str], ...] = ()  # ControlNet, what it is shown
    length: lengths.Length = field(default_factory=lengths.Length)
    numerics: str | None = None  # whose group norms motion modules compute with
    memory: int | str | None = "auto"  # what calls may take


def open_pipeline(setup: Setup, moved: bool = True) -> Any:
    """A pipeline ready to be called, or unless `moved` one to plan with, whose weights stay where they are.

    Raises:
        InputError: the device is not there.
        CheckpointError: the model or a LoRA cannot be loaded.
    """
    import torch

    import kinema

    device = device_of(setup.device)
    dtype = setup.dtype if setup.dtype != "auto" else "float32" if device == "cpu" else "float16"
    pipe = _changed(_opened(setup, getattr(torch, dtype)), setup, getattr(torch, dtype))
    if setup.scheduler:
        cls, settings = setup.scheduler
        pipe.scheduler = getattr(kinema, cls).from_config(pipe.scheduler.config, **settings)
    loras = [*setup.loras, *((_camera(setup, name), weight) for name, weight in setup.cameras)]
    for i, (file, _) in enumerate(loras):
        pipe.load_lora_weights(file, adapter_name=f"lora{i}")
    if loras:
        pipe.set_adapters([f"lora{i}" for i in range(len(loras))], [weight for _, weight in loras])
    lengths.settle(pipe, setup.length)
    if setup.numerics is not None:
        if not hasattr(pipe, "set_numerics"):
            raise InputError(f"This model ({type(pipe).__name__}) takes no --numerics; it has no motion module.")
        pipe.set_numerics(setup.numerics)
    pipe.memory = setup.memory
    if setup.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif setup.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif moved:
        pipe.run_on(device)
    else:
        pipe.await_weights(device)
    return pipe


def _opened(setup: Setup, dtype: Any) -> Any:
    """The pipeline of the model, with the motion module that is to move it."""
    import kinema

    model = setup.model
    if model in names.MODELS and not Path(model).exists():
        model = names.MODELS[model][0]
    more = {} if setup.module is None else {"motion_adapter": _loaded(kinema.MotionAdapter, setup.module, dtype)}
    loader: Any = kinema.AnimateDiffPipeline if setup.module is not None else kinema.DiffusionPipeline
    if Path(model).is_file():
        return loader.from_single_file(model, dtype=dtype, **more)
    return loader.from_pretrained(model, dtype=dtype, variant=setup.variant, **more)


def _loaded(cls: Any, source: str, dtype: Any) -> Any:
    """A network from a file, a folder or an id."""
    return (
        cls.from_single_file(source, dtype=dtype)
        if Path(source).is_file()
        else cls.from_pretrained(source, dtype=dtype)
    )


def _changed(pipe: Any, setup: Setup, dtype: Any) -> Any:
    """The pipeline on the same weights that takes what is asked for: footage, ControlNets.

    Raises:
        InputError: there is none of this family.
    """
    import kinema

    if not setup.from_video and not setup.controls:
        return pipe
    name = type(pipe).__name__
    family = "AnimateDiff" if name.startswith("AnimateDiff") else name
    kind = ("VideoToVideo" if setup.from_video else "") + ("ControlNet" if setup.controls else "")
    found = KINDS.get((family, kind))
    if found is None:
        what = "--control" if setup.controls else "--video"
        raise InputError(f"This model ({name}) takes no {what}.")
    nets = [_loaded(kinema.ControlNetModel, _net(setup, net), dtype) for net, _ in setup.controls]
    return getattr(kinema, found).from_pipe(
        pipe, **({"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {})
    )


def _camera(setup: Setup, name: str) -> str:
    """The file or id of a motion LoRA: one that comes with the model, a published one, or what was named."""
    from ..checkpoint.hub import box

    folder = box(setup.model)
    if folder is not None and (folder / "loras" / f"{name}.safetensors").is_file():
        return str(folder / "loras" / f"{name}.safetensors")
    return names.CAMERAS.get(name, name)


def _net(setup: Setup, name: str) -> str:
    """The file or id of a ControlNet: the one by outlines that comes with a model in the box, or what was named."""
    from ..checkpoint.hub import box

    folder = box(setup.model) if name == "outlines" else None
    return name if folder is None else str(folder / "controlnet")


def conditioning(controls: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """What ControlNets are shown, as a call's argument.

    Raises:
        MediaError: it cannot be read.
    """
    shown = [_frames(Path(place)) for _, place in controls]
    return {} if not shown else {"conditioning_frames": shown if len(shown) > 1 else shown[0]}


def _frames(place: Path) -> list[Any]:
    from ..media import load_image, load_video

    if place.is_dir():
        pictures = sorted(p for p in place.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        if not pictures:
            raise InputError(f"{place} holds no pictures; a ControlNet is shown one for each frame.")
        return [load_image(str(picture)) for picture in pictures]
    return list(load_video(str(place)))


def device_of(name: str) -> str:
    """The device `auto` stands for, or the one named, if this machine has it.

    Raises:
        InputError: it has not.
    """
    import torch

    from .. import distributed
    from ..pipelines.base import accelerator

    if name == "auto":
        return str(distributed.device() if distributed.started() else accelerator())
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"--device {name!r} cannot be used here ({first}); `kinema doctor` lists what can.") from None
    return name

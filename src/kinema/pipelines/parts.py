"""The parts a pipeline is made of: how each kind comes from a published folder, and how it goes back to one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.files import let_go, read_ahead
from ..checkpoint.fill import gathered
from ..checkpoint.folder import CONFIG, component, find, read_json
from ..checkpoint.load import load_model
from ..checkpoint.save import readable_errors, write_json, write_weights
from ..errors import CheckpointError

PREPROCESSOR = "preprocessor_config.json"

# What published folders call the same feature extractor, the name all versions of transformers know first.
EXTRACTORS = ("CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")


@dataclass(frozen=True)
class Source:
    """A pipeline's folder, and how its parts are to be read."""

    folder: Path
    variant: str | None = None
    dtype: Any = None
    use_safetensors: bool | None = None
    file: Path | None = None  # where an original file was named itself; the folder is then its own


def begin_reading(source: Source, names: Iterable[str]) -> None:
    """Has the system read the weights of these parts while others are loaded. What is missing, loading says better."""
    files = [] if source.file is None else [source.file]
    for name in names if source.file is None else ():
        with suppress(CheckpointError):
            files += find(component(source.folder, name), source.variant, source.use_safetensors).files
    read_ahead(files)


@dataclass(frozen=True)
class Target:
    """A pipeline's folder to be, and how its parts are to be written."""

    folder: Path
    variant: str | None = None
    safe_serialization: bool = True
    max_shard_size: int | str = "10GB"


@dataclass(frozen=True)
class Part:
    """One kind of part. `classes` are the class names by which published folders call it."""

    library: str
    classes: tuple[str, ...]
    load: Callable[[Source, str], Any] = field(repr=False)
    save: Callable[[Any, Target, str], None] = field(repr=False)
    is_module: bool = False
    optional: bool = False  # whether a pipeline does without it

    def called(self, component: Any) -> str:
        """The class name by which a folder is to call this component."""
        own = type(component).__name__
        return own if not self.classes or (self.library == "diffusers" and own in self.classes) else self.classes[0]


def may_lack(part: Part) -> Part:
    """The same, for pipelines that do without it."""
    return replace(part, optional=True)


def model(*classes: type[Any]) -> Part:
    """One of our networks; of several classes that it may be, the folder says which, and by default it is the first."""

    def load(source: Source, name: str) -> Any:
        said = read_json(component(source.folder, name) / CONFIG).get("_class_name") if len(classes) > 1 else None
        return load_model(
            next((cls for cls in classes if cls.__name__ == said), classes[0]),
            source.folder,
            subfolder=name,
            variant=source.variant,
            dtype=source.dtype,
            use_safetensors=source.use_safetensors,
        )

    def save(part: Any, to: Target, name: str) -> None:
        part.save_pretrained(
            to.folder / name,
            variant=to.variant,
            safe_serialization=to.safe_serialization,
            max_shard_size=to.max_shard_size,
        )

    return Part("diffusers", tuple(cls.__name__ for cls in classes), load, save, is_module=True)


def text_encoder() -> Part:
    """CLIP's text model."""
    return Part("transformers", ("CLIPTextModel",), _load_text, _save_text, is_module=True)


def text_encoder_2() -> Part:
    """CLIP's text model with the projection of a whole text, as SDXL's second one is."""
    return Part("transformers", ("CLIPTextModelWithProjection",), _load_text_2, _save_text_2, is_module=True)


def image_encoder() -> Part:
    """CLIP's image model with its projection."""
    return Part("transformers", ("CLIPVisionModelWithProjection",), _load_vision, _save_vision, is_module=True)


def feature_extractor() -> Part:
    """How pictures are shown to CLIP, as data."""

    def load(source: Source, name: str) -> Any:
        from ..encoders.vision import FeatureExtractor

        file = component(source.folder, name) / PREPROCESSOR
        return FeatureExtractor.read(read_json(file), str(file))

    def save(part: Any, to: Target, name: str) -> None:
        from ..encoders.vision import FeatureExtractor

        with readable_errors(to.folder):
            (to.folder / name).mkdir(parents=True, exist_ok=True)
            write_json(to.folder / name / PREPROCESSOR, FeatureExtractor.of(part).to_dict())

    return Part("transformers", EXTRACTORS, load, save)


def tokenizer() -> Part:
    """CLIP's tokenizer."""

    def load(source: Source, name: str) -> Any:
        from ..encoders.clip import load_tokenizer

        return load_tokenizer(component(source.folder, name))

    def save(part: Any, to: Target, name: str) -> None:
        with readable_errors(to.folder):
            part.save_pretrained(str(to.folder / name))

    return Part("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"), load, save)


def scheduler() -> Part:
    """Any scheduler; which one, its own configuration says."""

    def load(source: Source, name: str) -> Any:
        from ..sampling import schedulers

        folder = component(source.folder, name)
        config = read_json(folder / "scheduler_config.json")
        cls = getattr(schedulers, str(config.get("_class_name")), None)
        if not isinstance(cls, type):
            raise CheckpointError(
                f"{folder} holds a {config.get('_class_name')!r}, which is no scheduler kinema knows."
            )
        return cls.from_config(config)  # type: ignore[attr-defined]

    def save(part: Any, to: Target, name: str) -> None:
        part.save_pretrained(to.folder / name)

    return Part("diffusers", (), load, save)


def _load_text(source: Source, name: str) -> Any:
    from ..encoders.clip import text_encoder_from

    return _load_clip(source, name, text_encoder_from)


def _load_text_2(source: Source, name: str) -> Any:
    from ..encoders.clip import text_encoder_from

    return _load_clip(source, name, partial(text_encoder_from, projected=True))


def _load_vision(source: Source, name: str) -> Any:
    from ..encoders.vision import vision_encoder_from

    return _load_clip(source, name, vision_encoder_from)


def _load_clip(source: Source, name: str, build: Callable[..., Any]) -> Any:
    from ..checkpoint.dtypes import to_dtype

    folder = component(source.folder, name)
    located = find(folder, source.variant, source.use_safetensors)
    state = gathered(located.files, located.names)
    dtype = to_dtype(source.dtype)
    made = build(read_json(folder / CONFIG), state, dtype)
    for value in state.values():
        if dtype not in (None, value.dtype):  # it has been converted
            let_go(value)
    return made


def _save_text(part: Any, to: Target, name: str) -> None:
    _save_clip(part, to, name, _text_keys(part), "CLIPTextModel", "clip_text_model")


def _save_text_2(part: Any, to: Target, name: str) -> None:
    _save_clip(part, to, name, _text_keys(part), "CLIPTextModelWithProjection", "clip_text_model")


def _text_keys(part: Any) -> dict[str, Any]:
    bare = {k.removeprefix("text_model."): v for k, v in part.state_dict().items()}
    return {k if k.startswith("text_projection.") else f"text_model.{k}": v for k, v in bare.items()}


def _save_vision(part: Any, to: Target, name: str) -> None:
    bare = {k.removeprefix("vision_model."): v for k, v in part.state_dict().items()}
    state = {k if k.startswith("visual_projection.") else f"vision_model.{k}": v for k, v in bare.items()}
    _save_clip(part, to, name, state, "CLIPVisionModelWithProjection", "clip_vision_model")


def _save_clip(part: Any, to: Target, name: str, state: dict[str, Any], architecture: str, kind: str) -> None:
    """Keys carry the prefix every version of transformers reads."""
    folder = to.folder / name
    state = {k: v for k, v in state.items() if not k.endswith("position_ids")}
    config = {"architectures": [architecture], **part.config.to_diff_dict(), "model_type": kind}
    dtype = next(iter(state.values())).dtype
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config.pop("dtype", None)
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stem = "model" if to.safe_serialization else "pytorch_model"
        from ..checkpoint.save import parse_size

        write_weights(folder, stem, state, to.variant, to.safe_serialization, parse_size(to.max_shard_size))
        write_json(folder / CONFIG, config)

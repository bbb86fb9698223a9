"""The parts a pipeline is made of: how each kind comes from a published folder, and how it goes back to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.fill import finite, gathered, some
from ..checkpoint.folder import CONFIG, component, find, read_json
from ..checkpoint.load import load_model
from ..checkpoint.save import readable_errors, write_json, write_weights
from ..errors import CheckpointError


@dataclass(frozen=True)
class Source:
    """A pipeline's folder, and how its parts are to be read."""

    folder: Path
    variant: str | None = None
    dtype: Any = None
    use_safetensors: bool | None = None


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


def model(cls: type[Any]) -> Part:
    """One of our networks."""

    def load(source: Source, name: str) -> Any:
        return load_model(
            cls,
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

    return Part("diffusers", (cls.__name__,), load, save, is_module=True)


def text_encoder() -> Part:
    """CLIP's text model."""
    return Part("transformers", ("CLIPTextModel",), _load_text, _save_text, is_module=True)


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
    from ..checkpoint.dtypes import to_dtype
    from ..encoders.clip import text_encoder_from

    folder = component(source.folder, name)
    located = find(folder, source.variant, source.use_safetensors)
    state = gathered(located.files, located.names)
    if odd := [key for key, value in state.items() if not finite(value)]:
        raise CheckpointError(f"{folder} has numbers that are not finite in {some(odd)}; download it again.")
    return text_encoder_from(read_json(folder / CONFIG), state, to_dtype(source.dtype))


def _save_text(part: Any, to: Target, name: str) -> None:
    """Keys carry the prefix every version of transformers reads."""
    folder = to.folder / name
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in part.state_dict().items()}
    state = {k: v for k, v in state.items() if not k.endswith("position_ids")}
    config = {"architectures": ["CLIPTextModel"], **part.config.to_diff_dict(), "model_type": "clip_text_model"}
    dtype = next(iter(state.values())).dtype
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config.pop("dtype", None)
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stem = "model" if to.safe_serialization else "pytorch_model"
        from ..checkpoint.save import parse_size

        write_weights(folder, stem, state, to.variant, to.safe_serialization, parse_size(to.max_shard_size))
        write_json(folder / CONFIG, config)

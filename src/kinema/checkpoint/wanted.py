"""Which files of a repository are worth downloading."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CheckpointError
from .folder import INDEX
from .lora_files import CONFIG as LORA_CONFIG
from .lora_files import FILES as LORA
from .originals import TEXT, UNET, VAE
from .originals_i2vgen import ENCODERS, VAES
from .originals_i2vgen import FILES as I2VGEN

_STANDARD = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)[.-].*(?<!\.json)")
_PICKLED = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Wanted:
    """What is asked of a repository."""

    subfolder: str | None = None
    variant: str | None = None
    use_safetensors: bool | None = None
    weight_name: str | None = None

    def of(self, names: list[str]) -> list[str]:
        """The files to download: configurations and vocabularies, and of weights each folder's best kind.

        Raises:
            CheckpointError: it holds several files of weights and nothing says which.
        """
        inside = f"{self.subfolder.strip('/')}/" if self.subfolder else ""
        if self.weight_name is not None:
            file = inside + self.weight_name
            return [name for name in names if name in (file, f"{file.rpartition('/')[0]}/{LORA_CONFIG}".lstrip("/"))]
        pipeline = INDEX in names
        depth = inside.count("/") + (1 if pipeline and not inside else 0)
        near = [name for name in names if name.startswith(inside) and name.count("/") <= depth]
        chosen = [name for name in near if name.endswith((".json", ".txt", ".model"))]
        for folder in sorted({_folder(name) for name in near}):
            chosen += self._weights([name for name in near if _folder(name) == folder], pipeline)
        return sorted(set(chosen))

    def told(self, names: list[str]) -> str:
        """What was asked for and what there is, for a message."""
        asked = self.weight_name or self.subfolder
        there = ", ".join(sorted(names)[:8]) or "nothing"
        return f"{f' by the name {asked!r}' if asked else ''}; it holds {there}"

    def _weights(self, names: list[str], pipeline: bool) -> list[str]:
        standard = [name for name in names if _STANDARD.fullmatch(_file(name))]
        if standard or pipeline:
            wanted = [name for name in standard if _variant(name) == self.variant]
            return self._kind(wanted or [name for name in standard if _variant(name) is None])
        files = {_file(name): name for name in names}
        i2vgen = sorted(name for name in files if I2VGEN.match(name))
        release = (i2vgen, VAES, ENCODERS) if i2vgen else ((UNET,), (VAE,), (TEXT,))
        if originals := [files[name] for names in release if (name := next((n for n in names if n in files), None))]:
            return originals
        if lora := [files[name] for name in LORA if name in files]:
            return lora[:1]
        others = self._kind([name for name in names if name.endswith((".safetensors", *_PICKLED))])
        if len(others) > 1:
            raise CheckpointError(
                f"The repository has several files of weights ({', '.join(others[:6])}); say which with weight_name=."
            )
        return others

    def _kind(self, names: list[str]) -> list[str]:
        safe = [name for name in names if name.endswith(".safetensors")]
        pickled = [name for name in names if name.endswith(_PICKLED)]
        if self.use_safetensors is None:
            return safe or pickled
        return safe if self.use_safetensors else pickled


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _variant(name: str) -> str | None:
    words = [re.sub(r"-\d{5}-of-\d{5}$", "", word) for word in _file(name).split(".")[1:-1]]
    return next((word for word in words if word), None)

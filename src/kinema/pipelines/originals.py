"""Pipelines from the files their authors first published: which file it is, and whose."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.files import open_weights
from ..checkpoint.kinds import kind_of
from ..checkpoint.loadable import way
from ..checkpoint.sources import original_file
from ..errors import CheckpointError
from .parts import Source

__all__ = ["Originals", "made_of", "original_file"]


@dataclass(frozen=True)
class Originals:
    """How a family's own first files are known and read."""

    kinds: tuple[str, ...]  # what `inspect` calls the file that leads to the others, or holds everything
    files: Callable[[Path], list[Path]] = field(repr=False)  # those of a folder, by their names
    load: Callable[[Source, Path, set[str]], dict[str, Any]] = field(repr=False)  # the wanted parts

    def of(self, source: Source, wanted: set[str]) -> dict[str, Any]:
        """The wanted parts of a source: of its file, or of the only such file in its folder.

        Raises:
            CheckpointError: there are several, or what a part needs is missing.
        """
        if source.file is not None:
            return self.load(source, source.file, wanted)
        files = self.files(source.folder)
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise CheckpointError(
                f"{source.folder} has several original files ({names}); say which with from_single_file."
            )
        return self.load(source, files[0], wanted)


def made_of(file: Path, cls: Any, known: Iterable[Any]) -> Any:
    """The pipeline that a file makes: `cls`, or for their common parent the usual one of `known` that it fits.

    Raises:
        CheckpointError: it makes another one, or none; the message names what the file is.
    """
    kind, fits = kind_of({name: at.shape for name, at in open_weights(file, complete=False).stored.items()})
    families = [pipeline for pipeline in known if pipeline.originals and kind in pipeline.originals.kinds]
    use = way(kind)
    families.sort(key=lambda pipeline: use is None or pipeline.__name__ != use.model)  # the one a kind is mostly for
    if cls in families or (families and not cls.parts):
        return cls if cls in families else families[0]
    what = "no kind of weights that kinema knows" if kind == "unknown" else f"a file of the kind {kind!r}"
    if families:
        advice = f"load it with {families[0].__name__}, not {cls.__name__}"
    elif use and use.call.startswith("load_"):
        advice = f"load a pipeline, then this with {use.call}"
    elif use and use.call == "from_pretrained":
        advice = f"put it into a folder with its config.json and load that with {use}"
    elif use and not use.model.endswith("Pipeline"):
        advice = f"load it with {use}, and a pipeline with that"
    else:
        own = [cls] if cls.originals else [pipeline for pipeline in known if pipeline.originals]
        kinds = dict.fromkeys(kind for pipeline in own for kind in pipeline.originals.kinds)
        advice = f"from_single_file takes {', '.join(map(repr, kinds))}"
    raise CheckpointError(f"{file} is {what}{f', for {fits}' * bool(fits)}; {advice}.")

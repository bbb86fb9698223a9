"""One network from one file that people share, whichever layout it is in: `from_single_file` of every model class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from . import originals, originals_i2vgen, originals_image, originals_motion, originals_svd
from .files import Weights, open_weights
from .folder import CONFIG, read_json
from .kinds import kind_of
from .loadable import takes, way
from .originals import Original

Reader = Callable[[Mapping[str, Tensor], str], Original]


def _svd_unet(weights: Mapping[str, Tensor], where: str) -> Original:
    return originals_svd.unet(weights, where, originals_svd.frames_of(Path(where).name))


# By the published class: what makes its configuration and its published keys of a file.
READERS: Mapping[str, Reader] = {
    "UNet2DConditionModel": originals_image.unet,
    "ControlNetModel": originals_image.control,
    "AutoencoderKL": originals_image.autoencoder,
    "MotionAdapter": originals_motion.motion_adapter,
    "SparseControlNetModel": originals_motion.sparse_control,
    "UNet3DConditionModel": originals.unet,
    "I2VGenXLUNet": originals_i2vgen.unet,
    "UNetSpatioTemporalConditionModel": _svd_unet,
    "AutoencoderKLTemporalDecoder": originals_svd.autoencoder,
}


def read_single(model: str, file: str | Path, config: str | Path | Mapping[str, Any] | None = None) -> Original:
    """A network of a published class from one file: its configuration and its published keys, mapped, not copied.

    Args:
        model: the published class (`MotionAdapter`).
        config: fields that count instead of those that the shapes tell: a mapping, a config.json or its folder.

    Raises:
        CheckpointError: the file is missing, broken, or holds no such network; the message names what it is.
    """
    if model not in READERS:
        raise CheckpointError(f"A {model} comes from a folder with its config.json; load it with from_pretrained.")
    weights = open_weights(file)
    check_holds(weights, model)
    found = READERS[model](weights, str(file))
    return replace(found, config={**found.config, **_fields(config)})


def check_holds(weights: Weights, model: str) -> None:
    """Makes sure that a file is not known to be something else.

    Raises:
        CheckpointError: it is; the message names what, and what takes it.
    """
    kind, fits = kind_of({name: at.shape for name, at in weights.stored.items()})
    use = way(kind)
    if use and use.call == "from_pretrained" and model == use.model:
        raise CheckpointError(
            f"{weights.path} is in the published layout, where a config.json is needed: put both into a folder and "
            f"load that with {use}."
        )
    if kind == "unknown" or takes(model, kind):
        return
    advice = f"load it with {use}" if use else "nothing in kinema takes it"
    raise CheckpointError(f"{weights.path} is no {model} but a file of the kind {kind!r}, for {fits}; {advice}.")


def _fields(config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if config is None or isinstance(config, Mapping):
        return config or {}
    path = Path(config).expanduser()
    return read_json(path / CONFIG if path.is_dir() else path)

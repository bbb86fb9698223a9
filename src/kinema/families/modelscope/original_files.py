"""A pipeline from the files ModelScope itself published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...checkpoint import originals
from ...checkpoint.dtypes import to_dtype
from ...checkpoint.fill import build, fill
from ...encoders.clip import text_encoder_from
from ...errors import CheckpointError
from ...pipelines import parts
from ...pipelines.originals import Originals
from ..autoencoder_kl import AutoencoderKL
from .unet import UNet3DConditionModel


def from_originals(source: parts.Source, file: Path, wanted: set[str]) -> dict[str, Any]:
    """A pipeline's parts from ModelScope's own files; they come without a tokenizer, so that must lie beside them."""
    from ...sampling.schedulers import DDIMScheduler

    dtype = to_dtype(source.dtype)
    loaded: dict[str, Any] = {}
    if "tokenizer" in wanted:
        loaded["tokenizer"] = tokenizer_beside(source, "ModelScope's", "text-to-video-ms-1.7b")
    found = originals.modelscope(source.folder, file.name)
    for name, cls in (("unet", UNet3DConditionModel), ("vae", AutoencoderKL)):
        if name in wanted:
            model = build(cls, found[name].config, found[name].where)
            loaded[name] = fill(model, found[name].state, where=found[name].where, dtype=dtype)
    if "text_encoder" in wanted:
        loaded["text_encoder"] = text_encoder_from(found["text_encoder"].config, found["text_encoder"].state, dtype)
    loaded["scheduler"] = DDIMScheduler.from_config(originals.SCHEDULER)
    return loaded


def tokenizer_beside(source: parts.Source, whose: str, published: str) -> Any:
    """The tokenizer that lies beside original files, which come without one.

    Raises:
        CheckpointError: there is none.
    """
    if not (source.folder / "tokenizer").is_dir():
        raise CheckpointError(
            f"{whose} original files in {source.folder} have no tokenizer; put the folder tokenizer/ of "
            f"{published} beside them, or pass tokenizer=."
        )
    return parts.tokenizer().load(source, "tokenizer")


def _files(folder: Path) -> list[Path]:
    return [folder / originals.UNET] if originals.is_modelscope(folder) else []


ORIGINALS = Originals(("ModelScope U-Net, original file",), _files, from_originals)

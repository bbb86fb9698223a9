"""A pipeline from the files ModelScope itself published."""

from __future__ import annotations

from typing import Any

from ...checkpoint import originals
from ...checkpoint.dtypes import to_dtype
from ...checkpoint.fill import build, fill
from ...encoders.clip import text_encoder_from
from ...errors import CheckpointError
from ...pipelines import parts
from ..autoencoder_kl import AutoencoderKL
from .unet import UNet3DConditionModel


def from_originals(source: parts.Source, wanted: set[str]) -> dict[str, Any]:
    """A pipeline's parts from ModelScope's own files; they come without a tokenizer, so that must lie beside them."""
    from ...sampling.schedulers import DDIMScheduler

    dtype = to_dtype(source.dtype)
    loaded: dict[str, Any] = {}
    if "tokenizer" in wanted:
        if not (source.folder / "tokenizer").is_dir():
            raise CheckpointError(
                f"ModelScope's original files in {source.folder} have no tokenizer; put the folder tokenizer/ of "
                "text-to-video-ms-1.7b beside them, or pass tokenizer=."
            )
        loaded["tokenizer"] = parts.tokenizer().load(source, "tokenizer")
    found = originals.modelscope(source.folder)
    for name, cls in (("unet", UNet3DConditionModel), ("vae", AutoencoderKL)):
        if name in wanted:
            model = build(cls, found[name].config, found[name].where)
            loaded[name] = fill(model, found[name].state, where=found[name].where, dtype=dtype)
    if "text_encoder" in wanted:
        loaded["text_encoder"] = text_encoder_from(found["text_encoder"].config, found["text_encoder"].state, dtype)
    loaded["scheduler"] = DDIMScheduler.from_config(originals.SCHEDULER)
    return loaded

"""CLIP's image model from published files, and pictures turned into the numbers it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CheckpointError
from .published import assembled, config_from, empty

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

_PREFIX = "vision_model."

# What a file may hold beside the image model: the other half of CLIP, and a table old versions wrote out.
_BESIDE = ("text_model.", "text_projection.", "logit_scale", "embeddings.position_ids")

# Of CLIP's training pictures (Radford et al. 2021); files that do not say theirs mean these.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def vision_encoder_from(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> CLIPVisionModelWithProjection:
    """CLIP's image model and its projection holding the tensors of `state`, in eval mode with gradients off.

    Tensors are put in their places as they are, so a mapped file in the wanted dtype is not copied.

    Args:
        config: the published `config.json` of the image model, or of a whole CLIP model.
        state: published keys, with or without the prefix `vision_model.`; CLIP's text half is left out.
        dtype: what to convert to; as stored by default.
        device: where the weights go.

    Raises:
        CheckpointError: the configuration is not CLIP's, or tensors are missing, left over, of another shape or not
            finite.
    """
    from transformers import CLIPVisionModelWithProjection

    return assembled(
        empty(CLIPVisionModelWithProjection, _config_from(config), "image encoder"),
        state,
        what="image encoder",
        prefix=_PREFIX,
        beside=_BESIDE,
        dtype=dtype,
        device=device,
    )


def _config_from(config: Mapping[str, Any]) -> CLIPVisionConfig:
    """The image part of a published configuration. A whole model says the projection's width outside of it."""
    from transformers import CLIPVisionConfig

    if config.get("model_type") == "clip" and "projection_dim" in config:
        part = {**(config.get("vision_config") or {}), "projection_dim": config["projection_dim"]}
        config = {**config, "vision_config": part}
    return config_from(CLIPVisionConfig, config, ("clip", "clip_vision_model"), "vision_config", "image encoder")


@dataclass(frozen=True)
class FeatureExtractor:
    """How an image encoder was shown its training pictures: the published `preprocessor_config.json`, as data."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    side: tuple[int, int] = (224, 224)  # height and width of what the encoder sees
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)  # all of it, as published

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str = "The feature extractor") -> Self:
        """From the published fields.

        Raises:
            CheckpointError: a field has a value it cannot have.
        """
        said = {"image_mean": MEAN, "image_std": STD, "crop_size": 224, **{k: v for k, v in config.items() if v}}
        try:
            mean, std = (tuple(map(float, said[key])) for key in ("image_mean", "image_std"))
            side = said["crop_size"]
            high, wide = (side["height"], side["width"]) if isinstance(side, Mapping) else (side, side)
            fits = len(mean) == len(std) == 3 and min(std) > 0 and min(int(high), int(wide)) > 0
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            told = {key: said[key] for key in ("image_mean", "image_std", "crop_size")}
            raise CheckpointError(f"{where} says {told}; it must have three numbers of each colour, and a size.")
        return cls(mean, std, (int(high), int(wide)), dict(config))  # type: ignore[arg-type]

    @classmethod
    def of(cls, extractor: Any) -> FeatureExtractor:
        """This one, or what an image processor of `transformers` says.

        Raises:
            CheckpointError: it is neither.
        """
        if isinstance(extractor, FeatureExtractor):
            return extractor
        if not hasattr(extractor, "to_dict"):
            raise CheckpointError(f"The feature extractor is a {type(extractor).__name__}; use a CLIPImageProcessor.")
        return cls.read(extractor.to_dict())

    @property
    def crop_size(self) -> dict[str, int]:
        return {"height": self.side[0], "width": self.side[1]}

    def to_dict(self) -> dict[str, Any]:
        """The published fields, whether read or made."""
        made = {"image_mean": list(self.mean), "image_std": list(self.std), "crop_size": self.crop_size}
        whole = {"do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True}
        more = {"do_resize": True, "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": self.side[0]}}
        return {**whole, **more, **made, **self.config, "image_processor_type": "CLIPImageProcessor"}

    def normalize(self, pictures: Tensor) -> Tensor:
        """(n, 3, h, w) in [0, 1] → about zero mean and unit variance for each colour."""
        mean, std = (pictures.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return (pictures - mean) / std


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, 3, h, w) → (n, 3, *size), blurred first where that makes them smaller: how SVD shows pictures to CLIP.

    A Gaussian of standard deviation (h / size - 1) / 2, cut off at twice that, then bicubic interpolation that keeps
    the corner pixels in the corners: the steps and numbers of sgm's and the reference's code.
    """
    for axis, (before, after) in enumerate(zip(pictures.shape[2:], size, strict=True)):
        pictures = _blurred(pictures, 2 + axis, (before / after - 1) / 2)
    return F.interpolate(pictures, size, mode="bicubic", align_corners=True)


def _blurred(x: Tensor, axis: int, sigma: float) -> Tensor:
    """A Gaussian along one axis of (n, c, h, w), with the border mirrored."""
    if sigma <= 1e-3:  # its neighbours would weigh nothing
        return x
    reach = int(max(4 * sigma, 3)) // 2
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-steps.square() / (2 * sigma**2))
    shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
    kernel = (weights / weights.sum()).view(shape).expand(x.shape[1], -1, -1, -1)
    edges = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
    return F.conv2d(F.pad(x, edges, mode="reflect"), kernel, groups=x.shape[1])

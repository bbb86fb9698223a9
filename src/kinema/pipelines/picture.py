"""What pipelines that start from pictures share: reading them, showing them to CLIP, and encoding their latents."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..encoders.vision import FeatureExtractor, resized
from ..errors import InputError
from ..media.first_frame import hold_first_frame, psnr
from ..media.pictures import Fit, aspect_change, fit_picture, read_picture
from ..memory.plan import Stage
from ..memory.stages import encoding_stage
from ..place import kind_of
from ..products import fast
from ..sampling.noise import Noise
from .inputs import choice, finite, number
from .overflow import Lift, healed
from .video import Finish, VideoPipeline

log = logging.getLogger("kinema")

Focus = tuple[float, float]
CENTRE: Focus = (0.5, 0.5)
FirstFrame = Literal["free", "exact"]
STRAY = 1e-3  # how far outside of 0..1 numbers may lie, as resizing makes them, and still be a picture's


@dataclass(frozen=True)
class Picture:
    """One picture a clip starts from, in the form it was given: bytes stay bytes, float tensors floats."""

    given: Image.Image | Tensor  # mode RGB, or (3, h, w) float32 in [0, 1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if isinstance(self.given, Tensor):
            return self.given.shape[1], self.given.shape[2]
        return self.given.height, self.given.width

    @cached_property
    def image(self) -> Image.Image:
        """As PIL has it, mode RGB."""
        return read_picture(self.given)

    @cached_property
    def pixels(self) -> Tensor:
        """(3, h, w) float32 in [0, 1], at the picture's own size."""
        return self.given if isinstance(self.given, Tensor) else pixels_of(self.given)

    def fitted(self, height: int, width: int, fit: Fit = "crop", focus: Focus = CENTRE) -> Tensor:
        """(3, height, width) in [0, 1]: what the autoencoder is given. A picture that has this size comes untouched."""
        if self.size == (height, width):
            return self.pixels
        return pixels_of(fit_picture(self.image, height, width, fit, focus))

    def viewed(self, height: int, width: int, fit: Fit = "crop", focus: Focus = CENTRE) -> Tensor:
        """(3, h, w) in [0, 1]: the same part for CLIP, at the picture's own size where nothing is cut or added."""
        return (
            self.pixels
            if fit == "stretch" or self.keeps_shape(height, width)
            else self.fitted(height, width, fit, focus)
        )

    def keeps_shape(self, height: int, width: int) -> bool:
        """Whether fitting it to this size changes its proportions by less than half a pixel."""
        return abs(1 - aspect_change(self.size[1], self.size[0], width, height)) * max(height, width) < 0.5


def pixels_of(image: Image.Image) -> Tensor:
    """A picture of mode RGB → (3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32) / np.float32(255)).permute(2, 0, 1)


def pictures(image: Any, name: str = "image") -> tuple[Picture, ...]:
    """The pictures of a call, one for each clip to make (before copies).

    Args:
        image: a PIL picture, a path or URL, an array (h, w, c), a tensor (c, h, w), a list of these, an array
            (n, h, w, c) or a tensor (n, c, h, w), with 1, 3 or 4 channels. Floats are 0 to 1, whole numbers 0 to 255.

    Raises:
        InputError: it is none of these, empty, or holds numbers of another range or that are not finite.
        MediaError: a file or a picture cannot be read.
    """
    many = isinstance(image, (list, tuple)) or (isinstance(image, (Tensor, np.ndarray)) and image.ndim == 4)
    if many and not len(image):
        raise InputError(f"{name} is empty; give at least one picture.")
    if many:
        return tuple(picture for one in image for picture in pictures(one, name))
    return (Picture(_read(image, name)),)


def _read(image: Any, name: str) -> Image.Image | Tensor:
    if image is None:
        raise InputError(f"{name} is missing; give a picture to start from.")
    if not isinstance(image, (Tensor, np.ndarray)):
        return read_picture(image)
    axis = 0 if isinstance(image, Tensor) else -1
    order = "(3, height, width)" if axis == 0 else "(height, width, 3)"
    if image.ndim not in (2, 3) or not all(image.shape) or (image.ndim == 3 and image.shape[axis] not in (1, 3, 4)):
        raise InputError(f"{name} has shape {tuple(image.shape)}; a picture is {order}, a batch has one axis more.")
    floats = image.is_floating_point() if isinstance(image, Tensor) else image.dtype.kind == "f"
    if not floats or image.ndim == 2 or image.shape[axis] != 3:
        return read_picture(image)
    tensor = image.detach() if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).movedim(-1, 0)
    pixels = finite(name, tensor.float().cpu())
    low, high = pixels.min().item(), pixels.max().item()
    if low < -STRAY or high > 1 + STRAY:
        raise InputError(f"{name} has numbers from {low:.4g} to {high:.4g}; they must be 0 to 1, or bytes of 0 to 255.")
    return pixels.clamp(0, 1)


def tell_cuts(found: Sequence[Picture], height: int, width: int, sizes: Sequence[tuple[int, int]] = ()) -> None:
    """Notes pictures whose proportions are not the clip's, and what to do about it.

    Args:
        sizes: (width, height) that suit the model as well, to suggest the nearest.
    """
    from ..media.pictures import nearest_trained_size

    for picture in found:
        high, wide = picture.size
        change = aspect_change(wide, high, width, height)
        lost = 1 - min(change, 1 / change)
        if lost < 0.02:
            continue
        better = nearest_trained_size(wide, high, sizes) if sizes else (width, height)
        hint = f"height={better[1]}, width={better[0]} suits it better; " if better != (width, height) else ""
        log.warning(
            "The picture is %d×%d and the clip %d×%d (width×height): %.0f %% of the picture is cut off. %s"
            "fit='pad' shows all of it, focus=(across, down) chooses what stays, fit='crop' hides this note",
            wide, high, width, height, 100 * lost, hint,
        )  # fmt: skip


def draw_for_pictures(noise: Noise, shape: Sequence[int], copies: int, purpose: str) -> Tensor:
    """Unit noise for pictures of `shape` (n, …), each the start of `copies` clips: (n, …), or (n·copies, …).

    The second where each clip has a stream of its own, from which it draws as it would alone. Clips that share a
    generator share a picture's noise, as in the reference. `spread` brings either to n·copies rows.
    """
    rows = shape[0] * copies
    return noise.draw((rows if len(noise.streams) == rows else shape[0], *shape[1:]), purpose)


def spread(x: Tensor, rows: int) -> Tensor:
    """(n, …) → (rows, …), copies of one next to each other, as everything a clip has must lie."""
    return x.repeat_interleave(rows // len(x), 0)


def playback(call: Mapping[str, Any], fps: float) -> float:
    """Frames a second at which a call's clip is to be played, where `fps` is what the model is told.

    Raises:
        InputError: that is no number, or below 0.1.
    """
    given = call["playback_fps"]
    return number("playback_fps", fps if given is None else given, 0.1)


def beginning(call: Mapping[str, Any], fitted: Tensor) -> Finish:
    """What becomes of a call's decoded clips, (b, f, 3, h, w) in [0, 1], that start from pictures (n, 3, h, w).

    The receipt says how near each clip's first frame is to its picture; with `first_frame="exact"` it becomes that.

    Raises:
        InputError: `first_frame` is another word, or the call ends in latents, where no picture can be put.
    """
    wanted = choice("first_frame", call["first_frame"], get_args(FirstFrame))
    if wanted == "exact" and call["output_type"] == "latent":
        raise InputError(
            "first_frame='exact' puts a picture into the clip, and output_type='latent' gives no pictures; take "
            "another output_type, or hold_first_frame once they are decoded."
        )
    return partial(_begun, fitted, wanted == "exact")


def _begun(fitted: Tensor, exact: bool, clips: Tensor) -> tuple[Tensor, Mapping[str, Any]]:
    each = spread(fitted, len(clips))
    near = [psnr(clip[0], picture) for clip, picture in zip(clips, each, strict=True)]
    told = {"first_frame_psnr": [round(min(x, 100.0), 2) for x in near]}  # equal ones are infinitely near
    return (hold_first_frame(clips, each) if exact else clips), told


class PicturePipeline(VideoPipeline):
    """A pipeline with `image_encoder`, `feature_extractor` and `vae` among its parts."""

    image_encoder: Any
    feature_extractor: Any

    def embed_pictures(self, views: Sequence[Tensor]) -> Tensor:
        """Pictures (3, h, w) in [0, 1], each of any size → what CLIP makes of them, (n, c), where calls compute.

        Raises:
            NumericsError: it is not finite.
        """
        extractor = FeatureExtractor.of(self.feature_extractor)

        def embedded(lift: Lift) -> Tensor:
            with self._residency.use("image_encoder") as resident:
                encoder = lift(resident)
                side: int = encoder.config.image_size
                shown = extractor.normalize(torch.cat([resized(view[None].float(), (side, side)) for view in views]))
                shown = shown.to(self.execution_device, encoder.dtype)
                with fast(shown):
                    made: Tensor = encoder(shown).image_embeds
                return made

        return healed("encode", ["image_encoder"], self.image_encoder.dtype, embedded)

    def picture_stages(self, clips: int, height: int, width: int) -> list[Stage]:
        """What a plan has to know of pictures: showing them to CLIP, and encoding one at a time."""
        side: int = self.image_encoder.config.image_size
        extractor = FeatureExtractor.of(self.feature_extractor)

        def embed(encoder: Any) -> Any:
            views = [torch.empty(3, height, width, device="meta") for _ in range(clips)]
            if kind_of(views[0]) == "cpu":  # the host resizes pictures
                shown = extractor.normalize(torch.cat([resized(view[None], (side, side)) for view in views]))
            else:
                shown = torch.empty(clips, 3, side, side, device="meta")
            return encoder(shown.to(encoder.dtype)).image_embeds

        return [Stage("encode", "image_encoder", embed), encoding_stage(clips, height, width, high=True)]

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, h, w) in [-1, 1] → means and deviations of their latents, float32, (n, c, h/stride, w/stride) each.

        Unscaled. Autoencoders that overflow in float16 and say so (`force_upcast`) work in float32 here.

        Raises:
            NumericsError: they are not finite.
        """
        high = self.vae.dtype == torch.float16 and self.vae.config.force_upcast

        def encoded(lift: Lift) -> tuple[Tensor, Tensor]:
            with self._residency.use("vae", torch.float32 if high else None) as resident:
                vae, device = lift(resident), self.execution_device
                found = [vae.encode(part.to(device, vae.dtype)).latent_dist for part in pixels.split(1)]
                mean, deviation = (torch.cat([getattr(d, k) for d in found]).float() for k in ("mean", "std"))
                return mean, deviation

        return healed("encode", ["vae"], torch.float32 if high else self.vae.dtype, encoded)

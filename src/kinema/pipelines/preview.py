"""Previews of clips that are still being denoised: by a decoder trained for it, or else by a linear guess."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint.folder import CONFIG, within
from ..checkpoint.hub import BOX, box
from ..checkpoint.load import load_model
from ..errors import InputError
from ..layout import to_video
from ..media.frames import convert, unit_range
from ..products import FEW
from .inputs import OUTPUT_TYPES, choice
from .overflow import lifted, sound
from .preview_decoder import PreviewDecoder

log = logging.getLogger("kinema")

FOLDER = "preview_decoder"
PICTURES, SIDE = 8, 128  # that a linear preview is fitted to, and pixels a side


class LinearPreview(nn.Module):
    """Each pixel of the latents to one colour: of a picture, as small as they are."""

    def __init__(self, weights: Tensor, decibels: float):
        """`weights` (3, c + 1), the last column the colour of no latents; `decibels`: how near it came (PSNR)."""
        super().__init__()
        self.register_buffer("weights", weights)
        self.decibels = decibels

    def forward(self, latents: Tensor) -> Tensor:
        """(n, c, h, w), scaled → (n, 3, h, w) in about [-1, 1]."""
        kernel = self.get_buffer("weights")
        return F.conv2d(latents, kernel[:, :-1, None, None], kernel[:, -1])

    @classmethod
    @torch.no_grad()
    def of(cls, vae: Any) -> LinearPreview:
        """Fitted by least squares to what an autoencoder makes of some pictures; one in four is kept to try it on."""
        pixels = some_pictures(PICTURES, SIDE)
        place = next(vae.parameters()).device
        seeing = lifted(vae) if vae.dtype in FEW else vae
        seen = [seeing.encode(x.to(place)).latent_dist.mean.float().cpu() for x in pixels.split(1)]
        latents = sound("encoding", torch.cat(seen))
        small = F.avg_pool2d(pixels, SIDE // latents.shape[-1])
        told = torch.cat([latents * vae.config.scaling_factor, torch.ones_like(latents[:, :1])], dim=1)
        inputs, outputs = (x.movedim(1, -1).flatten(1, 2) for x in (told, small))
        tried = PICTURES // 4
        found = torch.linalg.lstsq(inputs[tried:].flatten(0, 1), outputs[tried:].flatten(0, 1)).solution
        error = unit_range(inputs[:tried] @ found) - unit_range(outputs[:tried])
        return cls(found.T.contiguous(), -10 * error.square().mean().clamp_min(1e-10).log10().item())


def some_pictures(count: int, side: int) -> Tensor:
    """(count, 3, side, side) in [-1, 1]: coloured clouds of every size, the same each time."""
    dice = torch.Generator().manual_seed(0)
    sum_of_all, cells = torch.zeros(count, 3, side, side), 1
    while cells <= side // 8:
        grey, colour = (torch.randn(count, n, cells, cells, generator=dice) for n in (1, 3))
        cloud = grey + 0.7 * colour
        sum_of_all += F.interpolate(cloud, (side, side), mode="bilinear") * cells**-0.3
        cells *= 2
    return (0.45 * sum_of_all).clamp(-1, 1)


class Previews:
    """A pipeline that shows what its latents are about to become."""

    inherited: ClassVar[tuple[str, ...]] = ("preview_decoder",)

    # A module that is given stays where and what it is: latents are brought there, in the format of its weights.
    preview_decoder: Any = None  # given: (n, c, h, w) latents, scaled → (n, 3, h', w') in about [-1, 1]
    _previewed: tuple[Any, nn.Module] | None = None  # an autoencoder, and what was found for it

    name_or_path: str
    latent_axes: ClassVar[str]
    at_edge: Any
    vae: Any

    def preview(self, latents: Tensor, output_type: str = "pil") -> Any:
        """Latents of a clip that is still being denoised → its frames, roughly, in a small part of decoding's time.

        By a preview decoder trained for these latents where there is one, as of the models in the box, at full size.
        Otherwise by one colour for each of their pixels, fitted to the pipeline's autoencoder at the first call: frames
        are then as small as the latents. The log says which, and how near it came.

        Args:
            latents: (b, c, f, h, w), or (b, f, c, h, w) of Stable Video Diffusion, best those without noise: an
                event's `clean`, or a callback's.
            output_type: "pil", "np" or "pt".

        Raises:
            InputError: an argument cannot be used.
            NumericsError: the latents, or those of the autoencoder, are not finite.
        """
        kind = choice("output_type", output_type, [one for one in OUTPUT_TYPES if one != "latent"])
        if not isinstance(latents, Tensor) or latents.ndim != 5:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InputError(f"latents are {got}; they must be a tensor ({self.latent_axes}).")
        clips: Tensor = self.at_edge(latents)
        channels = self.vae.config.latent_channels
        if clips.shape[2] != channels:
            raise InputError(f"latents have {clips.shape[2]} channels; this pipeline's have {channels}.")
        decoder = self.previewer
        with torch.no_grad():
            if decoder is not self.preview_decoder:  # it was found, and is nobody else's
                decoder = decoder.to(clips.device)
            place, dtype = _works(decoder, clips.device)
            made = [sound("preview", decoder(clip.to(place, dtype))).float() for clip in clips]
        return convert(to_video(unit_range(torch.cat(made)).cpu(), clips.shape[1]), kind)

    @property
    def previewer(self) -> Any:
        """What makes previews: `preview_decoder` where one was given, else what goes with the autoencoder there is."""
        if self.preview_decoder is not None:
            return self.preview_decoder
        if self._previewed is None or self._previewed[0] is not self.vae:
            self._previewed = self.vae, self._found()
        return self._previewed[1]

    def _found(self) -> nn.Module:
        """A decoder in the pipeline's own folder, or in the box, that knows these latents; else a linear one."""
        own = [Path(self.name_or_path).expanduser()] if self.name_or_path else []
        for folder in dict.fromkeys([*own, *map(box, BOX)]):
            if folder is None or not (within(folder, FOLDER) / CONFIG).is_file():
                continue
            found = load_model(PreviewDecoder, within(folder, FOLDER), dtype=torch.float32)
            if found.knows(self.vae):
                return found
        linear = LinearPreview.of(self.vae)
        log.info("No preview decoder knows these latents; colours are guessed, %.1f dB off", linear.decibels)
        return linear


def _works(decoder: Any, place: torch.device) -> tuple[torch.device, torch.dtype]:
    """Where and in which number format a decoder works: as its weights are, else where latents are, in float32."""
    held = [] if not isinstance(decoder, nn.Module) else [*decoder.parameters(), *decoder.buffers()]
    first = next((tensor for tensor in held if tensor.is_floating_point()), None)
    return (place, torch.float32) if first is None else (first.device, first.dtype)

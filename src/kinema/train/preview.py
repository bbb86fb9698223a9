"""Training the preview decoder: to make of latents what they were made of, in a few convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..families.autoencoder_kl import AutoencoderKL
from ..pipelines.preview_decoder import PreviewDecoder, latent_space
from .autoencoder import likeness
from .data import pictures
from .loop import Dice, Stage


def new(vae: AutoencoderKL) -> PreviewDecoder:
    """One for the latents of this autoencoder, as scaled for denoisers."""
    return PreviewDecoder(latent_channels=vae.config.latent_channels, latent_space=latent_space(vae))


def preview(model: PreviewDecoder, vae: AutoencoderKL, steps: int, batch: int = 16, noise: float = 0.15) -> Stage:
    """On latents that are off by up to `noise` of their size, as those that are still being denoised are."""
    model.requires_grad_(True)

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        x = pictures(dice.numpy, batch)
        with torch.no_grad():
            latents = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
            off = torch.randn(latents.shape, generator=dice.torch)
            share = noise * torch.rand(len(x), 1, 1, 1, generator=dice.torch)
        return likeness(model(latents + share * latents.std() * off), x)

    return Stage("preview", model, loss, steps, rate=2e-2, average=0.995)

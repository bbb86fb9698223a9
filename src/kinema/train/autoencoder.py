"""Training the autoencoder: first both halves, then the decoder alone while the latents stay what they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..families.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from ..nn.attention import Attention
from ..nn.blocks import PlainResBlock
from ..toys.world import SIZE
from .data import pictures
from .loop import Dice, Stage

CONFIG = AutoencoderKLConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 32, 64, 96),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=2,  # many groups of few channels would wipe out what a flat colour is
    sample_size=SIZE,
    scaling_factor=1.0,  # `standardise` sees to it
    force_upcast=False,
)
KL = 2e-5  # keeps latents near a Gaussian, a little


def new(config: AutoencoderKLConfig = CONFIG) -> AutoencoderKL:
    """An autoencoder that starts out linear: its residual branches add nothing yet, so that colours come through."""
    model = AutoencoderKL(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for module in model.modules():
        last = {PlainResBlock: "conv2", Attention: "to_out.0"}
        for kind, name in last.items():
            if isinstance(module, kind):
                for p in module.get_submodule(name).parameters():
                    nn.init.zeros_(p)
    return model


def both(model: AutoencoderKL, steps: int, batch: int = 8) -> Stage:
    """The whole autoencoder, its latents drawn from the distribution the encoder names."""

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        x = pictures(dice.numpy, batch)
        latents = model.encode(x).latent_dist
        said = (latents.mean.square() + latents.std.square() - 1 - latents.logvar).mean() / 2
        error, facts = likeness(model.decode(latents.sample(dice.torch)).sample, x)
        return error + KL * said, {**facts, "kl": said.item(), "std": latents.mean.std().item()}

    return Stage("autoencoder", model.requires_grad_(True), loss, steps, rate=2e-2, average=0.995)


def decoder(model: AutoencoderKL, steps: int, batch: int = 8, noise: float = 0.06) -> Stage:
    """The decoder alone, on latents that are a little off, as those of a diffusion model are."""
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    model.post_quant_conv.requires_grad_(True)

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        x = pictures(dice.numpy, batch)
        with torch.no_grad():
            latents = model.encode(x).latent_dist.mode()
            off = torch.randn(latents.shape, generator=dice.torch) * latents.std() * noise
        return likeness(model.decode(latents + off).sample, x)

    return Stage("decoder", model, loss, steps, rate=1e-2, average=0.998)


@torch.no_grad()
def standardise(model: AutoencoderKL, sample: Tensor) -> None:
    """Makes every latent channel have mean 0 and deviation 1 over a sample, by way of the 1×1 convolutions around the
    latents: the pictures that come back are the same."""
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in sample.split(32)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, back = model.quant_conv, model.post_quant_conv
    assert isinstance(into, nn.Conv2d) and isinstance(back, nn.Conv2d)
    assert into.bias is not None and back.bias is not None
    c = len(mean)
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight *= std[None, :, None, None]
    into.weight[:c] /= std[:, None, None, None]
    into.bias[:c] = (into.bias[:c] - mean) / std
    into.bias[c:] -= 2 * std.log()  # a log variance


def likeness(made: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
    """How unlike two batches of pictures are, five times as much in and around the shape; and the decibels."""
    vivid = (truth.amax(1, True) - truth.amin(1, True) > 0.5).float()
    near = F.max_pool2d(vivid, 5, 1, 2)
    error = (made - truth).square()
    loss = ((2 * error + 0.2 * (error + 1e-4).sqrt()) * (1 + 4 * near)).mean()
    inside = (error.detach() * near).sum() / (3 * near.sum()).clamp_min(1)
    return loss, {"psnr": _decibels(error.detach().mean()), "near": _decibels(inside)}


def _decibels(error: Tensor) -> float:
    return (10 * torch.log10(4 / error)).item()

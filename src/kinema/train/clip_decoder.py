"""Training the decoder that sees whole clips: it starts as the decoder of single frames, and learns to use time."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ..families.autoencoder_kl import AutoencoderKL
from ..families.stable_video import AutoencoderKLTemporalDecoder, AutoencoderKLTemporalDecoderConfig
from ..nn.blocks import PlainResBlock
from ..nn.spatiotemporal import TemporalResBlock
from ..toys.moving import some_moving
from ..toys.world import SIZE, draw
from .autoencoder import CONFIG, likeness
from .data import some_scenes, to_pixels
from .loop import Dice, Stage

# A layer more than the other autoencoder has: with a single one, this class has no attention in its middle.
CLIP_CONFIG = AutoencoderKLTemporalDecoderConfig(
    down_block_types=CONFIG.down_block_types,
    block_out_channels=CONFIG.block_out_channels,
    layers_per_block=CONFIG.layers_per_block + 1,
    latent_channels=CONFIG.latent_channels,
    norm_num_groups=CONFIG.norm_num_groups,
    sample_size=SIZE,
    scaling_factor=CONFIG.scaling_factor,
    force_upcast=False,
)


def new() -> AutoencoderKLTemporalDecoder:
    """One whose every block adds nothing yet, in space or in time, and whose last layer lets each frame be."""
    model = AutoencoderKLTemporalDecoder(CLIP_CONFIG)
    for module in model.modules():
        if isinstance(module, PlainResBlock | TemporalResBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)  # type: ignore[arg-type]
    last = model.decoder.time_conv_out
    nn.init.dirac_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return model


@torch.no_grad()
def inflate(model: AutoencoderKLTemporalDecoder, frames: AutoencoderKL) -> None:
    """Gives it what the autoencoder of single frames learned. Its pictures are the same but for a pixel of the border:
    there is no convolution between latents and decoder here, so the two are made one."""
    state = {}
    for key, value in frames.state_dict().items():
        if key.startswith("decoder."):
            key = re.sub(r"(resnets\.\d+)\.", r"\1.spatial_res_block.", key)
        state[key] = value
    kernel, bias = (state.pop(f"post_quant_conv.{k}") for k in ("weight", "bias"))
    into = state["decoder.conv_in.weight"]
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"] + into.sum((2, 3)) @ bias
    state["decoder.conv_in.weight"] = torch.einsum("oiyx,ij->ojyx", into, kernel[:, :, 0, 0])
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected


def clip_decoder(model: AutoencoderKLTemporalDecoder, steps: int, batch: int = 1, noise: float = 0.06) -> Stage:
    """The decoder alone, on latents of clips that are a little off, each frame differently, as those of a diffusion
    model are: neighbours tell it what is off."""
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)

    def loss(step: int, dice: Dice) -> tuple[Tensor, dict[str, float]]:
        scenes = some_moving(dice.numpy, batch)[0] if step % 2 else some_scenes(dice.numpy, batch)
        x = to_pixels(draw(scenes))
        frames, x = x.shape[1], x.flatten(0, 1)
        with torch.no_grad():
            latents = model.encode(x).latent_dist.mode()
            off = torch.randn(latents.shape, generator=dice.torch) * latents.std() * noise
        return likeness(model.decode(latents + off, num_frames=frames).sample, x)

    return Stage("clip_decoder", model, loss, steps, rate=5e-4, average=0.99)

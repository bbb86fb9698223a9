"""What is measured: for each case the two sides' ways of computing the same thing, each in a process of its own.

A side is a function of the folder of weights. It returns a call that runs once and returns its result, and the bytes of
weights it holds. What a side may prepare once a clip is prepared before; the case `clip` counts that too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import weights

Side = tuple[Callable[[], Any], int]


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    what: str
    make: Callable[[str], None]  # writes the weights
    sides: dict[str, Callable[[str], Side]]  # "kinema", then the reference in one or several settings
    bars: dict[str, float]  # "time": at least so much faster; "memory": at most this share of the reference's


def _random(*shape: int, seed: int = 1) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _bytes(*modules: Any) -> int:
    return sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))


def _channels_last(model: Any) -> None:
    """What the reference's documentation advises; as a whole a model with three-dimensional convolutions refuses it."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)


# ---------------------------------------------------------------- one guided step

FRAMES, SIDE, TOKENS = 8, 32, 77  # latents of the published 256×256


def _kinema_step(folder: str) -> Side:
    import torch

    from kinema.families.modelscope import TextConditions, UNet3DConditionModel
    from kinema.sampling.guidance import ClassifierFree

    unet = UNet3DConditionModel.from_pretrained(f"{folder}/unet")
    latents, text = _random(1, 4, FRAMES, SIDE, SIDE).transpose(1, 2), _random(2, TOKENS, 1024, seed=2)
    with torch.no_grad():
        signal = unet.prepare(torch.tensor([500.0]), TextConditions(text, FRAMES)).at(0)
    guidance = ClassifierFree(9.0)
    return lambda: guidance(unet(latents, signal), 0).transpose(1, 2), _bytes(unet)


def _diffusers_step(folder: str, best: bool = False) -> Side:
    import torch
    from diffusers import UNet3DConditionModel

    unet = UNet3DConditionModel.from_pretrained(f"{folder}/unet").eval()
    if best:
        _channels_last(unet)
    latents, text = _random(1, 4, FRAMES, SIDE, SIDE), _random(2, TOKENS, 1024, seed=2)

    def run() -> Any:
        predicted = unet(torch.cat([latents] * 2), torch.tensor(500), encoder_hidden_states=text).sample
        without, within = predicted.chunk(2)
        return without + 9.0 * (within - without)

    return run, _bytes(unet)


# ---------------------------------------------------------------- decoding

PICTURES, PIXELS = 16, 256


def _kinema_decode(folder: str) -> Side:
    import torch

    from kinema.families.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(f"{folder}/vae")
    latents = _random(PICTURES, 4, PIXELS // 8, PIXELS // 8)
    return lambda: torch.cat([vae.decode(latent).sample for latent in latents.split(1)]), _bytes(vae)


def _diffusers_decode(folder: str, best: bool = False) -> Side:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(f"{folder}/vae").eval()
    if best:
        _channels_last(vae)
        vae.enable_slicing()
    latents = _random(PICTURES, 4, PIXELS // 8, PIXELS // 8)
    return lambda: vae.decode(latents).sample, _bytes(vae)


# ---------------------------------------------------------------- a whole clip

CLIP: dict[str, Any] = {
    "height": 128,
    "width": 128,
    "num_frames": 64,
    "num_inference_steps": 2,
    "guidance_scale": 9.0,
    "output_type": "np",
}


def _clip(pipe: Any) -> Side:
    latents = _random(1, 4, CLIP["num_frames"], CLIP["height"] // 8, CLIP["width"] // 8)
    pipe.set_progress_bar_config(disable=True)
    prompt = {"prompt": "a red circle moves left", "negative_prompt": "blue"}
    return lambda: pipe(**prompt, **CLIP, latents=latents.clone()).frames, _bytes(
        pipe.unet, pipe.vae, pipe.text_encoder
    )


def _kinema_clip(folder: str) -> Side:
    from kinema import TextToVideoSDPipeline

    return _clip(TextToVideoSDPipeline.from_pretrained(folder))


def _diffusers_clip(folder: str, best: bool = False) -> Side:
    from diffusers import TextToVideoSDPipeline

    pipe = TextToVideoSDPipeline.from_pretrained(folder)
    if best:
        _channels_last(pipe.unet)
        _channels_last(pipe.vae)
        pipe.vae.enable_slicing()
        pipe.unet.enable_forward_chunking(chunk_size=1, dim=1)
    return _clip(pipe)


def _best(side: Callable[..., Side]) -> Callable[[str], Side]:
    return lambda folder: side(folder, best=True)


CASES = {
    "step": Case(
        "A guided step of a UNet of widths 320/640/1280, two layers each, 8 frames of 32×32 latents",
        weights.unet,
        {"kinema": _kinema_step, "diffusers": _diffusers_step, "diffusers, channels last": _best(_diffusers_step)},
        {"time": 1.25},
    ),
    "decode": Case(
        "Decoding 16 frames of 256×256 with the published autoencoder",
        weights.vae,
        {
            "kinema": _kinema_decode,
            "diffusers": _diffusers_decode,
            "diffusers, channels last, sliced": _best(_diffusers_decode),
        },
        {},
    ),
    "clip": Case(
        "A clip from text: 64 frames of 128×128, two guided steps of a UNet of widths 320/640, published autoencoder",
        weights.pipeline,
        {
            "kinema": _kinema_clip,
            "diffusers": _diffusers_clip,
            "diffusers, channels last, sliced, chunked": _best(_diffusers_clip),
        },
        {"memory": 0.5},
    ),
}

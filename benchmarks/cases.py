"""What is measured: for each case the two sides' ways of computing the same thing, each in a process of its own.

A side is a function of the folder of weights. It returns a call that runs once and returns its result, and the bytes of
weights it holds. What a side may prepare once a clip is prepared before; the case `clip` counts that too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import spared, weights, whole
from .tools import Side, bytes_of, channels_last, random


@dataclass(frozen=True)
class Case:
    """One thing to measure."""

    what: str
    make: Callable[[str], None]  # writes the weights
    sides: dict[str, Callable[[str], Side]]  # "kinema", then the reference in one or several settings
    bars: dict[str, float]  # "time": at least so much faster; "memory": at most this share of the reference's


def _looped(step: Callable[[], Any]) -> Callable[[], Any]:
    """A step of kinema's as one of many: memory stays at hand from one to the next, as the denoising loop keeps it."""
    from kinema.memory import heap

    loop = ExitStack()
    loop.enter_context(heap.kept())

    def run(_: ExitStack = loop) -> Any:
        return step()

    return run


def _decoding(decode: Callable[[], Any]) -> Callable[[], Any]:
    """Pictures decoded as kinema's pipelines do, which keep memory at hand until all of a clip are."""
    from kinema.memory import heap

    def run() -> Any:
        with heap.kept():
            return decode()

    return run


# ---------------------------------------------------------------- one guided step

FRAMES, SIDE, TOKENS = 8, 32, 77  # latents of the published 256×256


def _kinema_step(folder: str) -> Side:
    import torch

    from kinema.families.modelscope import TextConditions, UNet3DConditionModel
    from kinema.sampling.guidance import ClassifierFree

    unet = UNet3DConditionModel.from_pretrained(f"{folder}/unet")
    latents, text = random(1, 4, FRAMES, SIDE, SIDE).transpose(1, 2), random(2, TOKENS, 1024, seed=2)
    with torch.no_grad():
        signal = unet.prepare(torch.tensor([500.0]), TextConditions(text, FRAMES)).at(0)
    guidance = ClassifierFree(9.0)
    return _looped(lambda: guidance(unet(latents, signal), 0).transpose(1, 2)), bytes_of(unet)


def _diffusers_step(folder: str, best: bool = False) -> Side:
    import torch
    from diffusers import UNet3DConditionModel

    unet = UNet3DConditionModel.from_pretrained(f"{folder}/unet").eval()
    if best:
        channels_last(unet)
    latents, text = random(1, 4, FRAMES, SIDE, SIDE), random(2, TOKENS, 1024, seed=2)

    def run() -> Any:
        predicted = unet(torch.cat([latents] * 2), torch.tensor(500), encoder_hidden_states=text).sample
        without, within = predicted.chunk(2)
        return without + 9.0 * (within - without)

    return run, bytes_of(unet)


# ---------------------------------------------------------------- a model from its file


def _kinema_load(folder: str) -> Side:
    from kinema.families.modelscope import UNet3DConditionModel

    return lambda: UNet3DConditionModel.from_pretrained(f"{folder}/unet", dtype="float16").conv_in.weight.float(), 0


def _diffusers_load(folder: str) -> Side:
    import torch
    from diffusers import UNet3DConditionModel

    def run() -> Any:
        unet = UNet3DConditionModel.from_pretrained(f"{folder}/unet", torch_dtype=torch.float16)
        return unet.conv_in.weight.float()

    return run, 0


# ---------------------------------------------------------------- one guided step of an image-to-video model

SVD_FRAMES, SVD_HEIGHT, SVD_WIDTH = SVD_SIZE = 6, 24, 32
SMALL = (2, 8, 16)  # where the reference would take minutes otherwise
NUMBERS = (6.0, 127.0, 0.02)  # frames a second less one, motion bucket, noise added to the picture


def _kinema_svd_step(folder: str, dtype: str = "float32", size: tuple[int, int, int] = SVD_SIZE) -> Side:
    import torch

    from kinema.families.stable_video import ImageConditions, UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel.from_pretrained(f"{folder}/unet", dtype=dtype)
    latents, conditions = _svd_inputs(dtype, size)
    with torch.no_grad():
        prepared = unet.prepare(torch.tensor([1.6378]), ImageConditions(*conditions, size[0]))
    scale = torch.linspace(1.0, 3.0, size[0]).view(1, -1, 1, 1, 1)

    def run() -> Any:
        without, within = unet(latents, prepared.at(0)).float().chunk(2)
        return without + scale * (within - without)

    return _looped(run), bytes_of(unet)


def _diffusers_svd_step(
    folder: str, best: bool = False, dtype: str = "float32", size: tuple[int, int, int] = SVD_SIZE
) -> Side:
    import torch
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel.from_pretrained(f"{folder}/unet", torch_dtype=getattr(torch, dtype)).eval()
    if best:
        channels_last(unet)
    latents, (image, picture, numbers) = _svd_inputs(dtype, size)
    picture, numbers = picture.repeat(1, size[0], 1, 1, 1), numbers.repeat(2, 1)
    scale = torch.linspace(1.0, 3.0, size[0]).view(1, -1, 1, 1, 1)

    def run() -> Any:
        seen = torch.cat([torch.cat([latents] * 2), picture], dim=2)
        without, within = unet(seen, torch.tensor(1.6378), image, numbers).sample.float().chunk(2)
        return without + scale * (within - without)

    return run, bytes_of(unet)


def _svd_inputs(dtype: str, size: tuple[int, int, int]) -> Any:
    """Noisy latents, and what the branches without and with the picture are told: tokens, latents, numbers."""
    import torch

    frames, height, width = size
    kind = getattr(torch, dtype)
    image, picture = random(1, 1, 1024, seed=2).to(kind), random(1, 1, 4, height, width, seed=3).to(kind)
    told = [torch.cat([torch.zeros_like(t), t]) for t in (image, picture)]
    return random(1, frames, 4, height, width).to(kind), (*told, torch.tensor([NUMBERS], dtype=kind))


# ---------------------------------------------------------------- one guided step of I2VGen-XL

I2VGEN_FRAMES, I2VGEN_HEIGHT, I2VGEN_WIDTH = 6, 24, 32


def _kinema_i2vgen_step(folder: str) -> Side:
    import torch

    from kinema.families.i2vgen import I2VGenXLUNet, PictureTextConditions
    from kinema.sampling.guidance import ClassifierFree

    unet = I2VGenXLUNet.from_pretrained(f"{folder}/unet")
    latents, text, image, picture = _i2vgen_inputs()
    conditions = PictureTextConditions(text, image, picture.transpose(1, 2), torch.tensor([16.0]), I2VGEN_FRAMES)
    with torch.no_grad():
        signal = unet.prepare(torch.tensor([500.0]), conditions).at(0)
    guidance, seen = ClassifierFree(9.0), latents.transpose(1, 2)
    return _looped(lambda: guidance(unet(seen, signal), 0).transpose(1, 2)), bytes_of(unet)


def _diffusers_i2vgen_step(folder: str, best: bool = False) -> Side:
    import torch
    from diffusers import I2VGenXLUNet

    unet = I2VGenXLUNet.from_pretrained(f"{folder}/unet").eval()
    if best:
        channels_last(unet)
    latents, text, image, picture = _i2vgen_inputs()
    told = {"image_embeddings": image, "image_latents": torch.cat([picture] * 2), "fps": torch.tensor([16, 16])}

    def run() -> Any:
        predicted = unet(torch.cat([latents] * 2), torch.tensor(500), encoder_hidden_states=text, **told).sample
        without, within = predicted.chunk(2)
        return without + 9.0 * (within - without)

    return run, bytes_of(unet)


def _i2vgen_inputs() -> Any:
    """Latents (1, 4, f, h, w), text (2, k, c), what CLIP makes of the picture (2, 1, c), and its latents."""
    import torch

    shape = (1, 4, I2VGEN_FRAMES, I2VGEN_HEIGHT, I2VGEN_WIDTH)
    image = random(1, 1, 1024, seed=3)
    text = random(2, TOKENS, 1024, seed=2)
    return random(*shape), text, torch.cat([torch.zeros_like(image), image]), random(*shape, seed=4)


# ---------------------------------------------------------------- one guided step of AnimateDiff

LORAS = (1, 2)  # seeds


def _kinema_motion_step(folder: str, loras: Sequence[int] = ()) -> Side:
    import torch

    from kinema.checkpoint.lora import Adapters
    from kinema.families.animatediff import MotionConditions, UNetMotionModel
    from kinema.sampling.guidance import ClassifierFree

    unet = UNetMotionModel.from_pretrained(f"{folder}/unet")
    adapters = Adapters({"unet": unet})
    adapters.set({adapters.load(weights.lora(seed), f"lora{seed}"): 0.5 for seed in loras})
    latents, text = _motion_inputs()
    with torch.no_grad():
        signal = unet.prepare(torch.tensor([500.0]), MotionConditions(text, FRAMES)).at(0)
    guidance, seen = ClassifierFree(7.5), latents.transpose(1, 2)
    return _looped(lambda: guidance(unet(seen, signal), 0).transpose(1, 2)), bytes_of(unet)


def _diffusers_motion_step(folder: str, best: bool = False, loras: Sequence[int] = ()) -> Side:
    import torch
    from diffusers import UNetMotionModel

    unet = UNetMotionModel.from_pretrained(f"{folder}/unet").eval()
    for seed in loras:
        unet.load_lora_adapter(weights.lora(seed), prefix="unet", adapter_name=f"lora{seed}")
    if loras:
        unet.set_adapters([f"lora{seed}" for seed in loras], [0.5] * len(loras))
    if best:
        channels_last(unet)
    latents, text = _motion_inputs()
    every = text.repeat_interleave(FRAMES, 0)

    def run() -> Any:
        predicted = unet(torch.cat([latents] * 2), torch.tensor(500), encoder_hidden_states=every).sample
        without, within = predicted.chunk(2)
        return without + 7.5 * (within - without)

    return run, bytes_of(unet)


def _motion_inputs() -> Any:
    """Latents (1, 4, f, h, w) and text (2, k, c)."""
    return random(1, 4, FRAMES, SIDE, SIDE), random(2, TOKENS, 768, seed=2)


# ---------------------------------------------------------------- decoding

PICTURES, PIXELS = 16, 256


def _kinema_decode(folder: str) -> Side:
    import torch

    from kinema.families.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(f"{folder}/vae")
    latents = random(PICTURES, 4, PIXELS // 8, PIXELS // 8)
    return _decoding(lambda: torch.cat([vae.decode(latent).sample for latent in latents.split(1)])), bytes_of(vae)


def _diffusers_decode(folder: str, best: bool = False) -> Side:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(f"{folder}/vae").eval()
    if best:
        channels_last(vae)
        vae.enable_slicing()
    latents = random(PICTURES, 4, PIXELS // 8, PIXELS // 8)
    return lambda: vae.decode(latents).sample, bytes_of(vae)


# ---------------------------------------------------------------- decoding frames that know of one another

TEMPORAL_FRAMES, TEMPORAL_PIXELS = 25, 128


def _kinema_temporal_decode(folder: str) -> Side:
    import torch

    from kinema.families.stable_video import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder.from_pretrained(f"{folder}/vae")
    latents = random(TEMPORAL_FRAMES, 4, TEMPORAL_PIXELS // 8, TEMPORAL_PIXELS // 8)
    return lambda: torch.cat(list(vae.stream(latents))), bytes_of(vae)


def _whole_temporal_decode(folder: str) -> Side:
    """kinema's too, all frames at once: what streaming is to be no slower than."""
    from kinema.families.stable_video import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder.from_pretrained(f"{folder}/vae")
    latents = random(TEMPORAL_FRAMES, 4, TEMPORAL_PIXELS // 8, TEMPORAL_PIXELS // 8)
    return lambda: vae.decode(latents, num_frames=TEMPORAL_FRAMES).sample, bytes_of(vae)


def _diffusers_temporal_decode(folder: str, best: bool = False) -> Side:
    from diffusers import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder.from_pretrained(f"{folder}/vae").eval()
    if best:
        channels_last(vae)
    latents = random(TEMPORAL_FRAMES, 4, TEMPORAL_PIXELS // 8, TEMPORAL_PIXELS // 8)
    return lambda: vae.decode(latents, num_frames=TEMPORAL_FRAMES).sample, bytes_of(vae)


def _best(side: Callable[..., Side]) -> Callable[[str], Side]:
    return lambda folder: side(folder, best=True)


EXACT = "kinema, exact"  # what approximations are held against

CASES = {
    "step": Case(
        "A guided step of a UNet of widths 320/640/1280, two layers each, 8 frames of 32×32 latents",
        weights.unet,
        {"kinema": _kinema_step, "diffusers": _diffusers_step, "diffusers, channels last": _best(_diffusers_step)},
        {"time": 1.25},
    ),
    "load": Case(
        "Loading a UNet of widths 320/640/1280, two layers each, from float32 files in float16",
        weights.unet,
        {"kinema": _kinema_load, "diffusers": _diffusers_load},
        {"memory": 0.5},
    ),
    "svd-step": Case(
        "A guided step of Stable Video Diffusion's UNet, widths 320/640/1280, two layers, 6 frames of 24×32 latents",
        weights.svd_unet,
        {
            "kinema": _kinema_svd_step,
            "diffusers": _diffusers_svd_step,
            "diffusers, channels last": _best(_diffusers_svd_step),
        },
        {"time": 1.3},
    ),
    "svd-step-bfloat16": Case(
        "The same in bfloat16, 2 frames of 8×16 latents",
        weights.svd_unet,
        {
            "kinema": partial(_kinema_svd_step, dtype="bfloat16", size=SMALL),
            "diffusers": partial(_diffusers_svd_step, dtype="bfloat16", size=SMALL),
        },
        {"time": 1.5},
    ),
    "i2vgen-step": Case(
        "A guided step of I2VGen-XL's UNet, widths 320/640/1280, two layers, 6 frames of 24×32 latents",
        weights.i2vgen_unet,
        {
            "kinema": _kinema_i2vgen_step,
            "diffusers": _diffusers_i2vgen_step,
            "diffusers, channels last": _best(_diffusers_i2vgen_step),
        },
        {"time": 1.25},
    ),
    "animatediff-step": Case(
        "A guided step of AnimateDiff's UNet, widths 320/640/1280, two layers, 8 frames of 32×32 latents",
        weights.motion_unet,
        {
            "kinema": _kinema_motion_step,
            "diffusers": _diffusers_motion_step,
            "diffusers, channels last": _best(_diffusers_motion_step),
        },
        {"time": 1.3},
    ),
    "animatediff-lora-step": Case(
        "The same with two LoRAs of rank 16 on every spatial attention",
        weights.motion_unet,
        {
            "kinema": partial(_kinema_motion_step, loras=LORAS),
            "kinema, without them": _kinema_motion_step,
            "diffusers": partial(_diffusers_motion_step, loras=LORAS),
        },
        {"time": 1.3},
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
    "temporal-decode": Case(
        "Decoding 25 frames of 128×128 together with the published decoder of Stable Video Diffusion",
        weights.temporal_vae,
        {
            "kinema": _kinema_temporal_decode,
            "kinema, not streamed": _whole_temporal_decode,
            "diffusers": _diffusers_temporal_decode,
            "diffusers, channels last": _best(_diffusers_temporal_decode),
        },
        {"time": 1.3, "memory": 0.25},
    ),
    "clip": Case(
        "A clip from text: 64 frames of 128×128, two guided steps of a UNet of widths 320/640, published autoencoder",
        weights.pipeline,
        {
            "kinema": whole.kinema_text,
            "diffusers": whole.diffusers_text,
            "diffusers, channels last, sliced, chunked": _best(whole.diffusers_text),
        },
        {"memory": 0.5},
    ),
    "svd-clip": Case(
        "A picture to an MP4 file: 8 frames of 192×128, four guided steps, the widths of `svd-step`, published decoder",
        weights.svd_pipeline,
        {"kinema": whole.kinema_picture, "diffusers": whole.diffusers_picture},
        {"time": 2.0},
    ),
    "svd-spared": Case(
        f"From a picture to latents with deep features reused ({spared.REUSE}): 4 frames of 16×16 latents, 10 guided "
        "steps, the widths of `svd-step`",
        weights.svd_pipeline,
        {"kinema": partial(spared.wide, **spared.REUSE), EXACT: spared.wide},
        {"time": 3.0},
    ),
    "toy-svd-spared": Case(
        f"A clip of the model in the box (toy-svd) with deep features reused ({spared.TRIGGER}): 25 guided steps",
        spared.nothing,
        {
            "kinema": partial(spared.toy, **spared.TRIGGER),
            EXACT: spared.toy,
            f"kinema, {spared.REUSE}": partial(spared.toy, **spared.REUSE),
        },
        {},
    ),
}

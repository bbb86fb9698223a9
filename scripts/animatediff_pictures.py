"""Makes the pictures of docs/guides/animatediff.md with the models in the box, each sheet from a seed.

python scripts/animatediff_pictures.py [--only NAME ...] [--out docs/pictures]

A sheet shows one clip a row, its frames from left to right, what made it above. Numbers in the captions are measured
as the sheet is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MODEL = "toy-animatediff"
HOW = {"num_frames": 8, "num_inference_steps": 12, "guidance_scale": 4.0}
COLOURS = 128  # of a sheet's palette
Clip = np.ndarray  # (f, h, w, 3) in [0, 1]
Rows = list[tuple[str, Clip]]


@dataclass(frozen=True)
class Sheet:
    """What a picture says at its top, and its rows."""

    title: str
    rows: Rows


# ---------------------------------------------------------------- models


@cache
def pipeline(style: str = "plain") -> Any:
    """The pipeline in the box, or the same with the second image model; its LoRAs loaded, none active."""
    from kinema import AnimateDiffPipeline, UNet2DConditionModel
    from kinema.toys.camera import CAMERAS

    more = {}
    if style != "plain":
        more["unet"] = UNet2DConditionModel.from_pretrained(MODEL, subfolder=style, dtype="float32")
    pipe = AnimateDiffPipeline.from_pretrained(MODEL, **more)
    pipe.set_progress_bar_config(disable=True)
    for name in CAMERAS:
        pipe.load_lora_weights(MODEL, subfolder="loras", weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters([])
    return pipe


def clip(pipe: Any, prompt: Any, seed: int, **more: Any) -> Clip:
    call = {**HOW, **more}
    return np.asarray(pipe(prompt, generator=seed, output_type="np", **call).frames[0])


def other(kind: str, style: str = "plain", **components: Any) -> Any:
    """Another pipeline on the same weights."""
    import kinema

    pipe = getattr(kinema, kind).from_pipe(pipeline(style), **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---------------------------------------------------------------- measures


def psnr(a: Clip, b: Clip) -> float:
    """Of clips in [0, 1], in dB; infinite where they are the same."""
    wrong = float(np.square(a.astype(np.float64) - b).mean())
    return float("inf") if wrong == 0 else -10 * float(np.log10(wrong))


def changes(made: Clip) -> np.ndarray:
    """(f,): how much the picture changes from each frame to the next, and from the last to the first."""
    return np.abs(made - np.roll(made, -1, axis=0)).mean((1, 2, 3))


# ---------------------------------------------------------------- sheets


def plain() -> Sheet:
    prompts = {
        "a red circle moves left on a dark background": 1,
        "a blue square moves up on a light background": 2,
        "a yellow star spins on a dark background": 3,
    }
    rows = [(f"{prompt}, seed {seed}", clip(pipeline(), prompt, seed)) for prompt, seed in prompts.items()]
    return Sheet("A prompt, 12 steps, guidance 4", rows)


def style() -> Sheet:
    prompts = {"a blue star moves up on a light background": 3, "a red square moves right on a dark background": 4}
    rows = [
        (f"{what}: {prompt}, seed {seed}", clip(pipeline(name), prompt, seed))
        for prompt, seed in prompts.items()
        for name, what in (("plain", "the image model"), ("chalk", "the second image model"))
    ]
    return Sheet("Two image models, one motion module, 12 steps, guidance 4", rows)


STILL = "a green square stays still on a dark background"


def camera() -> Sheet:
    pipe, rows = pipeline(), []
    for loras in (
        {},
        {"pan-left": 1.0},
        {"pan-right": 1.0},
        {"zoom-in": 1.0},
        {"zoom-out": 1.0},
        {"roll": 1.0},
        {"pan-left": 1.0, "zoom-in": 1.0},
        {"pan-right": 1.0, "zoom-out": 1.0},
    ):
        pipe.set_adapters(list(loras), list(loras.values()))
        rows.append((" + ".join(loras) or "no LoRA", clip(pipe, STILL, 2)))
    pipe.set_adapters([])
    return Sheet(f"{STILL}, seed 2, 12 steps, guidance 4; motion LoRAs at weight 1", rows)


def weight() -> Sheet:
    pipe, rows = pipeline(), []
    bare = clip(pipe, STILL, 2)
    for w in (0.0, 0.5, 1.0):
        pipe.set_adapters("pan-left", w)
        made = clip(pipe, STILL, 2)
        same = ", equal to no LoRA to the bit" if np.array_equal(made, bare) else ""
        rows.append((f"pan-left at weight {w:g}{same}", made))
    pipe.set_adapters([])
    return Sheet(f"{STILL}, seed 2, 12 steps, guidance 4", rows)


def travel() -> Sheet:
    pipe = pipeline()
    prompts = {0: "a red circle on a dark background", 12: "a blue circle on a dark background"}
    moving, ramp = "a red circle moves left on a dark background", [i / 15 for i in range(16)]
    rows = [
        (", ".join(f"{frame}: {prompt}" for frame, prompt in prompts.items()) + "; seed 4", prompts),
        (f"{moving}, seed 4: motion_scale 1", 1.0),
        (f"{moving}, seed 4: motion_scale 0, every frame a picture of its own", 0.0),
        (f"{moving}, seed 4: motion_scale from 0 to 1 over the clip", ramp),
    ]
    made = [
        clip(pipe, prompts, 4, num_frames=16)
        if isinstance(how, dict)
        else clip(pipe, moving, 4, num_frames=16, motion_scale=how)
        for _, how in rows
    ]
    return Sheet("16 frames (every second one shown), 12 steps, guidance 4", halved([w for w, _ in rows], made))


def halved(labels: Sequence[str], clips: Sequence[Clip]) -> Rows:
    """Every second frame."""
    return [(label, c[::2]) for label, c in zip(labels, clips, strict=True)]


def windows() -> Sheet:
    pipe, rows = pipeline(), []
    spin = "a green star spins on a dark background"
    pipe.enable_windows(length=16, overlap=4)
    made = clip(pipe, spin, 1, num_frames=48)
    rows.append(("enable_windows(length=16, overlap=4): frames 0, 6, …, 42 of 48", made[::6]))
    pipe.enable_windows(length=16, overlap=4, loop=True)
    made = clip(pipe, spin, 1, num_frames=24)
    step = changes(made)
    round_ = f"from last to first it changes {step[-1] / step[:-1].mean():.2f} times as much as elsewhere"
    rows.append((f"loop=True, 24 frames: the last four, then the first four; {round_}", np.roll(made, 4, axis=0)[:8]))
    pipe.enable_windows(length=16, overlap=4)
    made = clip(pipe, spin, 1, num_frames=24)
    step = changes(made)
    round_ = f"{step[-1] / step[:-1].mean():.2f} times"
    rows.append((f"the same without loop: the last four, then the first four; {round_}", np.roll(made, 4, axis=0)[:8]))
    pipe.disable_windows()
    return Sheet(f"{spin}, seed 1, 12 steps, guidance 4", rows)


def free_init() -> Sheet:
    pipe, rows = pipeline(), []
    prompt = "a purple triangle moves down on a light background"
    for rounds in (1, 2, 3):
        pipe.enable_free_init(num_iters=rounds)
        made = clip(pipe, prompt, 6)
        rows.append((f"num_iters={rounds}: frames differ by {100 * changes(made)[:-1].mean():.1f} % on average", made))
    pipe.disable_free_init()
    return Sheet(f"{prompt}, seed 6, 12 steps, guidance 4", rows)


def free_noise() -> Sheet:
    pipe, rows = pipeline(), []
    prompt, frames = "a cyan square stays still on a dark background", 40
    pipe.enable_free_noise(context_length=16, context_stride=4)
    rows.append((f"enable_free_noise(context_length=16, context_stride=4), {frames} frames", prompt))
    made = [clip(pipe, prompt, 5, num_frames=frames)]
    pipe.disable_free_noise()
    for noise in ("shuffle_context", "random"):
        pipe.enable_windows(length=16, overlap=4, noise_type=noise)
        rows.append((f'enable_windows(length=16, overlap=4, noise_type="{noise}"), {frames} frames', prompt))
        made.append(clip(pipe, prompt, 5, num_frames=frames))
    pipe.disable_windows()
    labelled = [
        (f"{label}; frames differ by {100 * changes(c)[:-1].mean():.1f} %", c[::5])
        for (label, _), c in zip(rows, made, strict=True)
    ]
    return Sheet(f"{prompt}, seed 5, 12 steps, guidance 4; every fifth frame shown", labelled)


def steps() -> Sheet:
    pipe = pipeline()
    prompt = "a red square moves right on a light background"
    rows = [(f"{n} steps, DDIM", clip(pipe, prompt, 7, num_inference_steps=n)) for n in (2, 4, 8, 25)]
    rows.append(('preset="lcm": 8 steps, guidance 1.5, without weights distilled for it', _lcm(pipe, prompt)))
    pipe.load_lora_weights(MODEL, subfolder="loras", weight_name="few-steps.safetensors", adapter_name="few-steps")
    few = _lcm(pipe, prompt, num_inference_steps=4, guidance_scale=1.0)
    pipe.delete_adapters("few-steps")
    rows.append(('the LoRA few-steps, preset="lcm": 4 steps, guidance 1', few))
    return Sheet(f"{prompt}, seed 7, guidance 4 but for the last rows", rows)


def _lcm(pipe: Any, prompt: str, **more: Any) -> Clip:
    return np.asarray(pipe(prompt, generator=7, num_frames=8, output_type="np", preset="lcm", **more).frames[0])


def video_to_video() -> Sheet:
    footage = drawn("red", "circle", "dark", [(0.68 - 0.05 * i, 0.5) for i in range(8)])
    pipe = other("AnimateDiffVideoToVideoPipeline")
    prompt = "a blue square moves left on a dark background"
    rows: Rows = [("the footage, drawn", footage)]
    for strength in (0.2, 0.4, 0.7, 1.0):
        call = {"num_inference_steps": 12, "guidance_scale": 4.0, "strength": strength, "output_type": "np"}
        made = pipe(video=list(footage), prompt=prompt, generator=8, **call).frames[0]
        rows.append((f"strength={strength:g}", np.asarray(made)))
    return Sheet(f"{prompt}, seed 8, 12 steps, guidance 4", rows)


def drawn(colour: str, shape: str, background: str, path: Sequence[tuple[float, float]], **more: Any) -> Clip:
    """A shape on a path of ours, as the world draws it, (f, h, w, 3) in [0, 1]."""
    from kinema.toys.world import Scene, draw

    scene = Scene(colour, shape, "stays still", background, **more)
    return np.concatenate([draw([replace(scene, start=at)], 1)[0] for at in path]) / 255


def around(far: float = 0.2) -> list[tuple[float, float]]:
    """Once about the centre in eight frames, from the right, clockwise."""
    return [(0.5 + far * float(np.cos(a)), 0.5 + far * float(np.sin(a))) for a in np.arange(8) * np.pi / 4]


def control() -> Sheet:
    from kinema import ControlNetModel
    from kinema.toys.outlines import outlines, overlap

    net = ControlNetModel.from_pretrained(MODEL, subfolder="controlnet", dtype="float32")
    prompt = "a red square on a dark background"
    path = drawn("red", "square", "dark", around())
    lines = outlines((path * 255).astype(np.uint8))
    shown = list(lines.astype(np.float32) / 255)

    def shared(made: Clip) -> str:
        return f"overlap {100 * overlap((made * 255).astype(np.uint8), (path * 255).astype(np.uint8)):.0f} %"

    free = clip(pipeline(), prompt, 9)
    rows: Rows = [("conditioning_frames: the outlines of a square that goes around", lines / 255)]
    rows.append((f"without the ControlNet; {shared(free)} with the outlined square", free))
    for name, what, scales in (("plain", "the image model", (0.5, 1.0)), ("chalk", "the second image model", (1.0,))):
        pipe = other("AnimateDiffControlNetPipeline", name, controlnet=net)
        for scale in scales:
            more = {"conditioning_frames": shown, "controlnet_conditioning_scale": scale}
            made = clip(pipe, prompt, 9, **more)
            rows.append((f"{what}, controlnet_conditioning_scale={scale:g}; {shared(made)}", made))
    pipe = other("AnimateDiffControlNetPipeline", controlnet=net)
    made = clip(pipe, prompt, 9, conditioning_frames=shown, control_guidance_end=0.5)
    rows.append((f"the image model, control_guidance_end=0.5: the first half of the steps; {shared(made)}", made))
    return Sheet(f"{prompt}, seed 9, 12 steps, guidance 4", rows)


def pag() -> Sheet:
    pipe, rows = other("AnimateDiffPAGPipeline"), []
    prompt = "a blue square moves left on a light background"
    bare = {}
    for scale in (1.0, 4.0):
        for away, layers in ((0.0, "mid"), (3.0, "mid"), (1.0, "attn1"), (3.0, "attn1")):
            pipe.set_pag_applied_layers(layers)
            made = clip(pipe, prompt, 10, guidance_scale=scale, pag_scale=away)
            how = f', pag_applied_layers="{layers}"; PSNR to none {psnr(made, bare[scale]):.1f} dB' if away else ""
            bare.setdefault(scale, made)
            rows.append((f"guidance_scale={scale:g}, pag_scale={away:g}{how}", made))
    return Sheet(f"{prompt}, seed 10, 12 steps", rows)


def zero() -> Sheet:
    from kinema import TextToVideoZeroPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet", dtype="float32")
    box = pipeline()
    parts = {name: getattr(box, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipe = TextToVideoZeroPipeline(unet=unet, **parts)
    pipe.set_progress_bar_config(disable=True)
    prompt, call = "a red square on a dark background", {"guidance_scale": 4.0, "video_length": 8}
    rows = []
    for x, y in ((0, 0), (40, 0), (0, 40)):
        more = {"motion_field_strength_x": x, "motion_field_strength_y": y, "t0": 20, "t1": 22}
        made = pipe(prompt, generator=11, height=64, width=64, output_type="np", **call, **more)
        rows.append((f"motion_field_strength_x={x}, motion_field_strength_y={y}", np.asarray(made.frames[0])))
    return Sheet(f"The image model alone: {prompt}, seed 11, 50 steps, guidance 4, t0=20, t1=22", rows)


def numerics() -> Sheet:
    pipe = pipeline()
    prompt, gain = "a red circle moves left on a dark background", 8
    theirs = clip(pipe, prompt, 1)
    rows: Rows = [('numerics="reference": motion modules normalise over the whole clip', theirs)]
    for over, what in ((False, "by frame, as v2, v3"), (True, "by frame; residual blocks over the clip, as v1, PIA")):
        pipe.set_numerics("original", over_clip=over)
        made = clip(pipe, prompt, 1)
        rows.append((f'"original": {what}; PSNR to the reference {psnr(made, theirs):.1f} dB', made))
        rows.append(
            (f"the difference, {gain} times as strong, around grey", np.clip(0.5 + gain * (made - theirs), 0, 1))
        )
    pipe.set_numerics("reference")
    return Sheet(f"{prompt}, seed 1, 12 steps, guidance 4", rows)


def sparse() -> Sheet:
    """Not made by a model: what a SparseCtrl is told."""
    import torch

    from kinema.families.animatediff.sparse_controlnet import spread
    from kinema.toys.outlines import outlines

    path = drawn("red", "star", "dark", [(0.7 - 0.057 * i, 0.5) for i in range(8)])
    lines = outlines((path * 255).astype(np.uint8)) / 255
    rows: Rows = []
    for frames in ((0,), (0, 7), (0, 3, 7)):
        given = torch.from_numpy(lines[list(frames)]).float().movedim(-1, 1)[None]
        pictures, known = spread(given, frames, len(lines))
        unknown = (1 - known.numpy())[:, None, None, None]
        seen = pictures[0].movedim(1, -1).numpy() + 0.75 * unknown
        rows.append((f"controlnet_frame_indices={list(frames)}: frames without a picture are grey here", seen))
    return Sheet("What a SparseCtrl is shown: not made by a model", rows)


def pia() -> Sheet:
    """Not made by a model: how like its picture PIA tells each frame to stay, white where it is the same."""
    from kinema.families.animatediff.pia import LIKENESS, likeness

    rows: Rows = []
    kinds = ("motion", "a loop", "another style")
    for scale in range(len(LIKENESS)):
        like = likeness(scale, 16).numpy()[::2]
        frames = np.broadcast_to(like[:, None, None, None], (8, 16, 64, 3))
        rows.append((f"motion_scale={scale} ({kinds[scale // 3]}): {', '.join(f'{x:.2f}' for x in like)}", frames))
    return Sheet("What PIA is told of frames 0, 2, …, 14: not made by a model", rows)


SHEETS: dict[str, Callable[[], Sheet]] = {
    f.__name__.replace("_", "-"): f
    for f in (
        plain,
        style,
        camera,
        weight,
        travel,
        windows,
        free_init,
        free_noise,
        steps,
        video_to_video,
        control,
        sparse,
        pia,
        pag,
        zero,
        numerics,
    )
}


def page(sheet: Sheet) -> Any:
    """The title above the rows, in few colours, which makes small files."""
    from PIL import Image, ImageDraw, ImageFont

    from kinema.media.sheet import contact_sheet

    body = contact_sheet([c for _, c in sheet.rows], [label for label, _ in sheet.rows], scale=2)
    whole = Image.new("RGB", (body.width, body.height + 26), "white")
    whole.paste(body, (0, 26))
    ImageDraw.Draw(whole).text((4, 5), sheet.title, fill="black", font=ImageFont.load_default(16))
    return in_few_colours(whole)


def in_few_colours(picture: Any) -> Any:
    """The picture with a palette, in which ink and paper are what they were."""
    from PIL import Image

    found = picture.quantize(COLOURS - 2, dither=Image.Dither.NONE).getpalette()[: 3 * (COLOURS - 2)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*found, 0, 0, 0, 255, 255, 255])
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    parser.add_argument("--only", nargs="*", choices=SHEETS, default=list(SHEETS), metavar="NAME")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = options.out / f"animatediff-{name}.png"
        page(SHEETS[name]()).save(path, optimize=True)
        print(f"Wrote {path}, {path.stat().st_size // 1000} kB", flush=True)


if __name__ == "__main__":
    main()

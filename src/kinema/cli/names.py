"""Words of the command line and what they mean: schedulers, sizes, LoRA files, output names."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError

# What a person types -> the class, and what it is configured with on top of the model's own settings.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-single": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}

DTYPES = ("auto", "float32", "float16", "bfloat16")

OFFLOADS = ("none", "model", "sequential")

NUMERICS = ("reference", "original")

# Short names of published models -> their ids on the hub, and what such a checkpoint does best with.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "modelscope": ("ali-vilab/text-to-video-ms-1.7b", {}),
    "zeroscope": ("cerspense/zeroscope_v2_576w", {"num_frames": 24, "height": 320, "width": 576}),
    "svd": ("stabilityai/stable-video-diffusion-img2vid", {"preset": "svd"}),
    "svd-xt": ("stabilityai/stable-video-diffusion-img2vid-xt", {"preset": "svd_xt"}),
    "svd-xt-1-1": ("stabilityai/stable-video-diffusion-img2vid-xt-1-1", {"preset": "svd_xt_1_1"}),
    "i2vgen-xl": ("ali-vilab/i2vgen-xl", {}),
}

# Camera motions -> the motion LoRAs published for modules of version 2. A model in the box has files of its own: the
# pans and zooms under the same names, and "roll".
CAMERAS: dict[str, str] = {
    name: f"guoyww/animatediff-motion-lora-{name}"
    for name in (
        "zoom-in",
        "zoom-out",
        "pan-left",
        "pan-right",
        "tilt-up",
        "tilt-down",
        "rolling-clockwise",
        "rolling-anticlockwise",
    )
}

# What a ControlNet is shown -> the one published for Stable Diffusion 1.5.
CONTROLS: dict[str, str] = {
    "canny": "lllyasviel/control_v11p_sd15_canny",
    "depth": "lllyasviel/control_v11f1p_sd15_depth",
    "lineart": "lllyasviel/control_v11p_sd15_lineart",
    "normal": "lllyasviel/control_v11p_sd15_normalbae",
    "openpose": "lllyasviel/control_v11p_sd15_openpose",
    "scribble": "lllyasviel/control_v11p_sd15_scribble",
    "seg": "lllyasviel/control_v11p_sd15_seg",
    "softedge": "lllyasviel/control_v11p_sd15_softedge",
    "tile": "lllyasviel/control_v11f1e_sd15_tile",
}

# Short names of motion adapters.
MOTIONS: dict[str, str] = {
    "v1-4": "guoyww/animatediff-motion-adapter-v1-4",
    "v1-5": "guoyww/animatediff-motion-adapter-v1-5",
    "v2": "guoyww/animatediff-motion-adapter-v1-5-2",
    "v3": "guoyww/animatediff-motion-adapter-v1-5-3",
    "animatelcm": "wangfuyun/AnimateLCM",
}

# What --motion can say of a picture's motion, beside a number.
AMOUNTS = ("still", "calm", "normal", "lively")

# What --format names -> the suffix of the file; an empty one is a folder of PNG files.
FORMATS = {"mp4": ".mp4", "webm": ".webm", "gif": ".gif", "webp": ".webp", "apng": ".png", "frames": ""}


def scheduler(name: str) -> tuple[str, dict[str, Any]]:
    """The class a scheduler's short name or class name means, and its settings.

    Raises:
        InputError: nothing is called that; the message names the nearest and all.
    """
    classes: dict[str, tuple[str, dict[str, Any]]] = {cls: (cls, {}) for cls, _ in SCHEDULERS.values()}
    return _chosen(name, {**{k.lower(): v for k, v in SCHEDULERS.items()}, **classes}, SCHEDULERS, "scheduler")


def dtype(name: str) -> str:
    """Raises InputError unless the name is one of `DTYPES`."""
    aliases = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}
    return _chosen(name, {**{n: n for n in DTYPES}, **aliases}, DTYPES, "dtype")


def offload(name: str) -> str:
    """Raises InputError unless the name is one of `OFFLOADS`."""
    return _chosen(name, {n: n for n in OFFLOADS}, OFFLOADS, "offload")


def memory(text: str) -> int | str | None:
    """What `--memory` means: "auto", None for "none", or bytes.

    Raises:
        InputError: it is none of these.
    """
    from ..memory.room import checked

    return None if text.lower() == "none" else checked(text.lower() if text.lower() == "auto" else text)


def numerics(name: str) -> str:
    """Raises InputError unless the name is one of `NUMERICS`."""
    return _chosen(name, {n: n for n in NUMERICS}, NUMERICS, "numerics")


def _chosen(name: str, table: dict[str, Any], shown: Iterable[str], kind: str) -> Any:
    if name in table:
        return table[name]
    if name.lower() in table:
        return table[name.lower()]
    near = difflib.get_close_matches(name.lower(), list(table), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InputError(f"{kind} {name!r} is unknown.{hint} Choose one of: {', '.join(shown)}.")


def size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` or one number for a square -> (width, height) in pixels."""
    match = re.fullmatch(r"(\d+)(?:\s*[x×*:]\s*(\d+))?", text.strip().lower())
    if match is None or 0 in (found := [int(n) for n in match.groups() if n]):
        raise InputError(f"--size {text!r} is no size; write WIDTHxHEIGHT, for example 256x256.")
    return found[0], found[-1]


def setting(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` -> an argument of the pipeline; the value as JSON has it, or else as text.

    Raises:
        InputError: there is no name.
    """
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name.isidentifier():
        raise InputError(f"--set {text!r} is no setting; write NAME=VALUE, for example --set motion_bucket_id=180.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def lora(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:WEIGHT` -> the file and its weight, 1 by default."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


def amount_of_motion(text: str) -> bool:
    """Whether --motion says how much a picture moves, rather than which module moves an image model."""
    try:
        return text in AMOUNTS or float(text) is not None
    except ValueError:
        return False


def control(text: str) -> tuple[str, str]:
    """`NET:FRAMES` -> which ControlNet, and the folder, video or picture it is shown.

    Raises:
        InputError: one of the two is missing.
    """
    net, _, frames = text.partition(":")
    if not net or not frames:
        raise InputError(f"--control {text!r} says no net and frames; write NET:FRAMES, for example openpose:poses/.")
    return CONTROLS.get(net, net), frames


def outputs(output: Path | None, kind: str | None, seed: int, count: int) -> list[Path]:
    """The files to write: the one asked for, or numbered ones `name-1.mp4`, `name-2.mp4`, ... where there are several.

    Raises:
        InputError: the format is unknown or another one than the name says.
    """
    if kind is not None and kind not in FORMATS:
        raise InputError(f"--format {kind!r} is unknown; choose one of: {', '.join(FORMATS)}.")
    suffix = FORMATS[kind] if kind is not None else None
    if output is None:
        output = Path(f"kinema-{seed}{'.mp4' if suffix is None else suffix}")
    elif suffix is None and not output.suffix:
        raise InputError(f"{output} has no suffix such as .mp4 that says what to write; add one, or give --format.")
    elif suffix and output.suffix.lower() not in ("", suffix):
        raise InputError(f"{output} is not named as {kind} files are; end it in {suffix} or leave out --format.")
    elif suffix and not output.suffix:
        output = output.with_name(output.name + suffix)
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i + 1}{output.suffix}") for i in range(count)]

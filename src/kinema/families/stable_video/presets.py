"""What each published checkpoint of Stable Video Diffusion does best with, and Align Your Steps' schedule for them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ...pipelines.inputs import choice

P = ParamSpec("P")
R = TypeVar("R")


def _preset(frames: int, steps: int, least: float, most: float) -> Mapping[str, Any]:
    return {
        "num_frames": frames,
        "num_inference_steps": steps,
        "min_guidance_scale": least,
        "max_guidance_scale": most,
    }


# From the configurations published with the weights. All of them were sampled at fps 6 (which is fps=7 here, where one
# is taken off, as in the reference), motion bucket 127 and noise 0.02, which are the defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "svd": _preset(14, 25, 1.0, 2.5),
    "svd_xt": _preset(25, 30, 1.5, 3.0),
    "svd_xt_1_1": _preset(25, 30, 1.5, 3.0),
}

# Sabour et al. 2024, "Align Your Steps": the levels for Stable Video Diffusion in ten steps. The last goes on to 0.
AYS = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def preset(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of the preset that is asked for, of arguments that are not given.

    Raises:
        InputError: there is no such preset.
    """
    if given.get("preset") is None:
        return {}
    values = PRESETS[choice("preset", given["preset"], tuple(PRESETS))]
    return {name: value for name, value in values.items() if given.get(name) is None}


def presets_fill(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a call's preset say what the call leaves out."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs).arguments
        return function(*args, **{**kwargs, **preset(given)})

    return call


def align_your_steps(steps: int) -> list[float]:
    """Noise levels of so many steps, and the end, 0: Align Your Steps', between them interpolated in the logarithm."""
    at = np.linspace(0, len(AYS) - 1, steps + 1)
    levels = np.exp(np.interp(at, np.arange(len(AYS)), np.log(AYS)))
    return [*levels[:-1].tolist(), 0.0]

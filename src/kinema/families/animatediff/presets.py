"""What distilled weights need: few steps, little guidance, and the scheduler they were distilled for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...pipelines.inputs import choice


class Preset(NamedTuple):
    """A recipe; the noise schedule stays the pipeline's own."""

    scheduler: str  # the class
    settings: Mapping[str, Any]  # on top of the pipeline's own
    call: Mapping[str, Any]  # arguments, where a call says nothing else


def _lightning(steps: int) -> Preset:
    """ByteDance/AnimateDiff-Lightning, whose files are named after their steps."""
    return Preset(
        "EulerDiscreteScheduler",
        {"timestep_spacing": "trailing"},
        {"num_inference_steps": steps, "guidance_scale": 1.0},
    )


PRESETS: Mapping[str, Preset] = {
    **{f"lightning-{steps}": _lightning(steps) for steps in (1, 2, 4, 8)},
    "lcm": Preset("LCMScheduler", {}, {"num_inference_steps": 8, "guidance_scale": 1.5}),  # with an LCM LoRA
    "animatelcm": Preset("LCMScheduler", {}, {"num_inference_steps": 6, "guidance_scale": 2.0}),
    "tcd": Preset("TCDScheduler", {}, {"num_inference_steps": 8, "guidance_scale": 1.0, "eta": 0.3}),
}


def preset(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values of the preset that is asked for, of arguments that are not given.

    Raises:
        InputError: there is no such preset.
    """
    if given.get("preset") is None:
        return {}
    values = PRESETS[choice("preset", given["preset"], tuple(PRESETS))].call
    return {name: value for name, value in values.items() if name not in given}

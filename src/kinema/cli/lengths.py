"""What `kinema generate` can be told of length: windows, closed loops, FreeNoise and FreeInit, set before a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from ..errors import InputError


@dataclass(frozen=True)
class Length:
    """Settings of a pipeline, by the names its methods have for them; nothing where nothing is asked for."""

    windows: Mapping[str, Any] = field(default_factory=dict)  # arguments of `enable_windows`
    free_noise: bool = False
    free_init: int | None = None  # rounds


def asked(*, window: int | None, free_noise: bool = False, free_init: int | None = None, **windows: Any) -> Length:
    """What options say, checked as far as can be without a model.

    Args:
        window: frames of a window.
        windows: the other arguments of `enable_windows`; those that are None or False are not given.

    Raises:
        InputError: a number cannot be used, a name is unknown, or FreeNoise is to cut a clip that windows cut.
    """
    from ..pipelines.inputs import choice, whole
    from ..sampling.free_noise import NoiseType
    from ..sampling.windows import Blend

    given = {name: value for name, value in {"length": window, **windows}.items() if value not in (None, False)}
    if windows.get("drift") is False:
        given["drift"] = False
    for option, value, least in (
        ("--window", window, 1),
        ("--overlap", windows.get("overlap"), 0),
        ("--stride", windows.get("stride"), 1),
        ("--free-init", free_init, 1),
    ):
        if value is not None:
            whole(option, value, least)
    if window is not None and (windows.get("overlap") or 0) >= window:
        raise InputError(f"--overlap is {windows['overlap']}; it must be less than --window, {window}.")
    for name, known in (("blend", Blend), ("noise_type", NoiseType)):
        if name in given:
            choice(f"--{name.replace('_', '-')}", given[name], get_args(known))
    if free_noise and given:
        raise InputError("--free-noise and windows both cut a clip; give one of them.")
    return Length(given, free_noise, free_init)


def settle(pipe: Any, length: Length) -> None:
    """Sets a pipeline up so.

    Raises:
        InputError: its model cannot, or a number is none for it.
    """
    if length.windows:
        pipe.enable_windows(**length.windows)
    if length.free_noise:
        pipe.enable_free_noise()
    if length.free_init is not None:
        pipe.enable_free_init(num_iters=length.free_init)

"""Settings for clips longer than a model knows, and for better beginnings: for every family, before calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

from ..encoders.travel import Between
from ..errors import InputError
from ..sampling.base import Plan
from ..sampling.free_init import FreeInit, Method
from ..sampling.free_noise import NoiseType, Rescheduled, Rescheduling
from ..sampling.noise import Generators, Noise, noise_from
from ..sampling.windows import Blend, Windows
from ..sampling.wrappers import Windowed
from .inputs import whole

log = logging.getLogger("kinema")

Weighting = Literal["pyramid", "flat", "delayed_reverse_sawtooth"]
SETTINGS = ("_windows", "_rescheduling", "_free_rescheduling", "_free_windows", "_free_init", "_free_noise", "_between")


class LongClips:
    """What a pipeline is told of length. Subclasses say what their model knows."""

    _windows: Windows | None = None
    _rescheduling: Rescheduling | None = None  # of windows
    _free_rescheduling: Rescheduling | None = None  # of FreeNoise
    _free_windows: Any = None  # of FreeNoise, as the denoiser's blocks are told of them
    _free_init: FreeInit | None = None
    _free_noise: Mapping[str, Any] | None = None  # its settings, for the receipt
    _between: Between | None = None

    unet: Any
    scheduler: Any
    _shared: Callable[[Noise], Noise]  # the same for all who make a clip together

    @property
    def trained_frames(self) -> int:
        """As many frames as the model was trained on; windows have so many by default."""
        return 16

    @property
    def frame_limit(self) -> int | None:
        """The most frames the model can be shown at once; None where there is no such number."""
        return None

    def enable_windows(
        self,
        length: int | None = None,
        overlap: int | None = None,
        *,
        stride: int = 1,
        loop: bool = False,
        blend: Blend = "pyramid",
        drift: bool = True,
        noise_type: NoiseType = "random",
    ) -> None:
        """Longer clips are denoised in windows, blended at every step; those no longer than a window stay as they are.

        Args:
            length: frames of a window, 1 or more; as many as the model was trained on by default.
            overlap: frames that neighbouring windows share, at least; 0 to length - 1, a quarter of it by default. More
                is smoother, and slower by length / (length - overlap).
            stride: 1 for windows of neighbouring frames; 2 for windows of every second frame as well, 3 of every fourth
                too, and so on: slower by as much, with parts of a clip that know more of one another.
            loop: whether the last frame is followed by the first, for clips that go round without a seam.
            blend: how frames of a window count: "pyramid" (most in its middle), "flat" (alike), or "linear" (less only
                where windows overlap).
            drift: whether windows begin elsewhere at each step, so that no place is always a border.
            noise_type: what later frames start from: "random", each its own; "shuffle_context", the noise of the first
                `length` frames in another order each time (FreeNoise); "repeat_context", that noise again and again.

        Raises:
            InputError: a setting cannot be used.
        """
        length = whole("length", self.trained_frames if length is None else length, 1, self.frame_limit)
        overlap = length // 4 if overlap is None else overlap
        self._windows = Windows(length, overlap, stride, loop, blend, drift)
        self._rescheduling = Rescheduling(length, max(1, length - overlap), noise_type)

    def disable_windows(self) -> None:
        """Clips of any length are denoised as one, as far as the model can."""
        self._windows = self._rescheduling = None

    def enable_free_noise(
        self,
        context_length: int | None = 16,
        context_stride: int = 4,
        weighting_scheme: Weighting = "pyramid",
        noise_type: NoiseType = "shuffle_context",
        prompt_interpolation_callback: Between | None = None,
    ) -> None:
        """Longer clips start from the noise of short ones, and the model's blocks over time see windows (FreeNoise).

        Unlike `enable_windows`, each step runs the network once, over all frames: memory grows with their number.

        Args:
            context_length: frames of a window; None takes as many as the model can.
            context_stride: frames from one window to the next, at most a window's.
            weighting_scheme: how frames of a window count: "pyramid", "flat" or "delayed_reverse_sawtooth".
            noise_type: what later frames start from: "shuffle_context", "repeat_context" or "random", as for windows.
            prompt_interpolation_callback: how embeddings get from one frame's prompt to the next one's, as
                f(first frame, last frame, (1, k, c), (1, k, c)) -> (frames, k, c); evenly by default.

        Raises:
            InputError: a setting cannot be used, or the model's blocks cannot be shown parts of a clip.
        """
        length = context_length if context_length is not None else self.frame_limit or self.trained_frames
        how = Rescheduling(whole("context_length", length, 1, self.frame_limit), context_stride, noise_type)
        self._free_windows = self.unet.frame_windows(length, context_stride, weighting_scheme)
        self._free_rescheduling, self._between = how, prompt_interpolation_callback
        self._free_noise = {**asdict(how), "weighting_scheme": weighting_scheme}

    def disable_free_noise(self) -> None:
        self._free_rescheduling = self._free_windows = self._between = self._free_noise = None

    @property
    def free_noise_enabled(self) -> bool:
        return self._free_noise is not None

    def enable_free_init(
        self,
        num_iters: int = 3,
        use_fast_sampling: bool = False,
        method: Method = "butterworth",
        order: int = 4,
        spatial_stop_frequency: float = 0.25,
        temporal_stop_frequency: float = 0.25,
    ) -> None:
        """Denoises each clip several times, each time from the slow part of what came out before (FreeInit).

        Args:
            num_iters: times, 1 (nothing changes) or more; time grows with them.
            use_fast_sampling: whether the first times take fewer steps.
            method: the filter between slow and fast: "butterworth", "ideal" or "gaussian".
            order: of a Butterworth filter, 1 or more: higher ones cut off more sharply.
            spatial_stop_frequency, temporal_stop_frequency: where it cuts, 0 to 1.

        Raises:
            InputError: a setting cannot be used.
        """
        self._free_init = FreeInit(
            num_iters, bool(use_fast_sampling), method, order, spatial_stop_frequency, temporal_stop_frequency
        )

    def disable_free_init(self) -> None:
        self._free_init = None

    @property
    def free_init_enabled(self) -> bool:
        return self._free_init is not None

    # ---------------------------------------------------------------- what calls ask

    def _noise(self, generator: Generators, prompts: int, copies: int = 1) -> Noise:
        """Where a call's randomness comes from."""
        noise = self._shared(noise_from(generator, prompts, copies, frames=self.trained_frames))
        how = self._free_rescheduling or self._rescheduling
        return noise if how is None else Rescheduled(noise, how)

    def _windows_for(self, frames: int) -> Windows | None:
        """How a clip of so many frames is cut; None where it is denoised as one."""
        windows, limit = self._windows, self.frame_limit
        if windows is None and self._free_noise is None and limit is not None and frames > limit:
            length = min(self.trained_frames, limit)
            windows = Windows(length, length // 4)
        return windows if windows is not None and windows.cuts(frames) else None

    def _cut(self, denoiser: Any, frames: int, still: bool = False) -> Any:
        """The denoiser, in windows where a clip of so many frames is cut; with `still`, the same at every step."""
        windows = self._windows_for(frames)
        if windows is not None and still:
            windows = replace(windows, drift=False)
        return denoiser if windows is None else Windowed(denoiser, windows)

    def _note_windows(self, frames: int) -> None:
        """Says where a clip of so many frames is cut into windows that nobody asked for."""
        windows = self._windows_for(frames)
        if windows is not None and self._windows is None:
            log.warning(
                "%d frames are more than the %d this model knows: they are denoised in windows of %d; enable_windows() "
                "sets how",
                frames, self.frame_limit, windows.length,
            )  # fmt: skip

    def _plan(self, call: Mapping[str, Any]) -> Plan:
        """The levels a call visits and how to move between them."""
        raise NotImplementedError

    def _rounds(self, first: Plan, call: Mapping[str, Any]) -> tuple[Plan, ...]:
        """The levels of each time a clip is denoised.

        Raises:
            InputError: rounds are to have fewer steps, and the call has levels of its own.
        """
        if self._free_init is None:
            return (first,)
        numbers = range(self._free_init.rounds)
        if not self._free_init.fast:
            return tuple(first for _ in numbers)
        if custom := [n for n in ("timesteps", "sigmas") if not isinstance(call.get(n), (str, type(None)))]:
            raise InputError(
                f"{custom[0]} are given, so FreeInit cannot take fewer steps; use_fast_sampling=False can."
            )
        steps = [self._free_init.steps(call["num_inference_steps"], k) for k in numbers]
        return tuple(self._plan({**call, "num_inference_steps": n}) for n in steps)

    def _planned_rounds(self, steps: int) -> list[int]:
        """The steps of each time a clip is denoised, for plans."""
        again = self._free_init
        return [steps] if again is None else [again.steps(steps, k) for k in range(again.rounds)]

    def _length_receipt(self, frames: int) -> dict[str, Any]:
        """What these settings add to the receipt of a clip of so many frames."""
        told: dict[str, Any] = {}
        if (windows := self._windows or self._windows_for(frames)) is not None:
            told["windows"] = {
                **asdict(windows),
                **({"noise_type": self._rescheduling.noise_type} if self._rescheduling else {}),
            }
        if self._free_noise is not None:
            told["free_noise"] = dict(self._free_noise)
        if self._free_init is not None:
            told["free_init"] = asdict(self._free_init)
        return told

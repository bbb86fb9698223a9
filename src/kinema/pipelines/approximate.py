"""Settings that trade a measured difference for time: for every family, before calls, off unless asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..errors import InputError
from ..memory.rehearsal import Rehearsed
from ..sampling.adaptive import AdaptiveReuse
from ..sampling.guidance import Guidance, guidance_of
from ..sampling.sparing import DeepReuse, GuidanceInterval, GuidanceReuse, Spent, TokenMerging
from ..sampling.windows import Windows
from .budget import frugal
from .inputs import number, whole

log = logging.getLogger("kinema")


@dataclass
class Approximated:
    """The approximations of one call, and what each did."""

    settings: Mapping[str, Mapping[str, Any]]
    spent: dict[str, Spent] = field(default_factory=dict)

    @property
    def still(self) -> bool:
        """Whether windows must stay where they are: deep features are kept of what each window showed."""
        return "deep_reuse" in self.settings

    @property
    def adaptive(self) -> bool:
        """Whether what steps do is only decided in a run."""
        return self.settings.get("deep_reuse", {}).get("threshold") is not None

    @property
    def inside(self) -> str | None:
        """The name of one that is inside the network: it remembers or measures what whole steps are."""
        return next((name for name in ("deep_reuse", "token_merging") if name in self.settings), None)

    def inner(self, denoiser: Any, guidance: Guidance, cut: bool) -> Any:
        """The U-Net, made cheaper. Where it sees windows, or not always both branches, errors are of them unguided."""
        told = guidance if not cut and len(self.settings) == 1 else _unguided
        denoiser = self._made(TokenMerging, "token_merging", denoiser, told)
        return self._made(AdaptiveReuse if self.adaptive else DeepReuse, "deep_reuse", denoiser, told)

    def outer(self, denoiser: Any, guidance: Guidance) -> Any:
        """The denoiser of whole clips, made cheaper."""
        denoiser = self._made(GuidanceReuse, "guidance_reuse", denoiser, guidance)
        return self._made(GuidanceInterval, "guidance_interval", denoiser, guidance)

    def _made(self, make: Callable[..., Any], name: str, denoiser: Any, guidance: Any) -> Any:
        if name not in self.settings:
            return denoiser
        return make(denoiser, guidance, self.spent.setdefault(name, Spent()), **self.settings[name])

    def receipt(self) -> dict[str, Any]:
        """What was asked for, and the estimated error of a prediction."""
        told = {
            name: {**self.settings[name], "approximated": f"{s.cheap} of {s.steps} steps", "error": s.error}
            for name, s in self.spent.items()
        }
        return {"approximations": told} if told else {}

    def say(self) -> None:
        """Logs what each did."""
        for name, spent in self.spent.items():
            log.warning("%s: %s", name, spent)


class Approximations:
    """What a pipeline may leave out of its arithmetic. Calls log an estimate of the error, and receipts have it."""

    inherited: ClassVar[tuple[str, ...]] = ("_approximations",)

    wraps: ClassVar[bool] = False  # whether the U-Net may be part of something larger, which none goes with

    _approximations: Mapping[str, Mapping[str, Any]] = {}

    unet: Any
    _windows: Windows | None
    _telling: Callable[[Any], Any]
    _windows_for: Callable[[int], Windows | None]
    _cut: Callable[..., Any]

    def enable_deep_reuse(self, every: int | None = None, fresh: int = 1, threshold: float | None = None) -> None:
        """The inner rows of the U-Net run at some steps; steps between take their features (DeepCache).

        Args:
            every: all rows run at every so many steps, 2 or more; 3 by default, which takes about 0.45 of the
                arithmetic. With a threshold: at least so often, and by default as seldom as that allows.
            fresh: rows at each end of the U-Net that run at every step, 1 to its layers in a block: more is closer and
                slower.
            threshold: all rows run only where what the first rows see has changed by this share of its size since they
                last did, added up from step to step; 0 or more, of which 0.1 is close and 0.3 far. Each clip goes by
                itself.

        Raises:
            InputError: a setting cannot be used.
        """
        fresh = whole("fresh", fresh, 1, self.unet.layers[0])
        if threshold is None:
            self._set("deep_reuse", every=whole("every", 3 if every is None else every, 2), fresh=fresh)
            return
        often = None if every is None else whole("every", every, 2)
        self._set("deep_reuse", every=often, fresh=fresh, threshold=number("threshold", threshold, 0))

    def disable_deep_reuse(self) -> None:
        """All rows run at every step."""
        self._unset("deep_reuse")

    def enable_guidance_interval(self, start: float = 0.1, end: float = 0.7) -> None:
        """Guidance only from one share of the steps to another; the others take half the time.

        Args:
            start, end: 0 to 1, of a call's steps from the noisiest to the last.

        Raises:
            InputError: they are no shares, or nothing lies between them.
        """
        start, end = number("start", start, 0, 1), number("end", end, 0, 1)
        if start >= end:
            raise InputError(f"The guidance interval is {start:g} to {end:g}; it must start before it ends.")
        self._set("guidance_interval", start=start, end=end)

    def disable_guidance_interval(self) -> None:
        """Guidance at every step."""
        self._unset("guidance_interval")

    def enable_guidance_reuse(self, every: int = 2, start: float = 0.2) -> None:
        """The unconditional branch is asked at every `every`-th step; between, its distance to the other is kept.

        Args:
            every: 2 or more; 2 takes about 3/4 of the time.
            start: the share of steps, 0 to 1, before which both branches are asked always: at first they change fast.

        Raises:
            InputError: a setting cannot be used.
        """
        self._set("guidance_reuse", every=whole("every", every, 2), start=number("start", start, 0, 1))

    def disable_guidance_reuse(self) -> None:
        """Both branches at every step."""
        self._unset("guidance_reuse")

    def enable_token_merging(self, ratio: float = 0.5) -> None:
        """Tokens of a frame that are alike attend as one in the finest self-attentions (Bolya and Hoffman 2023).

        Args:
            ratio: how many of these tokens are joined to others, 0 (none, and nothing changes) to 0.75.

        Raises:
            InputError: it is no such share.
        """
        self._set("token_merging", ratio=number("ratio", ratio, 0, 0.75))

    def disable_token_merging(self) -> None:
        """All tokens attend."""
        self._unset("token_merging")

    def _set(self, name: str, **settings: Any) -> None:
        self._approximations = {**self._approximations, name: settings}

    def _unset(self, name: str) -> None:
        self._approximations = {k: v for k, v in self._approximations.items() if k != name}

    def _approximated(self, guidance: Guidance, *, wrapped: bool) -> Approximated:
        """The approximations of a call with this guidance, whose U-Net may be part of something larger.

        Raises:
            InputError: one does not go with something else that was asked for.
        """
        made = Approximated(
            {k: v for k, v in self._approximations.items() if guidance.branches == 2 or not k.startswith("guidance")}
        )
        if self._windows is not None and self._windows.drift and made.still:
            raise InputError(
                "deep_reuse needs windows that stay where they are from step to step; enable_windows(..., drift=False) "
                "makes those."
            )
        if wrapped and made.settings:
            raise InputError(
                f"{next(iter(made.settings))} goes neither with networks beside the U-Net nor with perturbed attention."
            )
        return made

    def _spared(self, branches: int) -> Approximated:
        """The approximations of a call with so many guidance branches, for plans."""
        return Approximated({}) if self.wraps else self._approximated(guidance_of(float(branches)), wrapped=False)

    def _planned(
        self,
        denoiser: Any,
        way: str,
        made: Approximated,
        branches: int,
        frames: int,
        steered: Callable[[Any], Any] = lambda unet: unet,
    ) -> Any:
        """The denoiser as a call of so many frames has it, on tensors without contents, run in this way.

        Args:
            steered: what is made of it before it is cut into windows.
        """
        telling = (lambda unet: self._telling(Rehearsed(unet))) if made.settings else self._telling
        told, guidance = frugal(denoiser, telling, way), guidance_of(float(branches))
        inner = made.inner(told, guidance, self._windows_for(frames) is not None)
        return made.outer(self._cut(steered(inner), frames, still=made.still), guidance)


def _unguided(predicted: Tensor, step: int) -> Tensor:
    return predicted

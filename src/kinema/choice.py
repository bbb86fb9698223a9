"""Which of two ways of computing the same a machine is better at: found out once a process, by trying both.

A processor's name says little: libraries, their versions and what else runs decide with it. So each way is timed where
it is to run, and its numbers are compared. One that raises, or is wrong, is dropped, and `verdicts` says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .place import kind_of

ASKED = "KINEMA_KERNELS"  # in the environment: "plain" for nothing faster, or names of what may be tried
ROUNDS = 3  # the first warms up
# How far apart, of the spread of the numbers, two right ways of a long sum may be that each round in their own order.
RIGHT = {torch.float32: 1e-4, torch.float16: 1.25e-2, torch.bfloat16: 1e-1}

Ways = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # the plain one, then the one that may be faster
Place = tuple[torch.device, torch.dtype]


@dataclass(frozen=True)
class Verdict:
    """What a trial found."""

    taken: bool
    why: str


@dataclass
class Choice:
    """An operation and its faster equal."""

    name: str
    what: str  # the operation, for people
    sample: Callable[[torch.device, torch.dtype], Ways]  # both ways of computing an example of usual size there
    least: float = 1.1  # times as fast it must be
    verdicts: dict[Place, Verdict] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def taken(self, x: Tensor) -> bool:
        """Whether the faster equal is to be used on x; tried at the first such question."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return False
        kind = kind_of(x)
        if kind == "meta":
            return True  # what is counted for no device in particular is what may be
        return self.verdict(torch.device(kind) if x.is_meta else x.device, x.dtype).taken

    def verdict(self, device: torch.device, dtype: torch.dtype) -> Verdict:
        """What was found there; found out now if it was not yet."""
        if ":" not in str(device) and device.type != "cpu" and torch.accelerator.is_available():
            device = torch.device(device.type, torch.accelerator.current_device_index())  # plans name no number
        found = self.verdicts.get((device, dtype))
        if found is None:
            with self._lock:
                found = self.verdicts.get((device, dtype)) or self._try(device, dtype)
                self.verdicts[device, dtype] = found
        return found

    def _try(self, device: torch.device, dtype: torch.dtype) -> Verdict:
        asked = os.environ.get(ASKED, "")
        if asked and self.name not in asked.split(","):
            return Verdict(False, f"not tried: {ASKED}={asked}")
        try:
            with torch.no_grad(), _disable_current_modes():  # whoever counts or traces does not count this
                plain, fast = self.sample(device, dtype)
                off = apart(plain(), fast())
                gain = _gain(plain, fast, device)
        except Exception as error:  # whatever a kernel does wrong, the plain way is there
            return Verdict(False, f"dropped: it raised {type(error).__name__}")
        if not off <= RIGHT.get(dtype, 1e-4):
            return Verdict(False, f"dropped: wrong numbers, {off:.2g} of their spread")
        return Verdict(gain >= self.least, f"{gain:.2f} times as fast here")


def example(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    """Random numbers that take none from anybody's generator, (n, h, w, c) → (n, c, h, w), channels last."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return numbers.to(device, dtype).permute(0, 3, 1, 2)


def apart(right: Tensor, found: Tensor) -> float:
    """How far the numbers are from what they should be, of these' spread."""
    right, found = right.double(), found.double()
    return float((right - found).abs().max() / right.std())


def _gain(plain: Callable[[], Tensor], fast: Callable[[], Tensor], device: torch.device) -> float:
    """How many times as fast the second way is: the better of some turns each, taken alternately."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for way, times in zip((plain, fast), taken, strict=True):
            start = _now(device)
            way()
            times.append(_now(device) - start)
    before, after = (min(times[1:]) for times in taken)
    return before / max(after, 1e-9)


def _now(device: torch.device) -> float:
    """Seconds, of the processor where it computes, which others' work does not lengthen."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def report(choices: list[Choice], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, str]]:
    """What was chosen on a device of this machine, by default its processor, and why."""
    for choice in choices:
        verdict = choice.verdict(torch.device(device), dtype)
        yield choice.what, f"{'the faster way' if verdict.taken else 'plain'} ({verdict.why})"

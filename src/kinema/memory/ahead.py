"""Weights that come from the host block by block, the next one while the device works with the one before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .moving import is_out_of_memory

log = logging.getLogger("kinema")

BLOCK = 64 << 20  # bytes of weights that come together; some 3 ms over a link of 25 GB/s

Bring = Callable[[Tensor], Tensor]  # a host tensor → its copy on the device


class Side(Protocol):
    """Copies to a device beside what it computes."""

    def begin(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        """Begins to copy host tensors; their copies, and what `wait` has to be given before these are read."""

    def wait(self, there: Any) -> None:
        """What is asked of the device from now on waits for these copies."""


class CudaSide:
    """Copies on a stream of their own. It has never run on a GPU so far; tests run it on a pretended one.

    Copies are made in the working stream's memory, and each is waited for there before it is given up, so memory can be
    used again at once: in either stream, after whoever used it before.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def begin(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
        copies = [torch.empty_like(t, device=self.device) for t in tensors]
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # for those who used that memory before
        with torch.cuda.stream(self.stream):
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        return copies, self.stream.record_event()

    def wait(self, there: Any) -> None:
        torch.cuda.current_stream(self.device).wait_event(there)


def side_of(device: torch.device) -> Side | None:
    """How copies come to a device beside its work; None where they cannot, or it is not known how."""
    if device.type != "cuda":
        return None
    try:
        return CudaSide(device)
    except (RuntimeError, AssertionError) as error:
        log.warning("Weights cannot come to %s beside its work; steps wait for them: %s", device, error)
        return None


def pin(tensors: Iterable[Tensor]) -> None:
    """Keeps host tensors where a device can fetch them by itself, as far as the system lets it."""
    try:
        for tensor in tensors:
            if tensor.device.type == "cpu" and not tensor.is_pinned():
                tensor.data = tensor.data.pin_memory()
    except RuntimeError as error:  # the rest comes as before, only that the program waits for it
        log.warning(
            "Weights cannot all be kept where the device fetches them by itself; steps wait for some: %s", error
        )


class Ahead:
    """Brings a module's weights in the order in which its first run read them, a method's in an order of its own.

    The first run brings each for the operation that reads it. A later one that reads in another order is not wrong:
    what is not there is brought for its operation.
    """

    def __init__(self, side: Side, bring: Bring, block: int = BLOCK):
        self._side, self._bring, self._block = side, bring, block
        self._blocks: dict[tuple[nn.Module, str], list[list[Tensor]]] = {}

    @contextmanager
    def run(self, module: nn.Module, method: str = "__call__") -> Iterator[Bring]:
        """How to bring weights in one run of the module, or of a method that runs a part of it."""
        known = self._blocks.get((module, method))
        if known is not None:
            run = _Run(self._side, self._bring, known)
            try:
                yield run.get
            finally:
                run.end()
            return
        read: dict[int, Tensor] = {}

        def bring(tensor: Tensor) -> Tensor:
            read.setdefault(id(tensor), tensor)
            return self._bring(tensor)

        yield bring
        self._blocks[module, method] = blocks(module, list(read.values()), self._block) if read else []


class _Run:
    """One run: the block that is worked with, and the one that comes meanwhile. There are never more."""

    def __init__(self, side: Side, bring: Bring, of: Sequence[Sequence[Tensor]]):
        self._side, self._bring, self._of = side, bring, of
        self._place = {id(tensor): i for i, block in enumerate(of) for tensor in block}
        self._number, self._here = -1, dict[int, Tensor]()
        self._coming: tuple[int, dict[int, Tensor], Any] | None = None

    def get(self, tensor: Tensor) -> Tensor:
        """The copy of a weight that an operation is about to read."""
        block = self._place.get(id(tensor), -1)
        if block < self._number or block < 0:
            return self._bring(tensor)
        if block > self._number:
            self._enter(block)
        return self._here[id(tensor)]

    def _enter(self, block: int) -> None:
        self._here = {}  # goes before more comes
        if self._coming is None or self._coming[0] != block:
            self.end()
            self._coming = self._begin(block)
        (self._number, self._here, there), self._coming = self._coming, None
        self._side.wait(there)
        if block + 1 < len(self._of):
            try:
                self._coming = self._begin(block + 1)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._coming = None  # no room for two: it comes when it is needed

    def end(self) -> None:
        """Gives up what comes and was not asked for."""
        if self._coming is not None:
            self._side.wait(self._coming[2])
            self._coming = None

    def _begin(self, block: int) -> tuple[int, dict[int, Tensor], Any]:
        copies, there = self._side.begin(self._of[block])
        return block, {id(t): copy for t, copy in zip(self._of[block], copies, strict=True)}, there


def blocks(module: nn.Module, read: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """Weights in the order they are first read, in blocks of at most `size` bytes; parts that are no larger stay whole.

    What one part of a network holds on to while it runs is so in one block; a single layer may be larger than that.
    """
    part: dict[int, int] = {}
    for i, unit in enumerate(_units(module, size)):
        part |= {id(t): i for t in (*unit.parameters(), *unit.buffers()) if id(t) not in part}
    units: dict[int, list[Tensor]] = {}
    for tensor in read:
        units.setdefault(part.get(id(tensor), -1), []).append(tensor)
    made: list[list[Tensor]] = []
    room = 0
    for together in units.values():
        here = sum(t.nbytes for t in together)
        if made and here <= room:
            made[-1] += together
            room -= here
        else:
            made.append(together)
            room = size - here
    return made


def _units(module: nn.Module, size: int) -> Iterator[nn.Module]:
    children = list(module.children())
    if not children or sum(t.nbytes for t in (*module.parameters(), *module.buffers())) <= size:
        yield module
        return
    for child in children:
        yield from _units(child, size)


def most(weights: int, layer: int) -> int:
    """Bytes on the device at the worst moment: two blocks, and a layer whose weights are still held on to.

    Args:
        weights: bytes of all of them.
        layer: bytes of the largest layer.
    """
    return min(weights, 2 * max(BLOCK, layer) + layer)

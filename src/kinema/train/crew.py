"""Computes the parts of a batch, alone one after the other or each in a process of its own: the sum is the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import KinemaError

Part = Callable[[int, int], tuple[Tensor, dict[str, float]]]  # (step, part) → loss, what to log


class Crew:
    """Leaves in every weight's `grad` the mean gradient over the parts of a step's batch.

    Further processes are forked from this one, see the weights through shared memory, and hand their gradients back
    the same way; they end with the `with` block, or with this process.
    """

    def __init__(self, part: Part, parts: int, weights: Sequence[Tensor], processes: int = 1):
        self.part, self.parts, self.weights = part, parts, weights
        self.helpers: list[tuple[Any, Connection, list[Tensor]]] = []
        if processes > 1 and parts > 1 and "fork" in multiprocessing.get_all_start_methods():
            for w in weights:
                w.data = w.data.share_memory_()
            self.helpers = [self._helper(number) for number in range(1, parts)]

    def _helper(self, number: int) -> tuple[Any, Connection, list[Tensor]]:
        fork = multiprocessing.get_context("fork")
        ours, theirs = fork.Pipe()
        room = [torch.zeros_like(w).share_memory_() for w in self.weights]
        process = fork.Process(target=_help, args=(self.part, number, self.weights, room, theirs, ours), daemon=True)
        process.start()
        theirs.close()
        return process, ours, room

    def gradients(self, step: int) -> tuple[float, dict[str, float]]:
        """The mean loss of the parts, and what the first one says.

        Raises:
            KinemaError: a helper failed; its message is repeated.
        """
        for _, pipe, _ in self.helpers:
            pipe.send(step)
        for w in self.weights:
            w.grad = None
        loss, facts = self.part(step, 0)
        loss.backward()
        losses = [loss.item()]
        for number in range(1, self.parts):
            if self.helpers:
                losses.append(self._hear(number - 1))
            else:
                loss, _ = self.part(step, number)
                loss.backward()
                losses.append(loss.item())
        if self.parts > 1:
            torch._foreach_div_([w.grad for w in self.weights if w.grad is not None], self.parts)
        return sum(losses) / self.parts, facts

    def _hear(self, place: int) -> float:
        _, pipe, room = self.helpers[place]
        try:
            said = pipe.recv()
        except EOFError:
            said = "it ended without a word"
        if not isinstance(said, float):
            raise KinemaError(
                f"A training process failed: {said}. Run again: training goes on from its last checkpoint."
            )
        for w, gradient in zip(self.weights, room):
            w.grad = gradient.clone() if w.grad is None else w.grad.add_(gradient)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for process, pipe, _ in self.helpers:
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.terminate()


def _help(
    part: Part, number: int, weights: Sequence[Tensor], room: Sequence[Tensor], pipe: Connection, other: Connection
) -> None:
    """What a helper does until the pipe closes."""
    other.close()
    torch.set_num_threads(1)
    while True:
        try:
            step = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            for w in weights:
                w.grad = None
            loss, _ = part(step, number)
            loss.backward()
            for w, gradient in zip(weights, room):
                gradient.zero_() if w.grad is None else gradient.copy_(w.grad)
            pipe.send(loss.item())
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
            return

"""Processes that make one clip together, each on a device of its own, as `torchrun` starts them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, ParallelError

GOING, OVER = 0, 1  # what a process says of itself whenever all meet
FORMS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
TIMEOUT = 1800.0


def started() -> bool:
    """Whether this process was started beside others (`torchrun --nproc-per-node 2 …`)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """This process's number among those started together, from 0; the first is the one to write files."""
    return int(os.environ.get("RANK", "0")) if started() else 0


def device() -> torch.device:
    """This process's own accelerator, by its number on the machine; the CPU where there is none.

    Raises:
        InputError: more processes were started on this machine than it has accelerators.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None:
        return torch.device("cpu")
    here, there_are = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if here >= there_are:
        raise InputError(
            f"Process {here} of this machine has no accelerator of its own, as there are {there_are}; start no more "
            f"than that (torchrun --nproc-per-node {there_are}), or compute on the CPU."
        )
    return torch.device(found.type, here) if started() else found


def join(timeout: float = TIMEOUT) -> Crew:
    """The processes started together, which find one another here; a process alone is a crew of one.

    A process group that is there already (`torch.distributed.init_process_group`) is taken as it is.

    Args:
        timeout: seconds that processes wait for one another before they give up.

    Raises:
        ParallelError: they did not all come.
    """
    import torch.distributed as dist

    if not (dist.is_available() and (dist.is_initialized() or started())):
        return ALONE
    if not dist.is_initialized():
        own = device()
        if own.index is not None:
            torch.accelerator.set_device_index(own.index)
        try:
            dist.init_process_group(timeout=timedelta(seconds=timeout))
        except (RuntimeError, ValueError) as error:
            raise ParallelError(f"The processes started together did not find one another: {_line(error)}") from error
    return Crew(dist.get_rank(), dist.get_world_size()) if dist.get_world_size() > 1 else ALONE


class Crew:
    """Processes that do the same work at the same time, each its share of what is large.

    Whatever they exchange, they first say in a few numbers on the host that all is well with them. So an error in one
    ends the work of all, in one sentence, and nobody waits for somebody who does not come: a process that is gone
    breaks the connection, and one that hangs runs into the timeout.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self._meeting = False  # whether the others count on this one
        self._lost = ""  # why they can no longer meet

    @property
    def working(self) -> bool:
        """Whether work is under way that all do together."""
        return self._meeting

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Work that ends well for all or for none; only within it is anything exchanged.

        Raises:
            ParallelError: another process failed or stopped.
        """
        if self.size == 1 or self._meeting:
            yield
            return
        if self._lost:
            raise ParallelError(f"The processes lost one another before ({self._lost}); start them again.")
        self._meeting = True
        try:
            yield
            self._meet(GOING)
        except BaseException as error:
            if self._meeting:
                with suppress(ParallelError):
                    self._meet(OVER, _told(error))
            raise
        finally:
            self._meeting = False

    def agree(self, what: str, place: torch.device) -> None:
        """Makes sure that all are about to do the same thing, each on a device of its own.

        Raises:
            ParallelError: one is about to do something else.
            InputError: two processes compute on one accelerator.
        """
        if self.size == 1:
            return
        here = "" if place.type == "cpu" else f"{socket.gethostname()} {place}"
        said = [text.split("\n", 1) for text in self.texts(f"{here}\n{what}")]
        places = [where for where, _ in said if where]
        for number, (where, wanted) in enumerate(said):
            if wanted != said[0][1]:
                raise ParallelError(
                    f"Process {number} of {self.size} was asked for another clip than process 0; all must make the "
                    "same calls, with the same settings."
                )
            if places.count(where) > 1:
                raise InputError(
                    f"Several processes compute on {place}; give each its own: "
                    "pipe.to(kinema.distributed.device()) before the call."
                )

    def first(self, x: Tensor) -> Tensor:
        """What process 0 has, for all; theirs must have the same shape."""
        if self.size == 1:
            return x
        import torch.distributed as dist

        sizes = self._meet(GOING, numbers=[x.numel()])
        if len(set(map(tuple, sizes))) > 1:
            raise ParallelError(f"Processes have {[size[0] for size in sizes]} numbers where all should have as many.")
        data = _bytes(x) if self.rank == 0 else torch.empty_like(_bytes(x))
        self._do(dist.broadcast, data, 0)
        return x if self.rank == 0 else torch.empty_like(x).copy_(data.view(x.dtype).view(x.shape))

    def gather(self, mine: Tensor | None, like: Tensor) -> list[Tensor | None]:
        """What each has, in their order, flat, on the device of `like`; None of those that have nothing."""
        if self.size == 1:
            return [None if mine is None else mine.flatten()]
        import torch.distributed as dist

        facts = [0, 0] if mine is None else [mine.numel(), FORMS.index(mine.dtype)]
        there = [(n, FORMS[form]) for n, form in self._meet(GOING, numbers=facts)]
        longest = max(n * form.itemsize for n, form in there)
        if not longest:
            return [None] * self.size
        sent = torch.zeros(longest, dtype=torch.uint8, device=like.device)
        if mine is not None:
            sent[: mine.numel() * mine.dtype.itemsize] = _bytes(mine.to(like.device))
        taken = [torch.empty_like(sent) for _ in there]
        self._do(dist.all_gather, taken, sent)
        return [x[: n * form.itemsize].view(form) if n else None for x, (n, form) in zip(taken, there, strict=True)]

    def edges(self, first: Tensor, last: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What lies before this one's first and after its last: the last of the process before, the first of the next.

        All are of one shape; None where there is no such process.
        """
        if self.size == 1:
            return None, None
        import torch.distributed as dist

        self._meet(GOING)
        before = torch.empty_like(_bytes(last)) if self.rank > 0 else None
        after = torch.empty_like(_bytes(first)) if self.rank < self.size - 1 else None
        ways = []
        for heard, said, other in ((before, first, self.rank - 1), (after, last, self.rank + 1)):
            if heard is not None:
                ways += [dist.P2POp(dist.isend, _bytes(said), other), dist.P2POp(dist.irecv, heard, other)]
        self._do(lambda: [work.wait() for work in dist.batch_isend_irecv(ways)])
        here = (None if x is None else x.view(first.dtype).view(first.shape) for x in (before, after))
        return next(here), next(here)

    def texts(self, mine: str) -> list[str]:
        """What each says, in their order."""
        data = torch.tensor(list(mine.encode()), dtype=torch.int64)
        return [bytes(x.tolist()).decode() if x is not None else "" for x in self.gather(data, data)]

    def _meet(self, state: int, text: str = "", numbers: Sequence[int] = ()) -> list[list[int]]:
        """Waits for all, and hears how each is and as many numbers of each as one gives.

        Raises:
            ParallelError: not all are well, or they do not all come.
        """
        if not self._meeting:
            raise ParallelError("Processes exchange something only while a call is at work.")
        heard = self._all([state, *numbers, *[0] * (3 - len(numbers))])
        states = [row[0] for row in heard]
        if any(states):
            said = self._say(text)
            self._meeting = False
            if state == GOING:
                number = next(n for n, other in enumerate(states) if other)
                raise ParallelError(f"Process {number} of {self.size} {said[number]}")
        return [row[1 : 1 + len(numbers)] for row in heard]

    def _all(self, numbers: list[int]) -> list[list[int]]:
        """What each says, in numbers."""
        import torch.distributed as dist

        mine = torch.tensor(numbers, dtype=torch.int64)
        heard = [torch.empty_like(mine) for _ in range(self.size)]
        self._do(dist.all_gather, heard, mine)
        return [x.tolist() for x in heard]

    def _say(self, text: str) -> list[str]:
        """What each says of what went wrong."""
        data = list(text.encode())
        longest = max(row[0] for row in self._all([len(data)]))
        return [bytes(row).rstrip(b"\0").decode() for row in self._all([*data, *[0] * (longest - len(data))])]

    def _do(self, exchange: Callable[..., Any], *arguments: Any) -> None:
        """An exchange all take part in. Whatever interrupts it parts them for good, which the others notice at once."""
        import torch.distributed as dist

        try:
            exchange(*arguments)
        except BaseException as error:
            self._meeting, self._lost = False, _line(error)
            with suppress(Exception):
                dist.destroy_process_group()
            if isinstance(error, RuntimeError):
                raise ParallelError(
                    f"Process {self.rank} of {self.size} lost another one, which ended or did not answer in time: "
                    f"{self._lost}"
                ) from error
            raise


ALONE = Crew()


def shares(things: int, size: int, rank: int) -> range:
    """Which of so many things in a row are this process's: neighbours, as many as the others have or one more."""
    return range(things * rank // size, things * (rank + 1) // size)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _told(error: BaseException) -> str:
    """What the others are told of an error."""
    if isinstance(error, (GeneratorExit, KeyboardInterrupt)):
        return "stopped before the clip was done."
    return f"failed: {type(error).__name__}: {_line(error)}"

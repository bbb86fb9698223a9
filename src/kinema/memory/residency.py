"""Where a pipeline's components live, and how they come to the device they run on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Condition, Lock, get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from .ahead import Ahead, Bring, Side, pin, side_of
from .stream import Streamed, converted, tensors_of

Mode = Literal["resident", "model", "sequential"]
CPU = torch.device("cpu")
MODES: tuple[Mode, ...] = ("resident", "model", "sequential")


class Turns:
    """A lock one thread can hold several times, and that a thread can give up for another.

    The last is what tells it from `threading.RLock`: a generator that holds it may be closed by the garbage collector,
    which runs in whichever thread it likes.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._owner in (None, get_ident()))
            self._owner = get_ident()
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._changed.notify_all()


class Uses:
    """How many blocks are being run, in whatever threads."""

    def __init__(self) -> None:
        self._lock, self.count = Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1


class Loans:
    """Modules whose weights are on the device for now, with the host's own and how many uses are under way."""

    def __init__(self) -> None:
        self._own: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        self._uses: dict[nn.Module, int] = {}

    @contextmanager
    def lend(self, module: nn.Module, bring: Bring) -> Iterator[None]:
        """The module's weights are what `bring` makes of them until the last of its uses ends, in whatever order."""
        self._uses[module] = self._uses.get(module, 0) + 1
        try:
            if module not in self._own:
                self._own[module] = [(tensor, tensor.data) for tensor in tensors_of(module)]
                for tensor, data in self._own[module]:
                    tensor.data = bring(data)
            yield
        finally:
            self._uses[module] -= 1
            if not self._uses[module]:
                del self._uses[module]
                for tensor, data in self._own.pop(module):
                    tensor.data = data


@dataclass(frozen=True, eq=False)
class Residency:
    """Lends components out for the stage that needs them: `with residency.use("unet") as unet`.

    Modes, each slower and smaller than the one before, none changing a result:

    - "resident": all components stay on the device. Nothing moves and nobody waits.
    - "model": a component's weights come for its stage and go after it; one component is there at a time.
    - "sequential": a weight comes for the operation that reads it; one operation's weights are there at a time. On
      devices with a `Side` blocks of them come, the next while one is worked with; two are there at a time.

    The host always keeps the weights it has, and a component that leaves gets exactly those back, so nothing is copied
    home and nothing can come back changed. While components move, threads take turns; a thread may use several at once.
    """

    components: Mapping[str, nn.Module]
    device: torch.device = CPU  # where components run
    mode: Mode = "resident"
    host: torch.device = CPU  # where they wait
    bring: Bring | None = None  # a host tensor → its copy on the device; None copies between devices that differ
    side: Side | None = None  # how copies come beside the device's work; None for what is known of the device
    turns: Turns = field(default_factory=Turns, repr=False)  # shared by copies made with `dataclasses.replace`
    loans: Loans = field(default_factory=Loans, repr=False)
    uses: Uses = field(default_factory=Uses, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"The offload mode is {self.mode!r}; it must be one of {', '.join(map(repr, MODES))}.")

    @property
    def moves(self) -> bool:
        """Whether anything has to move: with one device for waiting and running, nothing has."""
        return self.mode != "resident" and (self.bring is not None or self.device != self.host)

    @property
    def busy(self) -> bool:
        """Whether a component is in use."""
        return self.uses.count > 0

    def settle(self) -> None:
        """Put every component where it waits: on the device if it is resident, else on the host."""
        for module in self.components.values():
            module.to(self.host if self.moves else self.device)
            if self.moves and self.mode == "sequential" and self.device.type == "cuda":
                pin(tensors_of(module))

    @contextmanager
    def use(self, name: str, dtype: torch.dtype | None = None) -> Iterator[Any]:
        """The component of this name, ready to run on `device` until the block ends; inputs belong on `device` too.

        With a `dtype` it computes in that number format: each operation gets a converted copy of the weights it reads,
        and the component's own stay as they are, for other threads too.

        Raises:
            InputError: there is no such component.
        """
        if name not in self.components:
            raise InputError(f"There is no component {name!r}; there are {', '.join(sorted(self.components))}.")
        with self.uses, self._ready(self.components[name], dtype) as module:
            yield module

    @contextmanager
    def _ready(self, module: nn.Module, dtype: torch.dtype | None) -> Iterator[Any]:
        if dtype is not None:
            with self.turns if self.moves else nullcontext():
                there = Streamed(module, self._copy, self.device) if self.moves else module
                yield converted(there, dtype)
            return
        if not self.moves:
            yield module
            return
        with self.turns:
            if self.mode == "sequential":
                side = self.side or (side_of(self.device) if self.bring is None else None)
                ahead = None if side is None else Ahead(side, self._copy)
                yield Streamed(module, self._copy, self.device, ahead=ahead)
            else:
                with self.loans.lend(module, self._copy):
                    yield module

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device) if self.bring is None else self.bring(tensor)

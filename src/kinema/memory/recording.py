"""Steps that a GPU records and does again as one: CUDA graphs, which share their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WARM = 2  # times a step is done on the recording stream before it is recorded


class CudaRecorder:
    """CUDA graphs. **It has never run on a GPU so far**; tests run what is around it on a pretended recorder.

    All have one pool of memory: a replay may overwrite what another left there, so results are to be copied at once and
    in turns. The pool is as large as the largest step needs for all that is alive in it at once, beside its weights.
    """

    def __init__(self, device: torch.device):
        self.device, self.held = device, 0
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._done: torch.cuda.Event | None = None

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Records a step → what does the same again on the same memory; its result is always the same tensor."""
        graph = torch.cuda.CUDAGraph()
        work = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(work)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM):
                    step()
            work.wait_stream(self._stream)
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved(self.device)
            # Other threads may go on asking the device for things.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                made = step()
        finally:
            torch.cuda.set_stream(work)  # a recording that fails leaves its own
        self.held += max(0, torch.cuda.memory_reserved(self.device) - before)

        def replay() -> Tensor:
            graph.replay()
            return made

        return replay

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within, what is asked of the device comes after what others asked for within."""
        with torch.cuda.device(self.device):
            if self._done is not None:
                self._done.wait()
            try:
                yield
            finally:
                self._done = torch.cuda.current_stream().record_event()

    def forget(self) -> None:
        """Gives back the memory of recordings, of which nobody has any left."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        self.held = 0


def recorder_of(device: torch.device) -> CudaRecorder | None:
    """What records the steps of a device; None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None

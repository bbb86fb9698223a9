"""A file that shows a clip while it is denoised, written again every few steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..pipelines.output import Event

PAUSE = 2.0  # seconds between two writings, at least; the last step is written anyway


def check(path: Path, outputs: Iterable[Path]) -> None:
    """Makes sure, before time is spent, that the file is no clip's own and can be looked at while it changes.

    Raises:
        InputError: it is one, or its suffix is none of an animation.
    """
    if path.suffix.lower() not in (".gif", ".webp", ".png", ".apng"):
        raise InputError(f"--preview is {path}; it must end in .gif, .webp, .png or .apng.")
    if path in outputs:
        raise InputError(f"--preview and --output are both {path}; give another name.")


def shown(events: Iterable[Event], pipe: Any, path: Path, fps: float) -> Iterator[Event]:
    """The same events; what the first clip is about to become is written to the file on the way."""
    from ..media import save

    last = -PAUSE
    for event in events:
        due = event.step == event.total or time.monotonic() - last >= PAUSE
        if event.clean is not None and due:
            frames = pipe.preview(event.clean[:1], "np")[0]
            save(frames, path, fps=fps, metadata={"preview": f"step {event.step} of {event.total}"})
            last = time.monotonic()
        yield event

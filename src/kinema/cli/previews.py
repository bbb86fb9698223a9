"""A file that shows a clip while it is denoised, written again every few steps."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, KinemaError

if TYPE_CHECKING:
    from ..pipelines.output import Event

log = logging.getLogger("kinema")

MARK, STEP = "preview", r"step \d+ of \d+"  # all that the receipt of a preview says
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


def left(path: Path) -> bool:
    """Whether a file is a preview of an earlier run, which the next one may replace; no clip of anybody's is."""
    from ..media import read_info

    try:
        receipt = read_info(path).receipt
    except KinemaError:
        return False
    return receipt is not None and set(receipt) == {MARK} and bool(re.fullmatch(STEP, str(receipt[MARK])))


def shown(events: Iterable[Event], pipe: Any, path: Path, fps: float) -> Iterator[Event]:
    """The same events; what the first clip is about to become is written to the file on the way.

    A preview that cannot be made or written is warned of once, and none follows.
    """
    from ..media import save

    last = -PAUSE
    for event in events:
        due = last < float("inf") and (event.step == event.total or time.monotonic() - last >= PAUSE)
        if event.clean is not None and due:
            try:
                frames = pipe.preview(event.clean[:1], "np")[0]
                save(frames, path, fps=fps, metadata={MARK: f"step {event.step} of {event.total}"})
            except Exception as error:  # a full disk, say: the clip matters more than its preview
                log.warning("No more previews, the clip goes on: %s: %s", path, error)
                last = float("inf")
            else:
                last = time.monotonic()
        yield event

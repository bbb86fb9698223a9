"""How much a clip moves: words for it, what a model is told, and what is measured."""

from __future__ import annotations

import math

from kinema.errors import InputError

# What Stable Video Diffusion calls motion_bucket_id. Its recipe was never published; 127 is the reference's default and
# the middle of what it was trained on. The one table of these words: pipelines, command line and guide read it here.
BUCKETS = (1, 255)
MOTION_WORDS: dict[str, int] = {"still": 1, "calm": 63, "normal": 127, "lively": 191}


def motion_bucket(motion: str | float) -> int:
    """A word of MOTION_WORDS, or a number from 0 (still) over 0.5 (normal) to 1 (as lively as trained) → 1 to 255.

    Raises InputError for another word, or a number out of 0..1: buckets themselves are given as motion_bucket_id.
    """
    if isinstance(motion, str):
        if motion.strip().lower() in MOTION_WORDS:
            return MOTION_WORDS[motion.strip().lower()]
        raise InputError(f"motion {motion!r} is unknown; expected {', '.join(MOTION_WORDS)}, or a number of 0 to 1.")
    try:
        scale = math.nan if isinstance(motion, bool) else float(motion)
    except (TypeError, ValueError):
        scale = math.nan
    if not 0 <= scale <= 1:
        raise InputError(f"motion {motion!r} is not in 0 to 1; numbers beyond are given as motion_bucket_id.")
    least, most = BUCKETS
    return max(least, math.floor(scale * most))


def motion_scale(bucket: float) -> float:
    """The other way: a bucket as a number from 0 to 1."""
    least, most = BUCKETS
    return 0.0 if bucket <= least else min(1.0, bucket / most)


def motion_word(bucket: float) -> str:
    """The word whose bucket is nearest."""
    return min(MOTION_WORDS, key=lambda word: abs(MOTION_WORDS[word] - bucket))

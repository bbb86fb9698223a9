"""BT.709 colour in limited range, the colours of HD video: between R'G'B' bytes and Y'CbCr planes.

Rec. ITU-R BT.709-6, sections 3 and 4. Done here in float rather than by the encoder's scaler, which rounds
coarsely and assumes the colours of standard definition (BT.601) unless told otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_KR, _KB = 0.2126, 0.0722
_LUMA = np.array([_KR, 1 - _KR - _KB, _KB])
_RED, _BLUE = np.eye(3)[0], np.eye(3)[2]
# Rows Y, Cb, Cr for R'G'B' in 0..255: Y covers 16..235, Cb and Cr 16..240.
FORWARD = np.stack([_LUMA * 219, (_BLUE - _LUMA) / (2 * (1 - _KB)) * 224, (_RED - _LUMA) / (2 * (1 - _KR)) * 224]) / 255
OFFSET = np.array([16.0, 128.0, 128.0])

Plane = NDArray[np.uint8] | NDArray[np.uint16]


def to_yuv(frame: NDArray[np.uint8], *, rows: int = 2, columns: int = 2, bits: int = 8) -> list[Plane]:
    """(h, w, 3) R'G'B' bytes → planes Y, Cb, Cr of `bits` bits, one chroma value for `rows` × `columns` pixels.

    Halved chroma sits where H.264, VP9 and AV1 expect it by default: on the left luma column, between two rows.
    h is a multiple of `rows` and w of `columns`, each 1 or 2.
    """
    yuv = frame.astype(np.float32) @ FORWARD.T.astype(np.float32) + OFFSET.astype(np.float32)
    y, cb, cr = np.moveaxis(yuv, -1, 0)
    if rows == 2:
        cb, cr = ((c[0::2] + c[1::2]) / 2 for c in (cb, cr))
    if columns == 2:
        cb, cr = (_halved(c) for c in (cb, cr))
    scale, kind = 1 << (bits - 8), np.uint8 if bits == 8 else np.uint16
    return [(plane * scale).round().astype(kind) for plane in (y, cb, cr)]


def _halved(chroma: NDArray[np.float32]) -> NDArray[np.float32]:
    """1-2-1 across columns, around each even one."""
    left = np.concatenate([chroma[:, :1], chroma[:, 1:-1:2]], axis=1)
    return ((left + 2 * chroma[:, 0::2] + chroma[:, 1::2]) / 4).astype(np.float32, copy=False)

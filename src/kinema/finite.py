"""Whether numbers are numbers: no NaN, nothing infinite. Asked of whole models, so at the speed of memory."""

from __future__ import annotations

import torch
from torch import Tensor

AT_ONCE = 1 << 19  # bytes that are looked at together: they stay in a processor's nearest cache
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers of as many bytes


def finite(x: Tensor) -> bool:
    """Whether all numbers of a tensor are finite, without making one of answers."""
    if x.numel() == 0 or not x.is_floating_point():
        return True
    if x.itemsize not in _BITS:
        x = x.to(torch.float32)
    if not x.is_contiguous():  # as it lies in memory; else it would be copied
        x = x.permute(sorted(range(x.ndim), key=x.stride, reverse=True))
    if x.device.type != "cpu":
        return bool(torch.stack(torch.aminmax(x)).isfinite().all())
    return _finite_bits(x.reshape(-1))


def _finite_bits(x: Tensor) -> bool:
    """The same of a line of them. Read as whole numbers, what is not finite is the largest of either sign.

    One thread does it: beside others at work, PyTorch's own wait for one another longer than this takes.
    """
    whole = _BITS[x.itemsize]
    infinite = [int(torch.tensor(float(end), dtype=x.dtype).view(whole).item()) for end in ("inf", "-inf")]
    signed = x.detach().view(whole).numpy()
    unsigned = signed.view(f"u{x.itemsize}")
    limits = (signed, infinite[0]), (unsigned, infinite[1] % (1 << 8 * x.itemsize))
    size = AT_ONCE // x.itemsize
    return all(bits[i : i + size].max() < most for i in range(0, len(signed), size) for bits, most in limits)

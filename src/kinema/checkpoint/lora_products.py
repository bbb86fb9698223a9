"""What the matrices of one adapter make together: the change of one weight, at full strength and without its scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

Roles = Mapping[str, Tensor]


class Product(Protocol):
    """Matrices that stand for a change of one weight (o, i, ...)."""

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None where the whole change is stored."""

    @property
    def tensors(self) -> Roles:
        """The matrices, by name."""

    def of(self, tensors: Roles) -> Self:
        """The same of other matrices, which may be among others."""

    def made(self, device: torch.device) -> Tensor:
        """The change, (o, i·...) or (o, i, ...), in float32."""

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why it is no change of a weight of this shape; None if it is one."""


@dataclass(frozen=True)
class LowRank:
    """B·A (Hu et al. 2021, equation 3), or with taps between, of a convolution (LyCORIS, Tucker)."""

    down: Tensor  # (r, i, ...): A
    up: Tensor  # (o, r, ...): B
    mid: Tensor | None = None  # (r, r, kh, kw): the taps of a convolution whose down and up are 1×1

    @property
    def rank(self) -> int:
        return max(1, self.down.shape[0] if self.down.dim() else 1)

    @property
    def tensors(self) -> Roles:
        return {"down": self.down, "up": self.up, **({} if self.mid is None else {"mid": self.mid})}

    def of(self, tensors: Roles) -> Self:
        return replace(self, **{name: tensors[name] for name in self.tensors})

    def made(self, device: torch.device) -> Tensor:
        up, down = (x.to(device, torch.float32).flatten(1) for x in (self.up, self.down))
        if self.mid is None:
            return up @ down
        return torch.einsum("or,rshw,si->oihw", up, self.mid.to(device, torch.float32), down)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        up, down = self.up, self.down
        if up.dim() < 2 or down.dim() < 2 or up.shape[1] != down.shape[0] or any(n != 1 for n in up.shape[2:]):
            return f"has parts of shapes {list(down.shape)} and {list(up.shape)}, which do not multiply"
        if self.mid is not None:
            r, taps = down.shape[0], tuple(self.mid.shape)
            if len(taps) == 4 and taps[:2] == (r, r) and shape == (up.shape[0], down[0].numel(), *taps[2:]):
                return None
            return f"has taps of shape {list(taps)} for a weight of shape {list(shape)}"
        if len(shape) < 2 or up.shape[0] != shape[0] or down[0].numel() != torch.Size(shape[1:]).numel():
            return f"makes a change of shape {[up.shape[0], *down.shape[1:]]} for a weight of shape {list(shape)}"
        return None


@dataclass(frozen=True)
class Several:
    """Matrices by the names that files give them."""

    roles: Roles

    @property
    def tensors(self) -> Roles:
        return self.roles

    def of(self, tensors: Roles) -> Self:
        return replace(self, roles={name: tensors[name] for name in self.roles})


@dataclass(frozen=True)
class Hadamard(Several):
    """Two low-rank products, number by number (LoHa, Hyeon-Woo et al. 2022, equation 2)."""

    roles: Roles  # hada_w1_a (o, r), hada_w1_b (r, i·...), hada_w2_a, hada_w2_b; with taps: hada_t1, hada_t2

    @property
    def rank(self) -> int:
        return self.roles["hada_w1_b"].shape[0]

    def made(self, device: torch.device) -> Tensor:
        halves = (_half(self.roles, f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}", device) for n in (1, 2))
        return next(halves) * next(halves)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        return _misfit(self, shape)


@dataclass(frozen=True)
class Kronecker(Several):
    """Blocks of one small matrix, weighted by another (LoKr, Edalati et al. 2022, equation 4)."""

    roles: Roles  # lokr_w1 or lokr_w1_a · lokr_w1_b; the same of w2, with taps lokr_t2

    @property
    def rank(self) -> int | None:
        return next((self.roles[key].shape[0] for key in ("lokr_w1_b", "lokr_w2_b") if key in self.roles), None)

    def made(self, device: torch.device) -> Tensor:
        one, two = (self._factor(n, device) for n in (1, 2))
        one = one.reshape(*one.shape, *(1,) * (two.dim() - one.dim()))
        return torch.kron(one.contiguous(), two.contiguous())

    def _factor(self, n: int, device: torch.device) -> Tensor:
        if (whole := self.roles.get(f"lokr_w{n}")) is not None:
            return whole.to(device, torch.float32)
        return _half(self.roles, f"lokr_w{n}_a", f"lokr_w{n}_b", f"lokr_t{n}", device)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        return _misfit(self, shape)


# What each kind of product needs: one of these names each time.
_NEEDED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "hada": (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
    "lokr": tuple((f"lokr_w{n}", f"lokr_w{n}_{half}") for n in (1, 2) for half in "ab"),
}


def product(roles: Roles) -> Product | str:
    """The product that these matrices make, or which one of them is missing."""
    kind = next((kind for kind in _NEEDED if any(role.startswith(kind) for role in roles)), "")
    needed = _NEEDED[kind] if kind else (("down",), ("up",))
    if lacking := [names[-1] for names in needed if not any(name in roles for name in names)]:
        return lacking[0]
    if kind:
        return Hadamard(roles) if kind == "hada" else Kronecker(roles)
    return LowRank(roles["down"], roles["up"], roles.get("mid"))


def _half(roles: Roles, a: str, b: str, taps: str, device: torch.device) -> Tensor:
    """One low-rank product; where a convolution is taken apart, (r, o), (r, i) and its taps (r, r, kh, kw)."""
    left, right = (roles[name].to(device, torch.float32) for name in (a, b))
    if taps in roles:
        return torch.einsum("rshw,ro,si->oihw", roles[taps].to(device, torch.float32), left, right)
    return left @ right.flatten(1)


def _misfit(made: Product, shape: tuple[int, ...]) -> str | None:
    try:
        size = made.made(torch.device("meta")).numel()
    except (RuntimeError, ValueError) as error:
        return f"has parts that do not multiply ({str(error).splitlines()[0]})"
    own = torch.Size(shape).numel()
    return None if size == own else f"makes a change of {size} numbers for a weight of shape {list(shape)}"

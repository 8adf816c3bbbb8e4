"""Rotationally invariant contractions of Gaussian moments (Eq. 13)."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["InvariantContractions", "feature_places"]


class InvariantContractions(nn.Module):
    """The eight full contractions of moments up to rank 3, without the copies that symmetry makes.

    In order, with repeated indices summed (n = n_basis):

    ====================================  =========================================
    Psi0                                  n
    Psi1_a Psi1_a                         n (n + 1) / 2
    Psi2_ab Psi2_ab                       n (n + 1) / 2
    Psi3_abc Psi3_abc                     n (n + 1) / 2
    Psi1_a Psi1_b Psi2_ab                 n (n + 1) / 2 * n
    Psi2_ab Psi2_bc Psi2_ca               n (n + 1) (n + 2) / 6
    Psi1_a Psi2_bc Psi3_abc               n^3
    Psi3_abc Psi3_abd Psi2_cd             n (n + 1) / 2 * n
    ====================================  =========================================

    n = 7 gives the paper's 910 features. With ``l_max`` below 3 the contractions that need higher
    moments are left out.
    """

    columns: Tensor
    inverse: Tensor
    identity: Tensor

    def __init__(self, n_basis: int, l_max: int = 3):
        super().__init__()
        if not 0 <= l_max <= 3:
            raise ValueError(f"l_max must be 0, 1, 2 or 3, got {l_max}")
        self.l_max = l_max
        columns = torch.tensor(_columns(n_basis, l_max))
        # where a full column is found among the kept ones; the dropped ones read an appended zero column
        width = n_basis + (l_max + (l_max == 3)) * n_basis**2 * (1 + n_basis * (l_max >= 2))
        inverse = torch.full((width,), len(columns))
        inverse[columns] = torch.arange(len(columns))
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)
        self.register_buffer("identity", torch.eye(3).view(9, 1), persistent=False)

    @property
    def n_features(self) -> int:
        return len(self.columns)

    def forward(self, moments: list[Tensor]) -> Tensor:
        """Moments of :class:`~ubmd.models.moments.GaussianMoments` to invariants [n_atoms, n_features]."""
        scalars = moments[0].squeeze(1)
        if self.l_max == 0:
            return scalars
        n_atoms, n = scalars.shape
        # two moments contracted to a matrix [3, 3] for each pair of radial functions; pairs are the last axis,
        # because products of small matrices are fast along a long one
        matrices = []
        for moment in moments[1:]:
            rows = moment.reshape(n_atoms, -1, 3 * n)
            square = (rows.transpose(1, 2) @ rows).view(n_atoms, 3, n, 3, n)
            matrices.append(square.transpose(2, 3).reshape(n_atoms, 9, n * n))
        if self.l_max == 3:
            mixed = moments[1].transpose(1, 2) @ moments[3].reshape(n_atoms, 3, 9 * n)
            matrices.append(mixed.view(n_atoms, n, 9, n).transpose(1, 2).reshape(n_atoms, 9, n * n))
        # their traces, and their contractions with a third moment
        third = self.identity.expand(n_atoms, 9, 1)
        if self.l_max >= 2:
            third = torch.cat([third, moments[2]], dim=2)
        joined: Tensor = _Stack.apply(*matrices)  # pyright: ignore
        closed = third.transpose(1, 2) @ joined.flatten(2)
        return _SelectColumns.apply(scalars, closed.flatten(1), self.columns, self.inverse)  # pyright: ignore


def feature_places(n_basis: int, l_max: int) -> list[tuple[int, int, int, int]]:
    """(matrix, s, t, u) of the features behind the scalars, in their order.

    Matrices are Psi1 Psi1, Psi2 Psi2, Psi3 Psi3 and Psi1 Psi3 of the radial functions s and t; u = 0 is the
    trace and u = 1 ... the moment Psi2 that it is contracted with.
    """
    n = range(n_basis)
    found = [(matrix, s, t, 0) for matrix in range(l_max) for s, t in product(n, n) if s <= t]
    if l_max >= 2:
        found += [(0, s, t, 1 + u) for s, u, t in product(n, n, n) if s <= t]
        found += [(1, s, t, 1 + u) for s, t, u in product(n, n, n) if s <= t <= u]
    if l_max == 3:
        found += [(3, s, t, 1 + u) for s, t, u in product(n, n, n)]
        found += [(2, s, t, 1 + u) for s, t, u in product(n, n, n) if s <= t]
    return found


def _columns(n_basis: int, l_max: int) -> list[int]:
    """Where the features stand among all columns, which are laid out as the scalars, then (u, matrix, s, t)."""
    matrices = l_max + (l_max == 3)
    columns = [
        n_basis + ((u * matrices + matrix) * n_basis + s) * n_basis + t
        for matrix, s, t, u in feature_places(n_basis, l_max)
    ]
    return [*range(n_basis), *columns]


class _Stack(torch.autograd.Function):
    """stack(x, 2) whose second derivative is a stack too (the generic one adds up tensors of zeros)."""

    @staticmethod
    def forward(ctx: Any, *x: Tensor) -> Tensor:
        return torch.stack(x, dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients[0].unbind(2)


class _SelectColumns(torch.autograd.Function):
    """cat([x, y], 1)[:, columns] whose derivatives are gathers too (the generic ones scatter, far slower on CPU)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, columns: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(columns, inverse)
        ctx.width = x.shape[1]
        return torch.cat([x, y], dim=1).index_select(1, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, y = _SpreadColumns.apply(gradients[0], *ctx.saved_tensors, ctx.width)  # pyright: ignore
        return x, y, None, None


class _SpreadColumns(torch.autograd.Function):
    """The transpose of :class:`_SelectColumns`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, columns: Tensor, inverse: Tensor, width: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(columns, inverse)
        padded = torch.cat([z, z.new_zeros(len(z), 1)], dim=1)
        return padded.index_select(1, inverse[:width]), padded.index_select(1, inverse[width:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _SelectColumns.apply(*gradients, *ctx.saved_tensors), None, None, None  # pyright: ignore

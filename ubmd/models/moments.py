"""Gaussian moments and their rotationally invariant contractions (Eqs. 11 and 13)."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["InvariantContractions", "gaussian_moments"]


def gaussian_moments(radial: Tensor, unit: Tensor, l_max: int) -> list[Tensor]:
    """Moments Psi_L = sum_j R(r_ij) u_ij^(x L) (Eq. 11).

    Args:
        radial: [n_atoms, k, n_basis] radial functions.
        unit: [n_atoms, k, 3] unit vectors.
        l_max: highest rank.

    Returns:
        per rank L a tensor [n_atoms, n_basis, 3^L].
    """
    powers = [torch.ones_like(unit[..., :1])]
    for _ in range(l_max):
        powers.append((powers[-1][..., :, None] * unit[..., None, :]).flatten(-2))
    moments = radial.transpose(1, 2) @ torch.cat(powers, dim=-1)
    return list(moments.split([3**rank for rank in range(l_max + 1)], dim=-1))


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

    def __init__(self, n_basis: int, l_max: int = 3):
        super().__init__()
        if not 0 <= l_max <= 3:
            raise ValueError(f"l_max must be 0, 1, 2 or 3, got {l_max}")
        self.l_max = l_max
        n = range(n_basis)
        pairs = [a <= b for a, b in product(n, n)]
        keep = [True] * n_basis
        keep += pairs * l_max
        if l_max >= 2:
            keep += [a <= b for a, _, b in product(n, n, n)]  # laid out (s1, s of Psi2, s2)
            keep += [a <= b <= c for a, b, c in product(n, n, n)]
        if l_max >= 3:
            keep += [True] * n_basis**3
            keep += [a <= b for a, b, _ in product(n, n, n)]
        columns = torch.tensor(keep).nonzero().squeeze(1)
        # where a full column is found among the kept ones; the dropped ones read an appended zero column
        inverse = torch.full((len(keep),), len(columns))
        inverse[columns] = torch.arange(len(columns))
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)

    @property
    def n_features(self) -> int:
        return len(self.columns)

    def forward(self, moments: list[Tensor]) -> Tensor:
        """Moments of :func:`gaussian_moments` to invariants [n_atoms, n_features]."""
        out = [moments[0].squeeze(-1)]
        out += [(m @ m.transpose(1, 2)).flatten(1) for m in moments[1:]]
        n_atoms, n = out[0].shape
        if self.l_max < 2:
            return self._unique(out)
        one, two = moments[1], moments[2]
        two_matrix = two.reshape(n_atoms, n * 3, 3)
        # (s, a, t) = Psi2_s,ab Psi1_t,b
        vector = (two_matrix @ one.transpose(1, 2)).view(n_atoms, n, 3, n)
        out.append((one @ vector.transpose(1, 2).reshape(n_atoms, 3, n * n)).flatten(1))
        # (s, a, t, c) = Psi2_s,ab Psi2_t,bc, laid out (s, t, ac) to meet Psi2_u,ac
        square = (two_matrix @ two_matrix.transpose(1, 2)).view(n_atoms, n, 3, n, 3)
        square = square.transpose(2, 3).reshape(n_atoms, n * n, 9)
        out.append((square @ two.transpose(1, 2)).flatten(1))
        if self.l_max >= 3:
            three = moments[3].reshape(n_atoms, n * 3, 9)
            # (s, a, t) = Psi3_s,abc Psi2_t,bc
            vector = (three @ two.transpose(1, 2)).view(n_atoms, n, 3, n)
            out.append((one @ vector.transpose(1, 2).reshape(n_atoms, 3, n * n)).flatten(1))
            # (s, c, t, d) = Psi3_s,cab Psi3_t,dab, laid out (s, t, cd) to meet Psi2_u,cd
            square = (three @ three.transpose(1, 2)).view(n_atoms, n, 3, n, 3)
            square = square.transpose(2, 3).reshape(n_atoms, n * n, 9)
            out.append((square @ two.transpose(1, 2)).flatten(1))
        return self._unique(out)

    def _unique(self, blocks: list[Tensor]) -> Tensor:
        """The blocks [n_atoms, ...] side by side, without the columns that repeat others."""
        return _SelectColumns.apply(torch.cat(blocks, dim=1), self.columns, self.inverse)  # pyright: ignore


class _SelectColumns(torch.autograd.Function):
    """x[:, columns] whose derivatives are gathers too (the generic one scatters, far slower on CPU)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(columns, inverse)
        return x.index_select(1, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        columns, inverse = ctx.saved_tensors
        return _SpreadColumns.apply(gradients[0], columns, inverse), None, None  # pyright: ignore


class _SpreadColumns(torch.autograd.Function):
    """The transpose of :class:`_SelectColumns`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(columns, inverse)
        return torch.cat([x, x.new_zeros(len(x), 1)], dim=1).index_select(1, inverse)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        columns, inverse = ctx.saved_tensors
        return _SelectColumns.apply(gradients[0], columns, inverse), None, None  # pyright: ignore

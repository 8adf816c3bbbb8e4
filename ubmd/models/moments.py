"""Gaussian moments (Eq. 11) with explicit derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor, nn

from ubmd.models.radial import GaussianBasis

__all__ = ["GaussianMoments"]


class GaussianMoments(nn.Module):
    """Moments Psi_L = sum_j R(r_ij) u_ij^(x L), with u the unit vector (Eqs. 11 and 12).

    Training needs derivatives of forces, and forces are derivatives of moments already. The operations on pairs
    are by far the largest of a model, so that their derivatives are written out: autograd sees the radial
    functions (linear in the coefficients) times constant monomials, and the vectors through
    :class:`_AlongVectors`, of which it computes what is asked for and nothing else. First and second derivatives
    are right, but for one order: a derivative by the coefficients cannot be differentiated again.

    Args:
        gaussians: that the radial functions are made of.
        l_max: highest rank.

    Raises:
        ValueError: for a rank that has no contractions.
    """

    table: Tensor

    def __init__(self, gaussians: GaussianBasis, l_max: int = 3):
        super().__init__()
        if not 0 <= l_max <= 3:
            raise ValueError(f"l_max must be 0, 1, 2 or 3, got {l_max}")
        self.gaussians, self.l_max = gaussians, l_max
        self.register_buffer("table", _monomial_table(l_max).to(gaussians.centres.dtype), persistent=False)

    def forward(self, vectors: Tensor, others: Tensor, beta: Tensor) -> list[Tensor]:
        """Moments of atoms.

        Args:
            vectors: [n_atoms, k, 3] Å, pair vectors.
            others: [n_atoms, k] species index of the neighbours.
            beta: [n_atoms, n_species * n_gauss, n_basis] coefficients of each atom's radial functions.

        Returns:
            per rank L a tensor [n_atoms, 3^L, n_basis].
        """
        pairs = self.pairs(vectors.detach(), others, _DifferentiatedLast.apply(beta))  # pyright: ignore
        moments = (pairs.radial @ pairs.monomials.transpose(1, 2)) @ self.table[:, 0].T
        if torch.is_grad_enabled() and vectors.requires_grad:

            def again(moved: Tensor) -> _Pairs:
                return self.pairs(moved, others, beta.detach())

            moments = moments + _AlongVectors.apply(vectors, pairs, again)  # pyright: ignore
        moments = moments.transpose(1, 2).contiguous()
        return list(moments.split([3**rank for rank in range(self.l_max + 1)], dim=1))

    def pairs(self, vectors: Tensor, others: Tensor, beta: Tensor) -> _Pairs:
        """What the moments and their derivatives are made of, by differentiable operations."""
        # neighbours are the last axis throughout: the operations run along it, and the other axes are short
        vectors = vectors.transpose(1, 2).contiguous()
        distance = vectors.square().sum(1, keepdim=True).sqrt()
        unit = vectors / distance
        # a neighbour's Gaussians go to the slots of its species, so that beta_{Zi,Zj} is one matrix an atom
        n_gauss = len(self.gaussians.centres)
        species = torch.arange(beta.shape[1] // n_gauss, device=others.device)
        slots = (others[:, None] == species[:, None]).to(vectors.dtype)[:, :, None]
        coefficients = beta.transpose(1, 2) * n_gauss**-0.5
        radial, slope = (
            coefficients @ (slots * gaussians[:, None]).flatten(1, 2) for gaussians in self.gaussians(distance[:, 0])
        )
        powers = [torch.ones_like(distance), unit]
        for _ in range(self.l_max - 1):
            # x times all monomials of one rank less, y times those without x, z times z...z
            x, y, z = unit.split(1, dim=1)
            last, rank = powers[-1], len(powers)
            powers.append(torch.cat([x * last, y * last[:, -rank:], z * last[:, -1:]], dim=1))
        monomials = torch.cat(powers[: self.l_max + 1], dim=1)
        return _Pairs(radial, slope, distance, unit, monomials, self.table)


@dataclass(frozen=True)
class _Pairs:
    """Radial functions and monomials of all pairs, and the moments' derivatives in terms of them."""

    radial: Tensor
    """[n_atoms, n_basis, k] R(r)."""
    slope: Tensor
    """[n_atoms, n_basis, k] dR/dr, 1/Å."""
    distance: Tensor
    """[n_atoms, 1, k] Å."""
    unit: Tensor
    """[n_atoms, 3, k]."""
    monomials: Tensor
    """[n_atoms, n_monomials, k] of the unit vectors, rank by rank."""
    table: Tensor
    """Of :func:`_monomial_table`."""

    def weights(self, gradient: Tensor) -> Tensor:
        """[n_atoms, n_basis, 4, k] derivatives by R, and by the unit vector as factors of R.

        Args:
            gradient: [n_atoms, n_basis, n_components] derivatives by the moments.
        """
        n_atoms, n_basis, _ = gradient.shape
        rows = (gradient @ self.table.flatten(1)).view(n_atoms, n_basis * 4, -1)
        return (rows @ self.monomials).view(n_atoms, n_basis, 4, -1)

    def pull(self, weights: Tensor) -> Tensor:
        """[n_atoms, k, 3] derivatives by the pair vectors."""
        by_distance = (weights[:, :, 0] * self.slope).sum(1, keepdim=True)
        by_unit = (weights[:, :, 1:] * self.radial[:, :, None]).sum(1)
        across = by_unit - self.unit * (self.unit * by_unit).sum(1, keepdim=True)
        return (self.unit * by_distance + across / self.distance).transpose(1, 2)

    def displace(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of distances [n_atoms, 1, k] and unit vectors [n_atoms, 3, k] along ``direction``.

        Args:
            direction: [n_atoms, k, 3] of the pair vectors.
        """
        direction = direction.transpose(1, 2)
        distance = (self.unit * direction).sum(1, keepdim=True)
        return distance, (direction - self.unit * distance) / self.distance

    def push(self, distance: Tensor, unit: Tensor) -> Tensor:
        """Derivatives of the moments [n_atoms, n_basis, n_components] along what :meth:`displace` gives."""
        n_atoms, n_basis, k = self.radial.shape
        rows = torch.cat([(self.slope * distance)[:, :, None], self.radial[:, :, None] * unit[:, None]], dim=2)
        rows = rows.view(n_atoms, n_basis * 4, k) @ self.monomials.transpose(1, 2)
        return rows.view(n_atoms, n_basis, -1) @ self.table.flatten(1).T


class _DifferentiatedLast(torch.autograd.Function):
    """The same tensor; to differentiate its gradient is an error, as that does not know the vectors."""

    @staticmethod
    def forward(ctx: Any, beta: Tensor) -> Tensor:
        return beta.view_as(beta)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradients[0]


class _AlongVectors(torch.autograd.Function):
    """Zero, with the moments' derivatives by the vectors.

    The other tensors come in a dataclass, so that this is a node of the vectors alone and is left out of a pass
    to the parameters.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: _Pairs, again: Any) -> Tensor:
        ctx.save_for_backward(vectors)
        ctx.pairs, ctx.again = pairs, again
        return vectors.new_zeros(*pairs.radial.shape[:2], len(pairs.table))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (vectors,) = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        (gradient,) = gradients
        by_vectors: Tensor = _Pull.apply(gradient, pairs.radial, pairs.slope, pairs)  # pyright: ignore
        if torch.is_grad_enabled():
            by_vectors = by_vectors + _Curvature.apply(vectors, gradient.detach(), ctx.again)  # pyright: ignore
        return by_vectors, None, None


class _Pull(torch.autograd.Function):
    """Derivatives by the vectors, as a function of the derivatives by the moments and of the radial functions."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, radial: Tensor, slope: Tensor, pairs: _Pairs) -> Tensor:
        weights = pairs.weights(gradient)
        ctx.save_for_backward(weights)
        ctx.pairs = pairs
        return pairs.pull(weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        (weights,) = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        distance, unit = pairs.displace(gradients[0])
        by_radial = (weights[:, :, 1:] * unit[:, None]).sum(2)
        return pairs.push(distance, unit), by_radial, weights[:, :, 0] * distance, None


class _Curvature(torch.autograd.Function):
    """Zero, with the second derivatives by the vectors (a bias by a deviation of forces follows them)."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, gradient: Tensor, again: Any) -> Tensor:
        ctx.save_for_backward(vectors, gradient)
        ctx.again = again
        return torch.zeros_like(vectors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor, None, None]:
        vectors, gradient = ctx.saved_tensors
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            pairs: _Pairs = ctx.again(vectors)
            slope = (pairs.push(*pairs.displace(gradients[0])) * gradient).sum()
        return torch.autograd.grad(slope, vectors)[0], None, None


def _monomial_table(l_max: int) -> Tensor:
    """How components of u^(x L) and their derivatives are made of monomials, [n_components, 4, n_monomials].

    Components are those of ranks 0 to ``l_max``, 3^L each, monomials the different ones among them. The first
    slice names the monomial that a component is, the others its derivatives by the three components of u.
    """
    ranks = range(l_max + 1)
    monomials = [m for rank in ranks for m in combinations_with_replacement(range(3), rank)]
    components = [c for rank in ranks for c in product(range(3), repeat=rank)]
    table = torch.zeros(len(components), 4, len(monomials), dtype=torch.float64)
    for row, component in enumerate(components):
        table[row, 0, monomials.index(tuple(sorted(component)))] = 1
        for place, axis in enumerate(component):
            rest = component[:place] + component[place + 1 :]
            table[row, 1 + axis, monomials.index(tuple(sorted(rest)))] += 1
    return table

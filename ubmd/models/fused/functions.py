"""The kernels as PyTorch sees them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ubmd.data.batch import AtomicBatch
from ubmd.models.contractions import feature_places
from ubmd.models.fused import kernels
from ubmd.models.fused.compiled import call
from ubmd.models.fused.pairs import N_MONOMIALS
from ubmd.models.fused.simd import WIDTH
from ubmd.models.radial import GaussianBasis

__all__ = ["PADDED", "Described"]

PADDED = 16
"""Matrix products with other numbers of columns take up to half as long again on CPUs."""

Array = NDArray[Any]


@cache
def _layout(n_basis: int, l_max: int) -> tuple[Array, Array]:
    """Where the features behind Psi0 are found among the closed products of the kernels, and with s and t exchanged."""
    matrix, s, t, u = np.array(feature_places(n_basis, l_max), dtype=np.int64).reshape(-1, 4).T

    def at(s: Array, t: Array) -> Array:
        return ((matrix * n_basis + s) * (n_basis + 1) + u) * WIDTH + t

    return at(s, t), np.where(matrix < 3, at(t, s), 4 * n_basis * (n_basis + 1) * WIDTH)


class Described:
    """Invariant features of the atoms of a batch, with what their derivatives are computed from.

    Args:
        batch: structures on the CPU.
        species: [n_atoms] index of the atoms' species.
        beta: [n_species, n_species * n_gauss, n_basis] coefficients of the radial functions.
        gaussians: that these are made of.
        l_max: highest rank of the moments.

    Raises:
        IndexError: for an unknown species.
    """

    def __init__(self, batch: AtomicBatch, species: Tensor, beta: Tensor, gaussians: GaussianBasis, l_max: int):
        if len(species) and int(species.min()) < 0:
            raise IndexError("the batch has an element that the model does not know")
        self._beta, self._n_basis = beta, beta.shape[2]
        self._columns, self._mirror = _layout(self._n_basis, l_max)
        dtype = beta.detach().numpy().dtype
        n, k = batch.neighbours.shape
        padded = np.zeros((*beta.shape[:2], WIDTH), dtype)
        padded[:, :, : self._n_basis] = beta.detach().numpy()
        self._centres = gaussians.centres.numpy().astype(dtype)
        scale = len(self._centres) ** -0.5
        self._shape = tuple(
            dtype.type(x) for x in (gaussians.width, gaussians.norm, np.pi / gaussians.cutoff, 1, 0.5, scale)
        )
        self._system, self._species = batch.system_idx.numpy(), species.numpy()
        self._n_systems = batch.n_systems
        self._count, self._others = np.empty(n, np.int64), np.empty((n, k), np.int64)
        self._unit = np.empty((n, k, 4), dtype)
        self._radial, self._slope = np.empty((n, k, WIDTH), dtype), np.empty((n, k, WIDTH), dtype)
        self._moments = np.empty((n, N_MONOMIALS, WIDTH), dtype)
        width = self._n_basis + len(self._columns)
        features = np.zeros((n, width + -width % PADDED), dtype)
        shifts = np.empty((0, 0, 3), dtype) if batch.shifts is None else _array(batch.shifts)
        _in_parts(
            kernels.describe, n, _array(batch.positions), _array(batch.cell), self._system, batch.neighbours.numpy(),
            batch.mask.numpy(), shifts, self._species, padded, self._centres, self._shape, dtype.type(gaussians.cutoff),
            self._columns, self._n_basis, self._count, self._others, self._unit, self._radial,
            self._slope, self._moments, features,
        )  # fmt: skip
        self.features: Tensor = _Attach.apply(beta, torch.from_numpy(features), self)  # pyright: ignore
        """[n_atoms, n_features and zeros up to a multiple of PADDED]; differentiable by ``beta``."""
        if torch.is_grad_enabled():
            self.features.requires_grad_()  # also where the coefficients are not to be differentiated by

    def pull(self, by_features: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives by positions and strain of scalars with given derivatives by the features.

        Differentiable by ``by_features`` and ``beta``, once.

        Args:
            by_features: [n_atoms, n_features], with or without those of the zeros, or of several scalars [c, ...].

        Returns:
            [n_atoms, 3] and [n_systems, 3, 3], or of each scalar [c, ...].
        """
        several = by_features if by_features.dim() == 3 else by_features[None]
        gradient, strain = _Pull.apply(several, self._beta, self)  # pyright: ignore
        return (gradient, strain) if by_features.dim() == 3 else (gradient[0], strain[0])

    def _pull(self, by_features: Array) -> tuple[Array, Array]:
        c, (n, k) = len(by_features), self._others.shape
        pairs = np.empty((c, n, k, 3), by_features.dtype)
        _in_parts(
            kernels.pull, n, by_features, self._moments, self._count, self._unit, self._radial, self._slope,
            self._columns, self._mirror, self._shape[4], self._n_basis, pairs,
        )  # fmt: skip
        gradient = np.zeros((c, n, 3), by_features.dtype)
        strain = np.zeros((c, self._n_systems, 3, 3))  # float64: a sum over all pairs
        call(kernels.collect, pairs, self._count, self._others, self._unit, self._system, gradient, strain)
        return gradient, strain.astype(by_features.dtype)

    def _by_beta(self, kernel: Callable[..., None], *arguments: Any) -> Tensor:
        """Derivatives by the coefficients that a kernel adds up in its last argument."""
        z, rows, n_basis = self._beta.shape
        found: dict[int, Array] = {}

        def run(first: int, last: int) -> None:
            found[first] = np.zeros((z, rows, WIDTH), self._unit.dtype)
            call(kernel, first, last, *arguments, found[first])

        _in_parts(run, len(self._count))
        parts = [found[first] for first in sorted(found)]  # always added up in the same order
        return torch.from_numpy(np.sum(parts, axis=0)[:, :, :n_basis])


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, beta: Tensor, features: Tensor, described: Described) -> Tensor:
        ctx.described = described
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        d: Described = ctx.described
        by_beta = d._by_beta(
            kernels.by_coefficients, _array(gradients[0]), d._species, d._moments, d._count, d._others, d._unit,
            d._centres, d._shape, d._columns, d._mirror, d._n_basis,
        )  # fmt: skip
        return by_beta, None, None


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, by_features: Tensor, beta: Tensor, described: Described) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(by_features)
        ctx.described = described
        gradient, strain = described._pull(_array(by_features))
        return torch.from_numpy(gradient), torch.from_numpy(strain)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore
        d: Described = ctx.described
        (by_features,) = ctx.saved_tensors
        by_gradient, by_strain = gradients
        by_strain = 0.5 * (by_strain + by_strain.transpose(2, 3))
        change = torch.zeros_like(by_features, memory_format=torch.contiguous_format)
        by_beta = torch.zeros_like(d._beta)
        for c in range(len(by_features)):
            by_beta = by_beta + d._by_beta(
                kernels.tangent, _array(by_features[c]), _array(by_gradient[c]), _array(by_strain[c]), d._system,
                d._species, d._moments, d._count, d._others, d._unit, d._radial, d._slope, d._centres, d._shape,
                d._columns, d._mirror, d._n_basis, change[c].numpy(),
            )  # fmt: skip
        return change, by_beta, None


def _array(tensor: Tensor) -> Array:
    """A tensor's own memory, or a contiguous copy."""
    return tensor.detach().contiguous().numpy()


SMALLEST_PART = 16
"""Atoms that are worth a thread."""
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def _in_parts(kernel: Callable[..., None], n_atoms: int, *arguments: Any) -> None:
    """Runs a kernel on parts of the atoms, one for each thread that PyTorch uses."""
    parts = max(1, min(torch.get_num_threads(), n_atoms // SMALLEST_PART))
    if parts == 1:
        call(kernel, 0, n_atoms, *arguments)
        return
    # threads do not survive a fork
    pool = _pools.setdefault((os.getpid(), parts), ThreadPoolExecutor(parts, "ubmd-kernel"))
    bounds = [n_atoms * p // parts for p in range(parts + 1)]
    futures = [pool.submit(call, kernel, a, b, *arguments) for a, b in pairwise(bounds)]
    for future in futures:
        future.result()

"""Loops over atoms: invariants, their derivatives by positions, and the derivatives of both by the coefficients.

Arrays of all atoms: N atoms, k neighbours at most, S structures, Z species, n radial functions of g Gaussians each,
F features; W = 8 is the width of a vector.

===============  ====================  =========================================================================
positions, ...                         as in :class:`~ubmd.data.batch.AtomicBatch`
species          [N]                   index among the species
beta             [Z, Z g, W]           coefficients of the radial functions
shape            [6]                   see :func:`~ubmd.models.fused.pairs.set_bells`
count            [N]                   number of neighbours inside the cutoff, which come first in what follows
others           [N, k]                index of the neighbour
unit             [N, k, 4]             unit vector and distance, Å
radial, slope    [N, k, W]             R and dR/dr
moments          [N, 20, W]            see :mod:`~ubmd.models.fused.contractions`
columns, mirror  [F - n]               where the invariants but Psi0 are found among the closed products, with (s, t)
                                       and with (t, s); behind their end where that is another invariant
===============  ====================  =========================================================================
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from ubmd.models.fused.compiled import kernel
from ubmd.models.fused.contractions import (
    add_by_moments,
    add_by_products,
    add_by_thirds,
    add_closed,
    add_products,
    set_thirds,
)
from ubmd.models.fused.pairs import (
    N_LOWER,
    N_MONOMIALS,
    add_along,
    add_moments,
    along,
    by_vector,
    set_along,
    set_bells,
    set_lower,
    set_monomials,
    set_radial,
    weights,
)
from ubmd.models.fused.simd import WIDTH as W
from ubmd.models.fused.simd import add, fma, load, multiply, spread, store

__all__ = ["by_coefficients", "collect", "describe", "pull", "tangent"]


@kernel
def _find_neighbours(i, positions, cell, system, neighbours, mask, shifts, cutoff, others, unit):
    """Number of neighbours of atom i inside the cutoff; their indices, unit vectors and distances."""
    found = 0
    periodic = len(shifts) > 0
    for slot in range(neighbours.shape[1]):
        if not mask[i, slot]:
            continue
        j, squared = neighbours[i, slot], cutoff - cutoff
        for d in range(3):
            unit[i, found, d] = positions[i, d] - positions[j, d]
            if periodic:
                translation = cutoff - cutoff
                for axis in range(3):
                    translation += shifts[i, slot, axis] * cell[system[i], axis, d]
                unit[i, found, d] -= translation
            squared += unit[i, found, d] * unit[i, found, d]
        distance = sqrt(squared)
        if not distance >= cutoff:  # a distance that is no number stays, so that it shows
            for d in range(3):
                unit[i, found, d] /= distance
            unit[i, found, 3] = distance
            others[i, found] = j
            found += 1
    return found


@kernel
def describe(
    first, last, positions, cell, system, neighbours, mask, shifts, species, beta, centres, shape, cutoff, columns,
    n, count, others, unit, radial, slope, moments, features,
):  # fmt: skip
    """Invariants of the atoms from ``first`` to before ``last``; fills the arrays from ``count`` on."""
    bells, slopes = np.empty_like(centres), np.empty_like(centres)
    monomials, own = np.empty(N_MONOMIALS, beta.dtype), np.empty(N_MONOMIALS * W, beta.dtype)
    products, closed = np.empty(4 * n * 6 * W, beta.dtype), np.empty(4 * n * (n + 1) * W, beta.dtype)
    thirds = np.zeros((n + 1) * W, beta.dtype)
    k, half = neighbours.shape[1], shape[4]
    for i in range(first, last):
        count[i] = _find_neighbours(i, positions, cell, system, neighbours, mask, shifts, cutoff, others, unit)
        own[:] = 0
        for p in range(count[i]):
            at = (i * k + p) * W
            set_bells(unit[i, p, 3], centres, shape, bells, slopes)
            row = species[i] * beta.shape[1] + species[others[i, p]] * len(centres)
            set_radial(beta, row, bells, slopes, radial, slope, at)
            set_monomials(unit, i, p, monomials)
            add_moments(monomials, radial, at, own)
        for x in range(N_MONOMIALS):
            store(moments, (i * N_MONOMIALS + x) * W, load(own, x * W))
        products[:] = 0
        closed[:] = 0
        add_products(own, own, half, products, n)
        set_thirds(own, half + half, thirds, n)
        add_closed(products, thirds, closed, n)
        for s in range(n):
            features[i, s] = own[s]
        for f in range(len(columns)):
            features[i, n + f] = closed[columns[f]]


@kernel
def _take(moments, i, own):
    """The moments [20 W] of atom i."""
    for x in range(N_MONOMIALS):
        store(own, x * W, load(moments, (i * N_MONOMIALS + x) * W))


@kernel
def _spread(by_features, columns, mirror, n, by_closed):
    """Derivatives by the closed products, symmetric in s and t, from those by the features of an atom [F]."""
    by_closed[:] = 0
    for f in range(len(columns)):
        by_closed[columns[f]] += by_features[n + f]
        by_closed[mirror[f]] += by_features[n + f]


@kernel
def pull(
    first, last, by_features, moments, count, unit, radial, slope, columns, mirror, half, n, gradient
):  # fmt: skip
    """Derivatives by pair vectors [c, N, k, 3] from c derivatives by the features [c, N, F]."""
    dtype = moments.dtype
    products, by_products = np.empty(4 * n * 6 * W, dtype), np.empty(4 * n * 6 * W, dtype)
    by_closed, thirds = np.empty(4 * n * (n + 1) * W + 1, dtype), np.zeros((n + 1) * W, dtype)
    by_own, lower = np.empty(N_MONOMIALS * W, dtype), np.empty(3 * N_LOWER * W, dtype)
    monomials, own = np.empty(N_MONOMIALS, dtype), np.empty(N_MONOMIALS * W, dtype)
    k = unit.shape[1]
    flat = gradient.reshape(gradient.size)
    for i in range(first, last):
        _take(moments, i, own)
        products[:] = 0
        add_products(own, own, half, products, n)
        set_thirds(own, half + half, thirds, n)
        for c in range(len(by_features)):
            _spread(by_features[c, i], columns, mirror, n, by_closed)
            by_products[:] = 0
            by_own[:] = 0
            add_by_products(by_closed, thirds, by_products, n)
            add_by_thirds(by_closed, products, half, by_own, n)
            add_by_moments(by_products, own, half, by_own, n)
            for s in range(n):
                by_own[s] += by_features[c, i, s]
            set_lower(by_own, lower)
            for p in range(count[i]):
                set_monomials(unit, i, p, monomials)
                at, place = (i * k + p) * W, ((c * len(count) + i) * k + p) * 3
                by_vector(by_own, lower, monomials, unit, i, p, radial, slope, at, flat, place)


@kernel
def collect(pairs, count, others, unit, system, gradient, strain):
    """Adds derivatives by positions [c, N, 3] and strain [c, S, 3, 3] from those by pair vectors [c, N, k, 3]."""
    for c in range(len(pairs)):
        for i in range(len(count)):
            for p in range(count[i]):
                j = others[i, p]
                for a in range(3):
                    value = pairs[c, i, p, a]
                    gradient[c, i, a] += value
                    gradient[c, j, a] -= value
                    for b in range(3):
                        half = 0.5 * value * unit[i, p, b] * unit[i, p, 3]
                        strain[c, system[i], a, b] += half
                        strain[c, system[i], b, a] += half


@kernel
def _add_to_coefficients(i, species, others, unit, centres, shape, p, by_radial, by_slope, bells, slopes, by_beta):
    """Adds derivatives by the coefficients of a neighbour's radial functions [W] and of their slopes [W]."""
    set_bells(unit[i, p, 3], centres, shape, bells, slopes)
    row = species[i] * by_beta.shape[1] + species[others[i, p]] * len(centres)
    for g in range(len(centres)):
        at = (row + g) * W
        part = fma(spread(bells[g]), by_radial, load(by_beta, at))
        store(by_beta, at, fma(spread(slopes[g]), by_slope, part))


@kernel
def by_coefficients(
    first, last, by_features, species, moments, count, others, unit, centres, shape, columns, mirror, n, by_beta
):  # fmt: skip
    """Adds derivatives by the coefficients from those by the features [N, F]."""
    dtype = moments.dtype
    half = shape[4]
    products, by_products = np.empty(4 * n * 6 * W, dtype), np.empty(4 * n * 6 * W, dtype)
    by_closed, thirds = np.empty(4 * n * (n + 1) * W + 1, dtype), np.zeros((n + 1) * W, dtype)
    by_own, own = np.empty(N_MONOMIALS * W, dtype), np.empty(N_MONOMIALS * W, dtype)
    monomials = np.empty(N_MONOMIALS, dtype)
    bells, slopes = np.empty_like(centres), np.empty_like(centres)
    nothing = spread(half - half)
    for i in range(first, last):
        _take(moments, i, own)
        products[:] = 0
        by_products[:] = 0
        by_own[:] = 0
        add_products(own, own, half, products, n)
        set_thirds(own, half + half, thirds, n)
        _spread(by_features[i], columns, mirror, n, by_closed)
        add_by_products(by_closed, thirds, by_products, n)
        add_by_thirds(by_closed, products, half, by_own, n)
        add_by_moments(by_products, own, half, by_own, n)
        for s in range(n):
            by_own[s] += by_features[i, s]
        for p in range(count[i]):
            set_monomials(unit, i, p, monomials)
            by_radial = weights(by_own, monomials)
            _add_to_coefficients(
                i, species, others, unit, centres, shape, p, by_radial, nothing, bells, slopes, by_beta
            )  # fmt: skip


@kernel
def tangent(
    first, last, by_features, by_gradient, by_strain, system, species, moments, count, others, unit, radial, slope,
    centres, shape, columns, mirror, n, change, by_beta,
):  # fmt: skip
    """Derivatives of the derivatives that :func:`pull` and :func:`collect` compute from ``by_features`` [N, F].

    Of a scalar are given the derivatives by their results, ``by_gradient`` [N, 3] and ``by_strain`` [S, 3, 3]
    (symmetric).
    ``change`` [N, F] receives those by ``by_features``, which are the changes of the features as all atoms and cells
    move along what is given; those by the coefficients are added to ``by_beta`` [Z, Z g, W].
    """
    dtype = moments.dtype
    half, size = shape[4], 4 * n * 6 * W
    products, products_along = np.empty(size, dtype), np.empty(size, dtype)
    by_products, by_products_along = np.empty(size, dtype), np.empty(size, dtype)
    closed, by_closed = np.empty(4 * n * (n + 1) * W, dtype), np.empty(4 * n * (n + 1) * W + 1, dtype)
    thirds, thirds_along = np.zeros((n + 1) * W, dtype), np.zeros((n + 1) * W, dtype)
    moved, by_moved = np.empty(N_MONOMIALS * W, dtype), np.empty(N_MONOMIALS * W, dtype)
    by_own, own = np.empty(N_MONOMIALS * W, dtype), np.empty(N_MONOMIALS * W, dtype)
    monomials, changes = np.empty(N_MONOMIALS, dtype), np.empty(N_MONOMIALS, dtype)
    direction, turn = np.empty(3, dtype), np.empty(3, dtype)
    bells, slopes = np.empty_like(centres), np.empty_like(centres)
    k = unit.shape[1]
    for i in range(first, last):
        _take(moments, i, own)
        moved[:] = 0
        for p in range(count[i]):
            _direction(i, p, others, unit, system, by_gradient, by_strain, direction)
            stretch = along(unit, i, p, direction, turn)
            set_monomials(unit, i, p, monomials)
            set_along(unit, i, p, monomials, turn, changes)
            add_along(monomials, changes, stretch, radial, slope, (i * k + p) * W, moved)
        for array in (products, products_along, by_products, by_products_along, closed):
            array[:] = 0
        add_products(own, own, half, products, n)
        add_products(moved, own, half, products_along, n)
        add_products(own, moved, half, products_along, n)
        set_thirds(own, half + half, thirds, n)
        set_thirds(moved, half - half, thirds_along, n)
        add_closed(products_along, thirds, closed, n)
        add_closed(products, thirds_along, closed, n)
        for s in range(n):
            change[i, s] = moved[s]
        for f in range(len(columns)):
            change[i, n + f] = closed[columns[f]]
        _spread(by_features[i], columns, mirror, n, by_closed)
        by_own[:] = 0  # derivatives by the moments, and by their change
        by_moved[:] = 0
        add_by_products(by_closed, thirds, by_products, n)
        add_by_products(by_closed, thirds_along, by_products_along, n)
        add_by_thirds(by_closed, products, half, by_moved, n)
        add_by_thirds(by_closed, products_along, half, by_own, n)
        add_by_moments(by_products, own, half, by_moved, n)
        add_by_moments(by_products_along, own, half, by_own, n)
        add_by_moments(by_products, moved, half, by_own, n)
        for s in range(n):
            by_moved[s] += by_features[i, s]
        for p in range(count[i]):
            _direction(i, p, others, unit, system, by_gradient, by_strain, direction)
            stretch = along(unit, i, p, direction, turn)
            set_monomials(unit, i, p, monomials)
            set_along(unit, i, p, monomials, turn, changes)
            by_radial = add(weights(by_own, monomials), weights(by_moved, changes))
            by_slope = multiply(spread(stretch), weights(by_moved, monomials))
            _add_to_coefficients(
                i, species, others, unit, centres, shape, p, by_radial, by_slope, bells, slopes, by_beta
            )  # fmt: skip


@kernel
def _direction(i, p, others, unit, system, by_gradient, by_strain, direction):
    """Derivatives [3] by the derivative by a pair vector, as :func:`collect` distributes it."""
    j, structure = others[i, p], system[i]
    for a in range(3):
        direction[a] = by_gradient[i, a] - by_gradient[j, a]
        for b in range(3):
            direction[a] += by_strain[structure, a, b] * unit[i, p, b] * unit[i, p, 3]

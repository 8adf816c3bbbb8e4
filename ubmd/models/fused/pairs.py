"""Radial functions and moments of one atom's neighbours and their derivatives, as kernels (Eqs. 11 and 12)."""

from __future__ import annotations

from collections import Counter
from math import cos, exp, sin

import numpy as np
from numba import njit

from ubmd.models.fused.contractions import MONOMIALS
from ubmd.models.fused.simd import WIDTH as W
from ubmd.models.fused.simd import add, fma, load, multiply, spread, store, total

__all__ = [
    "N_MONOMIALS",
    "add_along",
    "add_moments",
    "along",
    "by_vector",
    "set_along",
    "set_bells",
    "set_lower",
    "set_monomials",
    "set_radial",
    "weights",
]

N_MONOMIALS = len(MONOMIALS)
_PLACE = {m: k for k, m in enumerate(MONOMIALS)}
_AXIS = np.array([0, *(m[0] for m in MONOMIALS[1:])])
_REST = np.array([0, *(_PLACE[m[1:]] for m in MONOMIALS[1:])])
"""A monomial is a component of the unit vector times a monomial of one rank less."""
N_LOWER = 10
"""Monomials up to rank 2."""


def _derivatives() -> np.ndarray:
    """Rows (d, l, k, count): the derivative of monomial k along axis d is count times monomial l."""
    rows: Counter[tuple[int, int, int]] = Counter()
    for k, m in enumerate(MONOMIALS):
        for place, axis in enumerate(m):
            rows[axis, _PLACE[m[:place] + m[place + 1 :]], k] += 1
    return np.array([(*row, count) for row, count in sorted(rows.items())])


_D, _L, _K, _COUNT = _derivatives().T.copy()
_N_DERIVATIVES = len(_D)


@njit(error_model="numpy")
def set_monomials(unit, i, p, monomials):
    """Monomials [20] of the unit vector of neighbour p of atom i."""
    monomials[0] = 1
    for k in range(1, N_MONOMIALS):
        monomials[k] = monomials[_REST[k]] * unit[i, p, _AXIS[k]]


@njit(error_model="numpy")
def set_along(unit, i, p, monomials, moved, changes):
    """Changes [20] of the monomials as the unit vector moves by ``moved`` [3]."""
    changes[0] = 0
    for k in range(1, N_MONOMIALS):
        rest, axis = _REST[k], _AXIS[k]
        changes[k] = changes[rest] * unit[i, p, axis] + monomials[rest] * moved[axis]


@njit(error_model="numpy")
def set_bells(distance, centres, shape, bells, slopes):
    """Gaussians times the cosine cutoff at a distance inside it, and their slopes [n_gauss] each.

    ``shape``: width and norm of the Gaussians, pi / cutoff, 1, 1/2, and what scales them (n_gauss^(-1/2)).
    """
    width, norm, frequency, one, half, scale = shape
    phase = distance * frequency
    cutoff, fall = half * (one + cos(phase)) * scale, -half * frequency * sin(phase) * scale
    for g in range(len(centres)):
        offset = distance - centres[g]
        bell = norm * exp(-width * offset * offset)
        bells[g] = bell * cutoff
        slopes[g] = bell * (fall - (width + width) * offset * cutoff)


@njit(error_model="numpy")
def set_radial(beta, row, bells, slopes, radial, slope, at):
    """Radial functions and their slopes [W] each, from coefficients that begin at ``row`` of ``beta`` [., W]."""
    zero = spread(bells[0] - bells[0])
    value, change = zero, zero
    for g in range(len(bells)):
        coefficients = load(beta, (row + g) * W)
        value = fma(spread(bells[g]), coefficients, value)
        change = fma(spread(slopes[g]), coefficients, change)
    store(radial, at, value)
    store(slope, at, change)


@njit(error_model="numpy")
def add_moments(monomials, radial, at, moments):
    """Adds a neighbour's part R u^(x L) to the moments [20, W]."""
    value = load(radial, at)
    for k in range(N_MONOMIALS):
        store(moments, k * W, fma(spread(monomials[k]), value, load(moments, k * W)))


@njit(error_model="numpy")
def set_lower(by_moments, lower):
    """Derivatives of sum_k by_moments[k] monomial_k by the unit vector, as polynomials [3, 10, W]."""
    lower[:] = 0
    for row in range(_N_DERIVATIVES):
        at, k = (_D[row] * N_LOWER + _L[row]) * W, _K[row] * W
        for _ in range(_COUNT[row]):
            store(lower, at, add(load(lower, at), load(by_moments, k)))


@njit(error_model="numpy")
def weights(by_moments, monomials):
    """[W] derivatives by the radial functions of a neighbour."""
    value = multiply(spread(monomials[0]), load(by_moments, 0))
    for k in range(1, N_MONOMIALS):
        value = fma(spread(monomials[k]), load(by_moments, k * W), value)
    return value


@njit(error_model="numpy")
def by_vector(by_moments, lower, monomials, unit, i, p, radial, slope, at, gradient, place):
    """Derivatives [3] by the pair vector of neighbour p of atom i, written to ``gradient`` from ``place`` on."""
    by_distance = total(multiply(load(slope, at), weights(by_moments, monomials)))
    value = load(radial, at)
    across = by_distance - by_distance
    for d in range(3):
        part = multiply(spread(monomials[0]), load(lower, d * N_LOWER * W))
        for k in range(1, N_LOWER):
            part = fma(spread(monomials[k]), load(lower, (d * N_LOWER + k) * W), part)
        component = total(multiply(part, value))
        gradient[place + d] = component
        across += component * unit[i, p, d]
    for d in range(3):
        u = unit[i, p, d]
        gradient[place + d] = u * by_distance + (gradient[place + d] - u * across) / unit[i, p, 3]


@njit(error_model="numpy")
def along(unit, i, p, direction, moved):
    """Change of the distance as the pair vector moves by ``direction`` [3]; ``moved`` [3] gets the unit vector's."""
    stretch = unit[i, p, 0] * direction[0] + unit[i, p, 1] * direction[1] + unit[i, p, 2] * direction[2]
    for d in range(3):
        moved[d] = (direction[d] - unit[i, p, d] * stretch) / unit[i, p, 3]
    return stretch


@njit(error_model="numpy")
def add_along(monomials, changes, stretch, radial, slope, at, moments):
    """Adds the change of a neighbour's part of the moments [20, W]."""
    value, change = load(radial, at), multiply(load(slope, at), spread(stretch))
    for k in range(N_MONOMIALS):
        part = fma(spread(monomials[k]), change, load(moments, k * W))
        store(moments, k * W, fma(spread(changes[k]), value, part))

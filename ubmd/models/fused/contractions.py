"""The contractions of one atom's moments and their derivatives, as kernels (Eq. 13).

Two bilinear steps make the invariants, so that the same steps make all of their derivatives, along a direction too.
*Products* of two moments (Psi1 Psi1, Psi2 Psi2, Psi3 Psi3 and Psi1 Psi3, the axis q below) are symmetric matrices
[3, 3], one for each pair (s, t) of radial functions. *Closing* contracts them with a third matrix: the identity for
u = 0, and Psi2 of the radial function u - 1.

Arrays are flat; the last axis is that of a vector, W = 8 numbers, of which n are used.

=========  ====================  ===================================================================
moments    [20, W]               unique components of Psi0, Psi1, Psi2 and Psi3
products   [4, n, 6, W]          (q, s, unique component, t)
thirds     [n + 1, W]            (u, unique component times how often it stands in the matrix)
closed     [4, n, n + 1, W]      (q, s, u, t)
=========  ====================  ===================================================================

Derivatives by what is named in a function are called ``by_...`` and are added up.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numba import njit

from ubmd.models.fused.simd import WIDTH as W
from ubmd.models.fused.simd import fma, load, multiply, spread, store, total

__all__ = [
    "MONOMIALS",
    "add_by_moments",
    "add_by_products",
    "add_by_thirds",
    "add_closed",
    "add_products",
    "set_thirds",
]

MONOMIALS = [m for rank in range(4) for m in combinations_with_replacement(range(3), rank)]
"""The unique components of the moments, as axes: those of a polynomial in the unit vector."""
RANK_2 = 4
"""Where those of Psi2 begin."""


_OCCURS = np.array([1, 2, 2, 1, 2, 1])
"""How often a unique component stands in a symmetric matrix."""


def _product_terms() -> dict[tuple[int, int], list[tuple[int, int, float]]]:
    """Component c of product q as a sum over i and j: a factor times component i times component j of the moments."""
    place = {m: k for k, m in enumerate(MONOMIALS)}

    def at(*axes: int) -> int:
        return place[tuple(sorted(axes))]

    counts: Counter[tuple[int, int, int, int]] = Counter()
    for c, pair in enumerate(MONOMIALS[RANK_2 : RANK_2 + 6]):
        for a, d in (pair, pair[::-1]):
            counts[0, c, at(a), at(d)] += 1
            for b in range(3):
                counts[1, c, at(a, b), at(b, d)] += 1
                counts[3, c, at(b), at(a, d, b)] += 1
                for e in range(3):
                    counts[2, c, at(a, b, e), at(b, e, d)] += 1
    terms: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
    for (q, c, i, j), count in sorted(counts.items()):
        terms.setdefault((q, c), []).append((i, j, count / 2))  # the mean of both orders of the matrix's axes
    return terms


def _times(factor: float, name: str) -> str:
    return {0.5: f"half * {name}", 1.0: name, 2.0: f"({name} + {name})"}[factor]


def _compiled(name: str, lines: list[str]) -> Any:
    """A function with its hundred terms written out: a loop over a table of them is nine times slower."""
    namespace = {"fma": fma, "load": load, "multiply": multiply, "spread": spread, "store": store, "total": total}
    exec("\n    ".join([f"def {name}:", *lines]), namespace)
    return njit(error_model="numpy")(namespace[name.split("(")[0]])


def _add_products() -> Any:
    lines = [f"b{j} = load(b, {j * W})" for j in range(1, len(MONOMIALS))]
    lines += ["for s in range(n):", *(f"    a{i} = a[{i * W} + s]" for i in range(1, len(MONOMIALS)))]
    for (q, c), terms in _product_terms().items():
        lines += [f"    at = (({q} * n + s) * 6 + {c}) * {W}", "    value = load(products, at)"]
        lines += [f"    value = fma(spread({_times(factor, f'a{i}')}), b{j}, value)" for i, j, factor in terms]
        lines += ["    store(products, at, value)"]
    return _compiled("add_products(a, b, half, products, n)", lines)


def _add_by_moments() -> Any:
    lines = [f"sum{j} = load(by_moments, {j * W})" for j in range(1, len(MONOMIALS))]
    lines += ["for s in range(n):", *(f"    a{i} = moments[{i * W} + s]" for i in range(1, len(MONOMIALS)))]
    for (q, c), terms in _product_terms().items():
        lines += [f"    value = load(by_products, (({q} * n + s) * 6 + {c}) * {W})"]
        lines += [f"    sum{j} = fma(spread({_times(factor, f'a{i}')}), value, sum{j})" for i, j, factor in terms]
    lines += [f"store(by_moments, {j * W}, sum{j})" for j in range(1, len(MONOMIALS))]
    # where the moments are of two kinds, those of the axis s are left
    lines += ["for s in range(n):", *(f"    sum{i} = spread(half - half)" for i in (1, 2, 3))]
    for (q, c), terms in _product_terms().items():
        if q == 3:
            lines += [f"    value = load(by_products, (({q} * n + s) * 6 + {c}) * {W})"]
            lines += [f"    sum{i} = fma(load(moments, {j * W}), value, sum{i})" for i, j, _ in terms]
    lines += [f"    by_moments[{i * W} + s] += total(sum{i})" for i in (1, 2, 3)]
    return _compiled("add_by_moments(by_products, moments, half, by_moments, n)", lines)


add_products = _add_products()
"""add_products(a, b, half, products, n) adds the products of moments ``a`` (axis s) and ``b`` (axis t).

``half`` is 1/2 in the precision of the rest."""
add_by_moments = _add_by_moments()
"""add_by_moments(by_products, moments, half, by_moments, n) adds derivatives by the moments as factors of products.

They are symmetric as :func:`add_by_thirds` says."""


@njit(error_model="numpy")
def set_thirds(moments, identity, thirds, n):
    """The third matrices; ``identity`` is 1, or 0 for a direction, along which it does not change."""
    for c in range(6):
        thirds[c] = identity if _OCCURS[c] == 1 else 0
        for u in range(n):
            thirds[(u + 1) * W + c] = _OCCURS[c] * moments[(RANK_2 + c) * W + u]


@njit(error_model="numpy")
def add_closed(products, thirds, closed, n):
    """Adds the products contracted with the third matrices."""
    for qs in range(4 * n):
        p = qs * 6 * W
        p0, p1, p2 = load(products, p), load(products, p + W), load(products, p + 2 * W)
        p3, p4, p5 = load(products, p + 3 * W), load(products, p + 4 * W), load(products, p + 5 * W)
        for u in range(n + 1):
            at, x = (qs * (n + 1) + u) * W, u * W
            value = fma(spread(thirds[x]), p0, load(closed, at))
            value = fma(spread(thirds[x + 1]), p1, value)
            value = fma(spread(thirds[x + 2]), p2, value)
            value = fma(spread(thirds[x + 3]), p3, value)
            value = fma(spread(thirds[x + 4]), p4, value)
            store(closed, at, fma(spread(thirds[x + 5]), p5, value))


@njit(error_model="numpy")
def add_by_products(by_closed, thirds, by_products, n):
    """Adds derivatives by the products."""
    for qs in range(4 * n):
        p = qs * 6 * W
        p0, p1, p2 = load(by_products, p), load(by_products, p + W), load(by_products, p + 2 * W)
        p3, p4, p5 = load(by_products, p + 3 * W), load(by_products, p + 4 * W), load(by_products, p + 5 * W)
        for u in range(n + 1):
            x = u * W
            value = load(by_closed, (qs * (n + 1) + u) * W)
            p0 = fma(spread(thirds[x]), value, p0)
            p1 = fma(spread(thirds[x + 1]), value, p1)
            p2 = fma(spread(thirds[x + 2]), value, p2)
            p3 = fma(spread(thirds[x + 3]), value, p3)
            p4 = fma(spread(thirds[x + 4]), value, p4)
            p5 = fma(spread(thirds[x + 5]), value, p5)
        store(by_products, p, p0)
        store(by_products, p + W, p1)
        store(by_products, p + 2 * W, p2)
        store(by_products, p + 3 * W, p3)
        store(by_products, p + 4 * W, p4)
        store(by_products, p + 5 * W, p5)


@njit(error_model="numpy")
def add_by_thirds(by_closed, products, half, by_moments, n):
    """Adds derivatives by Psi2 as the third matrix.

    ``by_closed`` is symmetric: for q < 3 it counts (s, t) and (t, s), which are the same invariant; ``half`` is 1/2.
    """
    for u in range(n):
        zero = spread(half - half)
        a0, a1, a2, a3, a4, a5 = zero, zero, zero, zero, zero, zero
        for qs in range(4 * n):
            if qs == 3 * n:
                h = spread(half)
                a0, a1, a2 = multiply(a0, h), multiply(a1, h), multiply(a2, h)
                a3, a4, a5 = multiply(a3, h), multiply(a4, h), multiply(a5, h)
            value, p = load(by_closed, (qs * (n + 1) + u + 1) * W), qs * 6 * W
            a0 = fma(value, load(products, p), a0)
            a1 = fma(value, load(products, p + W), a1)
            a2 = fma(value, load(products, p + 2 * W), a2)
            a3 = fma(value, load(products, p + 3 * W), a3)
            a4 = fma(value, load(products, p + 4 * W), a4)
            a5 = fma(value, load(products, p + 5 * W), a5)
        at = RANK_2 * W + u
        by_moments[at] += total(a0)
        by_moments[at + W] += 2 * total(a1)
        by_moments[at + 2 * W] += 2 * total(a2)
        by_moments[at + 3 * W] += total(a3)
        by_moments[at + 4 * W] += 2 * total(a4)
        by_moments[at + 5 * W] += total(a5)

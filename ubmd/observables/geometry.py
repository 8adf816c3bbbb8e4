"""Torsion angles and nearest periodic images in torch: differentiable, for many structures at once."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_images", "torsion_angles"]

_SWEEPS = 4
"""Cells of any sensible shape are reduced after two; the rest is for those that are not sensible."""


def torsion_angles(first: Tensor, axis: Tensor, last: Tensor) -> Tensor:
    """Torsion angles of chains of three bonds in the IUPAC convention: 0 for cis, positive for a clockwise turn.

    Args:
        first: [..., 3] Å, from the first atom to the second.
        axis: [..., 3] Å, from the second to the third.
        last: [..., 3] Å, from the third to the fourth.

    Returns:
        [...] rad in [-π, π]; 0 where two bonds lie on one line.
    """
    normal = torch.linalg.cross(axis, last)
    # atan2 of the two projections keeps full precision near 0 and π, where acos loses half the digits
    sine = torch.linalg.vector_norm(axis, dim=-1) * (first * normal).sum(-1)
    cosine = (torch.linalg.cross(first, axis) * normal).sum(-1)
    return torch.atan2(sine, cosine)


def nearest_images(vectors: Tensor, lattice: Tensor | None) -> Tensor:
    """The shortest of each vector's periodic images; differentiable by the vectors and the lattice.

    Args:
        vectors: [m, k, 3] Å, k of each structure.
        lattice: [m, 3, 3] Å, rows are lattice vectors, zeros along directions that are not periodic; None if nothing
            is periodic, which leaves the vectors as they are.

    Returns:
        [m, k, 3] Å; NaN where something is not finite.
    """
    if lattice is None:
        return vectors
    with torch.no_grad():
        cell, steps = _reduced(lattice)
        whole = -torch.round(vectors @ _inverse(cell))
        # in a reduced cell the nearest image is at most one cell away from where rounding leads
        around = torch.cartesian_prod(*[torch.arange(-1, 2, dtype=cell.dtype, device=cell.device)] * 3)
        images = vectors[:, :, None] + (whole[:, :, None] + around) @ cell[:, None]
        whole = whole + around[images.square().sum(-1).argmin(-1)]
    return vectors + (whole @ steps) @ lattice


def _inverse(cell: Tensor) -> Tensor:
    """Pseudo-inverse of cells [m, 3, 3] whose rows are independent or zero."""
    gram = cell @ cell.transpose(1, 2)
    zero = gram.diagonal(dim1=1, dim2=2) == 0
    inverse, _ = torch.linalg.inv_ex(gram + torch.diag_embed(zero.to(gram)))  # what is not finite stays so
    return cell.transpose(1, 2) @ inverse


def _reduced(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Short vectors of the same lattice, [m, 3, 3], and the whole numbers [m, 3, 3] that make them of ``lattice``."""
    steps = torch.eye(3, dtype=lattice.dtype, device=lattice.device).expand_as(lattice)
    rows, counts = list(lattice.unbind(1)), list(steps.unbind(1))
    for _ in range(_SWEEPS):
        for i, j in ((1, 0), (2, 0), (2, 1), (0, 1), (0, 2), (1, 2)):
            square = rows[j].square().sum(-1)
            turns = torch.round((rows[i] * rows[j]).sum(-1) / torch.where(square > 0, square, 1.0))[:, None]
            rows[i], counts[i] = rows[i] - turns * rows[j], counts[i] - turns * counts[j]
        # three vectors of which no two shorten one another may still have a shorter sum
        longest = torch.stack(rows, 1).square().sum(-1).argmax(-1)
        for one, other in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            for i in range(3):
                j, k = (i + 1) % 3, (i + 2) % 3
                found = rows[i] + one * rows[j] + other * rows[k]
                shorter = ((longest == i) & (found.square().sum(-1) < rows[i].square().sum(-1)))[:, None]
                rows[i] = torch.where(shorter, found, rows[i])
                counts[i] = torch.where(shorter, counts[i] + one * counts[j] + other * counts[k], counts[i])
    return torch.stack(rows, 1), torch.stack(counts, 1)

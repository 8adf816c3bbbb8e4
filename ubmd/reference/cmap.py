"""CMAP: a correction to the energy on a periodic grid over two dihedral angles, in torch.

The energy between the grid points is the bicubic polynomial that takes, at the four corners of a cell, the
grid's values and the slopes of periodic cubic splines through them, as in OpenMM. The correction's origin:
A. D. MacKerell, M. Feig, C. L. Brooks, J. Comput. Chem. 25, 1400 (2004), https://doi.org/10.1002/jcc.20065.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ubmd.observables.geometry import torsion_angles


@dataclass(frozen=True)
class CMAP:
    """CMAP terms of one molecule; make it with :meth:`from_maps`."""

    nodes: Tensor
    """[n_maps, size, size, 2, 2] eV: [[value, slope in angle 2], [slope in angle 1, cross slope]] at each
    grid point; slopes are per grid step."""
    maps: Tensor
    """[n_terms] map of each term, int64."""
    first: Tensor
    """[n_terms, 4] atoms of the first dihedral, int64."""
    second: Tensor
    """[n_terms, 4] atoms of the second dihedral, int64."""

    @classmethod
    def from_maps(cls, energies: Tensor, maps: Tensor, first: Tensor, second: Tensor) -> CMAP:
        """Terms on the given grids.

        Args:
            energies: [n_maps, size, size] eV; entry [k, i, j] is map k at the angles 2πi/size and 2πj/size.
            maps: [n_terms] map of each term.
            first: [n_terms, 4] atoms of the first dihedral.
            second: [n_terms, 4] atoms of the second dihedral.
        """
        slopes = _periodic_slopes(energies.shape[-1], energies.dtype)
        along_first = slopes @ energies
        along_second = energies @ slopes.T
        cross = slopes @ along_second
        nodes = torch.stack((energies, along_second, along_first, cross), dim=-1)
        return cls(nodes.unflatten(-1, (2, 2)), maps, first, second)

    def energy(self, positions: Tensor) -> Tensor:
        """Energy of each structure, differentiable.

        Args:
            positions: [m, n_atoms, 3] Å.

        Returns:
            [m] eV.
        """
        size = self.nodes.shape[1]
        rows, row_weights = _cubic_weights(_angles(positions, self.first), size)
        columns, column_weights = _cubic_weights(_angles(positions, self.second), size)
        # corners [m, n_terms, 2 rows, 2 columns, 2, 2]
        corners = self.nodes[self.maps[:, None, None], rows[..., :, None], columns[..., None, :]]
        return torch.einsum("mtpa,mtqb,mtpqab->m", row_weights, column_weights, corners)

    def energy_and_forces(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [m] in eV and forces [m, n_atoms, 3] in eV/Å of positions [m, n_atoms, 3] in Å."""
        # Also under no_grad or inference_mode, in which labels may be asked for.
        with torch.inference_mode(False), torch.enable_grad():
            x = positions.detach().clone().requires_grad_(True)
            energy = self.energy(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), -gradient


def _angles(positions: Tensor, atoms: Tensor) -> Tensor:
    """Torsion angles [m, k] of atoms [k, 4] at positions [m, n_atoms, 3]."""
    p = positions[:, atoms]
    return torsion_angles(*(p[:, :, i + 1] - p[:, :, i] for i in range(3)))


def _periodic_slopes(size: int, dtype: torch.dtype) -> Tensor:
    """[size, size] matrix from values on a periodic grid of unit step to the slopes of their cubic spline.

    A continuous second derivative demands s[i-1] + 4 s[i] + s[i+1] = 3 (y[i+1] - y[i-1]).
    """
    eye = torch.eye(size, dtype=dtype)
    following, preceding = eye.roll(1, dims=1), eye.roll(-1, dims=1)
    return torch.linalg.solve(preceding + 4 * eye + following, 3 * (following - preceding))


def _cubic_weights(angles: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Neighbouring grid points and the cubic Hermite polynomials that weight their values and slopes.

    Args:
        angles: [...] rad, any branch.
        size: number of grid points in 2π.

    Returns:
        indices [..., 2] of the points below and above; weights [..., 2, 2], last index (value, slope).
    """
    u = angles * (size / (2 * math.pi))
    below = torch.floor(u).detach()
    t = u - below
    indices = torch.stack((below, below + 1), dim=-1).long() % size
    s = 1 - t
    at_below = torch.stack((s * s * (1 + 2 * t), s * s * t), dim=-1)
    at_above = torch.stack((t * t * (1 + 2 * s), -t * t * s), dim=-1)
    return indices, torch.stack((at_below, at_above), dim=-2)

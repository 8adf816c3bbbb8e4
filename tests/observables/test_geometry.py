"""Torsion angles and nearest images against ASE, and against geometry known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.geometry import find_mic

from ubmd.observables.geometry import nearest_images, torsion_angles


def bonds(angle: float, y: float = 0.0) -> list[torch.Tensor]:
    """Of a chain of four atoms whose torsion is ``angle`` (rad), the far bond turned clockwise by it."""
    p = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5], [np.cos(angle), np.sin(angle) + y, 1.5]]).double()
    p[3, :2] = torch.tensor([np.cos(angle), np.sin(angle) + y])
    return list(p[1:] - p[:-1])


@pytest.mark.parametrize("angle", [-3.1, -1.4, -1e-7, 0.0, 1e-7, 0.9, np.pi - 1e-7])
def test_torsions_are_precise_also_near_cis_and_trans(angle: float) -> None:
    assert torsion_angles(*bonds(angle)).item() == pytest.approx(angle, abs=1e-12)


def unimodular(rng: np.random.Generator) -> np.ndarray:
    """Whole numbers that make another cell of the same lattice, mostly a skewed one."""
    out = np.eye(3, dtype=int)
    for _ in range(4):
        i, j = rng.permutation(3)[:2]
        out[i] += rng.integers(-2, 3) * out[j]
    return out


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, True, False)])
def test_nearest_images_are_those_of_ase_in_cells_of_any_shape(pbc: tuple[bool, ...]) -> None:
    rng = np.random.default_rng(0)
    vectors = torch.tensor(rng.normal(scale=12.0, size=(40, 30, 3)))
    cells = []
    for _ in range(40):
        cell = np.diag(rng.uniform(3, 12, 3)) + rng.normal(scale=1.5, size=(3, 3))
        keep = np.flatnonzero(pbc)
        if len(keep) == 3:
            cell = unimodular(rng) @ cell
        elif len(keep) == 2:
            cell[keep[0]] += rng.integers(-3, 4) * cell[keep[1]]
        cells.append(cell * np.array(pbc)[:, None])
    found = nearest_images(vectors, torch.tensor(np.array(cells)))
    for k, cell in enumerate(cells):
        full = cell.copy()
        full[~np.array(pbc)] = 1e3 * np.linalg.svd(cell)[2][int(np.sum(pbc)) :]
        _, lengths = find_mic(vectors[k].numpy(), full, pbc)
        np.testing.assert_allclose(found[k].norm(dim=1), lengths, atol=1e-9)
        steps = (found[k] - vectors[k]).numpy() @ np.linalg.pinv(cell)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)


def test_molecules_are_left_alone_and_what_is_lost_stays_lost() -> None:
    vectors = torch.ones(1, 2, 3).double()
    assert nearest_images(vectors, None) is vectors
    lost = nearest_images(vectors, torch.full((1, 3, 3), torch.nan).double())
    assert lost.isnan().all()

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT

from tests.dynamics.npt_toys import CELL, TURN, AseWalkers, advance, alloy, ase_atoms, last, started
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.errors import InputError
from ubmd.units import KB, MPA

DT, STEPS, KELVIN = 2.0, 100, 600.0
TIMES = {"thermostat_time": 50.0, "barostat_time": 150.0}


def ase_mtk(atoms: Atoms, pressure: float, kind: str) -> MTKNPT | IsotropicMTKNPT:
    """ASE's dynamics, with the degrees of freedom counted as here: atoms 3N - 3, cell 6 or 1."""
    tdamp, pdamp = (t * units.fs for t in TIMES.values())
    isotropic = kind == "isotropic"
    dynamics = (IsotropicMTKNPT if isotropic else MTKNPT)(
        atoms, DT * units.fs, temperature_K=KELVIN, pressure_au=pressure * MPA, tdamp=tdamp, pdamp=pdamp
    )
    rest, kt = len(atoms) - 1, KB * KELVIN
    thermostat, barostat = dynamics._thermostat, dynamics._barostat
    dynamics._num_atoms_global = thermostat._num_atoms_global = rest
    thermostat._Q[0] = 3 * rest * kt * tdamp**2
    barostat._W = (3 if isotropic else 1) * (rest + 1) * kt * pdamp**2
    barostat._R[0] = (1 if isotropic else 6) * kt * pdamp**2
    if not isotropic:
        barostat._cell_dof = 6
    return dynamics


@pytest.mark.parametrize("cell", [CELL, CELL @ TURN, CELL[[1, 0, 2]]], ids=["upper", "turned", "left-handed"])
@pytest.mark.parametrize("kind", ["full", "isotropic"])
def test_trajectory_is_ases(cell: np.ndarray, kind: str) -> None:
    structure, pressure = alloy(cell), 900.0
    start, potential, integrator = (
        started([structure], KELVIN),
        AseWalkers(),
        MTK(DT, KELVIN, pressure, cell=kind, **TIMES),
    )
    end = last(advance(start, potential, integrator, STEPS))
    assert potential.asked == 1 + STEPS
    atoms = ase_atoms(structure, start.momenta)
    dynamics = ase_mtk(atoms, pressure, kind)
    dynamics.run(STEPS)
    assert np.abs(atoms.cell[:] - cell).max() > 0.02  # otherwise agreement would mean little
    np.testing.assert_allclose(end.batch.cell[0].numpy(), atoms.cell[:], atol=1e-8, rtol=0)
    np.testing.assert_allclose(end.batch.positions.numpy(), atoms.positions, atol=1e-8, rtol=0)
    np.testing.assert_allclose(end.momenta.numpy(), atoms.get_momenta() * units.fs, atol=1e-8, rtol=0)
    conserved = integrator.prepare(end).conserved_energy(end)
    assert float(conserved) == pytest.approx(dynamics.get_conserved_energy(), abs=1e-8)


def drift(dt: float, kind: str, time: float = 120.0) -> float:
    """Largest deviation of what is conserved, in terms of the standard deviation of the potential energy."""
    integrator = MTK(dt, KELVIN, 900.0, cell=kind, **TIMES)
    states = list(advance(started([alloy(), alloy(seed=1)], KELVIN), AseWalkers(), integrator, round(time / dt)))
    conserved = torch.stack([integrator.prepare(s).conserved_energy(s) for s in states])
    energies = torch.stack([s.energy for s in states if s.energy is not None])
    return float(((conserved - conserved[0]).abs().amax(0) / energies.std(0)).max())


@pytest.mark.parametrize("kind", ["full", "orthorhombic", "isotropic"])
def test_conserves_its_energy_to_second_order(kind: str) -> None:
    coarse, fine = drift(2.0, kind), drift(1.0, kind)
    assert fine < 0.1
    assert 3.2 < coarse / fine < 4.8


def test_axes_of_an_orthorhombic_cell_stay_at_right_angles() -> None:
    structure = alloy(np.diag([5.2, 5.0, 5.4]) @ TURN)
    end = last(advance(started([structure], KELVIN), AseWalkers(), MTK(DT, KELVIN, 0.0, cell="orthorhombic"), 50))
    cell = end.batch.cell[0].numpy()
    np.testing.assert_allclose(cell @ cell.T, np.diag(np.linalg.norm(cell, axis=1) ** 2), atol=1e-10)
    strain = np.linalg.norm(cell, axis=1) / np.linalg.norm(structure.cell[:], axis=1)
    assert np.ptp(strain) > 1e-3


@pytest.mark.parametrize("wrong", [{"chain": 0}, {"chain": 1.5}, {"dt": -1.0}, {"cell": "cubic"}, {"barostat_time": 0}])
def test_refuses_bad_settings(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        MTK(**wrong)

"""The TorchMD reference against OpenMM, finite differences and the known minima."""

from __future__ import annotations

import pickle

import numpy as np
import openmm
import pytest
import torch
from ase import Atoms
from openmm import app
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize

from ubmd.errors import InputError
from ubmd.observables.geometry import torsion_angles
from ubmd.reference import ff19sb
from ubmd.reference.alanine_dipeptide import PHI, PSI, SYMBOLS, ideal_positions, initial_structure
from ubmd.reference.base import ReferenceError
from ubmd.reference.cmap import CMAP
from ubmd.reference.ff19sb import FF19SB
from ubmd.reference.openmm_system import build_system, cmap_tables, energy_and_forces, topology
from ubmd.systems.sampling import sample_ff19sb
from ubmd.units import KCAL_PER_MOL

BOTH = pytest.mark.parametrize("cmap", [False, True], ids=["without_cmap", "with_cmap"])


def dihedral(positions: np.ndarray, atoms: tuple[int, ...]) -> float:
    """Of four atoms of positions [n, 3], rad."""
    p = torch.tensor(positions)[list(atoms)]
    return torsion_angles(*(p[1:] - p[:-1])).item()


@pytest.fixture(scope="module")
def references() -> dict[bool, FF19SB]:
    return {cmap: FF19SB(cmap=cmap) for cmap in (False, True)}


@pytest.fixture(scope="module")
def hot_positions() -> np.ndarray:
    """[50, 22, 3] Å from dynamics at 1200 K."""
    return np.array([a.positions for a in sample_ff19sb(50, duration_ps=20, seed=11, cmap=True)])


def plain_openmm_system(*, cmap: bool) -> openmm.System:
    """The force field as OpenMM applies it, with the maps of all amino acids."""
    system = app.ForceField("amber19/protein.ff19SB.xml").createSystem(
        topology(), nonbondedMethod=app.NoCutoff, constraints=None, removeCMMotion=False
    )
    if not cmap:
        (index,) = (i for i, f in enumerate(system.getForces()) if isinstance(f, openmm.CMAPTorsionForce))
        system.removeForce(index)
    return system


@BOTH
def test_agrees_with_openmm(references, hot_positions, cmap, record_property):
    energies, forces = references[cmap].compute_many(hot_positions)
    expected_energies, expected_forces = energy_and_forces(plain_openmm_system(cmap=cmap), hot_positions)
    energy_error = np.abs(energies - expected_energies).max() / KCAL_PER_MOL
    force_error = np.abs(forces - expected_forces).max() / KCAL_PER_MOL
    record_property("largest_energy_deviation_kcal_per_mol", float(energy_error))
    record_property("largest_force_deviation_kcal_per_mol_ang", float(force_error))
    print(f"cmap={cmap}: {energy_error:.2e} kcal/mol, {force_error:.2e} kcal/mol/Å")
    # The rest is the digits of Coulomb's constant.
    assert energy_error < 1e-6
    assert force_error < 1e-6
    assert np.ptp(energies) > 0.3  # eV: the structures differ


def test_cmap_matters(references, hot_positions):
    without, _ = references[False].compute_many(hot_positions)
    with_cmap, _ = references[True].compute_many(hot_positions)
    assert np.abs(with_cmap - without).max() > 0.02


def test_cmap_term_alone_agrees_with_openmm(hot_positions):
    rng = np.random.default_rng(5)
    anywhere = np.array([ideal_positions(*rng.uniform(-180, 180, 2)) for _ in range(200)])
    positions = np.concatenate((hot_positions, anywhere + rng.normal(0, 0.02, anywhere.shape)))
    system = build_system(cmap=True)
    for index in reversed(range(system.getNumForces())):
        if not isinstance(system.getForce(index), openmm.CMAPTorsionForce):
            system.removeForce(index)
    expected_energies, expected_forces = energy_and_forces(system, positions)
    tables = cmap_tables(system)
    term = CMAP.from_maps(*(torch.tensor(t) for t in vars(tables).values()))
    energies, forces = term.energy_and_forces(torch.tensor(positions))
    assert np.ptp(expected_energies) > 0.05
    np.testing.assert_allclose(energies.numpy(), expected_energies, rtol=0, atol=1e-12)
    np.testing.assert_allclose(forces.numpy(), expected_forces, rtol=0, atol=1e-11)


def test_cmap_is_a_product_of_periodic_cubic_splines():
    """On a random map with unlike sides of the diagonal, against SciPy's splines one axis at a time."""
    rng = np.random.default_rng(0)
    size = 12
    energies = rng.normal(size=(2, size, size))
    positions = rng.normal(0, 1.5, size=(20, 8, 3))
    first, second = np.array([[0, 1, 2, 3], [2, 3, 4, 5]]), np.array([[4, 5, 6, 7], [7, 6, 1, 0]])
    maps = np.array([1, 0])
    term = CMAP.from_maps(*(torch.tensor(t) for t in (energies, maps, first, second)))
    knots = np.linspace(0, 2 * np.pi, size + 1)
    expected = np.zeros(len(positions))
    for k, x in enumerate(positions):
        for t, m in enumerate(maps):
            a, b = (dihedral(x, tuple(q[t])) % (2 * np.pi) for q in (first, second))
            closed = np.pad(energies[m], (0, 1), mode="wrap")
            along_second = CubicSpline(knots, closed, axis=1, bc_type="periodic")(b)
            along_second[-1] = along_second[0]
            expected[k] += CubicSpline(knots, along_second, bc_type="periodic")(a)
    np.testing.assert_allclose(term.energy(torch.tensor(positions)).numpy(), expected, atol=1e-11)


def test_cmap_forces_come_without_gradient_mode(references, hot_positions):
    expected = references[True].compute_many(hot_positions[:2])[1]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            np.testing.assert_array_equal(references[True].compute_many(hot_positions[:2])[1], expected)


@BOTH
def test_forces_are_the_negative_gradient(references, hot_positions, cmap):
    step = 1e-4
    for x in hot_positions[:3]:
        shifts = step * np.eye(x.size).reshape(-1, *x.shape)
        energies, _ = references[cmap].compute_many(np.concatenate((x + shifts, x - shifts)))
        above, below = np.split(energies, 2)
        gradient = ((above - below) / (2 * step)).reshape(x.shape)
        label = references[cmap].compute(Atoms(SYMBOLS, positions=x))
        np.testing.assert_allclose(label.forces, -gradient, rtol=0, atol=2e-6)
        assert np.abs(label.forces).max() > 1.0
        assert label.stress is None


@pytest.mark.parametrize(
    ("cmap", "equatorial", "axial", "difference"),
    [(False, (-1.350, 1.211), (1.165, -1.081), 1.09), (True, (-1.468, 1.213), (1.298, -0.967), 2.53)],
    ids=["without_cmap", "with_cmap"],
)
def test_minima(references, cmap, equatorial, axial, difference):
    def objective(x):
        energies, forces = references[cmap].compute_many(x.reshape(1, 22, 3))
        return energies[0], -forces[0].ravel()

    energies = []
    for start, expected in (((-85, 70), equatorial), ((65, -60), axial)):
        found = minimize(objective, ideal_positions(*start).ravel(), jac=True, options={"gtol": 1e-4})
        x = found.x.reshape(22, 3)
        assert (dihedral(x, PHI), dihedral(x, PSI)) == pytest.approx(expected, abs=1.5e-3)
        energies.append(found.fun)
    assert (energies[1] - energies[0]) / KCAL_PER_MOL == pytest.approx(difference, abs=5e-3)


@BOTH
def test_initial_structure_is_the_minimum_and_reproducible(references, cmap):
    atoms = initial_structure(cmap)
    assert len(atoms) == 22
    assert atoms.info == {}
    assert set(atoms.arrays) == {"numbers", "positions"}
    assert not atoms.pbc.any()
    assert np.abs(references[cmap].compute(atoms).forces).max() < 1e-4
    np.testing.assert_array_equal(atoms.positions, initial_structure(cmap).positions)


def test_geometry_is_the_trans_l_enantiomer():
    phi, psi = -60.0, 130.0
    x = ideal_positions(phi, psi)
    assert np.rad2deg(dihedral(x, PHI)) == pytest.approx(phi)
    assert np.rad2deg(dihedral(x, PSI)) == pytest.approx(psi)
    for amide in ((1, 4, 6, 8), (8, 14, 16, 18)):
        assert abs(dihedral(x, amide)) == pytest.approx(np.pi)
    # CORN rule: seen from H, the groups CO, R and N of an L amino acid run clockwise; they point away from H.
    centre = x[8]
    triple = np.dot(x[14] - centre, np.cross(x[10] - centre, x[6] - centre))
    assert triple > 0


def test_compute_equals_compute_many_and_leaves_its_input(references, hot_positions):
    atoms = Atoms(SYMBOLS, positions=hot_positions[0])
    before = hot_positions.copy()
    label = references[True].compute(atoms)
    energies, forces = references[True].compute_many(hot_positions[:3])
    assert label.energy == energies[0]
    np.testing.assert_array_equal(label.forces, forces[0])
    np.testing.assert_array_equal(hot_positions, before)
    np.testing.assert_array_equal(atoms.positions, before[0])


def test_wrong_structures_are_input_errors(references):
    atoms = initial_structure()
    with pytest.raises(InputError, match="alanine dipeptide"):
        references[False].compute(atoms[::-1])
    with pytest.raises(InputError, match="alanine dipeptide"):
        references[False].compute(Atoms("H2O"))
    periodic = atoms.copy()
    periodic.cell, periodic.pbc = [20, 20, 20], True
    with pytest.raises(InputError, match="pbc"):
        references[False].compute(periodic)
    for key, value in (("charge", 1), ("spin", 3)):
        ion = initial_structure()
        ion.info[key] = value
        with pytest.raises(InputError, match="but FF19SB knows neutral alanine dipeptide"):
            references[False].compute(ion)
    with pytest.raises(InputError, match="shape"):
        references[False].compute_many(atoms.positions)


def test_coinciding_atoms_fail(references):
    atoms = initial_structure()
    atoms.positions[3] = atoms.positions[20]
    with pytest.raises(ReferenceError, match="non-finite"):
        references[False].compute(atoms)


def test_fingerprints_tell_the_variants_apart(references):
    without, with_cmap = (references[cmap].fingerprint() for cmap in (False, True))
    assert without == {
        "class": "ubmd.reference.ff19sb.FF19SB",
        "force_field": "amber19/protein.ff19SB.xml",
        "cmap": False,
    }
    assert with_cmap == without | {"cmap": True}


def test_default_dtype_is_restored(monkeypatch):
    before = torch.get_default_dtype()
    FF19SB()
    assert torch.get_default_dtype() == before

    def broken(*_args, **_kwargs):
        assert torch.get_default_dtype() == torch.float64
        raise RuntimeError("broken")

    monkeypatch.setattr("torchmd.parameters.Parameters", broken)
    with pytest.raises(RuntimeError, match="broken"):
        FF19SB()
    assert torch.get_default_dtype() == before


def test_masses_and_types_come_from_the_force_field():
    parm = ff19sb._amber_parm()
    assert {a.mass for a in parm.atoms} == {1.008, 12.01, 14.01, 16.0}
    assert parm.atoms[8].type == "XC"  # ff19SB's own type of the α carbon


def test_survives_pickling(references, hot_positions):
    copy = pickle.loads(pickle.dumps(references[True]))
    np.testing.assert_array_equal(
        copy.compute_many(hot_positions[:1])[1], references[True].compute_many(hot_positions[:1])[1]
    )


def test_construction_is_silent(capfd, recwarn):
    FF19SB(cmap=True)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list

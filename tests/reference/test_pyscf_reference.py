"""DFT by PySCF: labels against PySCF itself and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.units import Bohr, Hartree

from ubmd.errors import InputError
from ubmd.reference.base import ReferenceError
from ubmd.reference.pyscf_reference import PySCFReference

pyscf = pytest.importorskip("pyscf", reason="needs the extra pyscf")
pytest.importorskip("pyscf.dispersion", reason="needs the extra pyscf")


def water() -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.slow
def test_a_label_is_that_of_pyscf_itself() -> None:
    """PBE0-D3(BJ)/def2-SVP, from a molecule written as text, in Bohr."""
    atoms = water()
    label = PySCFReference().compute(atoms)
    text = "; ".join(f"{s} {x} {y} {z}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions / Bohr, strict=True))
    field = pyscf.gto.M(atom=text, unit="Bohr", basis="def2-svp", verbose=0).RKS(xc="pbe0-d3bj").density_fit()
    assert label.energy == pytest.approx(field.kernel() * Hartree, abs=1e-6)
    np.testing.assert_allclose(label.forces, -field.Gradients().kernel() * Hartree / Bohr, atol=1e-3)
    assert label.stress is None


def test_forces_are_derivatives() -> None:
    """Also of a functional that is sensitive to the integration grid."""
    reference, atoms, step = PySCFReference("r2scan", "sto-3g"), water(), 1e-3
    direction = np.random.default_rng(0).normal(size=(3, 3))
    energies = []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.positions += sign * step * direction
        energies.append(reference.compute(moved).energy)
    slope = (energies[1] - energies[0]) / (2 * step)
    assert -(reference.compute(atoms).forces * direction).sum() == pytest.approx(slope, abs=1e-5)


def test_charge_and_spin_are_heeded() -> None:
    reference = PySCFReference("b3lyp", "sto-3g", None)
    triplet, singlet, cation = molecule("O2"), molecule("O2"), water()
    singlet.set_initial_magnetic_moments(None)
    singlet.info["spin"] = 1
    assert reference.compute(triplet).energy < reference.compute(singlet).energy - 0.5
    cation.info["charge"] = 1  # and hence a doublet
    assert 8 < reference.compute(cation).energy - reference.compute(water()).energy < 14
    assert PySCFReference("b3lyp", "sto-3g", None, charge=1).compute(water()).energy == pytest.approx(
        reference.compute(cation).energy, abs=1e-7
    )
    with pytest.raises(InputError, match="impossible for 10 electrons"):
        PySCFReference(multiplicity=2).check_atoms(water())


def test_dispersion_is_added() -> None:
    found = {kind: PySCFReference("pbe", "sto-3g", kind).compute(water()) for kind in (None, "d3bj", "d4")}
    assert -0.05 < found["d3bj"].energy - found[None].energy < -1e-3
    assert found["d4"].energy != pytest.approx(found["d3bj"].energy, abs=1e-5)
    assert np.abs(found["d3bj"].forces - found[None].forces).max() > 1e-5


@pytest.mark.filterwarnings("ignore:Basis may be available")
def test_what_cannot_be() -> None:
    for options, match in (
        ({"xc": "pbe1"}, "no functional"),
        ({"xc": "pbe0-d3bj"}, "a functional alone"),
        ({"xc": "wb97x-v"}, "non-local correlation"),
        ({"dispersion": "d5"}, "d3bj, d3zero, d4 or null"),
        ({"grid": 10}, "0 to 9"),
        ({"max_cycle": 0}, "not positive"),
    ):
        with pytest.raises(InputError, match=match):
            PySCFReference(**options)  # pyright: ignore
    with pytest.raises(InputError, match=r"reference\.basis=def3"):
        PySCFReference(basis="def3").check_atoms(water())
    with pytest.raises(InputError, match="it is periodic"):
        PySCFReference().check_atoms(bulk("Si"))
    with pytest.raises(ReferenceError, match="did not converge in 1 cycles"):
        PySCFReference("b3lyp", "sto-3g", max_cycle=1).compute(water())

"""ORCA, with a program that reads and writes its files in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.units import Bohr, Hartree

from ubmd.config import build
from ubmd.errors import InputError
from ubmd.reference.base import ReferenceError, UnfinishedError
from ubmd.reference.labelling import label_structures
from ubmd.reference.orca import ORCAReference, check_output
from ubmd.reference.store import LabelStore

PROGRAM = Path(__file__).parent / "programs" / "orca.py"


def orca(does: str, folder: Path, **keys) -> ORCAReference:
    return ORCAReference(command=f"{sys.executable} {PROGRAM} {does}", scratch=str(folder / "scratch"), **keys)


def test_energy_and_forces(tmp_path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.set_tags(71)  # ghost atoms to ASE
    label = orca("converged", tmp_path).compute(atoms)
    assert label.energy == pytest.approx(0.5 * Hartree * ((atoms.positions / Bohr) ** 2).sum(), rel=1e-8)
    np.testing.assert_allclose(label.forces, -atoms.positions * Hartree / Bohr**2, rtol=1e-7, atol=1e-9)
    assert label.stress is None
    assert not list((tmp_path / "scratch").iterdir())
    charged = orca("converged", tmp_path, charge=1, multiplicity=2)
    assert charged.compute(atoms).energy - label.energy == pytest.approx(Hartree, rel=1e-7)
    assert charged.fingerprint() != orca("converged", tmp_path).fingerprint()
    assert orca("crash", tmp_path).fingerprint() == orca("converged", tmp_path).fingerprint()


def test_charge_and_multiplicity_of_the_structure(tmp_path: Path) -> None:
    """The stand-in adds its charge to the energy; a multiplicity that cannot be never reaches it."""
    reference, atoms = orca("converged", tmp_path), molecule("CH3CH2OH")
    neutral = reference.compute(atoms).energy
    atoms.info["charge"] = 1
    assert reference.compute(atoms).energy - neutral == pytest.approx(Hartree, rel=1e-7)
    atoms.info["spin"] = 1
    with pytest.raises(InputError, match=r"multiplicity of 1 .* impossible for 25 electrons"):
        reference.check_atoms(atoms)


def test_what_does_not_converge_is_a_failure_and_what_breaks_off_is_none(tmp_path: Path) -> None:
    store, water = LabelStore(tmp_path / "labels.db"), molecule("H2O")
    with pytest.raises(InputError, match=r"none of 1 labels came to an end .*error termination in LEANSCF"):
        label_structures([water], orca("crash", tmp_path), store)
    assert len(store) == 0
    ((_, reason),) = label_structures([water], orca("unconverged", tmp_path), store).failed
    assert len(store) == 1
    kept = [Path(reason.partition("; see ")[2]), *(tmp_path / "scratch").iterdir()]
    assert reason.startswith("the SCF did not converge; see ")
    assert all((folder / "orca.inp").exists() and (folder / "orca.out").exists() for folder in kept)


def test_a_missing_program_and_a_crystal_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ORCA needs the program no-such-orca, which is not found; install it"):
        ORCAReference(command="no-such-orca").check()
    with pytest.raises(InputError, match="it is periodic, but ORCA labels molecules"):
        orca("converged", tmp_path).compute(bulk("Si"))


def test_an_output_that_just_ends_is_not_accepted() -> None:
    check_output("FINAL SINGLE POINT ENERGY -1\n****ORCA TERMINATED NORMALLY****")
    with pytest.raises(UnfinishedError, match="no word of why"):
        check_output("FINAL SINGLE POINT ENERGY -1\n")
    with pytest.raises(ReferenceError):
        check_output("The coupled cluster iterations have NOT CONVERGED\n****ORCA TERMINATED NORMALLY****")


def test_its_configuration() -> None:
    from ubmd.cli.app import compose

    reference = build(compose("label", ["reference=orca", "structures=x.xyz", "reference.charge=-1"]), "reference")
    assert reference.fingerprint()["charge"] == -1
    assert not reference.has_stress

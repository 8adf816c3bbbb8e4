"""References by system: each labels its own, and what has none is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.by_system import BySystem
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore


def structure(atoms: Atoms, name: Any) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=1)
    atoms.info["system"] = name
    return atoms


def both() -> BySystem:
    lj = {"_target_": "ase.calculators.lj.LennardJones", "sigma": 2.5, "epsilon": 0.1, "rc": 6.0}
    emt = {"_target_": "ase.calculators.emt.EMT"}
    return BySystem({"copper": ASEReference(emt), "water": ASEReference(lj)})


def test_each_system_has_its_own(tmp_path: Path) -> None:
    given = [structure(bulk("Cu", cubic=True), "copper"), structure(molecule("H2O"), "water")]
    reference = both()
    report = label_structures(given, reference, LabelStore(tmp_path / "labels.db"), max_force=None)
    for atoms, calculator in zip(report.labelled, (EMT(), LennardJones(sigma=2.5, epsilon=0.1, rc=6.0)), strict=True):
        bare = atoms.copy()
        bare.calc = calculator
        np.testing.assert_allclose(atoms.info["REF_energy"], bare.get_potential_energy(), rtol=1e-12)
    assert reference.has_stress
    assert reference.identified
    # a label is of the system that it was computed for
    other = [structure(molecule("H2O"), "copper")]
    again = label_structures([*given, *other], both(), LabelStore(tmp_path / "labels.db"), max_force=None)
    assert again.n_computed == 1
    assert again.labelled[2].info["REF_energy"] != again.labelled[1].info["REF_energy"]


def test_refuses_what_has_no_reference(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reference.references is empty"):
        BySystem({})
    both().check_systems(["water", "copper"])
    for systems, words in (
        (["water", "copper", "salt"], "reference.references has none for the system salt"),
        (["water"], "reference.references.copper is of no system; there are water"),
        ([""], "has none for a run of one system"),
    ):
        with pytest.raises(InputError, match=words):
            both().check_systems(systems)
    for name in ("salt", None, 3):
        with pytest.raises(InputError, match=f"its info names system={name}, which is none of those"):
            label_structures([structure(molecule("H2O"), name)], both(), LabelStore(tmp_path / "x.db"))

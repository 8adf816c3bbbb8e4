"""Foundation potentials as references, by the configurations that come with ubmd."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from ubmd.cli import app
from ubmd.cli.command import find
from ubmd.config import build


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "package"), [("sevennet", "sevenn"), ("chgnet", "chgnet")])
def test_a_label_is_its_calculators(name: str, package: str) -> None:
    pytest.importorskip(package, reason=f"needs the extra {name}")
    with app.open_hydra() as hydra:
        cfg = app.compose_checked(hydra, find("label"), ["structures=salt.xyz", f"reference={name}"])
    reference = build(cfg, "reference")
    assert reference.identified
    assert package in reference.versions()
    atoms = bulk("NaCl", "rocksalt", 5.7)
    atoms.rattle(0.1, seed=1)
    label = reference.compute(atoms)
    atoms.calc = reference.calculator
    assert label.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert -8 < label.energy < -5  # both are fitted to PBE with the pseudopotentials of the Materials Project
    np.testing.assert_allclose(label.forces, atoms.get_forces(), atol=1e-6)
    strained = []
    for sign in (-1, 1):
        moved = atoms.copy()
        moved.set_cell(atoms.cell * (1 + sign * 2e-3), scale_atoms=True)
        strained.append(reference.compute(moved).energy)
    assert label.stress is not None
    slope = (strained[1] - strained[0]) / (4e-3 * atoms.get_volume())
    assert np.trace(label.stress) == pytest.approx(slope, rel=2e-2, abs=1e-4)

"""MIL-53(Al): the crystal structure against its chemistry, and the shipped structures against GFN2-xTB."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from ubmd.errors import InputError
from ubmd.systems.mil53 import breathing_path, crystal_structure, relaxed_structure

BONDS = {("Al", "O"): 2.2, ("C", "O"): 1.5, ("C", "C"): 1.7, ("C", "H"): 1.3, ("O", "H"): 1.2}


def coordination(atoms) -> Counter[tuple[str, tuple[tuple[str, int], ...]]]:
    """How many atoms have which neighbours."""
    i, j = neighbor_list("ij", atoms, BONDS)
    around = [Counter(atoms[int(k)].symbol for k in j[i == n]) for n in range(len(atoms))]
    return Counter((atom.symbol, tuple(sorted(found.items()))) for atom, found in zip(atoms, around, strict=True))


@pytest.mark.parametrize("atoms", [crystal_structure(), *breathing_path()], ids=lambda a: f"{a.get_volume():.0f}")
def test_bonds_are_those_of_the_framework(atoms) -> None:
    """4 formula units: octahedra of 4 carboxylate and 2 hydroxyl oxygens; terephthalate; no bond breaks on the way."""
    assert atoms.get_chemical_formula() == "C32H20Al4O20"
    assert coordination(atoms) == {
        ("Al", (("O", 6),)): 4,
        ("O", (("Al", 1), ("C", 1))): 16,
        ("O", (("Al", 2), ("H", 1))): 4,
        ("C", (("C", 2), ("H", 1))): 16,
        ("C", (("C", 3),)): 8,
        ("C", (("C", 1), ("O", 2))): 8,
        ("H", (("C", 1),)): 16,
        ("H", (("O", 1),)): 4,
    }


def test_path_leads_from_closed_to_large_pore_over_a_barrier() -> None:
    path = breathing_path()
    volumes, energies = np.array([a.get_volume() for a in path]), np.array([a.info["REF_energy"] for a in path])
    assert (np.diff(volumes) > 0).all()
    assert 700 < volumes[0] < 850
    assert 1400 < volumes[-1] < 1480
    assert energies[0] < energies[-1] < energies[1:-1].max()
    for atoms in (path[0], path[-1]):
        assert np.linalg.norm(atoms.arrays["REF_forces"], axis=1).max() < 0.05
        assert np.abs(atoms.info["REF_stress"]).max() * atoms.get_volume() / 12 < 0.05
    assert all((a.numbers == path[0].numbers).all() for a in path)


def test_phases_by_name() -> None:
    path = breathing_path()
    np.testing.assert_array_equal(relaxed_structure("closed").positions, path[0].positions)
    np.testing.assert_array_equal(relaxed_structure("large").cell, path[-1].cell)
    assert not relaxed_structure("large").info
    with pytest.raises(InputError, match=r"system\.structure\.phase=open is no phase"):
        relaxed_structure("open")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, -1])
def test_labels_are_those_of_gfn2_xtb(index: int) -> None:
    pytest.importorskip("tblite")
    from ubmd.reference.tblite_reference import TBLiteReference

    atoms = breathing_path()[index]
    label = TBLiteReference().compute(atoms)
    assert label.energy == pytest.approx(atoms.info["REF_energy"], abs=1e-5)
    np.testing.assert_allclose(label.forces, atoms.arrays["REF_forces"], atol=1e-4)
    np.testing.assert_allclose(label.stress, atoms.info["REF_stress"], atol=1e-6)

"""Structures from SMILES: what a chemist expects of them, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from omegaconf import OmegaConf

from ubmd.config import build
from ubmd.errors import InputError
from ubmd.observables import Torsion, values_of
from ubmd.systems.conformers import conformers
from ubmd.systems.system import System


def bonds(atoms: Atoms, first: str, second: str, length: float) -> int:
    """Pairs of these elements within 0.05 Å of a length."""
    distances = atoms.get_all_distances()
    pairs = [(i, j) for i in range(len(atoms)) for j in range(len(atoms)) if i < j]
    return sum(
        {atoms[i].symbol, atoms[j].symbol} == {first, second} and abs(distances[i, j] - length) < 0.05 for i, j in pairs
    )


def test_ethanol_has_the_bonds_of_ethanol() -> None:
    for atoms in conformers("CCO"):
        assert atoms.get_chemical_formula("hill") == "C2H6O"
        assert bonds(atoms, "C", "H", 1.09) == 5
        assert bonds(atoms, "O", "H", 0.97) == 1
        assert bonds(atoms, "C", "O", 1.42) == 1
        assert bonds(atoms, "C", "C", 1.52) == 1
        assert not atoms.info
        assert not atoms.pbc.any()
        np.testing.assert_allclose(atoms.positions.mean(axis=0), 0, atol=1e-12)


def test_conformers_of_butane_are_trans_and_gauche_by_energy() -> None:
    found = conformers("CCCC")
    angles = values_of({"t": Torsion([0, 1, 2, 3])}, found)["t"]
    angles = np.abs(np.rad2deg(angles) if np.abs(angles).max() < 4 else angles)
    assert abs(angles[0] - 180) < 5  # trans is the lowest
    assert all(abs(angle - 65) < 8 for angle in angles[1:])
    assert len(angles) == 3  # both gauche ones, mirror images


def test_the_same_every_time_and_nobody_elses_to_change() -> None:
    first = conformers("CC(=O)NC")
    first[0].positions += 1
    again = conformers("CC(=O)NC")
    np.testing.assert_allclose(first[0].positions - 1, again[0].positions, atol=1e-12)


@pytest.mark.parametrize(
    ("smiles", "charge", "spin"),
    [
        ("[NH4+]", 1, None),
        ("CC(=O)[O-]", -1, None),
        ("[CH3]", None, 2),
        ("[O][O]", None, 3),
        ("C[N+](C)(C)CC[O-]", None, None),
    ],
)
def test_charge_and_spin_are_those_of_the_smiles(smiles: str, charge: int | None, spin: int | None) -> None:
    (atoms, *_) = conformers(smiles)
    assert (atoms.info.get("charge"), atoms.info.get("spin")) == (charge, spin)


def test_chirality_is_kept() -> None:
    def handedness(smiles: str) -> set[float]:
        # N, C', CB seen from H: neighbours of the alpha carbon, atoms 0, 1 (itself), 2 and 3 of these SMILES
        arms = [atoms.positions[[0, 2, 3]] - atoms.positions[1] for atoms in conformers(smiles)]
        return {float(np.sign(np.linalg.det(a))) for a in arms}

    left, right = handedness("N[C@@H](C)C(=O)O"), handedness("N[C@H](C)C(=O)O")
    assert len(left) == len(right) == 1
    assert left != right


def test_isotopes_have_their_masses() -> None:
    (atoms,) = conformers("[2H]C")
    np.testing.assert_allclose(sorted(atoms.get_masses())[-2:], [2.014, 12.011], atol=1e-3)


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("C(C", r"system\.smiles=C\(C is no SMILES of a molecule"),
        ("", r"system\.smiles= is no SMILES"),
        ("[Na+].[Cl-]", "has 2 fragments"),
        ("*C", r"atom without an element"),
        ("CC(O)CN", r"stereoisomer it is \(1 open .*C\[C@H\]\(O\)CN or C\[C@@H\]\(O\)CN"),
        ("CC=CC", r"stereoisomer.*C/C=C/C or C/C=C\\C"),
    ],
)
def test_what_is_refused(smiles: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        conformers(smiles)


def test_a_molecule_that_cannot_be_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    from rdkit.Chem import rdDistGeom

    monkeypatch.setattr(rdDistGeom, "EmbedMultipleConfs", lambda *_: [])
    with pytest.raises(InputError, match=r"system\.smiles=CCF cannot be embedded"):
        conformers("CCF")


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    requires = ["numpy", "rdkit>=2025.3; extra == 'rdkit'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requires)
    cfg = OmegaConf.create({"system": {"_target_": "ubmd.systems.system.System", "smiles": "CCCl"}})
    with pytest.raises(InputError, match=r"system needs rdkit.*pip install 'ubmd\[rdkit\]'"):
        build(cfg, "system")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": molecule("H2O")}, r"system\.smiles=CCO makes .* system\.structure is given too"),
        ({"initial": [molecule("H2O")] * 2}, r"system\.initial is given too"),
        ({"strain_grid": [0.0]}, r"system\.strain_grid=\[0\.0\] needs a structure that is periodic"),
    ],
)
def test_what_smiles_do_not_go_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        System(smiles="CCO", **options)


def test_a_run_starts_from_perturbed_conformers_in_turn() -> None:
    system = System(smiles="CCCC", n_initial=7, displacement=0.01)
    found = system.initial_structures(np.random.default_rng(0))
    assert system.symbols == ["H", "C"]
    assert len(found) == 7
    for number, atoms in enumerate(found):
        shift = atoms.positions - system.starts[number % 3].positions
        assert 0 < np.abs(shift).max() <= 0.01

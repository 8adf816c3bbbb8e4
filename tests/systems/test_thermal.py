"""Test structures from dynamics of the reference: canonical, reproducible, continued where they stopped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from ubmd.cli.app import compose
from ubmd.config import build
from ubmd.data.io import write_structures
from ubmd.errors import InputError
from ubmd.reference.base import Label, Reference, ReferenceError
from ubmd.systems.sampling import cached_test_set, sample_perturbed
from ubmd.systems.system import System
from ubmd.systems.thermal import _Walker, sample_dynamics
from ubmd.units import KB

SPRING, TEMPERATURE = 10.0, 400.0


class Wells(Reference):
    """A harmonic well around where each atom of a structure was; refuses the call of a number."""

    def __init__(self, atoms: Atoms, refuses: int = -1):
        self.centres, self.refuses, self.calls = atoms.positions.copy(), refuses, 0

    def fingerprint(self) -> dict[str, Any]:
        return {"class": "Wells"}

    def compute(self, atoms: Atoms) -> Label:
        self.calls += 1
        if self.calls == self.refuses:
            raise ReferenceError("SCF not converged")
        shift = atoms.positions - self.centres
        return Label(0.5 * SPRING * float((shift**2).sum()), -SPRING * shift, None)


def sample(folder: Path, atoms: Atoms, reference: Reference, **options: Any) -> partial[list[Atoms]]:
    settings = {"structures": atoms, "labels": str(folder / "labels.db"), "temperature": TEMPERATURE, "seed": 0}
    settings |= {"n_structures": 6, "steps": 12, "trajectories": 3} | options
    return partial(sample_dynamics, reference=reference, **settings)


def test_equipartition() -> None:
    atoms = Atoms("HC" * 500)
    walker = _Walker(atoms, TEMPERATURE, timestep=1.0, friction=0.03, stream=(0, 0))
    squares = []
    for step in range(800):
        walker.kick(-SPRING * atoms.positions)
        walker.drift()
        walker.kick(-SPRING * atoms.positions)
        if step >= 200 and step % 20 == 0:
            squares.append(atoms.positions**2)
    for element in (np.array(squares)[:, ::2], np.array(squares)[:, 1::2]):  # whatever their masses
        assert element.mean() == pytest.approx(KB * TEMPERATURE / SPRING, rel=0.03)


def test_frames_in_turn_and_the_same_when_continued(tmp_path: Path) -> None:
    water = molecule("H2O")
    whole = Wells(water)
    first = sample(tmp_path, water, whole)()
    assert whole.calls == 1 + 3 * 12  # all start from the same structure
    again = Wells(water)
    second = sample(tmp_path, water, again)()
    assert again.calls == 0  # every label was kept
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    assert len({a.positions.tobytes() for a in first}) == 6
    other = sample(tmp_path, water, whole, seed=1)()
    assert np.abs(first[0].positions - other[0].positions).max() > 1e-3


def test_a_trajectory_ends_where_the_reference_refuses(tmp_path: Path) -> None:
    water = molecule("H2O")
    whole = sample(tmp_path / "a", water, Wells(water))()
    # one label at the start and three after each step: the 24th is the second trajectory's after 8 steps
    rest = sample(tmp_path / "b", water, Wells(water, refuses=24))()
    assert len(rest) == 5
    for a, b in zip([*whole[:4], whole[5]], rest, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    with pytest.raises(InputError, match=r"no trajectory of the test set is left after 2 steps \(SCF not converged\)"):
        sample(tmp_path / "c", water, Wells(water, refuses=3), trajectories=1, n_structures=2)()


def test_fixed_atoms_stay(tmp_path: Path) -> None:
    water = molecule("H2O")
    water.set_constraint(FixAtoms([1]))
    for atoms in sample(tmp_path, water, Wells(water))():
        np.testing.assert_array_equal(atoms.positions[1], water.positions[1])
        assert np.abs(atoms.positions - water.positions).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: 0.0 is not positive"),
        ({"trajectories": 0}, "trajectories: 0 is not positive"),
        ({"n_structures": 60}, "steps: 12 of each trajectory are too few to take 20 structures"),
    ],
)
def test_bad_values(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    water = molecule("H2O")
    with pytest.raises(InputError, match=message):
        sample(tmp_path, water, Wells(water), **options)()


def test_systems_are_sampled_from_where_they_start(tmp_path: Path) -> None:
    system = System(bulk("Cu", cubic=True), strain_grid=[-0.1, 0.1])
    options = {"reference": Wells(system.atoms), "labels": str(tmp_path / "labels.db"), "seed": 0, "max_force": None}
    copies = sample_perturbed(4, structures=system, displacement=0.01, **options)
    lengths = [atoms.cell[0, 0] / system.atoms.cell[0, 0] for atoms in copies]
    np.testing.assert_allclose(lengths, [0.9, 1.1, 0.9, 1.1])


def test_a_folder_of_test_sets_has_one_for_each_system(tmp_path: Path) -> None:
    systems = [System(molecule(name)) for name in ("H2O", "CH4")]
    for _ in range(2):
        for system in systems:
            sampler = sample(tmp_path, system, Wells(system.atoms))  # pyright: ignore[reportArgumentType]
            assert len(cached_test_set(tmp_path / "tests", sampler)[0]) == len(system.atoms)
    files = sorted(path.name for path in (tmp_path / "tests").iterdir() if path.suffix == ".extxyz")
    assert len(files) == 2
    assert all(name.startswith("sample_dynamics-") for name in files)


@pytest.mark.parametrize("kind", ["perturbed", "dynamics"])
def test_any_run_may_have_a_test_set(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path / "cache"))
    small = ["data.test.sample.n_structures=4"]
    small += ["data.test.sample.steps=4", "data.test.sample.trajectories=2"] if kind == "dynamics" else []
    overrides = ["system=copper", "reference.calculator._target_=ase.calculators.emt.EMT", "+system.relax.fmax=0.5"]
    cfg = compose("learn", [*overrides, f"data/test={kind}", *small])
    found = build(cfg, "data", cutoff=4.0, species=["Cu"]).test_structures
    assert len(found) == 4
    assert all("REF_stress" in atoms.info and len(atoms) == 32 for atoms in found)


def test_a_test_set_of_several_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path / "cache"))
    write_structures(tmp_path / "water.xyz", [molecule("H2O")])
    write_structures(tmp_path / "copper.xyz", [bulk("Cu")])
    files = f"system.structures=[{tmp_path}/water.xyz,{tmp_path}/copper.xyz]"
    small = [f"data.test.sample.{key}" for key in ("n_structures=4", "steps=4", "trajectories=2")]
    overrides = ["system=several", files, "reference.calculator._target_=ase.calculators.emt.EMT", *small]
    found = build(compose("learn", [*overrides, "data/test=dynamics"]), "data", cutoff=4.0, species=["H", "O", "Cu"])
    assert [atoms.info["system"] for atoms in found.test_structures] == ["water"] * 4 + ["copper"] * 4

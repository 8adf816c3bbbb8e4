"""Converted trajectories, read by the programs that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms

from ubmd.data.inherit import Inherited
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.trajectory import write_trajectories, write_trajectory
from ubmd.errors import InputError
from ubmd.interfaces import convert as module
from ubmd.interfaces.convert import convert_trajectory, turned

COUNTS = (3, 0, 5)
"""Frames of the walkers."""


def structure(n: int = 4) -> Atoms:
    atoms = Atoms("COHH"[:n], np.arange(3.0 * n).reshape(n, 3), info={"charge": 1}, constraint=FixAtoms([1]))
    atoms.set_masses([13.003, None, 2.014, None][:n])
    return atoms


def exploration(*, crystal: bool, recorded: bool, seed: int = 0, n: int = 4) -> Exploration:
    rng = np.random.default_rng(seed)
    walker = np.repeat(np.arange(len(COUNTS)), COUNTS)
    step = np.concatenate([10 * np.arange(1, count + 1) for count in COUNTS])
    f = len(walker)
    cell = np.zeros((f, 3, 3))
    if crystal:
        cell[:] = [[5.0, 0, 0], [1.0, 6, 0], [-0.5, 0.7, 7]]
        cell += 0.1 * rng.normal(size=(f, 3, 3))
    details = {
        "time": 0.5 * step,
        "momenta": rng.normal(size=(f, n, 3)),
        "forces": rng.normal(size=(f, n, 3)),
        "stress": None,
        "bias_energy": rng.normal(size=f),
    }
    if crystal:
        symmetric = rng.normal(size=(f, 3, 3))
        details["stress"] = symmetric + symmetric.transpose(0, 2, 1)
    return Exploration(
        numbers=structure(n).numbers.astype(np.int64),
        pbc=np.array([crystal, crystal, False]),
        walker=walker,
        step=step,
        positions=100 * rng.normal(size=(f, n, 3)),  # atoms that have flown apart, and left their cell
        cell=cell,
        energy=-(10.0**5) + rng.normal(size=f),
        uncertainty=rng.uniform(size=f),
        atomic_uncertainty=rng.uniform(size=(f, n)),
        tau=rng.uniform(size=f),
        walkers=np.arange(len(COUNTS)),
        reasons=np.ones(len(COUNTS), dtype=np.int8),
        steps=10 * np.array(COUNTS),
        temperature=np.full(len(COUNTS), 300.0),
        max_uncertainty=rng.uniform(size=len(COUNTS)),
        inherited=tuple(Inherited.of(structure(n)) for _ in COUNTS),
        **details if recorded else {},
    )


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(module, "BLOCK", 8)  # two frames
    yield tmp_path / "trajectory.h5"
    assert not list(tmp_path.glob(".*")), "no half-written files"


@pytest.mark.parametrize("to", ["traj", "extxyz"])
@pytest.mark.parametrize("crystal", [False, True], ids=["molecule", "slab"])
def test_ase_reads_all_of_it(source: Path, to: str, crystal: bool) -> None:
    found = exploration(crystal=crystal, recorded=True)
    write_trajectory(source, found)
    told: list[tuple[int, int]] = []
    target = source.with_name(f"out.{to}")
    written = convert_trajectory(source, target, to, on_frames=lambda *counts: told.append(counts))
    assert [(file.path.name, file.walker, file.n_frames) for file in written] == [
        (f"out-walker-0.{to}", 0, 3),
        (f"out-walker-2.{to}", 2, 5),
    ]
    assert told == [(3, 8), (8, 8)]
    frames = [atoms for file in written for atoms in ase.io.read(file.path, ":")]
    assert len(frames) == found.n_frames
    assert found.momenta is not None
    assert found.forces is not None
    assert found.time is not None
    for i, atoms in enumerate(frames):
        np.testing.assert_allclose(atoms.positions, found.positions[i], atol=1e-7)
        np.testing.assert_allclose(atoms.cell.array, found.cell[i], atol=1e-7)
        assert atoms.pbc.tolist() == found.pbc.tolist()
        np.testing.assert_allclose(atoms.get_masses(), structure().get_masses(), atol=1e-6)
        # p = m v, a velocity of 1 Å/fs is 1 / units.fs of ASE's
        np.testing.assert_allclose(atoms.get_momenta() * units.fs, found.momenta[i], atol=1e-7)
        np.testing.assert_allclose(atoms.get_potential_energy(), found.energy[i], rtol=1e-13)
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), found.forces[i], atol=1e-7)
        assert atoms.info["time_fs"] == pytest.approx(0.5 * atoms.info["step"])
        assert atoms.info["walker"] == found.walker[i]
        assert atoms.info["charge"] == 1
        assert atoms.constraints[0].index.tolist() == [1]
        kinetic = atoms.get_kinetic_energy()
        assert atoms.info["temperature_K"] == pytest.approx(2 * kinetic / (3 * 3 * units.kB), rel=1e-6)
        assert atoms.info["bias_energy"] == pytest.approx(found.bias_energy[i])
        atomic = (atoms.info if to == "traj" else atoms.arrays)["atomic_uncertainty"]
        np.testing.assert_allclose(atomic, found.atomic_uncertainty[i], atol=1e-7)
        if crystal:
            assert found.stress is not None
            np.testing.assert_allclose(atoms.get_stress(voigt=False), found.stress[i], atol=1e-7)
        else:
            with pytest.raises(PropertyNotImplementedError):
                atoms.get_stress()


@pytest.mark.parametrize("crystal", [False, True], ids=["molecule", "slab"])
def test_layout_of_h5md(source: Path, crystal: bool) -> None:
    """As the specification has it: steps and times are links to one data set, and all has a unit."""
    found = exploration(crystal=crystal, recorded=True)
    write_trajectory(source, found)
    (written,) = convert_trajectory(source, source.with_name("out.h5md"), "h5md", walker=2)
    assert written.path.name == "out.h5md"
    own = found.of_walker(2)
    assert own.forces is not None
    assert own.momenta is not None
    with h5py.File(written.path) as file:
        assert file["h5md"].attrs["version"].tolist() == [1, 1]
        assert file["h5md/creator"].attrs["name"] == "ubmd"
        assert list(file["particles"]) == ["all"]
        particles = file["particles/all"]
        assert particles["box"].attrs["dimension"] == 3
        boundary = [b"periodic"] * 2 + [b"none"] if crystal else [b"none"] * 3
        assert particles["box"].attrs["boundary"].tolist() == boundary
        assert particles["species"][:].tolist() == [6, 8, 1, 1]
        np.testing.assert_allclose(particles["mass"][:], structure().get_masses())
        names = {"position", "velocity", "force", "atomic_uncertainty"}
        assert set(particles) == names | {"species", "mass", "box"}
        elements = [particles[name] for name in names] + list(file["observables"].values())
        if crystal:
            elements.append(particles["box/edges"])
            np.testing.assert_array_equal(particles["box/edges/value"][:], own.cell)
        else:
            assert "edges" not in particles["box"]
        for element in elements:
            assert len(element["value"]) == 5
            assert element["step"].id == particles["position/step"].id or element["step"] == particles["position/step"]
            assert element["time"][:].tolist() == [5, 10, 15, 20, 25]
            assert element["time"].attrs["unit"] == "fs"
        np.testing.assert_array_equal(particles["position/value"][:], own.positions)
        np.testing.assert_allclose(particles["force/value"][:] * units.kJ / units.mol, own.forces, rtol=1e-12)
        velocities = own.momenta / structure().get_masses()[:, None]
        np.testing.assert_allclose(particles["velocity/value"][:], velocities, rtol=1e-12)
        assert {name: element["value"].attrs.get("unit") for name, element in file["observables"].items()} == {
            "potential_energy": "eV",
            "kinetic_energy": "eV",
            "bias_energy": "eV",
            "temperature": "K",
            "tau": None,
            "uncertainty": "eV",
        } | ({"stress": "eV Angstrom-3"} if crystal else {})


def test_mdanalysis_reads_h5md(source: Path) -> None:
    mda = pytest.importorskip("MDAnalysis")
    found = exploration(crystal=True, recorded=True)
    write_trajectory(source, found)
    (written,) = convert_trajectory(source, source.with_name("out.h5md"), "h5md", walker=2, standard_axes=True)
    own = found.of_walker(2)
    ase.io.write(source.with_name("topology.xyz"), structure(), format="xyz")
    universe = mda.Universe(str(source.with_name("topology.xyz")), str(written.path))
    assert len(universe.trajectory) == 5
    own = turned(own)
    assert own.momenta is not None
    assert own.forces is not None
    for i, step in enumerate(universe.trajectory):
        assert step.time == pytest.approx(0.0005 * own.step[i]), "ps"
        np.testing.assert_allclose(universe.atoms.positions, own.positions[i], rtol=1e-6)
        velocities = 1000 * own.momenta[i] / structure().get_masses()[:, None]  # Å/ps
        np.testing.assert_allclose(universe.atoms.velocities, velocities, rtol=1e-5)
        np.testing.assert_allclose(universe.atoms.forces * units.kJ / units.mol, own.forces[i], rtol=1e-5)
        np.testing.assert_allclose(step.dimensions, Atoms(cell=own.cell[i]).cell.cellpar(), rtol=1e-5)
        assert step.data["potential_energy"] == own.energy[i]


def test_mdanalysis_finds_neighbours_across_faces(source: Path) -> None:
    """Of a cell in any orientation, by ASE's minimum image."""
    mda = pytest.importorskip("MDAnalysis")
    distances = pytest.importorskip("MDAnalysis.lib.distances")
    found = exploration(crystal=True, recorded=True)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    found = replace(found, cell=found.cell @ turn, pbc=np.ones(3, dtype=bool), positions=0.05 * found.positions)
    write_trajectory(source, found)
    (written,) = convert_trajectory(source, source.with_name("out.h5md"), "h5md", walker=0, standard_axes=True)
    ase.io.write(source.with_name("topology.xyz"), structure(), format="xyz")
    universe = mda.Universe(str(source.with_name("topology.xyz")), str(written.path))
    for i, step in enumerate(universe.trajectory):
        atoms = Atoms(found.numbers, found.positions[i], cell=found.cell[i], pbc=True)
        theirs = distances.distance_array(universe.atoms.positions, universe.atoms.positions, box=step.dimensions)
        np.testing.assert_allclose(theirs, atoms.get_all_distances(mic=True), atol=1e-4)


def test_turned_frames_are_the_same_crystals() -> None:
    found = exploration(crystal=True, recorded=True)
    new = turned(found)
    assert not np.triu(new.cell, 1).any()
    assert new.momenta is not None
    assert new.forces is not None
    assert new.stress is not None
    for i in range(found.n_frames):
        before, after = (Atoms(f.numbers, f.positions[i], cell=f.cell[i]) for f in (found, new))
        np.testing.assert_allclose(after.cell.cellpar(), before.cell.cellpar(), rtol=1e-10)
        scaled = [a.cell.scaled_positions(a.positions) for a in (before, after)]
        np.testing.assert_allclose(*scaled, atol=1e-10)
        # powers of forces, and tractions on the faces along their normals
        powers = [(f.forces[i] * f.momenta[i]).sum(1) for f in (found, new)]
        np.testing.assert_allclose(*powers, rtol=1e-9)
        normals = [np.linalg.inv(f.cell[i]).T for f in (found, new)]
        tractions = [np.einsum("ka,ab,lb->kl", n, f.stress[i], n) for n, f in zip(normals, (found, new), strict=True)]
        np.testing.assert_allclose(*tractions, rtol=1e-8, atol=1e-10)
    assert turned(new) is new
    left = replace(found, cell=-found.cell)
    assert turned(left) is left
    molecule = exploration(crystal=False, recorded=False)
    assert turned(molecule) is molecule


@pytest.mark.parametrize("to", ["traj", "extxyz", "h5md"])
def test_what_is_not_there_is_left_out(source: Path, to: str) -> None:
    """Of a round of active learning, with a potential that predicts no uncertainty."""
    found = exploration(crystal=False, recorded=False)
    nothing = {
        name: np.full_like(getattr(found, name), np.nan) for name in ("uncertainty", "atomic_uncertainty", "tau")
    }
    write_trajectory(source, replace(found, **nothing, inherited=()))
    (written,) = convert_trajectory(source, source.with_name(f"out.{to}"), to, walker=0)
    if to == "h5md":
        with h5py.File(written.path) as file:
            assert set(file["particles/all"]) == {"position", "species", "mass", "box"}
            assert set(file["observables"]) == {"potential_energy"}
            assert "time" not in file["particles/all/position"]
    else:
        frame = ase.io.read(written.path, 1)
        assert (frame.info["walker"], frame.info["step"]) == (0, 20)
        assert not {"time_fs", "temperature_K", "bias_energy", "uncertainty", "tau"} & frame.info.keys()
        assert not {"momenta", "atomic_uncertainty"} & frame.arrays.keys()
        assert set(frame.calc.results) == {"energy"}
    (timed,) = convert_trajectory(source, source.with_name(f"timed.{to}"), to, walker=0, time_steps={"": 0.25})
    if to == "h5md":
        with h5py.File(timed.path) as file:
            assert file["particles/all/position/time"][:].tolist() == [2.5, 5, 7.5]
    else:
        assert ase.io.read(timed.path, 1).info["time_fs"] == 5


def test_several_systems(source: Path) -> None:
    parts = {
        "mol": exploration(crystal=False, recorded=True),
        "slab": exploration(crystal=True, recorded=False, n=3, seed=1),
    }
    write_trajectories(source, parts)
    target = source.with_name("out.traj")
    written = convert_trajectory(source, target, "traj")
    names = ["out-mol-walker-0", "out-mol-walker-2", "out-slab-walker-0", "out-slab-walker-2"]
    assert [file.path.stem for file in written] == names
    assert [(file.system, file.walker) for file in written][2:] == [("slab", 0), ("slab", 2)]
    assert len(ase.io.read(written[3].path, -1)) == 3
    names = [file.path.stem for file in convert_trajectory(source, target, "traj", walker=2)]
    assert names == ["out-mol", "out-slab"]
    names = [file.path.stem for file in convert_trajectory(source, target, "traj", system="slab", walker=2)]
    assert names == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"walker": 1}, r"has not a frame of walker 1 \(walkers with frames: 0, 2\)"),
        ({"system": "slab"}, "has no system slab; it has one without a name"),
    ],
)
def test_what_is_not_in_the_file(source: Path, options: dict[str, object], message: str) -> None:
    write_trajectory(source, exploration(crystal=False, recorded=True))
    with pytest.raises(InputError, match=message):
        convert_trajectory(source, source.with_name("out.traj"), "traj", **options)

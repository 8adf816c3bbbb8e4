from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import ubmd.dynamics.trajectory as module
from tests.dynamics.walker_toys import Toy, assert_same, cluster, gas, walkers
from ubmd.data.inherit import Inherited
from ubmd.dynamics.exploration import Exploration, frames_to_atoms
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.recording import Recording
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.trajectory import opened_trajectories, read_trajectory, write_trajectories, write_trajectory
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError


def exploration(structures, interval=10, recording=None) -> Exploration:
    rules = StoppingRules(None, max_steps=30)
    return run_walkers(walkers(structures), Toy(), Langevin(), rules, frame_interval=interval, recording=recording)


@pytest.fixture
def found() -> Exploration:
    return exploration([cluster(6), cluster(6, 1)])


@pytest.mark.parametrize("structures", [[cluster(6), cluster(6, 1)], [gas()]])
@pytest.mark.parametrize("interval", [10, 31])
@pytest.mark.parametrize("recorded", [False, True])
def test_reads_what_was_written(tmp_path, structures, interval, recorded):
    whole = exploration(structures, interval, Recording(tmp_path / "log.csv", 10, 0.5) if recorded else None)
    assert (whole.n_frames == 0) == (interval == 31)
    write_trajectory(tmp_path / "new" / "trajectory.h5", whole)
    assert_same(read_trajectory(tmp_path / "new" / "trajectory.h5"), whole)


def test_layout_is_what_the_documentation_says(tmp_path):
    found = exploration([gas(), gas(1)], recording=Recording(tmp_path / "log.csv", 10, 0.5))
    found = replace(found, inherited=tuple(Inherited.of(gas()) for _ in found.walkers))
    write_trajectory(tmp_path / "t.h5", found)
    documented = {}
    for line in module.__doc__.splitlines():
        words = line.split()
        if words and words[0].startswith("/") and len(words) > 1 and words[1].startswith("["):
            shape, rest = line.split("[", 1)[1].split("]", 1)
            documented[words[0][1:]] = (shape.split(", "), rest.split())
    with h5py.File(tmp_path / "t.h5") as file:
        written = []
        file.visititems(lambda name, item: written.append(name) if isinstance(item, h5py.Dataset) else None)
        assert sorted(written) == sorted(documented)
        sizes = {"f": found.n_frames, "n": 27, "w": 2, "3": 3}
        units = ("Å", "eV", "eV/atom", "eV/Å", "eV/Å³", "K", "fs", "amu*Å/fs")
        for name, (shape, (dtype, *rest)) in documented.items():
            assert file[name].shape == tuple(sizes[s] for s in shape), name
            assert file[name].dtype == np.dtype("O" if dtype == "string" else dtype), name
            unit = file[name].attrs["units"]
            assert unit == (rest[0] if rest and rest[0] in units else "1"), name
        assert file["frames/positions"].compression == "gzip"
        assert file["walkers/reason"].attrs["value 2"] == StopReason.UNCERTAINTY.description
        np.testing.assert_array_equal(file["frames/energy"][:], found.energy)


def test_reads_some_of_the_frames(tmp_path, found):
    write_trajectories(tmp_path / "t.h5", {"one": found, "two": found})
    with opened_trajectories(tmp_path / "t.h5") as parts:
        assert list(parts) == ["one", "two"]
        part = parts["two"]
        assert part.walker.tolist() == [0, 0, 0, 1, 1, 1]
        some = part.frames(slice(2, 4))
    assert some.step.tolist() == [30, 10]
    np.testing.assert_array_equal(some.positions, found.positions[2:4])
    np.testing.assert_array_equal(some.steps, found.steps)


def test_frames_as_atoms(found):
    frames = frames_to_atoms(found)
    assert [a.info["step"] for a in frames] == [10, 20, 30] * 2
    assert [a.info["walker"] for a in frames] == [0, 0, 0, 1, 1, 1]
    for i, atoms in enumerate(frames):
        np.testing.assert_array_equal(atoms.positions, found.positions[i])
        assert atoms.get_chemical_symbols() == cluster(6).get_chemical_symbols()
        assert atoms.info["model_energy"] == found.energy[i]
        assert atoms.info["uncertainty"] == found.uncertainty[i]
        assert atoms.info["max_atomic_uncertainty"] == atoms.arrays["atomic_uncertainty"].max()
        assert atoms.info["tau"] == 0.25
        assert atoms.calc is None
    periodic = frames_to_atoms(exploration([gas()]))[0]
    assert periodic.pbc.all()
    np.testing.assert_array_equal(periodic.cell[:], gas().cell[:])


def test_a_failed_writing_leaves_the_old_file(tmp_path, found, monkeypatch):
    file = tmp_path / "t.h5"
    write_trajectory(file, found)
    before = file.read_bytes()
    monkeypatch.setitem(module._LAYOUT, "absent", ("frames/absent", "1", "int64", "f"))
    with pytest.raises(AttributeError, match="absent"):
        write_trajectory(file, found)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]


def test_bad_files_are_named(tmp_path, found):
    file = tmp_path / "t.h5"
    with pytest.raises(InputError, match=r"t\.h5 does not exist"):
        read_trajectory(file)
    file.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=r"t\.h5 is not a"):
        read_trajectory(file)
    with h5py.File(file, "w") as other:
        other["frames"] = 1
    with pytest.raises(InputError, match="not a ubmd-trajectory"):
        read_trajectory(file)
    write_trajectory(file, found)
    with h5py.File(file, "a") as damaged:
        del damaged["frames/energy"]
    module.seal(file)
    with pytest.raises(InputError, match=r"t\.h5 cannot be read.*energy"):
        read_trajectory(file)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("frames/energy", np.zeros((6, 1)), r"frames/energy is float64 \[6, 1\], not float64 \[f\]"),
        ("frames/positions", np.zeros((5, 6, 3)), "frames/positions is float64"),
        ("frames/cell", np.zeros((6, 3, 2)), "frames/cell is float64"),
        ("numbers", np.zeros(6), r"numbers is float64 \[6\], not int64 \[n\]"),
        ("pbc", np.array(True), "pbc is bool"),
        ("walkers/steps", np.array([b"x", b"y"]), "walkers/steps is"),
    ],
)
def test_wrong_types_and_shapes_are_named(tmp_path, found, name, value, text):
    file = tmp_path / "t.h5"
    write_trajectory(file, found)
    with h5py.File(file, "a") as changed:
        del changed[name]
        changed[name] = value
    module.seal(file)
    with pytest.raises(InputError, match=text):
        read_trajectory(file)


def test_every_damage_is_noticed_before_hdf5_sees_it(tmp_path, found, monkeypatch):
    """The library loops forever on some damaged heaps of strings."""
    file = tmp_path / "t.h5"
    write_trajectory(file, found)
    whole = file.read_bytes()
    monkeypatch.setattr(h5py, "File", lambda *_: pytest.fail("HDF5 was asked"))
    for place in (*range(0, len(whole), 997), 0, 511, 512, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"t\.h5 is"):
            read_trajectory(file)
    for length in (0, 100, 512, 5000, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"t\.h5 is"):
            read_trajectory(file)


def test_files_of_version_1_are_read(tmp_path, caplog):
    """Their frames are elements and positions alone, which a line says; damage is noticed where HDF5 notices it."""
    old = Path(__file__).parents[1] / "data" / "version_1" / "trajectory.h5"
    with caplog.at_level("INFO"):
        found = read_trajectory(old)
    assert [r.getMessage() for r in caplog.records] == [
        f"trajectory {old} is of version 1: its frames are elements and positions alone"
    ]
    assert found.positions.shape == (4, 3, 3)
    np.testing.assert_array_equal(
        found.positions[-1, 0], [0.015510043561043881, -0.5081389751994722, -0.49754508427969496]
    )
    assert found.inherited == ()
    assert [a.info["step"] for a in frames_to_atoms(found)] == [10, 20] * 2
    write_trajectory(tmp_path / "new.h5", found)
    assert_same(read_trajectory(tmp_path / "new.h5"), found)
    (tmp_path / "half.h5").write_bytes(old.read_bytes()[:20000])
    with pytest.raises(InputError, match=r"half\.h5 cannot be read"):
        read_trajectory(tmp_path / "half.h5")
    with h5py.File(tmp_path / "half.h5", "w") as pretender:
        pretender.attrs["format"], pretender.attrs["version"] = "ubmd-trajectory", 2
    with pytest.raises(InputError, match="not a ubmd-trajectory"):
        read_trajectory(tmp_path / "half.h5")

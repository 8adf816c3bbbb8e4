from __future__ import annotations

import os
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ubmd.data.io import read_structures, write_structures
from ubmd.errors import InputError

NAMES = [
    "CO2@MOF.extxyz",
    "x@0.xyz",
    "a*b?.extxyz",
    "[1].xyz",
    "-.xyz",
    "-x.extxyz",
    "POSCAR_frames.extxyz",
    "CONFIGS.xyz",
    "OUTCAR.xyz",
    "my_info.extxyz",
    "postgres.xyz",
    "a b\nc.xyz",
    "größe.XYZ",
    "x.traj.xyz",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_mean_something_to_ase(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_structures(name, [molecule("H2O"), molecule("H2")])
    assert [len(a) for a in read_structures(name)] == [3, 2]
    assert [len(a) for a in read_structures(tmp_path / name)] == [3, 2]


@pytest.mark.parametrize("suffix", ["traj", "db", "json", "pdb", "xsf"])
@pytest.mark.parametrize("name", ["x@0", "-x", "postgresql", "mysql_x"])
def test_names_of_other_formats(tmp_path: Path, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    crystals = [bulk("Cu", cubic=True), bulk("Cu", cubic=True)]
    ase.io.write(f"new.{suffix}", crystals)
    os.rename(f"new.{suffix}", f"{name}.{suffix}")
    found = read_structures(f"{name}.{suffix}")
    assert [a.get_chemical_formula() for a in found] == ["Cu4", "Cu4"]


def several(path: Path, kind: str) -> None:
    ase.io.write(path, [bulk("Cu", cubic=True)] * 3, format=kind)


@pytest.mark.parametrize("kind", ["xsf", "vasp-xdatcar", "proteindatabank", "cif"])
def test_structures_of_other_formats_are_counted(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    several(tmp_path / "x", kind)
    monkeypatch.setattr("ubmd.data.formats.filetype", lambda _: kind)
    assert len(read_structures(tmp_path / "x")) == 3
    whole = ase.io.read
    monkeypatch.setattr(ase.io, "read", lambda *a, **k: whole(*a, **k)[:2])
    with pytest.raises(InputError, match=f"seems to hold 3 structures, of which ASE's reader of {kind} finds 2"):
        read_structures(tmp_path / "x")


def test_formats_that_hold_one_structure(tmp_path: Path) -> None:
    molecule_ = "\n\n\n  1  0  0  0  0  0  0  0  0  0  0\n    0.0000    0.0000    0.0000 O   0  0\nM  END\n$$$$\n"
    (tmp_path / "x.sdf").write_text(molecule_)
    assert len(read_structures(tmp_path / "x.sdf")) == 1
    (tmp_path / "x.sdf").write_text(molecule_ * 2)
    with pytest.raises(InputError, match="seems to hold 2 structures"):
        read_structures(tmp_path / "x.sdf")


def test_what_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(InputError, match="run is a folder; give a file in it"):
        read_structures(folder)
    write_structures(folder / "dataset.extxyz", [molecule("H2O")])
    with pytest.raises(InputError, match=r"run is a folder; give .*run/dataset.extxyz"):
        read_structures(folder)
    with pytest.raises(InputError, match="cannot be read"):
        read_structures(tmp_path / ("x" * 300))
    (tmp_path / "empty.traj").touch()
    with pytest.raises(InputError, match="it is empty"):
        read_structures(tmp_path / "empty.traj")
    with pytest.raises(InputError, match="does not exist"):
        read_structures("a\0b")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_structures(tmp_path / "x.xyz", [molecule("H2O")])

    def refused(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(InputError, match=r"x.xyz cannot be read \(Permission denied\)"):
        read_structures(tmp_path / "x.xyz")


def test_damaged_trajectory(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "x.traj", [molecule("H2O")] * 3)
    data = (tmp_path / "x.traj").read_bytes()
    for end in (0.3, 0.6, 0.9, 0.999):
        (tmp_path / "y.traj").write_bytes(data[: int(end * len(data))])
        with pytest.raises(InputError, match="cannot be read"):
            read_structures(tmp_path / "y.traj")


def test_left_handed_and_skewed_cells(tmp_path: Path) -> None:
    cells = ([[0, 4, 0], [4, 0, 0], [0, 0, 4]], [[4, 0, 0], [400, 4, 0], [0, 0, 4]])
    frames = [Atoms("Cu", cell=cell, pbc=True) for cell in cells]
    write_structures(tmp_path / "x.xyz", frames)
    for atoms, cell in zip(read_structures(tmp_path / "x.xyz"), cells, strict=True):
        np.testing.assert_array_equal(np.asarray(atoms.cell), cell)

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian

from ubmd.data.io import read_structures, write_structures
from ubmd.errors import InputError


def frame(x: float = 0.0, head: str = "") -> str:
    return f"2\n{head}\nO {x} 0.0 0.0\nH {x} 0.0 0.97\n"


@pytest.mark.parametrize(
    "text",
    [
        frame(0) + "\n" + frame(1) + frame(2),
        "\n\n" + frame(0) + " \n\t\n" + frame(1) + frame(2) + "\n\n\n",
        (frame(0) + frame(1) + frame(2)).replace("\n", "\r\n"),
        (frame(0) + "\n" + frame(1) + frame(2)).replace("\n", "\r"),
        "\ufeff" + frame(0) + frame(1) + frame(2),
        (frame(0) + frame(1) + frame(2)).rstrip("\n"),
        frame(0, "it's [free text") + frame(1) + frame(2),
    ],
    ids=["blank line", "blank lines", "windows", "old mac", "byte order mark", "no last line end", "free text"],
)
def test_all_structures_of_a_file_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.xyz").write_bytes(text.encode())
    found = read_structures(tmp_path / "data.xyz")
    assert [a.positions[0, 0] for a in found] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("packer", [gzip, bz2, lzma], ids=["gz", "bz2", "xz"])
def test_compressed_files(tmp_path: Path, packer: Any) -> None:
    name = tmp_path / f"data.xyz.{ {'gzip': 'gz', 'bz2': 'bz2', 'lzma': 'xz'}[packer.__name__] }"
    data = packer.compress((frame(0) + "\n" + frame(1)).encode())
    name.write_bytes(data)
    assert len(read_structures(name)) == 2
    for damaged in (data[:-9], data + b"rest"):
        name.write_bytes(damaged)
        with pytest.raises(InputError, match="cannot be read"):
            read_structures(name)


EXT = "2\nProperties=species:S:1:pos:R:3{} {}\nO 0 0 0{}\nH 0 0 1{}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (frame(0) + "rest\n", r"line 5 should hold the number of atoms of structure 1 but is 'rest'"),
        (frame(0) + "H 0 0 2\n" + frame(1), "line 5 should hold the number of atoms of structure 1"),
        (frame(0) + "2\n\nO 0 0 0\n", "structure 1, from line 5 on, announces 2 atoms but has 1"),
        (frame(0) + "2\n", "structure 1, from line 5 on, announces 2 atoms but has 0"),
        ("3\n\nO 0 0 0\nH 0 0 1\n" + frame(1), "structure 0: the row of atom 2 has 1 columns instead of 4"),
        ("2\n\nO 0 0 0\n\nH 0 0 1\n", "announces 2 atoms but has 1"),
        (EXT.format("", "", " 1", " 2"), "row of atom 0 has 5 columns instead of 4"),
        (EXT.format(":REF_forces:R:3", "", " 1 2", " 1 2"), "row of atom 0 has 6 columns instead of 7"),
        (EXT.format(":free:L:1", "", " T", " maybe"), "column free holds something other than T and F"),
        (EXT.format("", "REF_energy=1 REF_energy=2", "", ""), "gives REF_energy twice"),
        (EXT.format("", 'Lattice="4 0 0 0 4 0 0 0 4', "", ""), 'opens a " that is not closed'),
        (EXT.format(":Z:I:1", "", " 8", " 6"), "atom 1 has the symbol H but the atomic number 6"),
        (EXT.format(":a:R:1:a:R:1", "", " 8 1", " 6 1"), "cannot be read"),
        ("1\nProperties=species:S:1\nO\n", "no species:S:1 and pos:R:3"),
        (EXT.format(f":a:R:{10**18}", "", " 1", " 1"), "is no list of name:type:columns"),
        ("1\n\nD 0 0 0\n", "symbol D, which is no element; write H, with masses"),
        ("1\n\nQq 0 0 0\n", "symbol Qq, which is no element; use chemical symbols"),
        ("1\n\n8 0 0 0\n", "symbol 8, which is no element; use chemical symbols"),
        (frame(0) + "-2\n" + frame(1)[2:], "line 5 should hold"),
        (frame(0) + "\0\n", "line 5 should hold"),
    ],
)
def test_what_does_not_belong_to_a_frame_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.xyz").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_structures(tmp_path / "data.xyz")
    assert "\n" not in str(error.value)
    assert "data.xyz" in str(error.value)


def test_undeclared_columns_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data.xyz").write_text("1\n\nO 0 0 0 0.5 0.5 0.5\n" * 2)
    assert len(read_structures(tmp_path / "data.xyz")) == 2
    assert "columns behind the positions are not read in 2 structures" in caplog.text


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "data.xyz").write_bytes(frame(0, "Å").encode("latin-1"))
    with pytest.raises(InputError, match="byte 2 is no UTF-8 text"):
        read_structures(tmp_path / "data.xyz")


def read_back(tmp_path: Path, atoms: Atoms) -> Atoms:
    write_structures(tmp_path / "data.extxyz", [atoms, molecule("H2"), atoms])
    first, other, second = read_structures(tmp_path / "data.extxyz")
    assert not other.info
    assert first == second
    np.testing.assert_array_equal(first.positions, atoms.positions)
    return first


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.set_cell(np.asarray(atoms.cell) * np.pi, scale_atoms=True)
    atoms.arrays["REF_forces"] = np.random.default_rng(0).normal(size=(4, 3)) * [1e-9, 1.0, 1e9]
    atoms.set_momenta(np.random.default_rng(1).normal(size=(4, 3)))
    found = read_back(tmp_path, atoms)
    assert (np.asarray(found.cell) == np.asarray(atoms.cell)).all()
    for name in ("REF_forces", "momenta"):
        np.testing.assert_array_equal(found.arrays[name], atoms.arrays[name])


ENTRIES: dict[str, Any] = {
    "text": "two words",
    "blank": "",
    "space": " ",
    "number as text": "12",
    "truth as text": "T",
    "truths as text": "T F",
    "nan as text": "nan",
    "quotes": 'it\'s "quoted" {x} [y]',
    "equals": "a=b c=d",
    "backslash": "C:\\new\\table \\",
    "lines": "first\nsecond\r\nthird\u2028fourth\x85fifth\x0csixth",
    "tab": "a\tb",
    "unicode": "Grüße, 水",
    "surrogate": "\udc80",
    "json": '_JSON {"a": 1}',
    "none": None,
    "true": True,
    "numpy true": np.True_,
    "integer": 7,
    "large integer": 2**80,
    "float": 0.1 + 0.2,
    "whole float": 2.0,
    "single": np.float32(0.1),
    "nan": float("nan"),
    "infinity": -np.inf,
    "numbers": np.array([0.1, 2.0]),
    "whole numbers": np.array([1, 2, 3]),
    "one number": np.array([5.0]),
    "no numbers": np.array([]),
    "truths": np.array([True, False]),
    "matrix": np.arange(6.0).reshape(2, 3) / 7,
    "nine": np.arange(9.0).reshape(3, 3),
    "list": [1, 2, 3],
    "ragged": [[1, 2], [3]],
    "names": ["a", "b c", ""],
    "mixed": [1, "a", None, True],
    "empty list": [],
    "empty dict": {},
    "dict": {"a": [1, 2], "b": {"c": "d\ne"}, "e": np.array([1.5, 2.5])},
}
KEYS = ["walker", "with space", "a=b", 'quo"te', "it's", "back\\slash", "new\nline", "größe", "energy", "free_energy",
        "stress", "dipole", "pbc", "Lattice", "Properties", "uid", "virial", "", "_JSON", "REF_x", "{",
        "ubmd_other"]  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(b, list) and not isinstance(a, np.ndarray):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(b, np.ndarray | list):
        return np.shape(a) == np.shape(b) and np.array_equal(a, b)
    return bool(a is b or a == b or (a != a and b != b)) and isinstance(a, str) == isinstance(b, str)


@pytest.mark.parametrize("value", [*ENTRIES.values()], ids=[*ENTRIES])
def test_entries_come_back(tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture) -> None:
    atoms = molecule("H2O")
    atoms.info = {"before": 1, "x": value, "uid": value, "after": "text"}
    found = read_back(tmp_path, atoms).info
    assert (found["before"], found["after"]) == (1, "text")
    assert equal(found["x"], value), (found["x"], value)
    assert equal(found["uid"], value), (found["uid"], value)
    assert not caplog.records


@pytest.mark.parametrize("key", KEYS, ids=ascii)
def test_names_of_entries_come_back(tmp_path: Path, key: str, caplog: pytest.LogCaptureFixture) -> None:
    atoms = molecule("H2O")
    atoms.info = {"before": 1, key: 2.5, "after": "text"}
    found = read_back(tmp_path, atoms).info
    assert found == atoms.info
    assert not [record for record in caplog.records if record.name == "ubmd.data.io"]


ARRAYS: dict[str, Any] = {
    "blank names": np.array(["", "", ""]),
    "some blank": np.array(["WAT", "", "W T"]),
    "names": np.array(["WAT", "H#1", "Ä"]),
    "objects": np.array(["a", "b", "c"], dtype=object),
    "mixed objects": np.array(["a", None, 1.5], dtype=object),
    "lines": np.array(["a\nb", "c", "d\u2028"]),
    "columns of names": np.array([["a", "b"], ["c", "d"], ["e", "f"]]),
    "three-dimensional": np.arange(27.0).reshape(3, 3, 3) / 7,
    "one column": np.arange(3.0).reshape(3, 1),
    "no column": np.zeros((3, 0)),
    "single precision": np.array([0.1, 0.2, 0.3], dtype=np.float32),
    "half precision": np.array([0.1, 0.2, 0.3], dtype=np.float16),
    "bytes of numbers": np.array([1, 2, 255], dtype=np.uint8),
    "large": np.array([2**40, -(2**40), 1]),
    "truths": np.array([True, False, True]),
    "columns of truths": np.array([[True, False]] * 3),
    "not numbers": np.array([np.nan, np.inf, -0.0]),
}
NAMES = ["mine", "with:colon", "with space", "forces", "charges", "charge", "stresses", "Z", "pos", "pos1", "species",
         "symbols", "move_mask", "energies", 'quo"te', "größe", "new\nline", "9", "", "tags",
         "initial_magmoms"]  # fmt: skip


@pytest.mark.parametrize("values", [*ARRAYS.values()], ids=[*ARRAYS])
def test_arrays_come_back(tmp_path: Path, values: Any, caplog: pytest.LogCaptureFixture) -> None:
    atoms = molecule("H2O")
    atoms.arrays["residuenames"] = values
    found = read_back(tmp_path, atoms).arrays["residuenames"]
    assert found.shape == values.shape
    assert found.tolist() == values.tolist() or np.array_equal(found, values, equal_nan=True)
    assert not caplog.records


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_of_arrays_come_back(tmp_path: Path, name: str) -> None:
    atoms = molecule("H2O")
    values = np.array([[1.5, 2.0, 0.0]] * 3) if name == "forces" else np.array([1.5, 2.0, 0.0])
    atoms.arrays[name] = values
    atoms.arrays["mine0"], atoms.arrays["other"] = values.copy(), np.ones((3, 2))
    atoms.arrays["other1"] = np.zeros(3)
    found = read_back(tmp_path, atoms)
    assert found.arrays.keys() == atoms.arrays.keys()
    for key in found.arrays:
        np.testing.assert_array_equal(found.arrays[key], atoms.arrays[key])
    assert found.calc is None


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    atoms = molecule("H2O")
    atoms.info = {"kept": 1, "object": object(), 3: "key", "complex": 1j}
    atoms.arrays["complex"] = np.ones(3) * 1j
    atoms.set_constraint([FixBondLength(0, 1), FixAtoms([2])])
    found = read_back(tmp_path, atoms)
    assert found.info == {"kept": 1}
    assert found.constraints[0].index.tolist() == [2]
    told = [record.getMessage() for record in caplog.records]
    for name in ("info['object']", "info[3]", "info['complex']", "arrays['complex']", "FixBondLengths"):
        assert sum(f"{name} of 2 structures" in line for line in told) == 1
    assert len(told) == 5


def test_constraints_come_back(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.set_constraint([FixAtoms([0]), FixCartesian(1, mask=(True, False, False))])
    atoms.arrays["move_mask0"] = np.zeros(3)
    found = read_back(tmp_path, atoms)
    moved = found.copy()
    moved.set_positions(found.positions + 1)
    expected = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 1]])
    np.testing.assert_allclose(moved.positions - found.positions, expected, atol=1e-12)

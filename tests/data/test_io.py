from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from ubmd.data.io import check_species, check_structure, read_labelled, read_structures, write_structures
from ubmd.errors import InputError

STRESS = np.array([[0.1, 0.02, -0.03], [0.02, -0.4, 0.005], [-0.03, 0.005, 0.7]])


def water(**info: object) -> Atoms:
    """Labelled with an energy that a text of few digits, or single precision, would not hold."""
    atoms = molecule("H2O")
    atoms.info = {"REF_energy": -56123.123456789012, **info}
    atoms.arrays["REF_forces"] = np.array([[0.1, -0.25, 3.0], [1e-8, 0.0, -12.5], [7.0, 8.0, 9.0]])
    return atoms


def copper() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.info = {"REF_energy": -1 / 3, "REF_stress": STRESS.copy()}
    atoms.arrays["REF_forces"] = np.round(np.random.default_rng(0).normal(size=(4, 3)), 8)
    return atoms


def one_sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.extxyz"
    structures = [water(walker=3, step=200), copper(), water()]
    write_structures(path, structures)
    found = read_labelled(path)
    assert len(found) == 3
    for ours, theirs in zip(found, structures, strict=True):
        np.testing.assert_array_equal(ours.numbers, theirs.numbers)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        np.testing.assert_array_equal(ours.cell, theirs.cell)
        np.testing.assert_array_equal(ours.pbc, theirs.pbc)
        assert ours.info["REF_energy"] == theirs.info["REF_energy"]
        np.testing.assert_array_equal(ours.arrays["REF_forces"], theirs.arrays["REF_forces"])
    np.testing.assert_array_equal(found[1].info["REF_stress"], STRESS)
    assert (found[0].info["walker"], found[0].info["step"]) == (3, 200)
    assert "REF_stress" not in found[0].info
    assert [p.name for p in path.parent.iterdir()] == ["data.extxyz"]


def test_writing_again_gives_the_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "a.extxyz", tmp_path / "b.extxyz"
    write_structures(first, [water(), copper()])
    write_structures(second, read_labelled(first))
    assert first.read_bytes() == second.read_bytes()


def test_form_of_the_file(tmp_path: Path) -> None:
    """Stress is nine numbers and nothing is JSON, as other programs' readers expect."""
    atoms = copper()
    write_structures(tmp_path / "data.extxyz", [atoms])
    header = (tmp_path / "data.extxyz").read_text().splitlines()[1]
    numbers = header.split('REF_stress="')[1].split('"')[0].split()
    assert [float(n) for n in numbers] == STRESS.ravel().tolist()
    assert "REF_forces:R:3" in header
    assert "_JSON" not in header
    assert atoms.info["REF_stress"].shape == (3, 3), "the structure itself was changed"


MACE = """\
3
Properties=species:S:1:pos:R:3:REF_forces:R:3 config_type=Default REF_energy=-2080.25 pbc="F F F"
O 0.0 0.0 0.119 0.5 0.0 -0.25
H 0.0 0.763 -0.477 0.0 0.125 0.0
H 0.0 -0.763 -0.477 -0.5 -0.125 0.25
1
Lattice="4.0 0.0 0.0 0.0 4.0 0.0 0.0 0.0 4.0" Properties=species:S:1:pos:R:3:REF_forces:R:3 \
REF_energy=-7.5 REF_stress="0.1 0.02 -0.03 0.02 -0.4 0.005 -0.03 0.005 0.7" pbc="T T T"
O 0.0 0.0 0.0 0.0 0.0 0.0
"""


def test_files_of_others(tmp_path: Path) -> None:
    """As data sets for MACE are written."""
    path = tmp_path / "train.xyz"
    path.write_text(MACE)
    first, second = read_labelled(path)
    assert first.info["REF_energy"] == -2080.25
    np.testing.assert_array_equal(first.arrays["REF_forces"][:, 1], [0.0, 0.125, -0.125])
    assert second.info["REF_energy"] == -7.5
    np.testing.assert_array_equal(second.info["REF_stress"], STRESS)
    assert second.pbc.all()


@pytest.mark.parametrize("name", ["data.extxyz", "data.traj"])
def test_results_of_calculators_are_labels(tmp_path: Path, name: str) -> None:
    """Energy, forces and stress under ASE's own keys."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(np.asarray(atoms.cell) * [[1.02], [0.99], [1.0]] + [[0, 0.1, 0], [0, 0, 0.05], [0, 0, 0]])
    atoms.calc = EMT()
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    ase.io.write(tmp_path / name, atoms)
    (found,) = read_labelled(tmp_path / name)
    assert found.calc is None
    assert found.info["REF_energy"] == pytest.approx(energy, rel=1e-12)
    np.testing.assert_allclose(found.arrays["REF_forces"], forces, atol=1e-8)
    np.testing.assert_allclose(found.info["REF_stress"], stress, atol=1e-8)


def test_reference_keys_win_over_results(tmp_path: Path) -> None:
    atoms = water()
    atoms.calc = SinglePointCalculator(atoms, energy=5.0, forces=np.ones((3, 3)))
    ase.io.write(tmp_path / "data.extxyz", atoms)
    (found,) = read_labelled(tmp_path / "data.extxyz")
    assert found.info["REF_energy"] == atoms.info["REF_energy"]
    np.testing.assert_array_equal(found.arrays["REF_forces"], atoms.arrays["REF_forces"])


@pytest.mark.parametrize(
    "text",
    [
        "0.1 -0.4 0.7 0.005 -0.03 0.02",
        "0.1 0.02 -0.03 0.02 -0.4 0.005 -0.03 0.005 0.7",
    ],
    ids=["six", "nine"],
)
def test_forms_of_stress(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.extxyz").write_text(f'1\nProperties=species:S:1:pos:R:3 REF_stress="{text}"\nH 0 0 0\n')
    (found,) = read_structures(tmp_path / "a.extxyz")
    np.testing.assert_array_equal(found.info["REF_stress"], STRESS)


def test_index_and_no_structures(tmp_path: Path) -> None:
    path = tmp_path / "data.extxyz"
    write_structures(path, [molecule("H2O"), molecule("CH4")])
    assert [len(a) for a in read_structures(path, index="1")] == [5]
    assert [len(a) for a in read_structures(path, index="0")] == [3]
    write_structures(path, [])
    assert path.read_text() == ""
    with pytest.raises(InputError, match=r"data\.extxyz"):
        read_structures(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.extxyz"
    write_structures(path, [water()])
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_structures(path, [water(), water()])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["data.extxyz"]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.xyz does not exist; give the path") as error:
        read_structures(tmp_path / "nowhere.xyz")
    one_sentence(error)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xyz", b""),
        ("a.xyz", b"garbage\nmore\n"),
        ("a.xyz", bytes(range(256))),
        ("a.xyz", b"3\n\nO 0 0 0\n"),
        ("a.extxyz", b"2\nProperties=species:S:1:pos:R:3\nO 0 0 0\nH 0 x 1\n"),
        ("a.unknown", b"something"),
        ("a.cif", b"data_\n"),
    ],
    ids=["empty", "text", "bytes", "short", "letters", "format", "cif"],
)
def test_unreadable(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"structure file .*{name} (cannot be read|holds no)"):
        read_structures(tmp_path / name)


def damaged(change: str) -> Atoms:
    atoms = copper() if change in ("no volume", "flat", "nan cell") else water()
    if change == "no atoms":
        return Atoms()
    if change == "nan":
        atoms.positions[1, 2] = np.nan
    if change == "infinite":
        atoms.positions[1, 2] = np.inf
    if change == "ghost":
        atoms.numbers[1] = 0
    if change == "unknown":
        atoms.numbers[1] = 119
    if change == "far":
        atoms.positions[2] = [1e5, 0, 0]
    if change == "wide":
        atoms = Atoms("H", cell=[1e5, 4, 4], pbc=True)
    if change == "thin":
        atoms = Atoms("H", cell=[4, 4, 0.01], pbc=True)
    if change == "coinciding":
        atoms.positions[2] = atoms.positions[1] + 1e-5
    if change == "no volume":
        atoms.set_cell(np.zeros((3, 3)))
    if change == "flat":
        atoms.set_cell([[4, 0, 0], [0, 4, 0], [4, 4, 1e-9]])
    if change == "nan cell":
        atoms.set_cell([[4, 0, 0], [0, 4, 0], [0, 0, np.nan]])
    return atoms


@pytest.mark.filterwarnings("ignore:invalid value encountered in det")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no atoms", "the input has no atoms"),
        ("nan", "the input has a position that is not a number at atom 1; repair"),
        ("infinite", "the input has a position that is not a number at atom 1; repair"),
        ("ghost", r"the input has an atom X \(a ghost\), atom 1, which is no element; remove it"),
        ("unknown", "the input has an atom of number 119, atom 1, which is no element; remove it"),
        ("far", r"the input has atom 2 1e\+05 Å from the origin, beyond the 10000 Å up to which positions are exact"),
        ("wide", r"the input has a lattice vector of 1e\+05 Å, above 10000 Å; repair its cell"),
        ("thin", r"the input has a lattice vector of 0.01 Å, below 0.1 Å; repair its cell"),
        ("coinciding", r"the input has two atoms in the same place \(atom [12]\); remove one"),
        ("no volume", "the input is periodic but its cell has zero volume; give its lattice"),
        ("flat", "the input is periodic but its cell has zero volume; give its lattice"),
        ("nan cell", "the input is periodic but its cell has zero volume; give its lattice"),
    ],
)
def test_unusable_structures(change: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        check_structure(damaged(change), "the input")
    one_sentence(error)


@pytest.mark.parametrize("place", [[0.0, 0.0, 1e-5], [3.0, 3.0, 0.0]], ids=["atoms", "images"])
def test_coinciding_atoms_in_a_crystal(place: list[float]) -> None:
    atoms = Atoms("Cu2", [[0, 0, 0], place], cell=[3, 3, 3], pbc=True)
    with pytest.raises(InputError, match="two atoms in the same place"):
        check_structure(atoms, "the input")


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False), (False, False, False)], ids=str)
def test_partly_periodic_structures_are_fine(pbc: tuple[bool, ...]) -> None:
    cell = np.diag([3.0, 4.0, 5.0]) * np.array(pbc)[:, None]
    check_structure(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], cell=cell, pbc=pbc), "the input")


def test_the_structure_in_the_file_is_named(tmp_path: Path) -> None:
    broken = water()
    broken.positions[0, 0] = np.nan
    ase.io.write(tmp_path / "data.extxyz", [water(), broken], format="extxyz")
    with pytest.raises(InputError, match=r"structure 1 of .*data\.extxyz has a position"):
        read_structures(tmp_path / "data.extxyz")


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (["REF_energy"], "has no REF_energy; label it first"),
        (["REF_forces"], "has no REF_forces; label it first"),
        (["REF_energy", "REF_forces"], "has no REF_energy and no REF_forces; label it first"),
    ],
)
def test_unlabelled(tmp_path: Path, lacking: list[str], message: str) -> None:
    atoms = water()
    for key in lacking:
        (atoms.info if key in atoms.info else atoms.arrays).pop(key)
    write_structures(tmp_path / "data.extxyz", [water(), atoms])
    assert len(read_structures(tmp_path / "data.extxyz")) == 2
    with pytest.raises(InputError, match=f"structure 1 of .*data.extxyz {message}") as error:
        read_labelled(tmp_path / "data.extxyz")
    one_sentence(error)


def test_stress_of_wrong_size(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "a.extxyz", water(REF_stress=np.ones(4)), format="extxyz")
    with pytest.raises(InputError, match=r"structure 0 of .* REF_stress of 4 numbers; write 9"):
        read_structures(tmp_path / "a.extxyz")


BAD_LABELS = {
    "energy nan": ("REF_energy", np.nan),
    "energy text": ("REF_energy", "unknown"),
    "energy vector": ("REF_energy", np.zeros(2)),
    "forces nan": ("REF_forces", np.full((3, 3), np.nan)),
    "forces shape": ("REF_forces", np.zeros((3, 2))),
    "stress nan": ("REF_stress", np.full(9, np.nan)),
    "stress text": ("REF_stress", "unknown"),
}


@pytest.mark.parametrize(("key", "value"), [*BAD_LABELS.values()], ids=[*BAD_LABELS])
def test_unusable_labels(tmp_path: Path, key: str, value: object) -> None:
    atoms = water()
    (atoms.arrays if key == "REF_forces" else atoms.info)[key] = value
    ase.io.write(tmp_path / "data.extxyz", atoms, format="extxyz")
    with pytest.raises(InputError, match=f"structure 0 of .*{key}"):
        read_labelled(tmp_path / "data.extxyz")


def test_foreign_elements() -> None:
    check_species([molecule("CH4"), molecule("H2O")], ["O", "C", "H"], "data.test")
    message = r"structure 1 of data.test contains O, which is not in system.species=\['C', 'H'\]; add it"
    with pytest.raises(InputError, match=message) as error:
        check_species([molecule("CH4"), molecule("H2O")], ["H", "C"], "data.test")
    one_sentence(error)


@pytest.mark.parametrize(("distance", "told"), [(900.0, False), (1500.0, True)])
def test_atoms_far_from_the_origin_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, distance: float, told: bool
) -> None:
    far = water()
    far.positions += [0, -distance, 0]
    write_structures(tmp_path / "far.extxyz", [water(), far])
    read_structures(tmp_path / "far.extxyz")
    assert ("atoms are 1501 Å from the origin, where positions in float32 are exact to 1e-04 Å" in caplog.text) == told
    assert bool(caplog.records) == told


def test_sites_that_are_occupied_in_part(tmp_path: Path) -> None:
    """The same file with whole sites is read."""
    cell = "\n".join(f"_cell_length_{a} 3.6" for a in "abc") + "\n"
    cell += "\n".join(f"_cell_angle_{a} 90" for a in ("alpha", "beta", "gamma"))
    columns = ["label", "type_symbol", "fract_x", "fract_y", "fract_z", "occupancy"]
    head = f"data_x\n{cell}\nloop_\n" + "".join(f"_atom_site_{name}\n" for name in columns)
    path = tmp_path / "alloy.cif"
    path.write_text(f"{head}Cu1 Cu 0 0 0 0.5\nZn1 Zn 0 0 0 0.5\n")
    with pytest.raises(InputError, match=r"structure 0 of .* has a site that Cu occupies to 0\.5, an average"):
        read_structures(path)
    path.write_text(f"{head}Cu1 Cu 0 0 0 1.0\nZn1 Zn 0.5 0.5 0.5 1.0\n")
    assert read_structures(path)[0].get_chemical_formula() == "CuZn"

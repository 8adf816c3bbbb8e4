"""Systems that a run is of: their names, their share of the walkers, which structure is whose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ubmd.data.io import write_structures
from ubmd.errors import InputError
from ubmd.observables import Distance
from ubmd.systems.several import Systems, dealt
from ubmd.systems.system import System


def write(folder: Path, **frames: list[Atoms]) -> list[str]:
    for name, structures in frames.items():
        write_structures(folder / f"{name}.extxyz", structures)
    return [str(folder / f"{name}.extxyz") for name in frames]


def moved(atoms: Atoms, seed: int) -> Atoms:
    copy = atoms.copy()
    copy.rattle(0.02, seed=seed)
    return copy


def test_systems_of_files(tmp_path: Path) -> None:
    water, salt = molecule("H2O"), bulk("NaCl", "rocksalt", 5.6, cubic=True)
    files = write(tmp_path, water=[water], salt_2=[moved(salt, 0), moved(salt, 1), moved(salt, 2)])
    systems = Systems(files, n_initial=2, strain=0.01)
    assert list(systems.parts) == ["water", "salt_2"]
    assert systems.symbols == ["H", "O", "Na", "Cl"]
    assert systems.named
    assert [part.strain for part in systems.parts.values()] == [0.0, 0.01]
    assert [len(part.given) for part in systems.parts.values()] == [0, 3]
    starts = systems.initial_structures(5)
    assert [atoms.info["system"] for atoms in starts] == ["water"] * 2 + ["salt_2"] * 2
    named = Systems({"w": files[0], "s": salt})
    assert list(named.parts) == ["w", "s"]


def test_frames_of_one_file(tmp_path: Path) -> None:
    """Frames of the same atoms are of a system; isomers, and molecules that state a name, are told apart."""
    ethanol, ether, water = molecule("CH3CH2OH"), molecule("CH3OCH3"), molecule("H2O")
    ice = molecule("H2O")
    ice.info["system"] = "ice"
    frames = [ethanol, water, moved(ethanol, 1), ether, ice, moved(ice, 1)]
    frames[-1].info["system"] = "ice"
    (file,) = write(tmp_path, all=[*frames])
    systems = Systems(file)
    assert {name: max(len(part.given), 1) for name, part in systems.parts.items()} == {
        "C2H6O": 2,
        "H2O": 1,
        "C2H6O_2": 1,
        "ice": 2,
    }


def test_streams_of_a_system_are_its_own() -> None:
    """Another system beside it changes nothing: a run of it alone, with its seed, starts from the same structures."""
    water, ammonia = molecule("H2O"), molecule("NH3")
    both, one = Systems({"w": water, "a": ammonia}), Systems({"a": ammonia})
    assert both.seed("a", 3) == one.seed("a", 3) != both.seed("w", 3)
    alone = Systems.of(System(ammonia))
    assert alone.seed("", 3) == 3
    for x, y in zip(both.initial_structures(3)[8:], alone.initial_structures(both.seed("a", 3)), strict=True):
        np.testing.assert_array_equal(x.positions, y.positions)
        assert (x.info, y.info) == ({"system": "a"}, {})


def test_whose_a_structure_is() -> None:
    salt = bulk("NaCl", "rocksalt", 5.6, cubic=True)
    systems = Systems({"water": molecule("H2O"), "salt": salt, "ethanol": molecule("CH3CH2OH")})
    gas = salt.copy()
    gas.pbc = False
    assert systems.name_of(molecule("H2O")) == "water"
    assert systems.name_of(salt.repeat(2)) == "salt"
    assert systems.name_of(molecule("CH3OCH3")) == "ethanol"  # by its atoms alone; info tells otherwise
    assert systems.name_of(gas) is None
    gas.info["system"] = "salt"
    assert systems.name_of(gas) == "salt"
    two = Systems({"ether": molecule("CH3OCH3"), "ethanol": molecule("CH3CH2OH")})
    assert two.name_of(molecule("CH3OCH3")) is None
    assert Systems.of(System(salt)).name_of(gas) == ""


def test_variables_have_the_name_of_their_system() -> None:
    crystal = System(bulk("Cu", cubic=True), states={"small": {"volume": (0, 40)}})
    systems = Systems(parts={"cu": crystal, "water": System(molecule("H2O"), variables={"d": Distance([0, 1])})})
    assert [list(part) for part in systems.followed("cu")] == [["cu_volume"], ["small"]]
    assert systems.followed("cu")[1]["small"] == {"cu_volume": (0, 40)}
    assert list(systems.followed("water")[0]) == ["water_d"]
    assert Systems.of(crystal).followed("") == (crystal.variables, crystal.states)


@pytest.mark.parametrize(
    ("n", "weights", "counts"),
    [
        (4, {"a": 1, "b": 1}, {"a": 2, "b": 2}),
        (9, {"a": 2, "b": 1}, {"a": 6, "b": 3}),
        (3, {"a": 1, "b": 1}, {"a": 2, "b": 1}),
        (10, {"a": 1e-9, "b": 1}, {"a": 1, "b": 9}),
        (0, {}, {}),
    ],
)
def test_walkers_are_dealt(n: int, weights: dict[str, float], counts: dict[str, int]) -> None:
    assert dealt(n, weights, dict.fromkeys(weights, 1)) == counts


def test_many_walkers_are_dealt_in_proportion() -> None:
    rng = np.random.default_rng(0)
    weights = {str(k): float(w) for k, w in enumerate(rng.uniform(1, 5, 20))}
    counts = dealt(2000, weights, dict.fromkeys(weights, 1))
    assert sum(counts.values()) == 2000
    total = math.fsum(weights.values())
    assert all(abs(counts[name] - 2000 * weight / total) < 1.5 for name, weight in weights.items())


def test_refuses_too_few_walkers() -> None:
    with pytest.raises(InputError, match=r"dynamics.n_walkers=3 is too few for 2 systems, which need at least 4 "):
        dealt(3, {"a": 1, "b": 1}, {"a": 2, "b": 2})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "system.structures is missing"),
        ({"structures": {"a b": molecule("H2O")}}, "system.parts.a b must be named by letters"),
        (
            {"structures": {"w": molecule("H2O")}, "parts": {"w": System(molecule("H2O"))}},
            "system.parts.w has the name of one of system.structures",
        ),
        ({"structures": {"w": molecule("H2O")}, "weights": {"x": 1}}, "system.weights.x is of no system; there are w"),
        ({"structures": {"w": molecule("H2O")}, "dynamics": {"x": 1}}, "system.dynamics.x is of no system"),
        ({"structures": {"w": molecule("H2O")}, "weights": {"w": 0}}, "system.weights.w=0 must be a positive number"),
        (
            {"structures": {"w": molecule("H2O")}, "weights": {"w": 1}, "dynamics": {"w": 1}},
            "set system.dynamics.w.n_walkers",
        ),
        (
            {"structures": {"w": molecule("H2O"), "m": molecule("CH4")}, "species": ["H", "O"]},
            r"system m contains C, which is not in system.species=\['H', 'O'\]",
        ),
        ({"structures": {"w": Atoms("H2")}}, "system.structures: w: system.structure has two atoms in the same place"),
    ],
)
def test_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Systems(**options)


def test_refuses_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = write(tmp_path, water=[molecule("H2O")]) + write(tmp_path / "b", water=[molecule("H2O")])
    with pytest.raises(InputError, match=r"would both be named water; name systems yourself"):
        Systems(files)
    (mixed,) = write(tmp_path, mixed=[molecule("CH3CH2OH"), molecule("CH3OCH3")])
    with pytest.raises(InputError, match=r"system.structures: mixed: .* is of other atoms"):
        Systems([mixed])

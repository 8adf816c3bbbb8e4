"""Charge and spin of a structure: where they are read from, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ubmd.data.electronic import (
    ElectronicState,
    Stated,
    charge_and_unpaired,
    check_state_options,
    electronic_state,
    handed_on,
    stated,
    tell_radical,
)
from ubmd.errors import InputError


def water(charges: list[float] | None = None, magmoms: list[float] | None = None, **info: object) -> Atoms:
    atoms = molecule("H2O")  # 10 electrons
    if charges is not None:
        atoms.set_initial_charges(charges)
    if magmoms is not None:
        atoms.set_initial_magnetic_moments(magmoms)
    atoms.info.update(info)
    return atoms


@pytest.mark.parametrize(
    ("atoms", "charge", "multiplicity"),
    [
        (water(), 0, None),
        (water(charge=1), 1, None),
        (water(charge=np.float32(-1.0), spin=np.array([2])), -1, 2),
        (water(total_charge=1, multiplicity=4), 1, 4),
        (water(charge=1, total_charge=1.0), 1, None),
        (water([0.2, 0.4, 0.4]), 1, None),
        (water([-0.8, 0.4, 0.401]), 0, None),  # partial charges of a file, rounded
        (water([0.0, 0.0, 0.0], [0, 0, 0], charge=1), 1, None),  # arrays of zeros are everywhere
        (water([1, 0, 0], [1, 0, 0], charge=1, spin=2), 1, 2),
        (water(magmoms=[1, 1, 0]), 0, 3),
        (water(magmoms=[0, -1, -1]), 0, 3),
        (water(magmoms=[0, 1, -1]), 0, 1),
        (water(spin=0), 0, 1),
    ],
)
def test_what_structures_state(atoms: Atoms, charge: int, multiplicity: int | None) -> None:
    assert electronic_state(atoms) == ElectronicState(charge, multiplicity, 1 + charge % 2)


@pytest.mark.parametrize(
    ("atoms", "sentence"),
    [
        (water([1, 0, 0], charge=-1), "charge of -1 but the initial charges add up to 1;"),
        (water([1, 0, 0], charge=0), "charge of 0 but the initial charges add up to 1;"),
        (water(charge=1, total_charge=2), "info has charge=1 but total_charge=2; remove one"),
        (water(charge=0.5), "a charge of 0.5, which is no whole number"),
        (water([0.3, 0, 0]), "a charge of 0.3, which is no whole number"),
        (water(charge="one"), "charge=one, which is no number"),
        (water(charge=True), "charge=True, which is no number"),
        (water(charge=np.nan), "charge=nan, which is no number"),
        (water(charge=[1, 0, 0]), "which is no number"),
        (water(charge=11), "its charge of 11 is more than it has electrons"),
        (water(spin=2), r"multiplicity of 2 \(2S \+ 1\) is impossible for 10 electrons \(charge 0\)"),
        (water(charge=1, spin=1), "multiplicity of 1 .* impossible for 9 electrons"),
        (water(charge=1, spin=0), "multiplicity of 1 .* impossible for 9 electrons"),
        (water(spin=13), "multiplicity of 13 .* impossible for 10 electrons"),
        (water(spin=1.5), "unpaired electrons of 0.5, which is no whole number"),
        (water(magmoms=[1, 0, 0]), "multiplicity of 2 .* impossible for 10 electrons"),
        (water(magmoms=[2.2, 0, 0]), "unpaired electrons of 2.2, which is no whole number"),
        (water(magmoms=[1, 1, 0], spin=1), "multiplicity .spin. of 1 but the initial magnetic moments add up to 2"),
    ],
)
def test_what_cannot_be_is_refused(atoms: Atoms, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        electronic_state(atoms)


def test_options_beside_what_structures_state() -> None:
    assert electronic_state(water(), charge=1, multiplicity=2) == ElectronicState(1, 2, 2)
    assert electronic_state(water(charge=1), charge=1).charge == 1
    with pytest.raises(InputError, match=r"states a charge of 1 but reference.charge=0; use reference.charge=null"):
        electronic_state(water(charge=1), charge=0)
    with pytest.raises(InputError, match=r"states a multiplicity of 3 but reference.multiplicity=1"):
        electronic_state(water(spin=3), multiplicity=1)
    for charge, multiplicity in ((0.5, None), (True, None), (None, 0), (None, 1.5)):
        with pytest.raises(InputError, match="whole number"):
            check_state_options(charge, multiplicity)


def test_magnetic_moments_of_crystals_are_first_guesses() -> None:
    """Nothing but their sum is looked at, and that only where a method asks for a multiplicity."""
    iron = bulk("Fe")
    iron.set_initial_magnetic_moments([2.2])
    assert stated(iron) == Stated(None, 2.2)
    assert "spin" not in handed_on(iron).info
    iron.arrays["initial_magmoms"] = np.array([[0, 0, 2.0]])
    assert stated(iron) == Stated(None, None)
    with pytest.raises(InputError, match="are vectors"):
        electronic_state(iron)


def test_both_ways_of_stating_it_are_handed_on() -> None:
    ion = water(total_charge=1, spin=2)
    found = handed_on(ion)
    assert found.get_initial_charges().sum() == pytest.approx(1)
    assert found.get_initial_magnetic_moments().sum() == pytest.approx(1)
    assert found.info["charge"] == 1
    assert not ion.has("initial_charges")
    found = handed_on(water([-1, 0, 0], [1, 0, 0]))
    assert (found.info["charge"], found.info["spin"]) == (-1, 2)
    assert handed_on(water(charge=0)).arrays.keys() == water().arrays.keys()


@pytest.mark.parametrize(
    ("atoms", "expected"),
    [
        (water(), (0, 0)),
        (water(charge=1), (1, 1)),
        (water([0.5, 0.5, 0.001]), (1, 1)),
        (water(spin=3), (0, 2)),
        (water(charge=1, spin=2), (1, 1)),
        (water(magmoms=[1, 1, 0]), (0, 2)),
        (bulk("Fe"), (0, 0)),
    ],
)
def test_states_are_told_apart(atoms: Atoms, expected: tuple[float, float]) -> None:
    assert charge_and_unpaired(atoms) == expected
    if atoms.pbc.any():
        atoms.set_initial_magnetic_moments([2.2])
        assert charge_and_unpaired(atoms) == expected
        assert atoms.has("initial_magmoms")


def test_an_ion_without_its_charge_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    radical, known = Atoms("NH4"), Atoms("NH4", info={"charge": 1})
    meant = Atoms("NH4", info={"spin": 2})
    for atoms in (known, meant, Atoms("NH4", pbc=True, cell=[5, 5, 5]), molecule("H2O")):
        tell_radical(atoms, electronic_state(atoms))
    tell_radical(radical, electronic_state(radical, charge=0), charge=0)
    assert not caplog.messages
    for _ in range(2):
        tell_radical(radical, electronic_state(radical))
    (message,) = caplog.messages
    assert message.startswith("H4N states neither charge nor spin and has an odd number of electrons")

"""What a run must fulfil, of plain functions alone."""

from __future__ import annotations

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from omegaconf import OmegaConf

from ubmd.errors import InputError
from ubmd.rounds.checks import check_test
from ubmd.systems.system import System


def stating(**info: float) -> Atoms:
    atoms = molecule("OH")
    atoms.set_initial_magnetic_moments(None)
    atoms.info = info
    return atoms


def checked(system: Atoms, *test: Atoms, **reference: int | None) -> None:
    check_test(OmegaConf.create({"reference": reference}), System(system), test)


@pytest.mark.parametrize(
    ("system", "test", "reference"),
    [
        ({}, {}, {}),
        ({}, {"charge": 0, "spin": 4}, {}),  # nothing says which multiplicity the system has
        ({"charge": -1}, {"charge": -1.0}, {"charge": None}),
        ({}, {"charge": -1}, {"charge": -1}),
        ({"spin": 2}, {"spin": 2}, {}),
    ],
)
def test_structures_of_the_same_state(system, test, reference) -> None:
    checked(stating(**system), stating(**test), **reference)


@pytest.mark.parametrize(
    ("system", "test", "reference", "message"),
    [
        ({}, {"charge": 1}, {}, "structure 1 of data.test has the charge 1, the system 0"),
        ({"charge": -1}, {"charge": 0}, {}, "has the charge 0, the system -1"),
        ({}, {"charge": 0}, {"charge": 1}, "has the charge 0, the system 1"),
        ({"spin": 2}, {"spin": 4}, {}, "has the multiplicity 4, the system 2"),
        ({}, {"spin": 4}, {"multiplicity": 2}, "has the multiplicity 4, the system 2"),
    ],
)
def test_structures_of_another_state_are_refused(system, test, reference, message) -> None:
    with pytest.raises(InputError, match=message):
        checked(stating(**system), stating(**system), stating(**test), **reference)


def test_a_charge_that_is_not_stated_is_said(caplog) -> None:
    checked(stating(charge=-1), stating(), stating(charge=-1))
    assert "1 structures state no charge; it is taken for that of the system, -1" in caplog.text


def test_moments_of_crystals_say_no_multiplicity() -> None:
    iron = [bulk("Fe", cubic=True) for _ in range(2)]
    for atoms, moment in zip(iron, (2.2, 2.3), strict=True):
        atoms.set_initial_magnetic_moments([moment, moment])
    checked(*iron)

"""The total charge and the spin of a structure: the one place that says where they are read from, and how.

A structure may state its total charge as ``info["charge"]`` (or ``total_charge``), e, or as the sum of its
``initial_charges``; and its spin as ``info["spin"]`` (or ``multiplicity``, ``spin_multiplicity``), which is the
multiplicity 2S + 1 as in the data sets of molecular potentials (1 for a singlet, 2 for a doublet), or as the sum of its
``initial_magmoms``, which is the number of unpaired electrons, 2S. Arrays of zeros state nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import numpy as np
from ase import Atoms

from ubmd.errors import InputError

__all__ = [
    "ELECTRONIC",
    "ElectronicState",
    "charge_and_unpaired",
    "check_state_options",
    "electronic_state",
    "handed_on",
    "stated",
    "tell_radical",
]

log = logging.getLogger(__name__)

CHARGE_KEYS = ("charge", "total_charge")
SPIN_KEYS = ("spin", "multiplicity", "spin_multiplicity")
ELECTRONIC = ("initial_magmoms", "initial_charges", *CHARGE_KEYS, *SPIN_KEYS)
"""Arrays and entries of ``info`` that state charge and spin."""

_ROUNDING = 0.01
"""Largest deviation of a sum over atoms from a whole number that is rounding in a file."""


@dataclass(frozen=True)
class Stated:
    """What a structure says about itself."""

    charge: float | None
    """Total charge, e; None if it says nothing."""
    unpaired: float | None
    """Number of unpaired electrons; None if it says nothing, or in vectors."""


@dataclass(frozen=True)
class ElectronicState:
    """Total charge and spin multiplicity of a computation."""

    charge: int
    """e."""
    multiplicity: int | None
    """2S + 1; None where nothing says it: the lowest."""
    lowest: int
    """The lowest multiplicity, 1 or 2, for the number of electrons."""


def stated(atoms: Atoms) -> Stated:
    """What a structure says about its charge and spin.

    Raises:
        InputError: it says what is no number, or contradicts itself.
    """
    charge = _entry(atoms, CHARGE_KEYS)
    multiplicity = _entry(atoms, SPIN_KEYS)
    # 0 is what is written where nobody thought of spin; a singlet in every convention
    unpaired = None if multiplicity is None else max(multiplicity - 1.0, 0.0)
    charges, moments = _sum(atoms, "initial_charges"), _sum(atoms, "initial_magmoms")
    if charge is not None and charges is not None and abs(charge - charges) > _ROUNDING:
        raise InputError(
            f"info has a charge of {charge:g} but the initial charges add up to {charges:g}; correct or remove one"
        )
    if unpaired is not None and moments is not None and abs(unpaired - abs(moments)) > _ROUNDING:
        raise InputError(
            f"info has a multiplicity (spin) of {multiplicity:g} but the initial magnetic moments add up to "
            f"{moments:g} unpaired electrons; correct or remove one"
        )
    return Stated(
        charge if charge is not None else charges,
        unpaired if unpaired is not None else None if moments is None else abs(moments),
    )


def electronic_state(atoms: Atoms, *, charge: int | None = None, multiplicity: int | None = None) -> ElectronicState:
    """Charge and multiplicity that a structure is to be computed with.

    Args:
        atoms: the structure.
        charge: ``reference.charge``, e; None: what the structure states, or 0.
        multiplicity: ``reference.multiplicity``; None: what the structure states, or nothing.

    Raises:
        InputError: the structure contradicts itself or the options, or no such state exists.
    """
    found = stated(atoms)
    if found.charge is not None:
        total = _whole(found.charge, "charge")
        if charge is not None and charge != total:
            raise InputError(f"it states a charge of {total} but reference.charge={charge}; use reference.charge=null")
        charge = total
    if "initial_magmoms" in atoms.arrays and atoms.arrays["initial_magmoms"].ndim > 1:
        raise InputError("its initial magnetic moments are vectors, which say no multiplicity; give info['spin']")
    if found.unpaired is not None:
        own = _whole(found.unpaired, "number of unpaired electrons") + 1
        if multiplicity is not None and multiplicity != own:
            raise InputError(
                f"it states a multiplicity of {own} but reference.multiplicity={multiplicity}; use "
                "reference.multiplicity=null"
            )
        multiplicity = own
    charge = charge or 0
    electrons = int(atoms.numbers.sum()) - charge
    if electrons < 0:
        raise InputError(f"its charge of {charge} is more than it has electrons ({electrons + charge})")
    if multiplicity is not None and ((multiplicity - 1 - electrons) % 2 or multiplicity - 1 > electrons):
        missing = "charge (info charge)" if found.charge is None else "multiplicity (info spin)"
        raise InputError(
            f"a multiplicity of {multiplicity} (2S + 1) is impossible for {electrons} electrons (charge {charge}); "
            f"give the {missing} that belongs to it"
        )
    return ElectronicState(charge, multiplicity, 1 + electrons % 2)


def tell_radical(atoms: Atoms, state: ElectronicState, charge: int | None = None) -> None:
    """Says once a formula that a molecule is taken as a radical: mostly it is an ion whose charge was forgotten.

    Args:
        atoms: the structure; of a crystal, which may well have an odd number of electrons, nothing is said.
        state: of :func:`electronic_state`.
        charge: the option ``reference.charge``, which says what is meant, as charge or spin of the structure do.
    """
    meant = charge is not None or state.multiplicity is not None or stated(atoms).charge is not None
    if state.lowest == 2 and not meant and not atoms.pbc.any():
        _tell_radical(atoms.get_chemical_formula())


@cache
def _tell_radical(formula: str) -> None:
    log.warning(
        "%s states neither charge nor spin and has an odd number of electrons: it is computed as a neutral radical; "
        "give an ion its charge (info charge, or reference.charge)",
        formula,
    )


def charge_and_unpaired(atoms: Atoms) -> tuple[float, float]:
    """Total charge (e) and number of unpaired electrons, as stated or else 0 and the lowest, to tell states apart.

    Moments of a periodic structure's atoms are first guesses, which state nothing here.

    Raises:
        InputError: as :func:`stated`.
    """
    if atoms.pbc.any() and "initial_magmoms" in atoms.arrays:
        atoms = atoms.copy()
        del atoms.arrays["initial_magmoms"]
    found = stated(atoms)
    charge = found.charge or 0.0
    charge = float(round(charge)) if _is_whole(charge) else charge
    lowest = (int(atoms.numbers.sum()) - round(charge)) % 2
    return charge, float(lowest if found.unpaired is None else found.unpaired)


def check_state_options(charge: object, multiplicity: object) -> None:
    """Raises InputError for a charge that is no whole number or a multiplicity that is no positive one."""
    if charge is not None and (isinstance(charge, bool) or not isinstance(charge, int)):
        raise InputError(f"reference.charge={charge} must be a whole number, or null for that of the structure")
    if multiplicity is not None and (
        isinstance(multiplicity, bool) or not isinstance(multiplicity, int) or multiplicity < 1
    ):
        raise InputError(
            f"reference.multiplicity={multiplicity} must be a positive whole number, 2S + 1, or null for that of the "
            "structure"
        )


def handed_on(atoms: Atoms) -> Atoms:
    """Copy that states its charge and spin both ways, for a calculator of which it is not known what it reads.

    What only ``info`` states becomes initial charges or moments, the same on every atom, whose sum is right; what only
    the arrays of a molecule state becomes ``charge`` and ``spin`` of ``info``, where it is a whole number. Periodic
    structures keep to their arrays: the moments there are first guesses rather than a statement.

    Raises:
        InputError: as :func:`stated`.
    """
    found, copy = stated(atoms), atoms.copy()
    if found.charge and _sum(atoms, "initial_charges") is None:
        copy.set_initial_charges(np.full(len(atoms), found.charge / len(atoms)))
    if found.unpaired and _sum(atoms, "initial_magmoms") is None:
        copy.set_initial_magnetic_moments(np.full(len(atoms), found.unpaired / len(atoms)))
    for key, keys, number, offset in (("charge", CHARGE_KEYS, found.charge, 0), ("spin", SPIN_KEYS, found.unpaired, 1)):
        stated_here = _entry(atoms, keys) is not None or not atoms.pbc.any()
        if number and key not in atoms.info and stated_here and _is_whole(number):
            copy.info[key] = round(number) + offset
    return copy


def _entry(atoms: Atoms, keys: tuple[str, ...]) -> float | None:
    """The number that entries of ``info`` agree on; None without any."""
    values: dict[str, float] = {}
    for key in keys:
        if key not in atoms.info:
            continue
        value = atoms.info[key]
        try:
            number = np.asarray(value).reshape(()).astype(float).item()
        except (TypeError, ValueError):
            number = np.nan
        if isinstance(value, bool | np.bool_) or not np.isfinite(number):
            raise InputError(f"info has {key}={value}, which is no number; correct or remove it")
        values[key] = number
    if len(set(values.values())) > 1:
        raise InputError(f"info has {' but '.join(f'{key}={value:g}' for key, value in values.items())}; remove one")
    return next(iter(values.values()), None)


def _sum(atoms: Atoms, name: str) -> float | None:
    """Sum of an array over atoms; None if it is not there, zero throughout, or of vectors."""
    values = atoms.arrays.get(name)
    if values is None or values.ndim > 1 or not np.any(values):
        return None
    if not np.isfinite(values).all():
        raise InputError(f"its {name} are not all numbers; correct or remove them")
    return float(values.sum())


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) <= _ROUNDING


def _whole(value: float, what: str) -> int:
    if not _is_whole(value):
        raise InputError(f"it states a {what} of {value:g}, which is no whole number; correct or remove it")
    return round(value)

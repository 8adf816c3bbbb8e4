"""Any ASE calculator as a reference."""

from __future__ import annotations

import copy
import logging
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.calculators.calculator import (
    BadConfiguration,
    CalculationFailed,
    EnvironmentError,
    FileIOCalculator,
    SCFError,
)
from ase.stress import voigt_6_to_full_3x3_stress

from ubmd.data.electronic import ELECTRONIC, handed_on, stated
from ubmd.errors import InputError
from ubmd.reference.base import Label, Plain, Reference, ReferenceError, UnfinishedError, checked_label, class_path
from ubmd.reference.programs import check_program

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

log = logging.getLogger(__name__)

_CHARGE, _MULTIPLICITY = ("charge", "total_charge"), ("multiplicity", "mult", "spin_multiplicity")
"""Names that calculators give to parameters of their own for charge and multiplicity."""
_NOT_SET_UP = (ImportError, EnvironmentError, BadConfiguration)
_BROKEN_OFF = (OSError, MemoryError, subprocess.SubprocessError)


class ASEReference(Reference):
    """Labels from an ASE calculator, a fresh calculation for every structure.

    The energy is the one that the forces are the gradient of (``free_energy``) where the calculator tells
    them apart. Forces are those of the atoms, whatever constraints the structure carries. The stress is asked
    for where the structure is periodic in three directions and the calculator implements it.

    What a calculator raises counts as a failure of the structure, but for errors of the operating system, of
    memory, and of a program that ends with an error: they say nothing about the structure.

    In a configuration::

        reference:
          _target_: ubmd.reference.ase_reference.ASEReference
          calculator: {_target_: ase.calculators.emt.EMT}

    Args:
        calculator: the calculator; its ``parameters`` identify the labels, as they are now.
        name: told apart in the label store; give one where ``parameters`` do not say all that matters.
        reads: names of further arrays and entries of ``info`` that the calculator reads of a structure. Charge and
            spin are handed to every calculator, as ``info`` and as initial charges and moments; naming ``charge`` or
            ``spin`` here says that this one heeds them.

    Raises:
        InputError: the calculator computes no energy or no forces.
    """

    def __init__(self, calculator: BaseCalculator, name: str | None = None, reads: Sequence[str] = ()) -> None:
        implemented = calculator.implemented_properties
        if not {"energy", "forces"} <= set(implemented):
            raise InputError(
                f"calculator: {class_path(calculator)} computes {implemented} but energy and forces are "
                "needed; choose another calculator"
            )
        self.calculator = calculator
        self.reads = (*ELECTRONIC, *(entry for entry in reads if entry not in ELECTRONIC))
        self._heeds = frozenset(reads)
        self._told = False
        self._energy = "free_energy" if "free_energy" in implemented else "energy"
        self.has_stress = "stress" in implemented
        # Taken now: some calculators add to their parameters while they run.
        self._fingerprint: dict[str, Plain] = {
            "class": class_path(self),
            "calculator": class_path(calculator),
            "parameters": _plain(calculator.parameters or {}),
            "energy": self._energy,
            "name": name,
        }

    def fingerprint(self) -> dict[str, Plain]:
        """Class and parameters of the calculator, and the name."""
        return copy.deepcopy(self._fingerprint)

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: the calculator raised (chained) or returned values that are not finite.
            UnfinishedError: the calculation broke off (chained).
            InputError: the calculator lacks its program, its configuration or a package.
        """
        self.check()
        structure = handed_on(atoms)
        structure.set_constraint()  # some calculators pass constraints on to their program
        calculator = self.calculator
        # Results must not depend on what was calculated before, nor on what failed.
        _reset(calculator)
        try:
            forces = calculator.get_property("forces", structure)
            stress = None
            if self.has_stress and structure.pbc.all():
                stress = voigt_6_to_full_3x3_stress(calculator.get_property("stress", structure))
            energy = calculator.get_property(self._energy, structure)
        except Exception as error:
            _reset(calculator)
            message = f"{type(error).__name__}: {error}"
            if isinstance(error, _NOT_SET_UP):
                raise InputError(f"reference: {class_path(calculator)} is not set up ({message})") from error
            raise (UnfinishedError if self._broke_off(error) else ReferenceError)(message) from error
        if energy is None or forces is None:
            raise ReferenceError("the calculator returned no energy or no forces")
        return checked_label(float(energy), forces, stress, len(structure))

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse a structure that contradicts itself or the calculator's parameters; warn if it may not be heeded.

        Raises:
            InputError: the calculator has parameters of its own for charge or multiplicity, which are others.
        """
        found = stated(atoms)
        multiplicity = None if found.unpaired is None else found.unpaired + 1
        own = self.calculator.parameters or {}
        for name, value, keys in (("charge", found.charge, _CHARGE), ("spin", multiplicity, _MULTIPLICITY)):
            given = {key: own[key] for key in keys if isinstance(own.get(key), int | float)}
            for key, parameter in given.items():
                if value is not None and abs(value - parameter) > 1e-6:
                    raise InputError(
                        f"it states a {name} of {value:g} but {key}={parameter} of {class_path(self.calculator)}; set "
                        f"the calculator's {key} or remove one"
                    )
            if value not in (None, 0.0 if name == "charge" else 1.0) and not given and name not in self._heeds:
                self._tell(f"a {name} of {value:g}", name)

    def _tell(self, what: str, name: str) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "structures state %s, which %s is handed (info and initial charges or moments); whether it heeds that "
                "is not known here (reference.reads=[%s] says that it does)",
                what,
                class_path(self.calculator),
                name,
            )

    def check(self) -> None:
        """Refuse a calculator whose program, if it says which one that is, is not on this machine.

        Raises:
            InputError: the program is missing.
        """
        command = getattr(getattr(self.calculator, "profile", None), "command", None)
        if isinstance(command, str):
            check_program(command, class_path(self.calculator), "install it, or set the calculator's command")

    def _broke_off(self, error: Exception) -> bool:
        if isinstance(error, CalculationFailed) and not isinstance(error, SCFError):
            return isinstance(self.calculator, FileIOCalculator)  # the program's exit status is all it says
        return isinstance(error, _BROKEN_OFF)


def _reset(calculator: BaseCalculator) -> None:
    reset = getattr(calculator, "reset", None)  # BaseCalculator has none, its best-known subclass has
    if reset is not None:
        reset()
    else:
        calculator.atoms = None
        calculator.results = {}


def _plain(value: object) -> Plain:
    """The value as plain JSON types; text for what has no such form, without memory addresses."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))

"""Any ASE calculator as a reference."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from ase.calculators.calculator import BadConfiguration, CalculatorSetupError, EnvironmentError, SCFError
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from ubmd.data.electronic import ELECTRONIC, handed_on, stated
from ubmd.errors import InputError
from ubmd.precision import precision
from ubmd.reference.base import (
    Label,
    Plain,
    Reference,
    ReferenceError,
    SetupError,
    UnfinishedError,
    checked_label,
    class_path,
    same_structure,
    told,
)
from ubmd.reference.identity import code_of, described, targets
from ubmd.reference.isolation import default_dtype, isolated
from ubmd.reference.programs import check_program
from ubmd.secrecy import hidden

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator

log = logging.getLogger(__name__)

_CHARGE, _MULTIPLICITY = ("charge", "total_charge"), ("multiplicity", "mult", "spin_multiplicity")
"""Names that calculators give to parameters of their own for charge and multiplicity."""
_NOT_SET_UP = (ImportError, EnvironmentError, BadConfiguration, CalculatorSetupError)


class ASEReference(Reference):
    """Labels from an ASE calculator, a fresh calculation for every structure.

    The energy is the one that the forces are the gradient of (``free_energy``) where the calculator tells
    them apart. Forces are those of the atoms, whatever constraints the structure carries. The stress is asked
    for where the structure is periodic in three directions and the calculator implements it.

    An SCF that does not converge, if the calculator says so (``ase.calculators.calculator.SCFError``, or a class of
    errors with "Convergence" in its name), is a failure of the structure, which is remembered. Whatever else a
    calculator raises may have another reason, and is never remembered.

    In a configuration::

        reference:
          _target_: ubmd.reference.ase_reference.ASEReference
          _recursive_: false
          calculator: {_target_: ase.calculators.emt.EMT}

    Args:
        calculator: the node of a configuration that makes the calculator, and identifies its labels with every argument
            and the contents of files that arguments name; or a calculator, whose class and ``parameters`` rarely say
            all, so that nothing of it is kept for other runs unless it has a name.
        name: told apart in the label store.
        reads: names of further arrays and entries of ``info`` that the calculator reads of a structure. Charge and
            spin are handed to every calculator, as ``info`` and as initial charges and moments; naming ``charge`` or
            ``spin`` here says that this one heeds them.

    Raises:
        InputError: the calculator computes no energy or no forces.
    """

    def __init__(
        self,
        calculator: BaseCalculator | Mapping[str, Any],
        name: str | None = None,
        reads: Sequence[str] = (),
    ) -> None:
        node = _plain_node(calculator) if isinstance(calculator, Mapping) else None
        with isolated():  # what it sets for its own use, such as the precision of new tensors, is for it alone
            if isinstance(calculator, Mapping):
                calculator = cast("BaseCalculator", instantiate(calculator))
            self._dtype = default_dtype()
        implemented = getattr(calculator, "implemented_properties", ())
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
        modules = {type(calculator).__module__} | {_module_of(target) for target in targets(node)}
        code = code_of(modules)
        self.identified = name is not None or (node is not None and code.complete)
        self._versions = code.versions
        # Taken now: some calculators add to their parameters while they run, and files change.
        self._fingerprint: dict[str, Plain] = {"class": class_path(self), "name": name}
        if node is None:
            parameters = _plain(getattr(calculator, "parameters", None) or {})
            self._fingerprint |= {
                "calculator": class_path(calculator),
                "parameters": parameters,
                "energy": self._energy,
            }
        else:
            self._fingerprint["calculator"] = described(node)
        if code.source is not None:
            self._fingerprint["source"] = code.source
        self._fingerprint = hidden(self._fingerprint)

    def fingerprint(self) -> dict[str, Plain]:
        """The calculator's configuration, or its class and parameters; its code if that is no package's; the name."""
        return copy.deepcopy(self._fingerprint)

    def versions(self) -> dict[str, str]:
        return dict(self._versions)

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: the calculator says that it did not converge (chained).
            UnfinishedError: the calculation broke off (chained), returned what is no label, or changed the structure.
            SetupError: the calculator lacks its program, its configuration or a package (chained).
            InputError: the calculator's program is not on this machine.
        """
        self.check()
        structure = handed_on(atoms)
        structure.set_constraint()  # some calculators pass constraints on to their program
        calculator = self.calculator
        # Results must not depend on what was calculated before, nor on what failed.
        _reset(calculator)
        try:
            with precision(self._dtype):
                forces = calculator.get_property("forces", structure)
                stress = None
                if self.has_stress and structure.pbc.all():
                    stress = calculator.get_property("stress", structure)
                energy = calculator.get_property(self._energy, structure)
        except (Exception, SystemExit) as error:
            _reset(calculator)
            if isinstance(error, _NOT_SET_UP):
                raise SetupError(f"{class_path(calculator)} is not set up ({told(error)})") from error
            raise (ReferenceError if _did_not_converge(error) else UnfinishedError)(told(error)) from error
        if not same_structure(structure, atoms):
            raise UnfinishedError("the calculator changed the structure that it was given; hand it a copy inside it")
        return checked_label(energy, forces, stress, len(structure))

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse a structure that contradicts itself or the calculator's parameters; warn if it may not be heeded.

        Raises:
            InputError: the calculator has parameters of its own for charge or multiplicity, which are others.
        """
        found = stated(atoms)
        multiplicity = None if found.unpaired is None else found.unpaired + 1
        own = getattr(self.calculator, "parameters", None) or {}
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
            check_program(
                command, class_path(self.calculator), "install it, or set the calculator's command", shell=True
            )


def _did_not_converge(error: BaseException) -> bool:
    """Whether the error says so itself; CalculationFailed is also what a program that crashed comes to."""
    return isinstance(error, SCFError) or any("Convergence" in kind.__name__ for kind in type(error).__mro__)


def _plain_node(node: Mapping[str, Any]) -> Any:
    return OmegaConf.to_container(OmegaConf.create(dict(node)), resolve=True)


def _module_of(target: str) -> str:
    """The module that defines what a configuration names."""
    found = get_object(target)
    return getattr(found, "__module__", None) or target.rpartition(".")[0]


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

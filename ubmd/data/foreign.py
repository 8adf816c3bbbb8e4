"""Labels in the words of others: their keys, units and conventions of stress, turned into ubmd's.

Inside, energies are eV, lengths Å, and stress is positive under tension (:mod:`ubmd.units`); ``REF_energy``,
``REF_forces`` and ``REF_stress`` are its keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ase.units
import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.errors import InputError

__all__ = ["OWN_KEYS", "LabelKeys", "LabelUnits", "convert_labels", "label_like"]

OWN_KEYS = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}

_OPTION = "data.keys"
_ENERGY, _LENGTH, _STRESS = (1, 0), (0, 1), (1, -3)
_UNITS: dict[str, tuple[float, tuple[int, int]]] = {
    **dict.fromkeys(("ev",), (1.0, _ENERGY)),
    "mev": (1e-3, _ENERGY),
    **dict.fromkeys(("hartree", "ha", "eh"), (ase.units.Hartree, _ENERGY)),
    **dict.fromkeys(("rydberg", "ry"), (ase.units.Rydberg, _ENERGY)),
    "kcal/mol": (ase.units.kcal / ase.units.mol, _ENERGY),
    "kj/mol": (ase.units.kJ / ase.units.mol, _ENERGY),
    **dict.fromkeys(("å", "a", "ang", "angstrom"), (1.0, _LENGTH)),
    **dict.fromkeys(("bohr", "a0"), (ase.units.Bohr, _LENGTH)),
    "nm": (10.0, _LENGTH),
    "gpa": (ase.units.GPa, _STRESS),
    "mpa": (1e-3 * ase.units.GPa, _STRESS),
    "pa": (ase.units.Pascal, _STRESS),
    **dict.fromkeys(("kbar", "kb"), (0.1 * ase.units.GPa, _STRESS)),
    "bar": (ase.units.bar, _STRESS),
}
"""Values in eV and Å, and powers of energy and length."""
_NAMES = "eV, meV, Hartree, Ry, kcal/mol, kJ/mol, Ang, Bohr, nm, GPa, MPa, kbar, bar, Pa and quotients, e.g. eV/Ang**3"
_VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass(frozen=True)
class LabelKeys:
    """What the labels of a file are called there.

    Without any, they are ``REF_energy``, ``REF_forces`` and ``REF_stress``, or else the results of a calculator that
    ASE reads. With one, energy and forces that have none are ``REF_energy`` and ``REF_forces``, and there is no stress
    but what ``stress`` or ``virial`` name.

    Args:
        energy: entry of a structure's ``info``, or a result as ASE calls it.
        forces: columns of its atoms, or a result as ASE calls it.
        stress: entry of ``info``: nine numbers, 3x3, or six.
        virial: entry of ``info`` that is the stress times the volume; with both, they are compared.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None

    def __post_init__(self) -> None:
        names = [name for name in asdict(self).values() if name is not None]
        for part, name in asdict(self).items():
            if name is not None and (not name.strip() or names.count(name) > 1):
                raise InputError(f"{_OPTION}.{part}={name} must be the name of a label, and of no other one")

    @property
    def given(self) -> bool:
        """Whether anything is named."""
        return any(name is not None for name in asdict(self).values())

    @property
    def in_file(self) -> dict[str, str]:
        """The name of each label that is read: energy, forces and what there is of stress and virial."""
        names = {"energy": self.energy or OWN_KEYS["energy"], "forces": self.forces or OWN_KEYS["forces"]}
        return names | {k: v for k, v in (("stress", self.stress), ("virial", self.virial)) if v is not None}


@dataclass(frozen=True)
class LabelUnits:
    """Units and conventions of a file's labels.

    Units are names (eV, meV, Hartree, Ry, kcal/mol, kJ/mol, Å or Ang, Bohr, nm, GPa, MPa, kbar, bar) and quotients of
    them: ``Hartree/Bohr``, ``eV/Å^3``; also without letters that a command line has to quote, ``eV/Ang**3``.

    Args:
        energy: of energies.
        forces: of forces; None is eV/Å, and is to be given where energies are not in eV.
        stress: of stress; None is eV/Å³, and is to be given where there is one and energies are not in eV.
        virial: of virials, an energy; None is eV, as above.
        length: of positions and cells.
        stress_positive: where stress is positive: under ``tension`` (ASE, MACE) or ``pressure`` (VASP).
        virial_positive: where the virial is: under ``pressure`` (minus stress times volume: GAP, MACE, DeePMD)
            or ``tension``.
        voigt: order of stress and virials of six numbers; that of VASP is ``xx yy zz xy yz xz``.

    Raises:
        InputError: for a name that is no unit, or one of something else, and for an order that is none.
    """

    energy: str = "eV"
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None
    length: str = "Å"
    stress_positive: Literal["tension", "pressure"] = "tension"
    virial_positive: Literal["tension", "pressure"] = "pressure"
    voigt: str = " ".join(_VOIGT)

    def __post_init__(self) -> None:
        kinds = {"energy": _ENERGY, "forces": (1, -1), "stress": _STRESS, "virial": _ENERGY, "length": _LENGTH}
        for part, kind in kinds.items():
            if (text := getattr(self, part)) is not None:
                _value(text, kind, part)
        order = self.voigt.lower().split()
        named = {"".join(sorted(pair)) for pair in order}
        if len(order) != 6 or named != set(_VOIGT):
            raise InputError(f"data.units.voigt={self.voigt} must name the six numbers, as in {' '.join(_VOIGT)}")

    @property
    def own(self) -> bool:
        """Whether all is as ubmd has it."""
        return self == LabelUnits()

    def factor(self, part: str) -> float:
        """What the labels of a part are multiplied with, without signs.

        Raises:
            InputError: the unit is not given, although energies are not in eV.
        """
        unit = getattr(self, part)
        if unit is not None:
            return _value(unit, None, part)
        if self.factor("energy") != 1:
            said = {"forces": f"{self.energy}/Ang or {self.energy}/Bohr", "virial": self.energy}
            example = said.get(part, "GPa or eV/Ang**3")  # a shell's override takes no Å and ^
            raise InputError(
                f"data.units.energy={self.energy} leaves the unit of the {part} open; give it as "
                f"data.units.{part}=UNIT, e.g. {example}"
            )
        return 1.0

    def told(self, part: str) -> str:
        """A part's unit behind the name of a label, where it is not ubmd's."""
        unit = getattr(self, part)
        return "" if unit in (None, "eV") else f" in {unit}"

    def scale(self, atoms: Atoms) -> None:
        """Turns positions and cell into Å."""
        factor = self.factor("length")
        if factor != 1:
            atoms.set_cell(factor * atoms.cell.array, scale_atoms=False)
            atoms.positions *= factor

    def matrix(self, values: NDArray[np.float64], key: str, name: str) -> NDArray[np.float64]:
        """[3, 3] from nine numbers or six in the order of ``voigt``.

        Raises:
            InputError: for another number of them, or nine that are not symmetric.
        """
        if values.size not in (6, 9):
            raise InputError(f"{name} has a {key} of {values.size} numbers; stress and virials have 9 or 6")
        if values.size == 6:
            full = np.empty((3, 3))
            for pair, value in zip(self.voigt.lower().split(), values.reshape(6), strict=True):
                i, j = ("xyz".index(letter) for letter in pair)
                full[i, j] = full[j, i] = value
            return full
        full = values.reshape(3, 3)
        if np.abs(full - full.T).max() > 1e-3 * np.abs(full).max() + 1e-5:
            raise InputError(f"{name} has a {key} that is not symmetric; repair or remove the structure")
        return full


def _value(text: str, kind: tuple[int, int] | None, part: str) -> float:
    """The value of a unit in eV and Å; InputError if it is none, or not of the powers ``kind``."""
    words = re.sub(r"[\s()]", "", text).replace("Å", "å").replace("³", "^3").replace("**", "^").lower()
    words = words.replace("*", "/") if "/" in words else words  # kcal/(mol*Å) is kcal/mol/Å
    words = re.sub(r"(kcal|kj)/mol", r"\1:mol", words)
    value, powers = 1.0, np.zeros(2, dtype=int)
    for number, word in enumerate(words.split("/")):
        found = re.fullmatch(r"([^\d^]+|a0)(?:\^?([1-9]))?", word.replace(":", "/"))
        unit = _UNITS.get(found.group(1)) if found else None
        if unit is None or found is None:
            raise InputError(f"data.units.{part}={text} is no unit that is known; write {_NAMES}")
        power = int(found.group(2) or 1) * (-1 if number else 1)
        value, powers = value * unit[0] ** power, powers + power * np.array(unit[1])
    if kind is not None and tuple(powers) != kind:
        what = {"energy": "an energy", "length": "a length", "virial": "an energy (a stress times a volume)"}
        what |= {"forces": "an energy by a length", "stress": "a pressure"}
        raise InputError(f"data.units.{part}={text} must be {what[part]}, of {_NAMES}")
    return value


def convert_labels(
    frames: Sequence[Atoms],
    results: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    file: str,
    keys: Mapping[str, str],
    units: LabelUnits,
    *,
    complete: bool,
) -> None:
    """Puts the labels of structures under ``REF_`` keys, in ubmd's units.

    Args:
        frames: structures; they are changed.
        results: those that a calculator had, of each.
        names: of the structures, for messages.
        file: their file, for messages.
        keys: name of each label that is read: of energy, forces, stress and virial.
        units: of the labels.
        complete: refuse what only some structures have; structures without anything like a label are unlabelled.

    Raises:
        InputError: for a label that some structures have and others do not (stress and virials: some crystals), that
            is no number or of another shape, and for a stress and a virial that do not agree.
    """
    found = [_labels(atoms, result, keys) for atoms, result in zip(frames, results, strict=True)]
    unlabelled = not any(found) and not any(map(label_like, frames))
    for part in () if unlabelled or not complete else keys:
        _check_in_all(part, frames, found, names, file, keys)
    for atoms, labels, name in zip(frames, found, names, strict=True):
        free = atoms.info.pop("REF_free_energy", None)
        if free is not None and keys["energy"] == OWN_KEYS["energy"]:  # they are compared
            atoms.info["REF_free_energy"] = float(_numbers(free, "REF_free_energy", name)) * units.factor("energy")
        for key in ("REF_energy", "REF_stress"):
            atoms.info.pop(key, None)
        atoms.arrays.pop("REF_forces", None)
        numbers = {part: _numbers(value, keys[part], name) for part, value in labels.items()}
        if "energy" in numbers:
            if numbers["energy"].size != 1:
                raise InputError(f"{name} has a {keys['energy']} of {numbers['energy'].size} numbers instead of one")
            atoms.info["REF_energy"] = float(numbers["energy"].reshape(())) * units.factor("energy")
        if "forces" in numbers:
            if numbers["forces"].shape != (len(atoms), 3):
                raise InputError(
                    f"{name} has {keys['forces']} of shape {numbers['forces'].shape} instead of three numbers an atom"
                )
            atoms.arrays["REF_forces"] = numbers["forces"] * units.factor("forces")
        if atoms.pbc.all():
            _store_stress(atoms, numbers, name, keys, units)


def label_like(atoms: Atoms) -> list[str]:
    """What a structure has that may be an energy or forces, by their names."""
    return [str(key) for key in (*atoms.info, *atoms.arrays) if any(w in str(key).lower() for w in ("energ", "force"))]


def _labels(atoms: Atoms, results: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """The labels that a structure has, by part."""
    out = {}
    for part, key in keys.items():
        for place in (atoms.arrays if part == "forces" else atoms.info, results):
            if part not in out and place.get(key) is not None:
                out[part] = place[key]
    return out


def _check_in_all(
    part: str,
    frames: Sequence[Atoms],
    found: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    file: str,
    keys: Mapping[str, str],
) -> None:
    """Refuses a label that nothing has, or not all that should."""
    of_crystals = part in ("stress", "virial")
    having = [part in labels for labels in found]
    lacking = [k for k, has in enumerate(having) if not has and (not of_crystals or frames[k].pbc.all())]
    if not any(having):
        there = sorted(
            {str(key) for atoms in frames for key in (*atoms.info, *atoms.arrays)} - {"numbers", "positions"}
        )
        raise InputError(
            f"no structure of {file} has {keys[part]}, which {_OPTION}.{part} names; there "
            + (f"are {', '.join(there)}" if there else "is nothing else")
        )
    if lacking:
        which = "other crystals" if of_crystals else "others"
        raise InputError(
            f"{names[lacking[0]]} has no {keys[part]}, which {which} have; add it, or remove the structures without"
            + (f", or leave {_OPTION}.{part} out" if of_crystals else "")
        )


def _numbers(label: Any, key: str, name: str) -> NDArray[np.float64]:
    try:
        values = np.asarray(label, dtype=float)
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if isinstance(label, bool | np.bool_) or not np.isfinite(values).all():
        raise InputError(f"{name} has a {key} that is not a number; repair or remove the structure")
    return values


def _store_stress(
    atoms: Atoms, numbers: Mapping[str, NDArray[np.float64]], name: str, keys: Mapping[str, str], units: LabelUnits
) -> None:
    """The stress of a crystal from what there is, which has to agree."""
    stresses = {}
    for part in ("stress", "virial"):
        if part not in numbers:
            continue
        if keys[part] == "stress" and units.voigt.lower().split() != [*_VOIGT]:
            raise InputError(
                f"{name}: ASE reads stress under the name stress, so that data.units.voigt cannot apply to it; rename "
                "it in the file or leave data.units.voigt out"
            )
        sign = 1.0 if getattr(units, f"{part}_positive") == "tension" else -1.0
        full = units.matrix(numbers[part], keys[part], name) * (sign * units.factor(part))
        stresses[part] = full / (atoms.get_volume() if part == "virial" else 1.0)
    if len(stresses) == 2:
        stress, other = stresses["stress"], stresses["virial"]
        if np.abs(stress - other).max() > 1e-3 * np.abs(stress).max() + 1e-5:
            raise InputError(
                f"{name}: {keys['stress']} and {keys['virial']} do not agree ({stress[0, 0]:.5g} and {other[0, 0]:.5g} "
                "eV/Å³ along xx, positive under tension); correct data.units, or name one of them only"
            )
    for stress in stresses.values():
        atoms.info["REF_stress"] = stress
        break

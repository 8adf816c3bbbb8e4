"""Labels of the structures in a file: energy, forces and stress of one method, under ``REF_`` keys."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.stress import voigt_6_to_full_3x3_stress

from ubmd.data.foreign import OWN_KEYS, LabelKeys, LabelUnits, convert_labels, label_like
from ubmd.errors import InputError

__all__ = ["SYSTEM", "adopt_labels", "has_stress", "is_labelled", "lacking_labels"]

log = logging.getLogger(__name__)

SYSTEM = "system"
"""Entry of a structure's ``info`` that names the system it is of, in runs of several."""

Results = Mapping[str, Any]

_VIRIALS = ("virial", "virials", "REF_virial", "REF_virials")


def is_labelled(atoms: Atoms) -> bool:
    """Whether a structure carries an energy and forces."""
    return "REF_energy" in atoms.info and "REF_forces" in atoms.arrays


def has_stress(atoms: Atoms) -> bool:
    """Whether a structure carries a stress that means something: that of a crystal, periodic in three directions."""
    return bool(atoms.pbc.all()) and "REF_stress" in atoms.info


def lacking_labels(atoms: Atoms) -> str:
    """What keeps a structure from being labelled, and what it has instead; empty for a labelled one."""
    lacks = [key for key in ("REF_energy",) if key not in atoms.info]
    lacks += [key for key in ("REF_forces",) if key not in atoms.arrays]
    if not lacks:
        return ""
    similar = sorted(set(label_like(atoms)) - {"REF_energy", "REF_forces", "model_energy", "model_forces"})
    return f"no {' and no '.join(lacks)}" + (f" (but {', '.join(similar)})" if similar else "")


def adopt_labels(
    frames: Sequence[Atoms],
    names: Sequence[str],
    file: str,
    keys: LabelKeys | None = None,
    units: LabelUnits | None = None,
) -> str:
    """Puts the labels of a file's structures under ``REF_`` keys and takes their calculators away.

    All labels come from one source: ``REF_`` keys where one structure has them, else the results of a calculator,
    which are ASE's ``energy``, ``free_energy``, ``forces`` and ``stress``. The free energy is taken where it
    differs from the energy, because the forces are its derivative. Names that are given replace all of that.

    Args:
        frames: structures as ASE read them; they are changed.
        names: of the structures, for messages.
        file: name of the file, for messages.
        keys: what the labels are called in the file; None as above.
        units: of the labels; None for ubmd's.

    Returns:
        what was taken, in words; empty if nothing was.

    Raises:
        InputError: if the structures have labels of different sources, or labels that are none.
    """
    results = [_take_results(atoms) for atoms in frames]
    ours = [_has_own_keys(atoms) for atoms in frames]
    source = dict(OWN_KEYS)
    keys, units = keys or LabelKeys(), units or LabelUnits()
    beside = ""
    if keys.given:
        source = keys.in_file
        convert_labels(frames, results, names, file, source, units, complete=True)
    elif any(ours):
        foreign = [k for k, (own, found) in enumerate(zip(ours, results, strict=True)) if not own and _complete(found)]
        if foreign:
            raise InputError(
                f"{names[foreign[0]]} has energy and forces of a calculator, but {names[ours.index(True)]} has REF_ "
                "keys; labels of one file come from one method: give all of them REF_ keys, or none"
            )
        unused = sorted({key for found in results for key in found})
        beside = f"; {', '.join(unused)} beside them are not used" if unused else ""
    else:
        source = {"energy": _energy_key(results, names), "forces": "forces", "stress": "stress"}
    if not keys.given and not units.own:
        convert_labels(frames, results, names, file, source, units, complete=False)
    elif not any(ours) and not keys.given:
        for atoms, found in zip(frames, results, strict=True):
            _store(atoms, found, source["energy"])
    n_voigt = sum(np.size(atoms.info["REF_stress"]) == 6 for atoms in frames if "REF_stress" in atoms.info)
    if any(ours) and n_voigt:
        log.info("%s: REF_stress of six numbers, in %d structures, is read as xx yy zz yz xz xy", file, n_voigt)
    for atoms, name in zip(frames, names, strict=True):
        _check_labels(atoms, name)
    _remark(frames, file)
    n, n_stress = sum(map(is_labelled, frames)), sum("REF_stress" in atoms.info for atoms in frames)
    if not n:
        return ""
    names_read = {part: key for part, key in source.items() if n_stress or part in ("energy", "forces")}
    told = ", ".join(key + units.told(part) for part, key in names_read.items())
    return f"{n} labelled ({told}{f' in {n_stress}' if 0 < n_stress < n else ''}){beside}"


def _has_own_keys(atoms: Atoms) -> bool:
    return "REF_energy" in atoms.info or "REF_stress" in atoms.info or "REF_forces" in atoms.arrays


def _complete(results: Results) -> bool:
    return "forces" in results and ("energy" in results or "free_energy" in results)


def _take_results(atoms: Atoms) -> dict[str, Any]:
    """Labels among the results of a calculator, which is taken away."""
    atoms.calc, calculator = None, atoms.calc
    results = getattr(calculator, "results", {})
    return {key: results[key] for key in ("energy", "free_energy", "forces", "stress") if results.get(key) is not None}


def _energy_key(results: Sequence[Results], names: Sequence[str]) -> str:
    """``energy``, or ``free_energy`` if the two differ in any structure; every structure must have that one."""
    labelled = [k for k, found in enumerate(results) if _complete(found)]
    key = "energy"
    for k in labelled:
        both = [results[k].get("energy"), results[k].get("free_energy")]
        try:
            if both[1] is not None and (both[0] is None or abs(_number(both[0]) - _number(both[1])) > 1e-6):
                key = "free_energy"
        except (TypeError, ValueError):
            continue  # is refused for what it is, by name, when labels are checked
    lacking = [k for k in labelled if key not in results[k]]
    if lacking:
        raise InputError(
            f"{names[lacking[0]]} has an energy but no free_energy, which other structures of the file have and which "
            "differs from the energy; forces belong to the free energy: give it to all structures"
        )
    return key


def _store(atoms: Atoms, results: Results, energy: str) -> None:
    if energy in results:
        atoms.info["REF_energy"] = results[energy]
    if "forces" in results:
        atoms.arrays["REF_forces"] = np.asarray(results["forces"])
    if "stress" in results:
        atoms.info["REF_stress"] = results["stress"]


def _number(value: Any) -> float:
    """One number, however it is wrapped."""
    values = np.asarray(value, dtype=float)
    if values.size != 1:
        raise ValueError(f"{values.size} numbers")
    return float(values.reshape(()))


def _check_labels(atoms: Atoms, name: str) -> None:
    """Refuses labels that are not numbers of the right shape; makes energy a float and stress a 3x3 matrix."""
    labels = {key: atoms.info[key] for key in ("REF_energy", "REF_free_energy", "REF_stress") if key in atoms.info}
    if "REF_forces" in atoms.arrays:
        labels["REF_forces"] = atoms.arrays["REF_forces"]
    for key, label in labels.items():
        try:
            values = np.asarray(label, dtype=float)
        except (TypeError, ValueError):
            values = np.array([np.nan])
        if isinstance(label, bool | np.bool_) or not np.isfinite(values).all():
            raise InputError(f"{name} has a {key} that is not a number; repair or remove the structure")
        if key in ("REF_energy", "REF_free_energy"):
            if values.size != 1:
                raise InputError(f"{name} has a {key} of {values.size} numbers; write one, in eV")
            atoms.info[key] = float(values.reshape(()))
        elif key == "REF_forces":
            if values.shape != (len(atoms), 3):
                raise InputError(f"{name} has REF_forces of shape {values.shape}; write three numbers an atom, in eV/Å")
            atoms.arrays[key] = values
        else:
            atoms.info[key] = _stress_matrix(values, name)
    energies = [atoms.info[key] for key in ("REF_energy", "REF_free_energy") if key in atoms.info]
    if len(energies) == 2 and abs(energies[0] - energies[1]) > 1e-6:
        raise InputError(
            f"{name} has REF_energy={energies[0]:.6f} and REF_free_energy={energies[1]:.6f}; keep the one that "
            "REF_forces are the derivative of, as REF_energy"
        )


def _stress_matrix(values: np.ndarray, name: str) -> np.ndarray:
    """[3, 3] stress from nine or six numbers."""
    if values.size not in (6, 9):
        raise InputError(f"{name} has a REF_stress of {values.size} numbers; write 9 (3x3, eV/Å³) or 6 (Voigt)")
    full = voigt_6_to_full_3x3_stress(values.reshape(6)) if values.size == 6 else values.reshape(3, 3)
    if np.abs(full - full.T).max() > 1e-3 * np.abs(full).max() + 1e-5:
        raise InputError(f"{name} has a REF_stress that is not symmetric; write it as 3x3 numbers in eV/Å³")
    return full


def _remark(frames: Sequence[Atoms], file: str) -> None:
    """Says what labels may not mean what they seem to."""
    virials = sorted({key for atoms in frames for key in _VIRIALS if key in atoms.info})
    if virials and not any("REF_stress" in atoms.info for atoms in frames):
        log.warning("%s: %s is not read; name it, as data.keys.virial=%s", file, *(virials[:1] * 2))
    stresses = [atoms.info["REF_stress"] for atoms in frames if has_stress(atoms)]
    if stresses and not np.any(stresses):
        log.warning(
            "%s: the stress of all %d crystals is exactly zero; remove it if it was not computed", file, len(stresses)
        )
    constrained = sum(_forces_of_fixed_atoms_are_zero(atoms) for atoms in frames)
    if constrained:
        log.warning(
            "%s: in %d structures the forces of all fixed atoms are exactly zero; these are no labels if the "
            "calculator left them out because the atoms were fixed",
            file,
            constrained,
        )


def _forces_of_fixed_atoms_are_zero(atoms: Atoms) -> bool:
    forces = atoms.arrays.get("REF_forces")
    fixed = [c.index for c in atoms.constraints if isinstance(c, FixAtoms)]
    if forces is None or not fixed or not forces.any():
        return False
    return not forces[np.concatenate(fixed)].any()

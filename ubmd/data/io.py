"""Structures and labelled data sets as extended XYZ, with ``REF_energy``, ``REF_forces``, ``REF_stress``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.utils import string2index

from ubmd.data.checks import check_species, check_structure
from ubmd.data.extxyz import frame_text, parse_frames
from ubmd.data.foreign import LabelKeys, LabelUnits
from ubmd.data.formats import contents, format_of, read_by_ase
from ubmd.data.labels import adopt_labels, is_labelled, lacking_labels
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = [
    "check_species",
    "check_structure",
    "is_labelled",
    "read_labelled",
    "read_structures",
    "write_structures",
]

log = logging.getLogger(__name__)

_FAR = 1000.0
"""Å from the origin, beyond which single precision is worth a word."""


def read_structures(
    path: str | Path,
    *,
    index: str = ":",
    report: bool = True,
    keys: LabelKeys | None = None,
    units: LabelUnits | None = None,
) -> list[Atoms]:
    """Reads structures in any format that ASE knows and checks each; labels are then under ``REF_`` keys.

    Args:
        path: the file, which may be compressed.
        index: which of its structures, as ASE writes it.
        report: log how many structures and which labels were found.
        keys: what labels are called in the file; None for ``REF_`` keys or the results of a calculator.
        units: of lengths and labels in a file of extended XYZ; None for ubmd's. ASE converts other formats itself.

    Raises:
        InputError: if the file is missing, unreadable, in part unreadable or empty, a structure in it is unusable, or
            its labels are of different sources (:func:`~ubmd.data.labels.adopt_labels`) or not of the ``units``.
    """
    path = Path(path)
    frames, kind = _frames(path)
    wanted = string2index(index)
    if isinstance(wanted, str):
        raise InputError(f"index={index} of {path} must be a number or a range such as : or 3:8")
    numbers = list(range(len(frames))[wanted if isinstance(wanted, slice) else slice(wanted, wanted + 1 or None)])
    if not numbers:
        raise InputError(f"structure file {path} holds no structure" + (f" {index}" if frames else ""))
    names = [f"structure {number} of {path}" for number in numbers]
    out = [frames[number] for number in numbers]
    if kind != "extxyz" and units is not None and not units.own:
        raise InputError(f"data.units apply to extended XYZ alone, and {path} is {kind}, which ASE reads in eV and Å")
    for atoms, name in zip(out, names, strict=True):
        if units is not None:
            units.scale(atoms)
        check_structure(atoms, name)
    labels = adopt_labels(out, names, path.name, keys, units)
    far = max(float(np.abs(atoms.positions).max()) for atoms in out)
    if far > _FAR:
        step = np.spacing(np.float32(far))
        log.warning(
            "%s: atoms are %.0f Å from the origin, where positions in float32 are exact to %.0e Å; move them to the "
            "origin or use dtype=float64",
            *(path.name, far, step),
        )
    if report:
        how_many = "1 structure" if len(frames) == 1 else f"{len(frames)} structures"
        used = "" if len(out) == len(frames) else f", of which {len(out)} used (index {index})"
        told = [how_many + used, *([f"as ASE reads {kind}"] if kind != "extxyz" else []), *([labels] if labels else [])]
        log.info("%s: %s", path.name, ", ".join(told))
    return out


def _frames(path: Path) -> tuple[list[Atoms], str]:
    """All structures of a file as they are read, and its format."""
    try:
        is_file, is_folder, size = path.is_file(), path.is_dir(), path.stat().st_size if path.exists() else 0
    except OSError as error:
        raise InputError(f"structure file {path} cannot be read ({error.strerror})") from error
    if is_folder:
        inside = next((f for f in ("dataset.extxyz", "labelled.extxyz") if (path / f).is_file()), None)
        hint = f"give {path / inside}" if inside else "give a file in it"
        raise InputError(f"structure file {path} is a folder; {hint}")
    if not is_file:
        raise InputError(f"structure file {path} does not exist; give the path of e.g. an .xyz or .extxyz file")
    if not size:
        raise InputError(f"structure file {path} holds no structure: it is empty")
    data = contents(path)
    kind = format_of(path)
    if kind != "extxyz":
        return read_by_ase(path, kind), kind
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"structure file {path} cannot be read: byte {error.start} is no UTF-8 text; convert or repair the file"
        ) from error
    return parse_frames(text, str(path)), kind


def read_labelled(
    path: str | Path, *, report: bool = True, keys: LabelKeys | None = None, units: LabelUnits | None = None
) -> list[Atoms]:
    """Reads structures that carry labels; see :func:`read_structures` for what is given.

    Raises:
        InputError: as :func:`read_structures`, or if a structure lacks energy or forces.
    """
    frames = read_structures(path, report=report, keys=keys, units=units)
    for number, atoms in enumerate(frames):
        lacking = lacking_labels(atoms)
        if lacking:
            raise InputError(
                f"structure {number} of {path} has {lacking}; label it first, store its energy and forces as "
                "REF_energy (eV) and REF_forces (eV/Å), or name them (data.keys.energy=NAME data.keys.forces=NAME)"
            )
    return frames


def write_structures(path: str | Path, structures: Sequence[Atoms]) -> None:
    """Writes extended XYZ atomically: either the whole file is there or the old one.

    What :func:`read_structures` reads back is what was written, to the last digit. What the file cannot hold, and a
    calculator with its results, is left out, with a line that names it.
    """
    path = Path(path)
    lost: dict[str, int] = {}
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for atoms in structures:
            text, missing = frame_text(atoms)
            file.write(text)
            for name in missing:
                lost[name] = lost.get(name, 0) + 1
    for name, number in lost.items():
        log.warning("%s: %s of %d structures cannot be written and are left out", path.name, name, number)

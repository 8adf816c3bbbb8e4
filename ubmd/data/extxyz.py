"""Extended XYZ: every line of a file is read or refused, and what is written can be read back.

ASE's reader ends at a blank line, and drops what is left of a row behind its last column; ASE's writer rounds to eight
decimals and writes some of what it cannot read. Frames are therefore told apart and checked here, then handed to
ASE's parser one by one, and written here in the form that it reads.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from io import StringIO
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_numbers, chemical_symbols
from ase.io.extxyz import key_val_str_to_dict, parse_properties, read_extxyz
from ase.spacegroup import Spacegroup
from numpy.typing import NDArray

from ubmd.errors import InputError

__all__ = ["frame_text", "parse_frames"]

log = logging.getLogger(__name__)

OTHER = "ubmd_other"
"""Entry of a frame's second line that holds, as JSON, what has no form of its own in extended XYZ."""

_RESERVED_INFO = {"Lattice", "Properties", "pbc", OTHER, *all_properties}
_RESERVED_ARRAYS = {"species", "symbols", "numbers", "Z", "pos", "positions", "charge", "charges", "move_mask"}
_RESERVED_ARRAYS |= {*all_properties}


def parse_frames(text: str, file: str) -> list[Atoms]:
    """The structures of a file, with calculators for results under ASE's own names.

    Args:
        text: contents; line ends of any system, blank lines between frames.
        file: name of the file, for messages.

    Raises:
        InputError: naming the line that does not belong to a complete frame, or the structure that is none.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    frames: list[Atoms] = []
    surplus = 0
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        stop = _end_of_frame(lines, at, len(frames), file)
        try:
            atoms, ignored = _frame(lines[at:stop])
        except Exception as error:  # ASE's parser raises anything from KeyError to XYZError
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise InputError(
                f"structure file {file} cannot be read: structure {len(frames)}: {' '.join(reason.split())}"
            ) from error
        frames.append(atoms)
        surplus += ignored
        at = stop
    if surplus:
        log.warning("%s: columns behind the positions are not read in %d structures without Properties", file, surplus)
    return frames


def _end_of_frame(lines: list[str], at: int, number: int, file: str) -> int:
    """Index of the line behind the frame that begins at line ``at``."""
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", lines[at]) is None:
        raise InputError(
            f"structure file {file} cannot be read: its line {at + 1} should hold the number of atoms of structure "
            f"{number} but is {_shown(lines[at])}; repair the file"
        )
    n_atoms = int(lines[at])
    stop = at + 2 + n_atoms
    found = sum(1 for line in lines[at + 2 : stop] if line.strip())
    if found < n_atoms:
        raise InputError(
            f"structure file {file} cannot be read: its structure {number}, from line {at + 1} on, announces {n_atoms} "
            f"atoms but has {found} lines of them; repair the file"
        )
    while stop < len(lines) and lines[stop].lstrip().startswith("VEC"):
        stop += 1
    return stop


def _shown(line: str) -> str:
    return repr(line if len(line) <= 40 else f"{line[:40]}...")


def _frame(lines: list[str]) -> tuple[Atoms, bool]:
    """One structure, and whether columns that nothing declares were left out."""
    n_atoms = int(lines[0])
    plain = "Properties" not in lines[1]
    if "=" in lines[1]:
        _check_entries(lines[1], strict="Lattice" in lines[1] or not plain)
    info = {} if plain else key_val_str_to_dict(lines[1])
    rows = [line.split() for line in lines[2 : 2 + n_atoms]]
    _check_rows(rows, str(info.get("Properties", "species:S:1:pos:R:3")), allow_surplus=plain)
    (atoms,) = read_extxyz(StringIO("\n".join(lines) + "\n"), slice(None))  # pyright: ignore[reportArgumentType]
    _restore_other(atoms)
    return atoms, plain and any(len(row) > 4 for row in rows)


def _check_entries(line: str, *, strict: bool) -> None:
    """Refuses a second line with an open quote or with two values for a name; free text may have open quotes."""
    closing = {'"': '"', "'": "'", "{": "}", "[": "]"}
    names: list[str] = []
    word, awaited = "", ""
    escaped = ended = in_value = False
    for character in line:
        if escaped or (awaited and character != awaited and character != "\\"):
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif awaited:
            awaited = ""
        elif character.isspace():
            ended = True
        elif character == "=":
            names += [] if in_value else [word]
            ended, in_value = False, True
        else:
            if ended:
                word, ended, in_value = "", False, False
            awaited = closing.get(character, "")
            word += "" if awaited else character
    if awaited and strict:
        raise ValueError(f"the second line opens a {awaited} that is not closed")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the second line gives {twice[0]} twice; keep one")


def _check_rows(rows: list[list[str]], properties: str, *, allow_surplus: bool) -> None:
    """Refuses rows that are not what ``Properties`` declares; ASE would drop what is too much."""
    parts = properties.split(":")
    # more columns than any file has would keep ASE's reader busy for ever
    if len(parts) % 3 or not all(re.fullmatch(r"[0-9]{1,6}", count) for count in parts[2::3]):
        raise ValueError(f"its Properties={properties} is no list of name:type:columns")
    declared = parse_properties(properties)
    columns: list[str] = []
    for name, kind, count in zip(*[iter(parts)] * 3, strict=True):
        columns += [f"{name}:{kind}"] * int(count)
    if len(set(declared[1])) < len(declared[1]):
        raise ValueError("its Properties name something twice; keep one")
    if columns.count("pos:R") != 3 or not {"species:S", "Z:I"} & set(columns):
        raise ValueError("its Properties have no species:S:1 and pos:R:3")
    for number, row in enumerate(rows):
        if len(row) < len(columns) or (len(row) > len(columns) and not allow_surplus):
            raise ValueError(f"the row of atom {number} has {len(row)} columns instead of {len(columns)}")
    if not rows:
        return
    for column, values in zip(columns, zip(*(row[: len(columns)] for row in rows), strict=True), strict=True):
        if column.endswith(":L") and not set(values) <= {"T", "F", "True", "False"}:
            raise ValueError(f"the column {column[:-2]} holds something other than T and F")
    if "species:S" in columns:
        _check_symbols(rows, columns)


def _check_symbols(rows: list[list[str]], columns: list[str]) -> None:
    """Refuses symbols that are no elements, or other elements than those in a column of atomic numbers."""
    symbols = [row[columns.index("species:S")].capitalize() for row in rows]
    for number, symbol in enumerate(symbols):
        if symbol not in atomic_numbers:
            hint = "write H, with masses:R:1 of its own" if symbol in ("D", "T") else "use chemical symbols"
            raise ValueError(f"atom {number} has the symbol {symbol}, which is no element; {hint}")
    if "Z:I" in columns:
        numbers = [row[columns.index("Z:I")] for row in rows]
        for number, (symbol, z) in enumerate(zip(symbols, numbers, strict=True)):
            if str(atomic_numbers[symbol]) != z:
                raise ValueError(f"atom {number} has the symbol {symbol} but the atomic number {z}; repair one")


def _restore_other(atoms: Atoms) -> None:
    """Puts back what :func:`frame_text` has set aside."""
    other = atoms.info.get(OTHER)
    if not isinstance(other, dict) or not other.keys() <= {"info", "arrays"}:
        return
    del atoms.info[OTHER]
    atoms.info.update(other.get("info", {}))
    for name, values in other.get("arrays", {}).items():
        atoms.set_array(name, np.array(values))


def frame_text(atoms: Atoms) -> tuple[str, list[str]]:
    """A structure as a frame of extended XYZ that :func:`parse_frames` reads back without loss.

    Numbers have all their digits. Entries and arrays that the format has no form for (blank names, three-dimensional
    arrays, names with colons) are set aside as JSON; those that JSON cannot hold either, and a calculator, are left
    out, which the second value names.
    """
    columns: dict[str, tuple[str, NDArray[Any]]] = {}
    other: dict[str, dict[str, Any]] = {"info": {}, "arrays": {}}
    lost = [type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms | FixCartesian)]
    if getattr(atoms.calc, "results", None):
        lost.append("the results of the calculator")
    free = _free_to_move(atoms)
    if free is not None:
        columns["move_mask"] = ("L", free)
    for name, values in atoms.arrays.items():
        if name in ("numbers", "positions"):
            continue
        kind = _column_kind(name, values, columns)
        if kind is not None:
            columns[name] = (kind, values)
        elif _survives_json(values):
            other["arrays"][name] = values
        else:
            lost.append(f"arrays[{name!r}]")
    entries: list[str] = []
    for key, value in atoms.info.items():
        plain = _plain(value)
        if key == "REF_stress" and np.size(plain) == 9:  # nine numbers in a row are what other readers expect
            plain = np.asarray(plain, dtype=float).reshape(9)
        entry = _entry(key, plain)
        if entry is not None:
            entries.append(entry)
        elif isinstance(key, str) and _survives_json(plain):
            other["info"][key] = plain
        else:
            lost.append(f"info[{key!r}]")
    if any(other.values()):
        entries.append(f"{OTHER}={_quoted('_JSON ' + _json({k: v for k, v in other.items() if v}))}")
    return _assembled(atoms, columns, entries), lost


def _free_to_move(atoms: Atoms) -> NDArray[np.bool_] | None:
    """Which atoms [n] or coordinates [n, 3] are free; None if all are."""
    free = np.ones((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
        elif isinstance(constraint, FixCartesian):
            free[constraint.index] &= ~np.asarray(constraint.mask, dtype=bool)
    if free.all():
        return None
    return free[:, 0] if (free == free[:, :1]).all() else free


def _column_kind(name: str, values: NDArray[Any], taken: Mapping[str, tuple[str, NDArray[Any]]]) -> str | None:
    """R, I, L or S for an array that columns can hold, else None."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) is None or name in _RESERVED_ARRAYS:
        return None
    if values.ndim != 1 and (values.ndim != 2 or values.shape[1] < 2):
        return None
    # the reader numbers the columns of an array by its name, which must be nobody else's
    fields = {f"{n}{c}" for n, (_, v) in taken.items() if v.ndim == 2 for c in range(v.shape[1])} | {*taken}
    fields |= {"pos0", "pos1", "pos2"}
    own = {name} if values.ndim == 1 else {f"{name}{c}" for c in range(values.shape[1])}
    if own & fields or (name == "initial_charges" and values.ndim != 1):
        return None
    kind = values.dtype.kind
    if kind == "f" and np.array_equal(values.astype(float).astype(values.dtype), values, equal_nan=True):
        return "R"
    if kind in "iu" and (values.size == 0 or (values.min() >= -(2**31) and values.max() < 2**31)):
        return "I"
    if kind == "b":
        return "L"
    words = values.ravel().tolist() if kind in "UO" else [None]
    return "S" if all(isinstance(w, str) and w.isprintable() and len(w.split()) == 1 for w in words) else None


def _assembled(atoms: Atoms, columns: Mapping[str, tuple[str, NDArray[Any]]], entries: list[str]) -> str:
    """The lines of a frame."""
    properties = ["species:S:1:pos:R:3"]
    texts = [[chemical_symbols[z].ljust(2) for z in atoms.numbers], *_texts("R", atoms.positions)]
    for name, (kind, values) in columns.items():
        properties.append(f"{name}:{kind}:{1 if values.ndim == 1 else values.shape[1]}")
        texts += _texts(kind, values)
    head = [f'Lattice="{" ".join(repr(float(x)) for x in atoms.cell.array.ravel())}"'] if atoms.cell.array.any() else []
    head += [f"Properties={':'.join(properties)}", *entries, f'pbc="{" ".join("FT"[int(p)] for p in atoms.pbc)}"']
    rows = [" ".join(row) for row in zip(*texts, strict=True)]
    return "\n".join([str(len(atoms)), " ".join(head), *rows]) + "\n"


def _texts(kind: str, values: NDArray[Any]) -> list[list[str]]:
    """The words of an array, column by column."""
    convert = {"R": lambda x: repr(float(x)), "I": str, "L": lambda x: "FT"[bool(x)], "S": str}[kind]
    return [[convert(x) for x in column.tolist()] for column in values.reshape(len(values), -1).T]


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's, a space group as its symbol."""
    if isinstance(value, Spacegroup):
        return value.symbol
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def _entry(key: Any, value: Any) -> str | None:
    """``key=value`` in the first form that the reader understands, None if there is none."""
    if not isinstance(key, str) or key in _RESERVED_INFO or not key.isprintable():
        return None
    forms: list[str] = []
    if isinstance(value, str) and value.isprintable():
        forms.append(value)
    elif isinstance(value, bool):
        forms.append("FT"[value])
    elif isinstance(value, int | float):
        forms.append(repr(value))
    elif isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iufb":
        words = {"b": lambda x: "FT"[x]}.get(value.dtype.kind, repr)
        forms.append(" ".join(words(x) for x in value.tolist()))
    with suppress(TypeError, ValueError, RecursionError):
        forms.append("_JSON " + _json(value))
    for form in filter(None, forms):  # of an empty value the reader makes the next entry
        entry = f"{_quoted(key)}={_quoted(form)}"
        try:
            found = key_val_str_to_dict(entry)
        except (ValueError, RecursionError, LookupError):
            continue
        if [*found] == [key] and _same(found[key], value):
            return entry
    return None


def _quoted(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_.:+-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _json(value: Any) -> str:
    """JSON, with NumPy's arrays as lists and its scalars as numbers; raises TypeError for what it cannot hold."""

    def listed(array: Any) -> Any:
        if isinstance(array, np.ndarray | np.generic) and array.dtype.kind in "iufbUO":
            return array.tolist()
        raise TypeError(f"{type(array).__name__} has no form in JSON")

    return json.dumps(value, default=listed)


def _survives_json(value: Any) -> bool:
    """Whether a value comes back from JSON as it is."""
    try:
        found = json.loads(_json(value))
    except (TypeError, ValueError, RecursionError):
        return False
    return _same(np.array(found) if isinstance(value, np.ndarray) else found, value)


def _same(found: Any, value: Any) -> bool:
    """Whether two values are equal; arrays, lists and tuples of the same contents are."""
    sequences = list | tuple | np.ndarray
    if isinstance(found, np.generic):
        found = found.item()
    if isinstance(found, sequences) and isinstance(value, sequences):
        a, b = (v.tolist() if isinstance(v, np.ndarray) else v for v in (found, value))
        shapes = [v.shape for v in (found, value) if isinstance(v, np.ndarray)]
        return len(a) == len(b) and len(set(shapes)) < 2 and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(found, dict) and isinstance(value, dict):
        return found.keys() == value.keys() and all(_same(found[k], value[k]) for k in value)
    value = _plain(value)
    return type(found) is type(value) and (found == value or (found != found and value != value))

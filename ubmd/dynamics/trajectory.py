"""The trajectory file of a round: every frame of every walker, as HDF5.

Layout (f frames sorted by walker and step, n atoms, w walkers; ``units`` is an attribute of each dataset):

    /                             attributes format = "ubmd-trajectory", version = 1
    /numbers              [n]        int64
    /pbc                  [3]        bool
    /frames/walker        [f]        int64
    /frames/step          [f]        int64
    /frames/positions     [f, n, 3]  float64  Å       unwrapped
    /frames/cell          [f, 3, 3]  float64  Å       rows are lattice vectors; zeros for a molecule
    /frames/energy        [f]        float64  eV      without the bias
    /frames/uncertainty   [f]        float64  eV/atom
    /frames/atomic_uncertainty [f, n] float64 eV/Å
    /frames/tau           [f]        float64  1
    /walkers/walker       [w]        int64            identities, ascending
    /walkers/reason       [w]        int8             attributes name each value
    /walkers/steps        [w]        int64            step at which the walker stopped
    /walkers/temperature  [w]        float64  K
    /walkers/max_uncertainty [w]     float64  eV/Å    highest atomic uncertainty at any step
    /walkers/inherited    [w]        string           JSON of what frames have of the walker's start: "arrays" by name,
                                                      "info" by key and the indices of "fixed" atoms

What the potential did not predict is NaN. Files of earlier releases have no /walkers/inherited: their frames are
elements and positions alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ubmd.data.inherit import Inherited
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.stopping import StopReason
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = ["read_trajectory", "write_trajectory"]

_FORMAT, _VERSION = "ubmd-trajectory", 1
_INHERITED = "walkers/inherited"

# field of Exploration -> dataset and units; the one place where the layout is written down for the machine
_LAYOUT: dict[str, tuple[str, str]] = {
    "numbers": ("numbers", "1"),
    "pbc": ("pbc", "1"),
    "walker": ("frames/walker", "1"),
    "step": ("frames/step", "1"),
    "positions": ("frames/positions", "Å"),
    "cell": ("frames/cell", "Å"),
    "energy": ("frames/energy", "eV"),
    "uncertainty": ("frames/uncertainty", "eV/atom"),
    "atomic_uncertainty": ("frames/atomic_uncertainty", "eV/Å"),
    "tau": ("frames/tau", "1"),
    "walkers": ("walkers/walker", "1"),
    "reasons": ("walkers/reason", "1"),
    "steps": ("walkers/steps", "1"),
    "temperature": ("walkers/temperature", "K"),
    "max_uncertainty": ("walkers/max_uncertainty", "eV/Å"),
}


def write_trajectory(path: Path | str, exploration: Exploration) -> None:
    """Writes ``exploration`` to ``path``, whole or not at all; an existing file is replaced."""
    with replaced(Path(path)) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"], file.attrs["version"] = _FORMAT, _VERSION
        for field, (name, unit) in _LAYOUT.items():
            values: np.ndarray = getattr(exploration, field)
            # empty data cannot be chunked, hence not compressed
            packing: dict[str, Any] = {"compression": "gzip", "shuffle": True} if values.size else {}
            dataset = file.create_dataset(name, data=values, **packing)
            dataset.attrs["units"] = unit
        records = np.array([part.record() for part in exploration.inherited], dtype=object)
        file.create_dataset(_INHERITED, data=records, dtype=h5py.string_dtype()).attrs["units"] = "1"
        for reason in StopReason:
            file["walkers/reason"].attrs[f"value {reason:d}"] = reason.description


def read_trajectory(path: Path | str) -> Exploration:
    """Reads what :func:`write_trajectory` wrote, bit by bit.

    Raises:
        InputError: if the file is absent, damaged, or not a trajectory of this version.
    """
    if not Path(path).is_file():
        raise InputError(f"trajectory {path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != _FORMAT or file.attrs.get("version") != _VERSION:
                raise InputError(f"{path} is not a {_FORMAT} file of version {_VERSION}")
            values: dict[str, Any] = {field: file[name][()] for field, (name, _) in _LAYOUT.items()}  # pyright: ignore
            records = file[_INHERITED].asstr()[()] if _INHERITED in file else []  # pyright: ignore
            inherited = tuple(Inherited.from_record(text, len(values["numbers"])) for text in records)  # pyright: ignore
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"trajectory {path} cannot be read: {error}") from error
    return Exploration(**values, inherited=inherited)

"""The trajectory file of a round: every frame of every walker, as HDF5.

Layout (f frames sorted by walker and step, n atoms, w walkers; ``units`` is an attribute of each dataset):

    /                             attributes format = "ubmd-trajectory", version = 2
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
    /frames/time          [f]        float64  fs      this and what follows only of `ubmd md`
    /frames/momenta       [f, n, 3]  float64  amu*Å/fs
    /frames/forces        [f, n, 3]  float64  eV/Å    without the bias
    /frames/stress        [f, 3, 3]  float64  eV/Å³   without the bias; of crystals, positive under tension
    /frames/bias_energy   [f]        float64  eV
    /walkers/walker       [w]        int64            identities, ascending
    /walkers/reason       [w]        int8             attributes name each value
    /walkers/steps        [w]        int64            step at which the walker stopped
    /walkers/temperature  [w]        float64  K
    /walkers/max_uncertainty [w]     float64  eV/Å    highest atomic uncertainty at any step with one
    /walkers/inherited    [w]        string           JSON of what frames have of the walker's start: "arrays" by name,
                                                      "info" by key and the indices of "fixed" atoms

What the potential did not predict is NaN. The file of a run of several systems has version 3, their names in the
attribute ``systems``, and all of this for each of them in a group of its own: /systems/<name>/numbers and so on.
Files of version 1 have neither a digest nor ``inherited``: damage in them is noticed where HDF5 notices it, and their
frames are elements and positions alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ubmd.data.inherit import Inherited
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.stopping import StopReason
from ubmd.errors import InputError
from ubmd.files import replaced

__all__ = [
    "TrajectoryPart",
    "opened_trajectories",
    "read_trajectories",
    "read_trajectory",
    "write_trajectories",
    "write_trajectory",
]

log = logging.getLogger(__name__)

_FORMAT, _VERSION = "ubmd-trajectory", 2
_SEVERAL = 3
"""Version of the files of several systems."""
_BLOCK = 512
"""Bytes before the HDF5 data that HDF5 leaves to its user."""
_INHERITED = "walkers/inherited"
_OF_HDF5 = b"\x89HDF\r\n\x1a\n"
"""With which a file without a user block begins: one of version 1, before there were digests."""

# field of Exploration -> dataset, units, type and shape; the one place where the layout is written down for the machine
_LAYOUT: dict[str, tuple[str, str, str, str]] = {
    "numbers": ("numbers", "1", "int64", "n"),
    "pbc": ("pbc", "1", "bool", "3"),
    "walker": ("frames/walker", "1", "int64", "f"),
    "step": ("frames/step", "1", "int64", "f"),
    "positions": ("frames/positions", "Å", "float64", "fn3"),
    "cell": ("frames/cell", "Å", "float64", "f33"),
    "energy": ("frames/energy", "eV", "float64", "f"),
    "uncertainty": ("frames/uncertainty", "eV/atom", "float64", "f"),
    "atomic_uncertainty": ("frames/atomic_uncertainty", "eV/Å", "float64", "fn"),
    "tau": ("frames/tau", "1", "float64", "f"),
    "time": ("frames/time", "fs", "float64", "f"),
    "momenta": ("frames/momenta", "amu*Å/fs", "float64", "fn3"),
    "forces": ("frames/forces", "eV/Å", "float64", "fn3"),
    "stress": ("frames/stress", "eV/Å³", "float64", "f33"),
    "bias_energy": ("frames/bias_energy", "eV", "float64", "f"),
    "walkers": ("walkers/walker", "1", "int64", "w"),
    "reasons": ("walkers/reason", "1", "int8", "w"),
    "steps": ("walkers/steps", "1", "int64", "w"),
    "temperature": ("walkers/temperature", "K", "float64", "w"),
    "max_uncertainty": ("walkers/max_uncertainty", "eV/Å", "float64", "w"),
}


_OPTIONAL = ("time", "momenta", "forces", "stress", "bias_energy")
"""Fields that a file need not have."""


def write_trajectory(path: Path | str, exploration: Exploration) -> None:
    """Writes ``exploration`` to ``path``, whole or not at all; an existing file is replaced."""
    write_trajectories(path, {"": exploration})


def write_trajectories(path: Path | str, found: Mapping[str, Exploration]) -> None:
    """Writes what walkers of systems found, by name; a single system without a name as :func:`write_trajectory`."""
    buffer = BytesIO()
    with h5py.File(buffer, "w", userblock_size=_BLOCK) as file:  # on a full disk HDF5 says neither that nor where
        file.attrs["format"], file.attrs["version"] = _FORMAT, _VERSION
        if list(found) != [""]:
            file.attrs["version"], file.attrs["systems"] = _SEVERAL, list(found)
        for name, exploration in found.items():
            _write(file.create_group(f"systems/{name}") if name else file, exploration)
    with replaced(Path(path)) as temporary:
        temporary.write_bytes(buffer.getbuffer())
        seal(temporary)


def _write(group: h5py.Group, exploration: Exploration) -> None:
    for field, (name, unit, _, _) in _LAYOUT.items():
        values: np.ndarray | None = getattr(exploration, field)
        if values is None:
            continue
        # empty data cannot be chunked, hence not compressed
        packing: dict[str, Any] = {"compression": "gzip", "shuffle": True} if values.size else {}
        dataset = group.create_dataset(name, data=values, **packing)
        dataset.attrs["units"] = unit
    records = np.array([part.record() for part in exploration.inherited], dtype=object)
    group.create_dataset(_INHERITED, data=records, dtype=h5py.string_dtype()).attrs["units"] = "1"
    for reason in StopReason:
        group["walkers/reason"].attrs[f"value {reason:d}"] = reason.description


def seal(path: Path) -> None:
    """Writes into the user block of a file what :func:`read_trajectory` knows it by: the digest of all that follows."""
    with path.open("r+b") as file:
        file.write(_seal(path))


def _seal(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(_BLOCK)
        return f"{_FORMAT} sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()


def read_trajectory(path: Path | str) -> Exploration:
    """Reads what :func:`write_trajectory` wrote, bit by bit.

    Raises:
        InputError: if the file is absent, damaged, of several systems, or not a trajectory of this version.
    """
    found = read_trajectories(path)
    if list(found) != [""]:
        raise InputError(
            f"trajectory {path} is of several systems ({', '.join(found)}); read it with read_trajectories, by name"
        )
    return found[""]


def read_trajectories(path: Path | str) -> dict[str, Exploration]:
    """Reads what :func:`write_trajectories` wrote, bit by bit, by system; that of a single one has the name ``""``.

    Raises:
        InputError: if the file is absent, damaged, or not a trajectory of this version.
    """
    with opened_trajectories(path) as found:
        return {name: own.frames() for name, own in found.items()}


@contextmanager
def opened_trajectories(path: Path | str) -> Iterator[dict[str, TrajectoryPart]]:
    """Opens what :func:`write_trajectories` wrote, to be read in parts, by system.

    Raises:
        InputError: if the file is absent, damaged, or not a trajectory of this version; also for what is found wrong
            with it inside the block.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"trajectory {path} does not exist")
    with ExitStack() as stack:
        with _reading(path):
            version = _sound_version(path)
            file = stack.enter_context(h5py.File(path, "r"))
            versions = (1,) if version == 1 else (_VERSION, _SEVERAL)
            if file.attrs.get("format") != _FORMAT or file.attrs.get("version") not in versions:
                raise InputError(f"trajectory {path} is not a {_FORMAT} file of version {_VERSION}; explore again")
            several = file.attrs["version"] == _SEVERAL
            names = [str(name) for name in file.attrs["systems"]] if several else [""]  # pyright: ignore
            groups = {name: file[f"systems/{name}"] if name else file for name in names}
            parts = {name: TrajectoryPart(path, group, version) for name, group in groups.items()}
        if version == 1:
            log.info("trajectory %s is of version 1: its frames are elements and positions alone", path)
        yield parts


def _sound_version(path: Path) -> int:
    """The version of a file that is what was written, 1 or the present one: before HDF5, which does not end on some
    damaged files, sees it.
    """
    with path.open("rb") as file:
        found, sealed = file.read(_BLOCK).rstrip(b"\0"), _seal(path)
    if found.startswith(_OF_HDF5):
        return 1
    if found != sealed:
        damaged = found.startswith(_FORMAT.encode())
        what = "is damaged, its digest is another" if damaged else f"is not a {_FORMAT} file of version {_VERSION}"
        raise InputError(f"trajectory {path} {what}; restore it or explore again")
    return _VERSION


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever HDF5 and numpy say of a file as an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"trajectory {path} cannot be read: {error}") from error


class TrajectoryPart:
    """The trajectory of one system in an open file."""

    def __init__(self, path: Path, group: Any, version: int):
        self._path, self._group = path, group
        self.walker: NDArray[np.int64] = group["frames/walker"][()]
        """[f] identity of each frame's walker, ascending."""
        if self.walker.ndim != 1 or self.walker.dtype != np.int64 or (np.diff(self.walker) < 0).any():
            raise ValueError("frames/walker is not int64 [f], ascending")
        self.n_atoms = len(group["numbers"])
        """n."""
        records = group[_INHERITED].asstr()[()] if version > 1 else ()
        self._inherited = tuple(Inherited.from_record(text, self.n_atoms) for text in records)

    @property
    def recorded(self) -> list[str]:
        """Which of the fields it has that a file need not have."""
        return [field for field in _OPTIONAL if _LAYOUT[field][0] in self._group]

    def frames(self, which: slice = slice(None)) -> Exploration:
        """What walkers found, with some of their frames, or all."""
        values: dict[str, Any] = {}
        with _reading(self._path):
            for field, (name, *_) in _LAYOUT.items():
                if name in self._group or field not in _OPTIONAL:
                    values[field] = self._group[name][which if name.startswith("frames/") else ()]
            _check(values)
        return Exploration(**values, inherited=self._inherited)


def _check(values: dict[str, Any]) -> None:
    """Raises ValueError for a dataset of another type or shape than the layout's."""
    sizes = {"3": 3}
    for field, (name, _, dtype, shape) in _LAYOUT.items():
        if field not in values:
            continue
        found = np.asarray(values[field])
        fits = found.ndim == len(shape) and all(
            sizes.setdefault(axis, size) == size for axis, size in zip(shape, found.shape, strict=True)
        )
        if not fits or found.dtype != dtype:
            raise ValueError(f"{name} is {found.dtype} {list(found.shape)}, not {dtype} [{', '.join(shape)}]")

"""Files of Fig. 2: structures to train on, to calibrate with and to test on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms

from ubmd.data.io import read_labelled, write_structures
from ubmd.errors import InputError
from ubmd.systems.sampling import cached_test_set, sample_ff19sb

SIZES = {"tiny": ((9, 3),), "smoke": ((45, 5), (450, 50)), "desk": ((45, 5), (450, 50)), "paper": ((45, 5), (450, 50))}
"""Structures to train on and to calibrate with, as in the paper."""
_TESTED = {"tiny": 20, "smoke": 400, "desk": 2000, "paper": 2000}


def fig2_files(
    size: str, folder: Path, data: Path | None, test: Path | None
) -> tuple[list[tuple[Path, Path]], Path, bool]:
    """Writes the files of Fig. 2, the same each time.

    Args:
        size: of the reproduction.
        folder: to write into.
        data: labelled structures, of which the first 50 and the first 500 are taken; None samples alanine dipeptide
            at 1200 K, as the paper's data of MIL-53(Al) are not part of ubmd.
        test: their test set; None takes the structures of ``data`` behind those.

    Returns:
        for each size the files to train on and to calibrate with; the test file; whether these are crystals.

    Raises:
        InputError: ``data`` has too few structures.
    """
    largest = sum(SIZES[size][-1])
    found, tested = _alanine(largest, _TESTED[size], folder) if data is None else _given(data, test, largest)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for n_train, n_valid in SIZES[size]:
        order = np.random.default_rng(0).permutation(n_train + n_valid)
        names = [folder / f"train_{n_train}.extxyz", folder / f"valid_{n_valid}.extxyz"]
        for name, places in zip(names, (order[:n_train], order[n_train:]), strict=True):
            _write(name, [found[i] for i in places])
        files.append((names[0], names[1]))
    _write(folder / "test.extxyz", tested)
    return files, folder / "test.extxyz", bool(found[0].pbc.all())


def _alanine(n: int, n_tested: int, folder: Path) -> tuple[list[Atoms], list[Atoms]]:
    # all of one sample, as calibration promises nothing for others; short trajectories, as at 1200 K amide
    # bonds turn now and then and stay so, which would be of one part alone
    count = n + n_tested
    made = partial(sample_ff19sb, count, duration_ps=max(10.0, count / 2), seed=0, trajectories=max(count // 10, 1))
    found = cached_test_set(folder / "ala2.extxyz", made)
    return found[:n], found[n:]


def _given(data: Path, test: Path | None, n: int) -> tuple[list[Atoms], list[Atoms]]:
    found = read_labelled(data)
    tested = found[n:] if test is None else read_labelled(test)
    if len(found) < n or not tested:
        raise InputError(
            f"--data {data} has {len(found)} structures; {n} are needed and, without --test, more to test on"
        )
    return found[:n], tested


def _write(path: Path, structures: list[Atoms]) -> None:
    """A file that is there stays, so that fits to it are not taken for others."""
    if not path.exists():
        write_structures(path, structures)

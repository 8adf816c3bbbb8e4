"""A reference for the tests of executors, importable by worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from ase import Atoms

from ubmd.reference.base import Label, Reference, ReferenceError, UnfinishedError


class Trap(Reference):
    """A harmonic well whose labels end as the ``info['does']`` of the structure says; calls leave a file each.

    ``die``, ``break``, ``sleep`` and ``program`` do so as often as ``info['times']`` says, then all is well.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def fingerprint(self):
        return {"class": "Trap"}

    def compute(self, atoms: Atoms) -> Label:
        number = int(atoms.info["number"])
        before = len(list(self.folder.glob(f"{number}-*")))
        (self.folder / f"{number}-{before}").write_text(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")
        does = atoms.info.get("does")
        if does == "fail":
            raise ReferenceError("SCF not converged")
        if before < atoms.info.get("times", 1):
            if does == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if does == "break":
                raise UnfinishedError("the disk is full")
            if does == "sleep":
                time.sleep(60)
            if does == "program":
                subprocess.run(["sleep", "61.25"], check=False)
        time.sleep(0.02)
        return Label(0.5 * float((atoms.positions**2).sum()), -atoms.positions, None)


def atoms(number: int, does: str = "", times: int = 1) -> Atoms:
    """The structure of a number."""
    positions = np.random.default_rng(number).normal(size=(3, 3))
    return Atoms("H3", positions, info={"number": number, "does": does, "times": times})

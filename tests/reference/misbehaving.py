"""Calculators that go wrong in the ways that calculators do, importable by worker processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorSetupError, all_changes


class Bad(Calculator):
    """A harmonic well that goes wrong, as ``how`` says, for structures whose first atom is not at x = 0."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, how: str = ""):
        super().__init__()
        self.how = how

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        forces = -self.atoms.positions  # pyright: ignore
        self.results = {"energy": 0.5 * float((forces**2).sum()), "forces": forces}
        if atoms.positions[0, 0] != 0.0:
            getattr(self, f"do_{self.how}")(atoms)

    def do_ragged(self, atoms: Atoms) -> None:
        self.results["forces"] = [[1.0, 2.0, 3.0], [1.0]]

    def do_text(self, atoms: Atoms) -> None:
        self.results["energy"] = "not converged"

    def do_nothing(self, atoms: Atoms) -> None:
        self.results["forces"] = None

    def do_nan(self, atoms: Atoms) -> None:
        self.results["energy"] = np.nan

    def do_empty(self, atoms: Atoms) -> None:
        self.results = {}

    def do_mutate(self, atoms: Atoms) -> None:
        atoms.positions += 1.0
        atoms.numbers[:] = 1

    def do_sys_exit(self, atoms: Atoms) -> None:
        sys.exit(0)

    def do_bug(self, atoms: Atoms) -> None:
        raise KeyError("x")

    def do_memory(self, atoms: Atoms) -> None:
        raise MemoryError

    def do_setup(self, atoms: Atoms) -> None:
        raise CalculatorSetupError("set MYCODE_COMMAND")

    def do_segfault(self, atoms: Atoms) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def do_os_exit(self, atoms: Atoms) -> None:
        os._exit(0)

    def do_hang(self, atoms: Atoms) -> None:
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(0.1)


def three() -> list[Atoms]:
    """Three structures, the second of which makes trouble."""
    return [Atoms("H2", [[x, 0, 0], [1 + 0.1 * i, 1, 0]]) for i, x in enumerate((0.0, 0.1, 0.0))]

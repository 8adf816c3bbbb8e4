"""Molecules by ORCA, through the files that ASE writes and reads.

ORCA: F. Neese, WIREs Comput. Mol. Sci. 12, e1606 (2022), https://doi.org/10.1002/wcms.1606. The program is not
free to pass on, so this is tested with a stand-in that reads and writes its files.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms as BareAtoms
from ase.calculators.orca import OrcaProfile, OrcaTemplate
from ase.io.orca import read_energy, read_orca_engrad

from ubmd.data.electronic import ElectronicState, check_state_options, electronic_state, tell_radical
from ubmd.errors import InputError
from ubmd.reference.base import (
    Label,
    Plain,
    Reference,
    ReferenceError,
    UnfinishedError,
    checked_label,
    class_path,
)
from ubmd.reference.identity import versions_of
from ubmd.reference.programs import check_program, scratch_folder

if TYPE_CHECKING:
    from ase import Atoms


class ORCAReference(Reference):
    """Energies and forces of molecules.

    Every label is a run of its own in a scratch folder, which is kept if it fails. A run whose SCF does not
    converge is a failure of its structure.

    Args:
        command: starts ORCA; its full path if ``blocks`` ask for several processes.
        simple_input: the line of keywords, without ``EnGrad``.
        blocks: of ORCA's input, such as ``%pal nprocs 8 end``.
        charge: total charge, e; null for that of the structure (:mod:`ubmd.data.electronic`).
        multiplicity: spin multiplicity; null for that of the structure, or the lowest.
        scratch: folder in which the scratch folders are made; null for the system's own for such things.
    """

    def __init__(
        self,
        *,
        command: str = "orca",
        simple_input: str = "PBE0 D3BJ def2-TZVP TightSCF",
        blocks: str = "",
        charge: int | None = None,
        multiplicity: int | None = None,
        scratch: str | None = None,
    ) -> None:
        check_state_options(charge, multiplicity)
        self.command, self.scratch = command, scratch
        self._parameters: dict[str, Any] = {
            "orcasimpleinput": f"{simple_input} EnGrad",
            "orcablocks": blocks,
            "charge": charge,
            "mult": multiplicity,
        }

    def fingerprint(self) -> dict[str, Plain]:
        """Class and input; neither the command nor the scratch folder is part of them."""
        return {"class": class_path(self), **self._parameters}

    def check(self) -> None:
        """Refuse a machine without ORCA.

        Raises:
            InputError: the program of ``command`` is missing.
        """
        check_program(self.command, "ORCA", "install it from its makers and set reference.command to its full path")

    def versions(self) -> dict[str, str]:
        return versions_of("ase")

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse a structure that is periodic, or whose charge or spin cannot be.

        Raises:
            InputError: as said.
        """
        if atoms.pbc.any():
            raise InputError("it is periodic, but ORCA labels molecules; use reference=cp2k")
        tell_radical(atoms, self._state(atoms), self._parameters["charge"])

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: the SCF, or what follows it, did not converge.
            UnfinishedError: ORCA broke off.
            InputError: ORCA is missing, or the structure is none for it.
        """
        self.check()
        self.check_atoms(atoms)
        state = self._state(atoms)
        parameters = self._parameters | {"charge": state.charge, "mult": state.multiplicity or state.lowest}
        with scratch_folder(self.scratch, "orca") as folder:
            return self._run(atoms, parameters, folder)

    def _state(self, atoms: Atoms) -> ElectronicState:
        return electronic_state(atoms, charge=self._parameters["charge"], multiplicity=self._parameters["mult"])

    def _run(self, atoms: Atoms, parameters: dict[str, Any], folder: Path) -> Label:
        profile, template = OrcaProfile(self.command), OrcaTemplate()
        # nothing but elements and positions: ASE takes some tags for ghost atoms
        structure = BareAtoms(atoms.numbers, atoms.positions)
        template.write_input(profile, folder, structure, parameters, ["energy", "forces"])
        problem: Exception | None = None
        try:
            template.execute(folder, profile)
        except (OSError, subprocess.SubprocessError) as error:
            problem = error
        file = folder / template.outputname
        output = file.read_text(errors="replace") if file.exists() else ""
        check_output(output, problem)
        energy = read_energy(output.splitlines())
        gradient = file.with_suffix(".engrad")
        if energy is None or not gradient.exists():
            raise UnfinishedError("ORCA wrote no energy or no gradient")
        return checked_label(energy, read_orca_engrad(gradient), None, len(atoms))


def check_output(output: str, problem: Exception | None = None) -> None:
    """Accept an output of ORCA only if it ended well and nothing in it failed to converge.

    Args:
        output: of one calculation.
        problem: what went wrong in running ORCA, if anything.

    Raises:
        ReferenceError: the SCF, or what follows it, did not converge.
        UnfinishedError: ORCA broke off.
    """
    if re.search(r"\bNOT (fully )?CONVERGED\b", output, re.IGNORECASE):
        raise ReferenceError("the SCF did not converge") from problem
    if problem is not None or "ORCA TERMINATED NORMALLY" not in output:
        said = [line.strip() for line in output.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
        raise UnfinishedError(f"ORCA broke off ({said[-1] if said else problem or 'no word of why'})") from problem

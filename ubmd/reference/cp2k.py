"""Density functional theory by CP2K, through ASE.

CP2K: T. D. Kühne et al., J. Chem. Phys. 152, 194103 (2020), https://doi.org/10.1063/5.0007045.
"""

from __future__ import annotations

import copy
import re
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.calculators.cp2k import CP2K, InputSection, parse_input
from ase.units import Rydberg

from ubmd.data.electronic import check_state_options, electronic_state
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

INSTALL = (
    "on Debian or Ubuntu: apt-get install --no-install-recommends cp2k cp2k-data; or set reference.command to a CP2K "
    "shell, such as 'mpirun -np 8 cp2k.psmp -s'"
)
_VDW = "FORCE_EVAL/DFT/XC/VDW_POTENTIAL"


class CP2KReference(Reference):
    """Energies, forces and stress of periodic structures, and energies and forces of molecules in a box.

    Every label is a run of its own in a scratch folder, which is kept if it fails. A run whose SCF does not
    converge is a failure of its structure, whatever numbers CP2K returns.

    Args:
        template: CP2K input to which the options below and the structure are added; a keyword may not be in
            both. In it, no section may be repeated.
        command: starts a CP2K shell; its threads are those of ``OMP_NUM_THREADS``.
        functional: such as PBE, or any that CP2K or libxc knows.
        basis_set: name in ``basis_set_file``, or the names by element; null if ``template`` has one for each
            kind of atom.
        basis_set_file: a file of CP2K's data folder, or a path.
        pseudo_potential: name in ``potential_file``; null if ``template`` has one for each kind of atom.
        potential_file: a file of CP2K's data folder, or a path.
        cutoff_ry: plane-wave cutoff of the finest grid, Ry.
        rel_cutoff_ry: which grid a Gaussian goes to, Ry.
        dispersion: Grimme's correction for ``functional``, DFTD3(BJ) or DFTD3; null for none.
        max_scf: largest number of steps of an SCF loop.
        eps_scf: its convergence criterion.
        charge: total charge, e; null for that of the structure (:mod:`ubmd.data.electronic`).
        multiplicity: spin multiplicity; null for that of the structure, or the lowest.
        unrestricted: spin-polarised also where the multiplicity is 1.
        scratch: folder in which the scratch folders are made; null for the system's own for such things.

    Raises:
        InputError: a value is not positive, or the template has what an option says.
    """

    has_stress = True

    def __init__(
        self,
        *,
        template: str,
        command: str = "cp2k_shell.psmp",
        functional: str = "PBE",
        basis_set: str | Mapping[str, str] | None = "DZVP-MOLOPT-SR-GTH",
        basis_set_file: str = "BASIS_MOLOPT",
        pseudo_potential: str | None = "GTH-PBE",
        potential_file: str = "GTH_POTENTIALS",
        cutoff_ry: float = 1000.0,
        rel_cutoff_ry: float = 60.0,
        dispersion: str | None = "DFTD3(BJ)",
        max_scf: int = 50,
        eps_scf: float = 1e-6,
        charge: int | None = None,
        multiplicity: int | None = None,
        unrestricted: bool = False,
        scratch: str | None = None,
    ) -> None:
        positive = {"cutoff_ry": cutoff_ry, "rel_cutoff_ry": rel_cutoff_ry, "max_scf": max_scf, "eps_scf": eps_scf}
        for name, value in positive.items():
            if not value > 0:
                raise InputError(f"reference.{name}={value} is not positive; give a positive value")
        check_state_options(charge, multiplicity)
        self.command, self.scratch = command, scratch
        keywords = {
            "FORCE_EVAL/DFT/MGRID": [f"REL_CUTOFF {rel_cutoff_ry}"],
            "FORCE_EVAL/DFT/SCF": [f"EPS_SCF {eps_scf}"],
        }
        if dispersion is not None:
            keywords[_VDW] = ["POTENTIAL_TYPE PAIR_POTENTIAL"]
            keywords[f"{_VDW}/PAIR_POTENTIAL"] = [
                f"TYPE {dispersion}",
                "PARAMETER_FILE_NAME dftd3.dat",
                f"REFERENCE_FUNCTIONAL {functional}",
            ]
        self._parameters: dict[str, Any] = {
            "inp": "\n".join(_with_keywords(template, keywords).write()),
            "xc": functional,
            "basis_set": basis_set if isinstance(basis_set, str | None) else dict(basis_set),
            "basis_set_file": basis_set_file,
            "pseudo_potential": pseudo_potential,
            "potential_file": potential_file,
            "cutoff": cutoff_ry * Rydberg,
            "max_scf": max_scf,
            "charge": charge,
            "multiplicity": multiplicity,
            "uks": unrestricted,
        }

    def fingerprint(self) -> dict[str, Plain]:
        """Class and input; neither the command nor the scratch folder is part of them."""
        return {"class": class_path(self), **copy.deepcopy(self._parameters)}

    def check(self) -> None:
        """Refuse a machine without CP2K.

        Raises:
            InputError: the program of ``command`` is missing.
        """
        check_program(self.command, "CP2K", INSTALL)

    def versions(self) -> dict[str, str]:
        return versions_of("ase")

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse a structure that CP2K's input cannot be written for.

        Raises:
            InputError: it is neither periodic in three directions nor in a box, its charge or spin cannot be, or an
                element has no basis set.
        """
        if atoms.cell.rank < 3 or atoms.pbc.any() != atoms.pbc.all():
            raise InputError(
                "CP2K labels structures that are periodic in three directions, or in none but with a cell around them, "
                f"but its pbc is {atoms.pbc.tolist()} and its cell has {atoms.cell.rank} vectors"
            )
        self._parameters_for(atoms)

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: the SCF did not converge.
            UnfinishedError: CP2K broke off.
            InputError: CP2K is missing, or the structure is none for it.
        """
        self.check()
        self.check_atoms(atoms)
        parameters = self._parameters_for(atoms)
        with scratch_folder(self.scratch, "cp2k") as folder:
            return self._run(atoms.copy(), parameters, folder)

    def _run(self, atoms: Atoms, parameters: dict[str, Any], folder: Path) -> Label:
        # where the shell runs paths are short; CP2K cuts off long ones
        program = shlex.join(shlex.split(self.command))  # nothing in it is for the shell that ASE starts
        shell = f"cd {shlex.quote(str(folder))} && exec env {program} 2> cp2k.err"
        problem: Exception | None = None
        results: dict[str, Any] = {}
        with warnings.catch_warnings(action="ignore"):  # of a shell that has died, which is dealt with below
            try:
                with CP2K(command=shell, label="cp2k", **parameters) as calculator:
                    calculator.calculate(atoms)
                    results = calculator.results
            except Exception as error:
                problem = error
        output = folder / "cp2k.out"  # complete once the shell has ended
        check_scf(output.read_text(errors="replace") if output.exists() else "", problem)
        stress = results["stress"] if atoms.pbc.all() else None
        return checked_label(results["energy"], results["forces"], stress, len(atoms))

    def _parameters_for(self, atoms: Atoms) -> dict[str, Any]:
        """The parameters of ASE's calculator; basis sets by element are in the input that it starts from."""
        own = self._parameters
        state = electronic_state(atoms, charge=own["charge"], multiplicity=own["multiplicity"])
        multiplicity = state.multiplicity or state.lowest
        own = own | {"charge": state.charge, "multiplicity": multiplicity, "uks": own["uks"] or multiplicity > 1}
        names = own["basis_set"]
        if not isinstance(names, dict):
            return own
        root = parse_input(own["inp"])
        kinds = root.get_subsection("FORCE_EVAL/SUBSYS").subsections
        for element in sorted(set(atoms.get_chemical_symbols())):
            if element not in names:
                raise InputError(f"reference.basis_set has no name for {element}: +reference.basis_set.{element}=NAME")
            kind = InputSection("KIND", element)
            kind.keywords.append(f"BASIS_SET {names[element]}")
            kinds.append(kind)
        return own | {"inp": "\n".join(root.write()), "basis_set": None}


def check_scf(output: str, problem: Exception | None = None) -> None:
    """Accept an output of CP2K only if it says that the SCF converged, and nothing else of it.

    Up to version 2024.1 CP2K merely warns of an SCF that has not converged and returns forces all the same. With
    an outer loop, a converged inner one is not enough.

    Args:
        output: of one calculation.
        problem: what went wrong in talking to CP2K, if anything.

    Raises:
        ReferenceError: the SCF did not converge.
        UnfinishedError: CP2K aborted (with what it said), there was a problem, or nothing is said about the SCF.
    """
    if re.search(r"SCF run NOT converged|SCF loop FAILED to converge", output):
        raise ReferenceError("the SCF did not converge") from problem
    if problem is not None or "[ABORT]" in output:
        said = _abort_message(output) or f"{type(problem).__name__}: {problem}"
        raise UnfinishedError(f"CP2K broke off ({said})") from problem
    if "SCF run converged" not in output:
        raise UnfinishedError("CP2K's output does not say that the SCF converged")


def _abort_message(output: str) -> str:
    """The sentence beside the little man in CP2K's frame."""
    frame = output.partition("[ABORT]")[2].partition("\n ****")[0]
    lines = (re.sub(r"^ \*.{8}|\*\s*$", "", line) for line in frame.splitlines()[1:])
    return " ".join(" ".join(lines).split())


def _with_keywords(template: str, keywords: dict[str, list[str]]) -> InputSection:
    """The template with keywords added to its sections."""
    root = parse_input(template)
    for section, lines in keywords.items():
        for line in lines:
            try:
                root.add_keyword(section, line)
            except Exception as error:
                raise InputError(
                    f"reference.template: {error}; leave {line.split()[0]} of {section} to the options of the "
                    "reference, and repeat no section"
                ) from error
    return root

"""Density-functional theory of molecules through PySCF, a quantum reference that pip installs.

PySCF: Q. Sun et al., J. Chem. Phys. 153, 024109 (2020), https://doi.org/10.1063/5.0006074. Dispersion corrections come
from the package ``pyscf-dispersion``.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from ase import Atoms
from ase.units import Bohr, Hartree

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
    told,
)
from ubmd.reference.identity import versions_of

__all__ = ["PySCFReference"]


class PySCFReference(Reference):
    """Energies and forces of a molecule from Kohn-Sham DFT with density fitting.

    Restricted for singlets, unrestricted otherwise. A self-consistent field that does not converge is a failure of its
    structure. Forces are the derivatives of the energy on its integration grid, which moves with the atoms.

    Args:
        xc: functional, as PySCF names it: pbe0, b3lyp, r2scan ...; without non-local correlation (VV10).
        basis: basis set of all elements, or one for each: ``{H: def2-svp, O: def2-tzvp}``.
        dispersion: d3bj, d3zero, d4 or None.
        charge: total charge, e; None takes that of the structure (:mod:`ubmd.data.electronic`).
        multiplicity: spin multiplicity; None takes that of the structure, or the lowest.
        grid: level of the integration grid, 0 to 9.
        conv_tol: change of the energy at which the self-consistent field ends, Hartree.
        max_cycle: its most iterations.
        threads: CPU threads of a label.

    Raises:
        InputError: a package is missing, or a value is impossible.
    """

    has_stress = False

    def __init__(
        self,
        xc: str = "pbe0",
        basis: str | dict[str, str] = "def2-svp",
        dispersion: Literal["d3bj", "d3zero", "d4"] | None = "d3bj",
        *,
        charge: int | None = None,
        multiplicity: int | None = None,
        grid: int = 3,
        conv_tol: float = 1e-9,
        max_cycle: int = 100,
        threads: int = 1,
    ) -> None:
        check_state_options(charge, multiplicity)
        if grid not in range(10):
            raise InputError(f"reference.grid={grid} must be a level from 0 to 9")
        for name, value in {"conv_tol": conv_tol, "max_cycle": max_cycle, "threads": threads}.items():
            if not value > 0:
                raise InputError(f"reference.{name}={value} is not positive; give a positive value")
        if dispersion not in ("d3bj", "d3zero", "d4", None):
            raise InputError(f"reference.dispersion={dispersion} must be d3bj, d3zero, d4 or null")
        self.threads = threads
        self._parameters: dict[str, Any] = {
            "xc": xc,
            "basis": dict(basis) if isinstance(basis, dict) else basis,
            "dispersion": dispersion,
            "charge": charge,
            "multiplicity": multiplicity,
            "grid": grid,
            "conv_tol": conv_tol,
            "max_cycle": max_cycle,
        }
        _pyscf("pyscf.dispersion" if dispersion else "pyscf")
        _check_functional(xc)

    def fingerprint(self) -> dict[str, Plain]:
        """Class and parameters; the number of threads is none of them."""
        return {"class": class_path(self), **self._parameters}

    def versions(self) -> dict[str, str]:
        return versions_of("pyscf", *(("pyscf-dispersion",) if self._parameters["dispersion"] else ()))

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse what is no molecule, a charge or spin that cannot be, and elements without a basis.

        Raises:
            InputError: naming it.
        """
        if atoms.pbc.any():
            raise InputError("it is periodic, but reference=pyscf computes molecules; use reference=cp2k or tblite")
        state = self._state(atoms)
        self._molecule(atoms, state)
        tell_radical(atoms, state, self._parameters["charge"])

    def compute(self, atoms: Atoms) -> Label:
        """Label one molecule, which is left as it is.

        Raises:
            ReferenceError: the self-consistent field did not converge.
            InputError: as :meth:`check_atoms`.
        """
        self.check_atoms(atoms)
        given, state = self._parameters, self._state(atoms)
        lib = _pyscf("pyscf.lib")
        with lib.with_omp_threads(self.threads):
            molecule = self._molecule(atoms, state)
            restricted = molecule.spin == 0
            field = (molecule.RKS if restricted else molecule.UKS)(xc=given["xc"]).density_fit()
            field.disp, field.grids.level = given["dispersion"], given["grid"]
            field.conv_tol, field.max_cycle, field.chkfile = given["conv_tol"], given["max_cycle"], None
            try:
                energy = field.kernel()
                if not field.converged:
                    raise ReferenceError(f"the self-consistent field did not converge in {given['max_cycle']} cycles")
                gradient = field.nuc_grad_method()
                gradient.grid_response = True  # without it, forces of r2SCAN are wrong by 0.1 eV/Å
                slopes = gradient.kernel()
            except ReferenceError:
                raise
            except Exception as error:  # it has a class for each of its reasons
                raise UnfinishedError(told(error)) from error
        return checked_label(energy * Hartree, -slopes * Hartree / Bohr, None, len(atoms))

    def _state(self, atoms: Atoms) -> ElectronicState:
        return electronic_state(atoms, charge=self._parameters["charge"], multiplicity=self._parameters["multiplicity"])

    def _molecule(self, atoms: Atoms, state: ElectronicState) -> Any:
        """The structure as PySCF has it."""
        basis = self._parameters["basis"]
        where = list(zip(atoms.get_chemical_symbols(), atoms.positions.tolist(), strict=True))
        unpaired = (state.multiplicity or state.lowest) - 1
        try:
            return _pyscf("pyscf.gto").M(
                atom=where,
                unit="Angstrom",
                basis=basis,
                charge=state.charge,
                spin=unpaired,
                verbose=0,
                parse_arg=False,
                dump_input=False,
            )
        except Exception as error:
            raise InputError(f"PySCF does not take it with reference.basis={basis} ({told(error)})") from error


def _check_functional(xc: str) -> None:
    libxc = _pyscf("pyscf.dft").libxc
    if not xc.strip() or re.search(r"[-_]d(\d\w*)?$", xc, re.IGNORECASE):
        raise InputError(f"reference.xc={xc} must be a functional alone; say dispersion by reference.dispersion")
    try:
        libxc.parse_xc(xc)
    except Exception as error:  # KeyError, and others of its parser
        raise InputError(f"reference.xc={xc} is no functional that PySCF knows ({told(error)})") from error
    if libxc.is_nlc(xc):
        raise InputError(f"reference.xc={xc} has non-local correlation, which is not supported; use e.g. pbe0, r2scan")


def _pyscf(name: str) -> Any:
    """A module of PySCF."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"reference=pyscf needs the package {error.name}, which is not installed; pip install 'ubmd[pyscf]'"
        ) from error

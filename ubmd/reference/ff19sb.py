"""AMBER ff19SB for alanine dipeptide in TorchMD: the reference of the paper's first example.

TorchMD has no CMAP term, hence "ff19SB as implemented in TorchMD" is ff19SB without it; ``cmap=True`` adds
it. Topology and parameters come from OpenMM's own force-field file, through ParmEd, when the object is made.

TorchMD: S. Doerr et al., J. Chem. Theory Comput. 17, 2355 (2021), https://doi.org/10.1021/acs.jctc.0c01343.
ff19SB: C. Tian et al., J. Chem. Theory Comput. 16, 528 (2020), https://doi.org/10.1021/acs.jctc.9b00591.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from ubmd.data.electronic import electronic_state
from ubmd.errors import InputError
from ubmd.precision import precision
from ubmd.reference.alanine_dipeptide import SYMBOLS
from ubmd.reference.base import Label, Plain, Reference, ReferenceError, checked_label, class_path
from ubmd.reference.cmap import CMAP
from ubmd.reference.identity import versions_of
from ubmd.reference.openmm_system import (
    FORCE_FIELD,
    amber_classes,
    build_system,
    cmap_tables,
    force_field,
    topology,
)
from ubmd.units import KCAL_PER_MOL

if TYPE_CHECKING:
    from ase import Atoms
    from parmed.amber import AmberParm
    from torchmd.forces import Forces

PACKAGES = ("torchmd", "openmm", "parmed")
"""Distributions that labels come from."""
_TERMS = ("bonds", "angles", "dihedrals", "impropers", "1-4", "electrostatics", "lj")


class FF19SB(Reference):
    """Energies and forces of alanine dipeptide, float64 on the CPU, no cutoff.

    In a configuration::

        reference:
          _target_: ubmd.reference.ff19sb.FF19SB
          cmap: false

    Args:
        cmap: add ff19SB's CMAP term; the paper's results are without it.
    """

    reads = ()

    def __init__(self, *, cmap: bool = False) -> None:
        self.cmap = cmap
        self._forces = _torchmd_forces()
        self._cmap_term = _cmap_term() if cmap else None

    def fingerprint(self) -> dict[str, Plain]:
        """Class, force field and whether CMAP is on."""
        return {"class": class_path(self), "force_field": FORCE_FIELD, "cmap": self.cmap}

    def compute(self, atoms: Atoms) -> Label:
        """Label of alanine dipeptide, atoms in AMBER order; no stress.

        Raises:
            InputError: the structure is another one (:meth:`check_atoms`).
            ReferenceError: the energy or a force is not finite (coinciding atoms).
        """
        self.check_atoms(atoms)
        energies, forces = self.compute_many(atoms.positions[None])
        if not np.isfinite(energies).all() or not np.isfinite(forces).all():
            raise ReferenceError("energy or forces are non-finite, as atoms are too close")
        return checked_label(energies, forces, None, len(atoms))

    def versions(self) -> dict[str, str]:
        return versions_of(*PACKAGES)

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse what is not alanine dipeptide, neutral and without unpaired electrons.

        Raises:
            InputError: other atoms, another order, a periodic structure, or one with a charge or spin.
        """
        if tuple(atoms.get_chemical_symbols()) != SYMBOLS:
            raise InputError(
                f"{atoms.get_chemical_formula()} with {len(atoms)} atoms is not alanine dipeptide in "
                f"AMBER order ({' '.join(SYMBOLS)}); reorder the atoms or choose another reference"
            )
        if atoms.pbc.any():
            raise InputError(
                f"its pbc is {atoms.pbc.tolist()} but FF19SB labels an isolated molecule; set pbc to False"
            )
        state = electronic_state(atoms)
        if state.charge or state.multiplicity not in (None, 1):
            raise InputError(
                f"it states a charge of {state.charge} and a multiplicity of {state.multiplicity or state.lowest}, but "
                "FF19SB knows neutral alanine dipeptide, a singlet; remove them or choose another reference"
            )

    def compute_many(self, positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies and forces of several structures; values of impossible ones may be non-finite.

        Args:
            positions: [m, 22, 3] Å, atoms in AMBER order.

        Returns:
            energies [m] eV and forces [m, 22, 3] eV/Å.

        Raises:
            InputError: positions have another shape.
        """
        if positions.ndim != 3 or positions.shape[1:] != (len(SYMBOLS), 3):
            raise InputError(f"positions: shape {positions.shape} should be (m, {len(SYMBOLS)}, 3)")
        x = torch.tensor(positions, dtype=torch.float64)
        forces = torch.zeros_like(x)
        no_box = torch.zeros(len(x), 3, 3, dtype=torch.float64)
        energies = torch.tensor(self._forces.compute(x, no_box, forces), dtype=torch.float64)
        energies, forces = energies * KCAL_PER_MOL, forces * KCAL_PER_MOL
        if self._cmap_term is not None:
            cmap_energies, cmap_forces = self._cmap_term.energy_and_forces(x)
            energies, forces = energies + cmap_energies, forces + cmap_forces
        return energies.numpy(), forces.numpy()


def _cmap_term() -> CMAP:
    tables = cmap_tables(build_system(cmap=True))
    return CMAP.from_maps(
        torch.tensor(tables.energies),
        torch.tensor(tables.maps),
        torch.tensor(tables.first),
        torch.tensor(tables.second),
    )


def _torchmd_forces() -> Forces:
    """TorchMD's force field of the molecule, kcal/mol and Å."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside ParmEd and TorchMD
        from parmed.amber import AmberParameterSet
        from torchmd.forcefields.ff_parmed import ParmedForcefield
        from torchmd.forces import Forces
        from torchmd.parameters import Parameters

        parm = _amber_parm()
        molecule = _molecule(parm)
        parameters = AmberParameterSet.from_structure(parm)
        # TorchMD makes its tensors in the default dtype and casts them later, which would round to float32.
        with precision(torch.float64):
            table = Parameters(ParmedForcefield(molecule, parameters), molecule, precision=torch.float64)
            return Forces(table, terms=list(_TERMS), cutoff=None)


def _amber_parm() -> AmberParm:
    """ParmEd's view of the molecule, with AMBER's names of the atom types."""
    import parmed
    from openmm import unit

    top = topology()
    # TorchMD looks parameters up by type names. ParmEd takes them from Atom.id when that is no number, and
    # would otherwise invent names that merge types which differ in their bonded terms.
    for atom, name in zip(top.atoms(), amber_classes(top, force_field()), strict=True):
        atom.id = name
    system = build_system(cmap=False)
    structure = parmed.openmm.load_topology(top, system)
    for index, atom in enumerate(structure.atoms):
        # ParmEd takes the elements' masses (12.011) instead of the force field's (12.01).
        atom.mass = system.getParticleMass(index).value_in_unit(unit.dalton)
        atom.atom_type.mass = atom.mass
    return parmed.amber.AmberParm.from_structure(structure)


def _molecule(parm: AmberParm) -> SimpleNamespace:
    """The attributes of a molecule that TorchMD reads.

    Torsions of zero height stay: their 1-4 interactions hang on them.
    """

    def torsions(improper: bool) -> NDArray[np.uint32]:
        chosen = [d for d in parm.dihedrals if d.improper == improper]
        return np.array([[d.atom1.idx, d.atom2.idx, d.atom3.idx, d.atom4.idx] for d in chosen], dtype=np.uint32)

    return SimpleNamespace(
        numAtoms=len(parm.atoms),
        atomtype=np.array([a.type for a in parm.atoms], dtype=object),
        charge=np.array([a.charge for a in parm.atoms], dtype=np.float64),
        masses=np.array([a.mass for a in parm.atoms], dtype=np.float64),
        bonds=np.array([[b.atom1.idx, b.atom2.idx] for b in parm.bonds], dtype=np.uint32),
        angles=np.array([[a.atom1.idx, a.atom2.idx, a.atom3.idx] for a in parm.angles], dtype=np.uint32),
        dihedrals=torsions(improper=False),
        impropers=torsions(improper=True),
    )

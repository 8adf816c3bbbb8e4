"""Alanine dipeptide with AMBER ff19SB in OpenMM: the source of topology and parameters.

Nothing here labels structures: TorchMD does that (:mod:`ubmd.reference.ff19sb`). OpenMM supplies the force
field's file, minimises starting structures and runs the long reference dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ubmd.units import KJ_PER_MOL

if TYPE_CHECKING:
    import openmm
    from openmm import app

RESIDUES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ACE", ("H1", "CH3", "H2", "H3", "C", "O")),
    ("ALA", ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O")),
    ("NME", ("N", "H", "C", "H1", "H2", "H3")),
)
"""Residues and the names of their atoms; the first letter of a name is the element."""

FORCE_FIELD = "amber19/protein.ff19SB.xml"
"""Name of the force field among OpenMM's own files."""

_ANGSTROM_PER_NM = 10.0


@dataclass(frozen=True)
class CMAPTables:
    """CMAP terms of a system as OpenMM holds them."""

    energies: NDArray[np.float64]
    """[n_maps, size, size] eV; entry [k, i, j] is map k at the angles 2πi/size and 2πj/size."""
    maps: NDArray[np.int64]
    """[n_terms] map of a term."""
    first: NDArray[np.int64]
    """[n_terms, 4] atoms of the first dihedral."""
    second: NDArray[np.int64]
    """[n_terms, 4] atoms of the second dihedral."""


def topology() -> app.Topology:
    """OpenMM topology of ACE-ALA-NME."""
    from openmm import app

    top = app.Topology()
    chain = top.addChain("A")
    for residue_name, atom_names in RESIDUES:
        residue = top.addResidue(residue_name, chain)
        for name in atom_names:
            top.addAtom(name, app.Element.getBySymbol(name[0]), residue)
    top.createStandardBonds()
    return top


def force_field() -> app.ForceField:
    """AMBER ff19SB as OpenMM ships it."""
    from openmm import app

    return app.ForceField(FORCE_FIELD)


def amber_classes(top: app.Topology, field: app.ForceField) -> list[str]:
    """AMBER atom types (``XC``, ``CX``, ...) of all atoms, in order."""
    classes: list[str] = []
    for residue, template in zip(top.residues(), field.getMatchingTemplates(top), strict=True):
        type_of = {atom.name: atom.type for atom in template.atoms}
        for atom in residue.atoms():
            # OpenMM has no public way from a type to its class.
            name = field._atomTypes[type_of[atom.name]].atomClass
            classes.append(name.removeprefix("protein-"))
    return classes


def build_system(*, cmap: bool) -> openmm.System:
    """OpenMM System without cutoff, constraints or removal of the centre-of-mass motion.

    Args:
        cmap: keep the CMAP term, or drop it as TorchMD does.
    """
    from openmm import CMAPTorsionForce, app

    system = force_field().createSystem(
        topology(), nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False
    )
    for index in reversed(range(system.getNumForces())):
        force = system.getForce(index)
        if isinstance(force, CMAPTorsionForce):
            # The force field adds the maps of all amino acids, which makes every step 13 times slower.
            if cmap:
                system.addForce(_used_maps_only(force))
            system.removeForce(index)
    return system


def cmap_tables(system: openmm.System) -> CMAPTables:
    """CMAP terms of a system that has some."""
    from openmm import CMAPTorsionForce

    (force,) = (f for f in system.getForces() if isinstance(f, CMAPTorsionForce))
    energies = []
    for k in range(force.getNumMaps()):
        size, values = force.getMapParameters(k)
        # OpenMM runs over the first angle fastest.
        energies.append(np.array([v._value for v in values]).reshape(size, size).T * KJ_PER_MOL)
    terms = np.array([force.getTorsionParameters(t) for t in range(force.getNumTorsions())], dtype=np.int64)
    return CMAPTables(np.array(energies), maps=terms[:, 0], first=terms[:, 1:5], second=terms[:, 5:9])


def reference_context(system: openmm.System, integrator: openmm.Integrator) -> openmm.Context:
    """Context on OpenMM's Reference platform: double precision, one thread, reproducible."""
    import openmm

    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))


def energy_and_forces(
    system: openmm.System, positions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """OpenMM's energies and forces of several structures.

    Args:
        system: as :func:`build_system` makes it.
        positions: [m, 22, 3] Å.

    Returns:
        energies [m] eV and forces [m, 22, 3] eV/Å.
    """
    import openmm

    context = reference_context(system, openmm.VerletIntegrator(0.001))
    energies, forces = np.empty(len(positions)), np.empty(positions.shape)
    for k, x in enumerate(positions):
        context.setPositions(x / _ANGSTROM_PER_NM)
        state = context.getState(getEnergy=True, getForces=True)
        energies[k] = state.getPotentialEnergy()._value * KJ_PER_MOL
        forces[k] = state.getForces(asNumpy=True)._value * (KJ_PER_MOL / _ANGSTROM_PER_NM)
    return energies, forces


def minimise(system: openmm.System, positions: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Nearest local minimum of the energy.

    Args:
        system: as :func:`build_system` makes it.
        positions: [22, 3] Å, the starting point.

    Returns:
        positions [22, 3] Å of the minimum and its energy in eV.
    """
    import openmm

    context = reference_context(system, openmm.VerletIntegrator(0.001))
    context.setPositions(positions / _ANGSTROM_PER_NM)
    tolerance = 1e-3  # kJ/mol/nm, root mean square of the forces
    openmm.LocalEnergyMinimizer.minimize(context, tolerance)  # pyright: ignore[reportArgumentType]
    state = context.getState(getPositions=True, getEnergy=True)
    return (
        state.getPositions(asNumpy=True)._value * _ANGSTROM_PER_NM,
        float(state.getPotentialEnergy()._value * KJ_PER_MOL),
    )


def _used_maps_only(force: openmm.CMAPTorsionForce) -> openmm.CMAPTorsionForce:
    """The same terms with the maps that they use."""
    import openmm

    reduced = openmm.CMAPTorsionForce()
    new_index: dict[int, int] = {}
    for term in range(force.getNumTorsions()):
        old, *atoms = force.getTorsionParameters(term)
        if old not in new_index:
            new_index[old] = reduced.addMap(*force.getMapParameters(old))
        reduced.addTorsion(new_index[old], *atoms)
    return reduced

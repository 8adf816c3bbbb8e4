"""A trained potential in OpenMM, as a ``PythonForce`` (OpenMM 8.3 or newer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.interfaces.engine import OPENMM, Guest

if TYPE_CHECKING:
    import openmm

__all__ = ["python_force"]


def python_force(
    atoms: Atoms, calculator: UBMDCalculator, particles: Sequence[int] | None = None
) -> openmm.PythonForce:
    """The forces of a potential, to be added to an ``openmm.System`` by its ``addForce``.

    OpenMM evaluates it wherever it needs forces or an energy: integrators and minimisers can use any calculator, but a
    Monte Carlo barostat compares energies, which with windows or species weights is no energy that a bias has: let the
    cell be fixed then.

    Args:
        atoms: the structure of the particles, in their order; a periodic one has a cell that
            :func:`~ubmd.interfaces.engine.standard_axes` made. Its periodicity must be the system's.
        calculator: of the potential, biased or not, for this force alone.
        particles: those of the system that the potential acts on, by index; None: all of them.

    Returns:
        a force that computes in kJ/mol and nm and uses the periodic box if ``atoms`` is periodic.

    Raises:
        InputError: for an OpenMM without ``PythonForce``; while it is evaluated, for another number of particles.
    """
    try:
        import openmm
        from openmm.unit import nanometer  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise InputError("OpenMM is not installed: pip install 'openmm>=8.3'") from error
    if not hasattr(openmm, "PythonForce"):
        raise InputError(f"OpenMM {openmm.__version__} has no PythonForce: pip install 'openmm>=8.3'")
    if particles is not None and len(particles) != len(atoms):
        raise InputError(f"particles has {len(particles)} indices for a structure of {len(atoms)} atoms; name each")
    guest = Guest(atoms, calculator, OPENMM)
    periodic = bool(atoms.pbc.all())

    def compute(state: Any) -> tuple[float, NDArray[np.float64]]:
        positions = state.getPositions(asNumpy=True).value_in_unit(nanometer)
        cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(nanometer) if periodic else None
        answer = guest(positions, cell)
        return answer.energy, answer.forces

    force = openmm.PythonForce(compute, {}, list(particles or []))
    force.setName("ubmd")
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force

"""The stress that dynamics at constant pressure follow, of every potential that walkers can have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.bias.bias_parts import Parts, batch_of, crystals, difference_strain, fitted_parts
from tests.dynamics.npt_toys import advance
from ubmd.bias.biased import BiasedPotential
from ubmd.bias.metadynamics import Metadynamics
from ubmd.bias.quantity import SumOfAtomic
from ubmd.data.batch import AtomicBatch
from ubmd.dynamics.adversarial import AdversarialPotential
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.state import initial_state
from ubmd.models.potential import Memory, WalkerPotential
from ubmd.observables import CellLength, Volume


@pytest.fixture(scope="module")
def parts() -> Parts:
    return fitted_parts()


def plain(parts: Parts) -> WalkerPotential:
    return parts[0]


def biased(parts: Parts) -> WalkerPotential:
    return BiasedPotential(*parts, tau=0.3, tau_stress=0.3, rescale=False)


def biased_by_atoms(parts: Parts) -> WalkerPotential:
    return BiasedPotential(*parts, tau=0.3, tau_stress=0.3, rescale=False, quantity=SumOfAtomic())


def adversarial(parts: Parts) -> WalkerPotential:
    return AdversarialPotential(*parts, temperature=2000.0)


def metadynamics(parts: Parts) -> WalkerPotential:
    variables = {"v": Volume(width=2.0), "a": CellLength(0, width=0.1), "c": CellLength(2, width=0.1)}
    return Metadynamics(*parts, variables=variables, height=0.1, stride=1, capacity=6)


POTENTIALS = (plain, biased, biased_by_atoms, adversarial, metadynamics)


def left_handed(atoms: Atoms) -> Atoms:
    """The same crystal, two lattice vectors exchanged."""
    exchanged = atoms.copy()
    exchanged.set_cell(atoms.cell[:][[1, 0, 2]])
    return exchanged


def remembered(potential: WalkerPotential, batch: AtomicBatch) -> Memory | None:
    """The memory of a walker that has been at some other cells."""
    memory = None
    for size in (1.0, 1.01, 0.995):
        memory = potential(batch.replace(cell=size * batch.cell, positions=size * batch.positions), memory).memory
    return memory


@pytest.mark.parametrize("make", POTENTIALS)
@pytest.mark.parametrize("turn", [lambda atoms: atoms, left_handed], ids=["right-handed", "left-handed"])
def test_stress_is_the_derivative_of_the_energy(parts: Parts, make: Callable, turn: Callable) -> None:
    # triclinic cells smaller than the cutoff
    potential, batch = make(parts), batch_of([turn(crystals(1, 20)[0])])
    memory = remembered(potential, batch)
    prediction = potential(batch, memory, stress=True)
    expected = difference_strain(lambda moved: potential(moved, memory).energy, batch) / batch.volume.item()
    stress = prediction.stress[0].numpy()
    assert np.abs(stress - expected).max() < 1e-6 * np.abs(expected).max()
    bias = np.linalg.norm(stress - parts[0](batch, stress=True).stress[0].numpy())
    assert (bias > 1e-3 * np.linalg.norm(expected)) == (make is not plain)


@pytest.mark.parametrize("make", [biased, adversarial])
def test_constant_pressure_follows_the_biased_stress(parts: Parts, make: Callable) -> None:
    """Biased energy, forces and stress belong together, through neighbour lists and integrator."""

    def drift(dt: float) -> float:
        potential, integrator = make(parts), MTK(dt, 300.0, 0.0, thermostat_time=50.0, barostat_time=100.0)
        start = initial_state(batch_of(crystals(2, 20)), temperature=300.0, seeds=[1, 2])
        states = list(advance(start, potential, integrator, round(20 / dt), skin=0.5))
        assert (states[-1].batch.cell - start.batch.cell).abs().max() > 0.02
        conserved = torch.stack([integrator.prepare(s).conserved_energy(s) for s in states])
        return float((conserved - conserved[0]).abs().max())

    coarse, fine = drift(0.5), drift(0.25)
    assert 3.2 < coarse / fine < 4.8

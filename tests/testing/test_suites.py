"""The suites for outside packages: ubmd's own parts pass them, and each finds a planted mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from torch import Tensor

from ubmd.dynamics.integrators.langevin import Langevin, LangevinStep
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.montecarlo import Metropolis, MonteCarlo
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.state import WalkerState
from ubmd.dynamics.walkers import Integrator
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label, Reference
from ubmd.selection import LCMD, MaxDet, MaxDiag, MaxDist, Pool, Random, Selection
from ubmd.testing import integrators, potentials, references, selections, uncertainties
from ubmd.uncertainty import DistanceUncertainty, EnsembleUncertainty, FeatureUncertainty, LastLayer, SketchedGradients
from ubmd.uncertainty.potential import UncertainPotential

MEMBER = partial(GMNN, cutoff=4.0, n_basis=3, n_gauss=5, l_max=1, hidden=(8, 8))
SKETCHED = partial(SketchedGradients, n_projections=6)
UNCERTAINTIES = {
    "posterior": partial(FeatureUncertainty, SKETCHED),
    "last layer": partial(FeatureUncertainty, LastLayer),
    "distance": partial(DistanceUncertainty, SKETCHED, max_points=12),
    "ensemble": EnsembleUncertainty,
}
SELECTIONS = (Random(), MaxDiag(), MaxDet(), MaxDist(), LCMD())
TIMES = {"thermostat_time": 50.0, "barostat_time": 200.0}
INTEGRATORS: tuple[Integrator, ...] = (
    Langevin(dt=1.0, friction=0.01),
    MTK(dt=1.0, pressure=50.0, **TIMES),
    Melchionna(dt=1.0, pressure=50.0, **TIMES),
    Metropolis(MonteCarlo()),
)


def class_name(part: object) -> str:
    return type(part).__name__


def uncertain(kind: str) -> UncertainPotential:
    species = potentials.SPECIES
    model = Ensemble(species, MEMBER, seed=4) if kind == "ensemble" else MEMBER(species, seed=4)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():  # off their initial values, as after training
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model = model.double()
    potential = UncertainPotential(Potential(model), UNCERTAINTIES[kind](model=model).double())
    potential.uncertainty.fit(model, [uncertainties.batch_of(potential, uncertainties.training())])
    return potential


@pytest.fixture(scope="module", params=UNCERTAINTIES)
def potential(request: pytest.FixtureRequest) -> UncertainPotential:
    return uncertain(request.param)


@pytest.mark.parametrize("check", uncertainties.CHECKS, ids=uncertainties.name)
def test_uncertainties(potential: UncertainPotential, check: Callable[[UncertainPotential], None]) -> None:
    check(potential)


@pytest.mark.parametrize("selection", SELECTIONS, ids=class_name)
@pytest.mark.parametrize("check", selections.CHECKS, ids=selections.name)
def test_selections(selection: Selection, check: Callable[[Selection], None]) -> None:
    check(selection)


def emt() -> Reference:
    return ASEReference(EMT())


def crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.rattle(0.1, seed=1)
    return atoms


def molecule() -> Atoms:
    return Atoms("CuAu", [[0.0, 0.0, 0.0], [1.3, 1.2, 1.9]])


@pytest.mark.parametrize("structure", [crystal, molecule])
@pytest.mark.parametrize("check", references.CHECKS, ids=references.name)
def test_references(structure: Callable[[], Atoms], check: Callable[[references.Make, Atoms], None]) -> None:
    check(emt, structure())


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=class_name)
@pytest.mark.parametrize("check", integrators.CHECKS, ids=integrators.name)
def test_integrators(integrator: Integrator, check: Callable[[Integrator], None]) -> None:
    check(integrator)


def test_an_uncertainty_of_the_whole_batch_is_found() -> None:
    class Shared(FeatureUncertainty):
        def forward(self, *args: object) -> tuple[Tensor, Tensor]:
            total, atomic = super().forward(*args)  # pyright: ignore[reportArgumentType]
            return total / total.mean(), atomic

    sound = uncertain("posterior")
    wrong = Shared(SKETCHED, sound.model).double()
    wrong.load_state_dict(sound.uncertainty.state_dict())  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AssertionError):
        uncertainties.batches(UncertainPotential(sound.potential, wrong))


def test_a_selection_that_chooses_twice_is_found() -> None:
    class Twice(MaxDiag):
        def __call__(self, pool: Pool, n_select: int, *, seed: int = 0) -> Tensor:
            return super().__call__(pool, n_select, seed=seed) // 2

    with pytest.raises(AssertionError, match="chosen twice"):
        selections.right_number(Twice())


def test_a_selection_by_other_random_numbers_is_found() -> None:
    class Unseeded(Random):
        def __call__(self, pool: Pool, n_select: int, *, seed: int) -> Tensor:
            return torch.randperm(len(pool.uncertainty))[:n_select]

    with pytest.raises(AssertionError):
        selections.same_seed_same_selection(Unseeded())


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (references.forces_are_energy_differences, lambda label: replace(label, forces=-label.forces)),
        (references.forces_are_energy_differences, lambda label: replace(label, forces=label.forces[::-1])),
        (references.stress_is_an_energy_difference, lambda label: replace(label, stress=-label.stress)),
        (references.shapes_and_types, lambda label: replace(label, stress=None)),
    ],
    ids=["sign", "order", "pressure", "no stress"],
)
def test_wrong_labels_are_found(
    check: Callable[[references.Make, Atoms], None], wrong: Callable[[Label], Label]
) -> None:
    class Wrong(ASEReference):
        def compute(self, atoms: Atoms) -> Label:
            return wrong(super().compute(atoms))

    with pytest.raises(AssertionError):
        check(lambda: Wrong(EMT()), crystal())


def test_a_reference_that_moves_atoms_is_found() -> None:
    class Wrapping(ASEReference):
        def compute(self, atoms: Atoms) -> Label:
            atoms.positions -= np.array([0.1, 0.0, 0.0])
            return super().compute(atoms)

    with pytest.raises(AssertionError, match="positions"):
        references.structure_is_not_changed(lambda: Wrapping(EMT()), crystal())


def test_walkers_that_share_a_thermostat_are_found() -> None:
    @dataclass(frozen=True)
    class Rescaled(LangevinStep):
        def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
            return super().first_half(state.replace(momenta=0.5 * state.momenta / state.momenta.norm()), noise)

    @dataclass(frozen=True)
    class Shared(Langevin):
        def prepare(self, state: WalkerState) -> LangevinStep:
            return Rescaled(**vars(super().prepare(state)))

    with pytest.raises(AssertionError):
        integrators.walkers_are_independent(Shared(dt=1.0))


def test_a_step_that_changes_its_state_is_found() -> None:
    class InPlace(LangevinStep):
        def first_half(self, state: WalkerState, noise: Tensor) -> WalkerState:
            state.momenta.mul_(0.99)
            return super().first_half(state, noise)

    class Careless(Langevin):
        def prepare(self, state: WalkerState) -> LangevinStep:
            return InPlace(**vars(super().prepare(state)))

    with pytest.raises(AssertionError, match="momenta"):
        integrators.state_is_not_changed(Careless(dt=1.0))

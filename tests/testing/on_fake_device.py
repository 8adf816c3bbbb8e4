"""Everything that runs on an accelerator, on a pretended one; run by test_fake_device.py in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.bias.bias_parts import batch_of, crystals, fitted_parts, molecules
from ubmd.bias.biased import BiasedPotential
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.state import WalkerState, evaluate, initial_state
from ubmd.selection import LCMD, MaxDet, MaxDiag, MaxDist, Pool, Random
from ubmd.testing.fake_device import fake, on_accelerator, pretended_accelerator, strays
from ubmd.training.loss import SquaredLoss

POTENTIAL, UNCERTAINTY = fitted_parts()
BIASED = BiasedPotential(POTENTIAL, UNCERTAINTY, 0.25, tau_stress=0.5, species_weights={"H": 0.0})
BATCH = batch_of(crystals(3, 1))


def labelled() -> Any:
    found = POTENTIAL(BATCH, stress=True)
    return BATCH.replace(energy=found.energy, forces=found.forces, stress=found.stress)


def training_step(potential: Any, batch: Any) -> Any:
    loss = SquaredLoss(stress=0.1)(potential(batch, stress=True, training=True), batch)
    return list(torch.autograd.grad(loss, list(potential.parameters())))


@pytest.mark.parametrize("stress", [False, True])
@pytest.mark.parametrize("potential", [POTENTIAL, BIASED], ids=["plain", "biased"])
def test_predictions(potential: torch.nn.Module, stress: bool) -> None:
    on_accelerator(lambda p, b: p(b, stress=stress), potential, BATCH)
    on_accelerator(lambda p, b: p(b, p(b, stress=stress).memory, stress=stress), potential, BATCH)


def test_training_step() -> None:
    on_accelerator(training_step, POTENTIAL, labelled())


def walkers(integrator: Any) -> WalkerState:
    starts = crystals(2, 3) if integrator.needs_stress else molecules(2, 3)
    state = initial_state(batch_of(starts), temperature=300.0, seeds=[0, 1])
    return evaluate(state, BIASED, stress=integrator.needs_stress)


def a_step(integrator: Any) -> Callable[..., WalkerState]:
    def advance(potential: Any, state: WalkerState, noise: torch.Tensor, step: Any = None) -> WalkerState:
        step = integrator.prepare(state) if step is None else step
        moved = step.first_half(state, noise)
        found = potential(moved.batch, moved.memory, stress=integrator.needs_stress)
        return step.second_half(moved, found, noise)

    return advance


INTEGRATORS = [
    Langevin(),
    Melchionna(temperature=300.0, bulk_modulus=100.0),
    MTK(temperature=300.0),
]


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda integrator: type(integrator).__name__)
def test_a_step_of_the_walkers(integrator: Any) -> None:
    state = walkers(integrator)
    noise = torch.zeros(len(state.masses), 2, 3, dtype=torch.float64)
    # a barostat's settings become tensors on the device, which the pretended one cannot make of numbers
    prepared = (integrator.prepare(state),) if integrator.needs_stress else ()
    on_accelerator(a_step(integrator), BIASED, state, noise, *prepared)


@pytest.mark.parametrize(
    "selection", [MaxDiag(), MaxDet(), MaxDist(), LCMD(), Random()], ids=lambda s: type(s).__name__
)
def test_selection_of_a_round(selection: Any) -> None:
    pool = Pool(torch.rand(6), torch.rand(6, 4), torch.rand(5, 4))
    on_accelerator(lambda pool: selection(pool, 2, seed=0), pool)


class _Planted(Langevin):
    """Takes the masses off the device."""

    def prepare(self, state: WalkerState) -> Any:
        return super().prepare(replace(state, masses=state.masses.cpu()))


def test_a_tensor_that_is_taken_off_the_device_in_a_step_is_found() -> None:
    state = walkers(_Planted())
    noise = torch.zeros(len(state.masses), 2, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="mixed devices"):
        on_accelerator(a_step(_Planted()), BIASED, state, noise)


def test_a_result_that_is_left_elsewhere_is_found() -> None:
    with pytest.raises(AssertionError, match=r"not on the accelerator: result\.energy"):
        on_accelerator(lambda p, b: replace(p(b), energy=torch.zeros(3)), POTENTIAL, BATCH)
    with pretended_accelerator():
        assert strays([fake(torch.zeros(1)), {"a": torch.zeros(1)}]) == ["result[1]['a']"]

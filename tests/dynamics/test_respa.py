"""A bias at every n-th step, against r-RESPA written down by hand and what its theory says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.bias.bias_parts import Parts, batch_of, crystals, fitted_parts, molecules
from tests.dynamics.walker_toys import SlowToy, cluster, walkers
from ubmd.bias.biased import BiasedPotential
from ubmd.bias.metadynamics import Metadynamics
from ubmd.data.batch import AtomicBatch
from ubmd.dynamics.adversarial import AdamDescent, AdversarialExploration
from ubmd.dynamics.explore import Explorer, WalkerExploration
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.montecarlo import MonteCarlo, MonteCarloExploration
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.perturbation import PerturbationExploration, RandomPerturbation
from ubmd.dynamics.respa import Evaluations
from ubmd.dynamics.skin import refresh_neighbours
from ubmd.dynamics.state import WalkerState, evaluate, initial_state
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.walkers import Integrator, run_walkers
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Potential, Prediction, WalkerPotential
from ubmd.observables import Torsion
from ubmd.units import ACCELERATION

NO_LIMITS = StoppingRules(None, min_distance=None, max_temperature_factor=None)
FAST, SLOW = 20.0, 3.0
"""eV/Å² of the springs; carbon then swings in about 16 fs."""


class Springs:
    """Each atom on a spring to the origin, and as the bias on a softer one to ``centre``."""

    cutoff = 1.0

    def __init__(self, every: int, centre: float = 0.4):
        self.every, self.centre = every, centre

    def __call__(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        plain = self.between(batch, memory)
        away = batch.positions - self.centre
        bias = 0.5 * SLOW * batch.sum_atoms(away.square().sum(1))
        return Prediction(
            energy=plain.energy + bias,
            forces=plain.forces - self.every * SLOW * away,
            uncertainty=bias,
            atomic_uncertainty=away.norm(dim=1),
            tau=torch.ones_like(bias),
            bias_energy=bias,
            memory=memory,
        )

    def between(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        energy = 0.5 * FAST * batch.sum_atoms(batch.positions.square().sum(1))
        return Prediction(energy, -FAST * batch.positions, memory=memory)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return fitted_parts()


@torch.no_grad()
def advanced(
    state: WalkerState, potential: WalkerPotential, integrator: Integrator, steps: int, skin: float | None = None
) -> list[WalkerState]:
    """The states before and after each step, without noise."""
    stress = integrator.needs_stress
    states = [state if state.evaluated else evaluate(state, potential, stress=stress)]
    halves, evaluations = integrator.prepare(states[0]), Evaluations(potential, states[0])
    nothing = torch.zeros(len(state.momenta), 2, 3, dtype=state.momenta.dtype)
    for _ in range(steps):
        ahead = halves.first_half(states[-1], nothing)
        ahead = ahead if skin is None else refresh_neighbours(ahead, potential.cutoff, skin)
        found = evaluations.next()(ahead.batch, ahead.memory, stress=stress)
        states.append(halves.second_half(ahead, found, nothing))
    return states


def by_hand(state: WalkerState, every: int, dt: float, centre: float, outer: int) -> list[tuple[Tensor, Tensor]]:
    """Places and momenta at each long step of r-RESPA as in the textbook: the fast force inside, the slow outside."""
    r, p, mass = state.batch.positions, state.momenta, state.masses[:, None]
    found = []
    for _ in range(outer):
        p = p - 0.5 * every * dt * ACCELERATION * SLOW * (r - centre)
        for _ in range(every):
            p = p - 0.5 * dt * ACCELERATION * FAST * r
            r = r + dt * p / mass
            p = p - 0.5 * dt * ACCELERATION * FAST * r
        p = p - 0.5 * every * dt * ACCELERATION * SLOW * (r - centre)
        found.append((r, p))
    return found


@pytest.mark.parametrize("every", [2, 3, 5])
def test_equals_the_textbook(every: int) -> None:
    dt, outer = 0.7, 20
    start, potential = walkers([cluster(4, i) for i in range(2)], cutoff=1.0), Springs(every)
    states = advanced(start, potential, Langevin(dt=dt, friction=0.0), every * outer)
    expected = by_hand(start, every, dt, potential.centre, outer)
    for state, (r, p) in zip(states[every::every], expected, strict=True):
        torch.testing.assert_close(state.batch.positions, r, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(state.momenta, p, rtol=1e-11, atol=1e-11)
    rules = StoppingRules(None, max_steps=every * outer, min_distance=None, max_temperature_factor=None)
    run = run_walkers(start, potential, Langevin(dt=dt, friction=0.0), rules, frame_interval=every, skin=9.0)
    assert run.step.tolist() == 2 * list(range(every, every * outer + 1, every))
    for i, (r, _) in enumerate(expected):
        np.testing.assert_allclose(run.positions[run.step == every * (i + 1)].reshape(-1, 3), r, rtol=1e-11)
    for values in (run.uncertainty, run.atomic_uncertainty, run.tau):
        assert np.isfinite(values).all()
    fast = 0.5 * FAST * np.square(run.positions).sum((1, 2))
    np.testing.assert_allclose(run.energy, fast)


def test_it_can_be_reversed() -> None:
    start = walkers([cluster(4)], cutoff=1.0)
    there = advanced(start, Springs(4), Langevin(dt=0.7, friction=0.0), 400)[-1]
    assert (there.batch.positions - start.batch.positions).abs().max() > 0.1
    back = advanced(there.replace(momenta=-there.momenta), Springs(4), Langevin(dt=0.7, friction=0.0), 400)[-1]
    torch.testing.assert_close(back.batch.positions, start.batch.positions, rtol=0, atol=1e-11)
    torch.testing.assert_close(-back.momenta, start.momenta, rtol=0, atol=1e-11)


def long_step(every: int, dt: float, mass: float) -> np.ndarray:
    """[2, 2], what a long step makes of place and momentum of an atom on springs to the origin."""

    def kick(strength: float) -> np.ndarray:
        return np.array([[1.0, 0.0], [-dt * ACCELERATION * strength, 1.0]])

    inner = kick(FAST / 2) @ np.array([[1.0, dt / mass], [0.0, 1.0]]) @ kick(FAST / 2)
    return kick(every * SLOW / 2) @ np.linalg.matrix_power(inner, every) @ kick(every * SLOW / 2)


def test_keeps_a_shadow_energy_and_the_energy_to_second_order() -> None:
    """A linear map of determinant 1 keeps a quadratic form, here b p² - c x², which is near the energy."""
    every, errors = 4, []
    for dt in (0.6, 0.3):
        start = walkers([cluster(1, symbol="C")], cutoff=1.0)
        states = advanced(start, Springs(every, 0.0), Langevin(dt=dt, friction=0.0), round(600 * 0.6 / dt))[::every]
        mass = float(start.masses[0])
        (a, b), (c, d) = long_step(every, dt, mass)
        assert a == pytest.approx(d)
        r = torch.cat([s.batch.positions for s in states]).numpy()
        p = torch.cat([s.momenta for s in states]).numpy()
        shadow = ((b * p**2 - c * r**2) / (2 * mass * b)).sum(1)
        assert np.ptp(shadow) < 1e-10 * shadow[0]
        energy = (p**2 / (2 * mass) + 0.5 * (FAST + SLOW) * ACCELERATION * r**2).sum(1)
        errors.append(np.ptp(energy) / energy[0])
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def ends(potential: Parts, integrator: Integrator, every: int) -> Tensor:
    """Where atoms and cell are after 12 fs."""
    biased = BiasedPotential(*potential, tau=0.5, rescale=False, every=every)
    start = initial_state(batch_of(crystals(1, 20)), temperature=300.0, seeds=[1])
    last = advanced(start, biased, integrator, round(12 / integrator.dt), skin=0.5)[-1]  # pyright: ignore
    return torch.cat([last.batch.positions, last.batch.cell.reshape(-1, 3)])


def test_melchionnas_dynamics_with_a_bias_force(parts: Parts) -> None:
    """Its error goes with the square of the time step."""

    def settings(dt: float) -> Melchionna:
        return Melchionna(dt, 300.0, 500.0, thermostat_time=50.0, barostat_time=200.0)

    right = ends(parts, settings(0.1), 1)
    coarse, fine = ((ends(parts, settings(dt), 4) - right).abs().max() for dt in (0.5, 0.25))
    assert 3.2 < coarse / fine < 4.8


def test_bias_stress_keeps_what_constant_pressure_conserves(parts: Parts) -> None:
    def drift(dt: float) -> float:
        potential = BiasedPotential(*parts, tau=0.3, tau_stress=0.3, rescale=False, every=4)
        integrator = MTK(dt, 300.0, 0.0, thermostat_time=50.0, barostat_time=100.0)
        start = initial_state(batch_of(crystals(1, 20)), temperature=300.0, seeds=[1])
        states = advanced(start, potential, integrator, round(12 / dt), skin=0.5)[::4]
        assert (states[-1].batch.cell - start.batch.cell).abs().max() > 0.01
        conserved = torch.stack([integrator.prepare(s).conserved_energy(s) for s in states])
        return float((conserved - conserved[0]).abs().max())

    assert 3.2 < drift(0.25) / drift(0.125) < 4.8


def test_the_bias_is_n_times_as_large_and_its_record_is_not(parts: Parts) -> None:
    batch = batch_of(crystals(2, 20))
    once, often = (BiasedPotential(*parts, tau=0.3, tau_stress=0.2, window=2, every=n) for n in (1, 4))
    plain, one, four = parts[0](batch, stress=True), None, None
    for _ in range(2):
        one = once(batch, one and one.memory, stress=True)
        four = often(batch, four and four.memory, stress=True)
    assert one is not None
    assert four is not None
    assert (one.forces - plain.forces).abs().max() > 1e-3
    torch.testing.assert_close(four.forces - plain.forces, 4 * (one.forces - plain.forces))
    torch.testing.assert_close(four.stress - plain.stress, 4 * (one.stress - plain.stress))
    for name in ("energy", "bias_energy", "tau", "uncertainty", "atomic_uncertainty"):
        assert torch.equal(getattr(four, name), getattr(one, name)), name
    between = often.between(batch, four.memory, stress=True)
    assert between.memory is four.memory
    assert between.uncertainty is None
    for name in ("energy", "forces", "stress"):
        assert torch.equal(getattr(between, name), getattr(plain, name)), name


def test_the_uncertainty_is_computed_every_nth_step_alone(parts: Parts) -> None:
    potential, uncertainty = parts
    calls = []
    handle = uncertainty.register_forward_hook(lambda *_: calls.append(1))
    try:
        start = initial_state(batch_of(molecules(2, 3)), temperature=300.0, seeds=[1, 2])
        rules = StoppingRules(None, max_steps=12, min_distance=None)
        biased = BiasedPotential(potential, uncertainty, tau=0.3, window=2, every=4)
        found = run_walkers(start, biased, Langevin(friction=0.0), rules, frame_interval=4, skin=0.5)
    finally:
        handle.remove()
    assert len(calls) == 1 + 12 // 4
    assert (found.tau[found.step >= 4] > 0).all()
    assert np.isfinite(found.max_uncertainty).all()


def burst(batch: AtomicBatch, forces: Tensor, atomic: Tensor) -> tuple[Tensor, Tensor]:
    return forces * torch.nan, atomic


def test_walkers_keep_their_own_time_when_others_leave_between() -> None:
    structures, integrator = [cluster(6, i) for i in range(3)], Langevin(dt=1.0, friction=0.01)
    state = walkers(structures, temperature=500.0, fuse=[10**6, 34, 10**6])
    rules = StoppingRules(None, max_steps=100)
    found = run_walkers(state, SlowToy(drive=0.02, fault=burst), integrator, rules, frame_interval=10, skin=0.4)
    assert found.reasons.tolist() == [StopReason.MAX_STEPS, StopReason.NAN, StopReason.MAX_STEPS]
    assert found.steps[1] % 5, "it should stop between two evaluations"
    for i in (0, 2):
        toy = SlowToy(drive=0.02, fault=burst)
        alone = run_walkers(state.select(torch.tensor([i])), toy, integrator, rules, frame_interval=10, skin=0.4)
        np.testing.assert_allclose(alone.positions, found.positions[found.walker == i], rtol=0, atol=1e-9)


def test_thresholds_are_looked_at_every_nth_step() -> None:
    state = walkers([cluster(6, i) for i in range(6)], temperature=500.0)
    rules = StoppingRules(3.0, max_steps=200)
    found = run_walkers(state, SlowToy(), Langevin(dt=1.0, friction=0.01), rules, frame_interval=50, skin=0.4)
    uncertain = found.reasons == StopReason.UNCERTAINTY
    assert uncertain.any()
    assert not (found.steps[uncertain] % 5).any()
    assert np.isfinite(found.atomic_uncertainty).all()
    assert (found.max_uncertainty[uncertain] > 3.0).all()


def test_walkers_at_different_points_are_refused() -> None:
    state = walkers([cluster(6, i) for i in range(2)])
    with pytest.raises(ValueError, match="past their last evaluation"):
        Evaluations(SlowToy(), state.replace(step=torch.tensor([5, 7])))
    with pytest.raises(InputError, match=r"must start at a multiple of bias\.every"):
        run_walkers(state.replace(step=state.step + 2), SlowToy(), Langevin(), NO_LIMITS, frame_interval=5, skin=0.4)


def test_hills_act_at_all_steps(parts: Parts) -> None:
    """Only the uncertainty is left out between: the trajectory is the same to the bit."""
    start = initial_state(batch_of(molecules(2, 3)), temperature=300.0, seeds=[1, 2])
    rules = StoppingRules(None, max_steps=24, min_distance=None)
    torsions, runs = {"a": Torsion([2, 0, 1, 4], width=0.3)}, []
    for every in (1, 4):
        potential = Metadynamics(*parts, variables=torsions, stride=5, every=every)
        runs.append(run_walkers(start, potential, Langevin(), rules, frame_interval=8, skin=0.5))
    np.testing.assert_array_equal(runs[0].positions, runs[1].positions)
    np.testing.assert_array_equal(runs[0].uncertainty, runs[1].uncertainty)
    with pytest.raises(InputError, match="needs an uncertainty"):
        Metadynamics(parts[0], variables=torsions, every=4)
    own = Metadynamics(BiasedPotential(*parts, every=3), variables=torsions)
    assert own.every == 3


RULES = StoppingRules()


@pytest.mark.parametrize(
    ("exploration", "tau_stress", "message"),
    [
        (WalkerExploration(stopping=RULES, integrator=Langevin(), frame_interval=10), 0.0, r"frame_interval=10 must"),
        (WalkerExploration(stopping=RULES, integrator=Melchionna()), 0.5, r"bias\.tau_stress=0\.5 needs dynamics=npt_"),
        (MonteCarloExploration(stopping=RULES, integrator=MonteCarlo()), 0.0, "not for MonteCarlo"),
        (AdversarialExploration(stopping=RULES, integrator=AdamDescent()), 0.0, "not for AdamDescent"),
        (PerturbationExploration(stopping=RULES, integrator=RandomPerturbation()), 0.0, "not for RandomPerturb"),
        (WalkerExploration(stopping=RULES, integrator=Langevin()), 0.0, None),
        (WalkerExploration(stopping=RULES, integrator=Melchionna()), 0.0, None),
        (WalkerExploration(stopping=RULES, integrator=MTK()), 0.5, None),
    ],
)
def test_refuses_what_would_be_wrong(
    parts: Parts, exploration: Explorer, tau_stress: float, message: str | None
) -> None:
    exploration.check_bias(BiasedPotential(*parts, tau_stress=tau_stress))
    bias = BiasedPotential(*parts, tau_stress=tau_stress, every=4)
    if message is None:
        exploration.check_bias(bias)
        return
    with pytest.raises(InputError, match=message):
        exploration.check_bias(bias)


def test_a_run_refuses_it_too(parts: Parts) -> None:
    start = initial_state(batch_of(molecules(1, 3)), temperature=300.0, seeds=[1])
    for integrator, interval in ((AdamDescent(), 8), (Langevin(), 6)):
        with pytest.raises(InputError, match=r"bias\.every=4"):
            run_walkers(start, BiasedPotential(*parts, every=4), integrator, RULES, frame_interval=interval)
    assert isinstance(parts[0], Potential)

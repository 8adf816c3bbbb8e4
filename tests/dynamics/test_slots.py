"""Walkers that begin where others have stopped find what they find all at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.dynamics.walker_toys import EXPLORATION_FIELDS, SlowToy, Toy, assert_same, cluster, gas, walkers
from ubmd.bias.metadynamics import Metadynamics
from ubmd.dynamics.adversarial import AdamDescent
from ubmd.dynamics.explore import WalkerExploration
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.melchionna import Melchionna
from ubmd.dynamics.integrators.montecarlo import Metropolis, MonteCarlo
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.perturbation import RandomPerturbation
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError
from ubmd.observables import Distance

LANGEVIN = Langevin(dt=1.0, friction=0.01)
PRESSURES = {"pressure": [3000, 12000], "thermostat_time": 40, "barostat_time": 400}
RULES = StoppingRules(uncertainty_threshold=50.0, max_steps=30)
FUSES = [10**6, 8, 19, 10**6]


def burst(batch, forces, atomic):
    return forces, atomic + 100.0


def molecules(dtype=torch.float64):
    start = walkers([cluster(6, i) for i in range(4)], temperature=500.0, fuse=FUSES, dtype=dtype)
    return start, Toy(drive=0.02, fault=burst)


def crystals():
    """Periodic walkers that need new neighbours every few steps, and as many as they have."""
    toy = Toy(cutoff=3.2, epsilon=0.1, sigma=2.4, tether=0.0, drive=0.01, fault=burst)
    return walkers([gas(i) for i in range(4)], temperature=2000.0, cutoff=3.2, fuse=FUSES), toy


def assert_close(found, expected) -> None:
    for name in EXPLORATION_FIELDS:
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("case", "integrator", "slots"),
    [
        (molecules, LANGEVIN, 3),
        (molecules, LANGEVIN, 1),
        (molecules, AdamDescent(), 2),
        (molecules, RandomPerturbation(), 2),
        (molecules, Metropolis(MonteCarlo(torsion_fraction=0.0)), 2),
        (crystals, LANGEVIN, 2),
        (crystals, Melchionna(1.0, **PRESSURES), 2),
        (crystals, MTK(1.0, **PRESSURES), 2),
    ],
)
def test_refilled_slots_equal_all_at_once(case, integrator, slots):
    state, toy = case()
    whole = run_walkers(state, toy, integrator, RULES, frame_interval=10, skin=0.4)
    toy.sizes.clear()
    found = run_walkers(state, toy, integrator, RULES, frame_interval=10, skin=0.4, slots=slots)
    assert len(set(whole.steps)) > 1
    assert_close(found, whole)
    assert max(toy.sizes) == slots
    # no step more, but those who begin are evaluated by themselves
    assert sum(toy.sizes) == found.md_steps + state.n_walkers


def test_batch_stays_full_while_walkers_wait():
    start = walkers([cluster(4, i) for i in range(6)], fuse=[10, 30, 20, 40, 25, 15])
    toy = Toy(fault=burst)
    found = run_walkers(start, toy, LANGEVIN, StoppingRules(50.0, max_steps=60), slots=2)
    assert found.reasons.tolist() == [StopReason.UNCERTAINTY] * 6
    assert found.steps.tolist() == [9, 29, 19, 39, 24, 14]
    # 0 and 1; 2 for 0 after 9, 3 for 2 after 28; 4 for 1 after 29, 5 for 4 after 53, until 67 both: each begins alone
    sizes = [2] + [2] * 9 + [1] + [2] * 19 + [1] + [2] + [1] + [2] * 24 + [1] + [2] * 14
    assert toy.sizes == sizes


def lost(batch, forces, atomic):
    return forces * torch.nan, atomic


def test_walkers_begin_in_step_with_the_others():
    """A potential that is evaluated in full every fifth step is so for all of the batch at the same time."""
    state, _ = molecules()
    runs = [
        run_walkers(state, SlowToy(drive=0.02, fault=lost), LANGEVIN, RULES, frame_interval=10, slots=slots)
        for slots in (None, 2)
    ]
    assert any(steps % 5 for steps in runs[0].steps)
    assert_close(runs[1], runs[0])


def hills(*, shared: bool) -> Metadynamics:
    return Metadynamics(
        Toy(), variables={"d": Distance(atoms=[0, 1], width=0.1)}, stride=7, height=0.2, capacity=30, shared=shared
    )


def test_hills_of_their_own():
    state, rules = walkers([cluster(6, i) for i in range(4)], temperature=500.0), StoppingRules(2.5, max_steps=30)
    whole = run_walkers(state, hills(shared=False), LANGEVIN, rules, frame_interval=10)
    assert len(set(whole.steps)) > 1
    assert_close(run_walkers(state, hills(shared=False), LANGEVIN, rules, frame_interval=10, slots=2), whole)


def test_shared_hills_are_refused():
    state = walkers([cluster(6, i) for i in range(4)])
    with pytest.raises(InputError, match="slots=2: walkers that share their hills"):
        run_walkers(state, hills(shared=True), LANGEVIN, StoppingRules(None, 20), slots=2)
    few = WalkerExploration(stopping=StoppingRules(), integrator=LANGEVIN, slots=7)
    with pytest.raises(InputError, match=r"dynamics\.slots=7: walkers that share their hills"):
        few.check_bias(hills(shared=True))
    found = run_walkers(state, hills(shared=True), LANGEVIN, StoppingRules(None, 20), slots=4)
    assert found.steps.tolist() == [20] * 4


@pytest.mark.parametrize("slots", [0, -1, 1.5])
def test_refuses_slots_that_are_none(slots):
    with pytest.raises(InputError, match="slots"):
        WalkerExploration(stopping=StoppingRules(), integrator=LANGEVIN, slots=slots)


def test_interrupted_run_equals_the_uninterrupted_one(tmp_path):
    state, toy = molecules(torch.float32)
    whole = run_walkers(state, toy, LANGEVIN, RULES, frame_interval=10, slots=2)
    file, calls, lives = tmp_path / "walkers.pt", 0, 0

    def die(*_) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:  # three steps behind the last saving
            raise KeyboardInterrupt

    while True:
        calls = 0
        try:
            options = {"checkpoint": file, "checkpoint_interval": 4, "progress_interval": 1, "on_progress": die}
            found = run_walkers(state, toy, LANGEVIN, RULES, frame_interval=10, slots=2, **options)
            break
        except KeyboardInterrupt:
            lives += 1
    assert lives > 5
    assert_same(found, whole)
    with pytest.raises(InputError, match="another run"):
        run_walkers(state, toy, LANGEVIN, RULES, frame_interval=10, slots=3, checkpoint=file)

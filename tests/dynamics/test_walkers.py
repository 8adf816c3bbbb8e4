from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.dynamics.walker_toys import EXPLORATION_FIELDS, Plain, Toy, assert_same, cluster, gas, walkers
from ubmd.dynamics.integrators.langevin import Langevin, langevin_step
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.state import evaluate
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError

LANGEVIN = Langevin(dt=1.0, friction=0.01)
NEVER = 10**6
FREE = StoppingRules(uncertainty_threshold=None, max_steps=60)


def burst_nan(batch, forces, atomic):
    return forces * torch.nan, atomic


def burst_heat(batch, forces, atomic):
    return forces * 1000, atomic


def burst_contact(batch, forces, atomic):
    """Pulls the first two atoms of each walker together."""
    first = batch.n_atoms.cumsum(0) - batch.n_atoms
    pull, bond = torch.zeros_like(forces), batch.positions[first + 1] - batch.positions[first]
    pull[first], pull[first + 1] = 3 * bond, -3 * bond
    return pull, atomic


def burst_uncertainty(batch, forces, atomic):
    return forces, atomic + 100.0


def test_frames_are_the_states_of_single_steps():
    structures = [cluster(6, i) for i in range(3)]
    start, toy = walkers(structures, temperature=[300.0, 400.0, 600.0]), Toy(drive=0.02)
    found = run_walkers(start, toy, LANGEVIN, FREE, frame_interval=20, skin=0.3)
    assert found.walker.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.step.tolist() == [20, 40, 60] * 3
    assert found.reasons.tolist() == [StopReason.MAX_STEPS] * 3
    assert found.steps.tolist() == [60] * 3
    assert found.md_steps == 180
    assert found.temperature.tolist() == [300.0, 400.0, 600.0]
    assert found.numbers.tolist() == structures[0].numbers.tolist()
    assert toy.sizes == [3] * 61  # the start and one evaluation a step
    # the same by hand: one walker at a time, one step at a time, with fresh neighbours
    for w in range(3):
        state, toy = evaluate(start.select(torch.tensor([w])), Toy(drive=0.02)), Toy(drive=0.02)
        noise = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu")
        highest = 0.0
        for step in range(1, 61):
            state = langevin_step(state, toy, dt=1.0, friction=0.01, noise=noise.next())
            highest = max(highest, float(state.atomic_uncertainty.max()))
            if step % 20 == 0:
                i = 3 * w + step // 20 - 1
                np.testing.assert_allclose(found.positions[i], state.batch.positions, atol=1e-10)
                np.testing.assert_allclose(found.atomic_uncertainty[i], state.atomic_uncertainty, atol=1e-9)
                assert found.energy[i] == pytest.approx(float(state.energy))
                assert found.energy[i] == pytest.approx(float(toy.energy_and_forces(state.batch)[0]))
                assert found.uncertainty[i] == pytest.approx(float(state.uncertainty))
                assert found.tau[i] == 0.25
        assert found.max_uncertainty[w] == pytest.approx(highest)


def test_crossing_the_threshold_keeps_a_frame_and_stops():
    start, toy = walkers([cluster(6, i) for i in range(5)], temperature=500.0), Toy()
    free = run_walkers(start, toy, LANGEVIN, StoppingRules(None, max_steps=200), frame_interval=1)
    highest = free.atomic_uncertainty.max(1).reshape(5, 200)
    limit = float(np.median(highest.max(1)))  # two or three of the five cross it
    above = highest > limit
    crossing = np.where(above.any(1), above.argmax(1) + 1, 200)
    assert len(set(crossing)) >= 3
    toy = Toy()
    rules = StoppingRules(uncertainty_threshold=limit, max_steps=200)
    found = run_walkers(start, toy, LANGEVIN, rules, frame_interval=30)
    assert found.steps.tolist() == crossing.tolist()
    assert found.stopped_by(StopReason.UNCERTAINTY) == above.any(1).sum()
    assert found.stopped_by(StopReason.MAX_STEPS) == 5 - above.any(1).sum()
    expected = [
        (w, s)
        for w in range(5)
        for s in range(1, crossing[w] + 1)
        if s % 30 == 0 or (s == crossing[w] and above[w].any())
    ]
    assert list(zip(found.walker.tolist(), found.step.tolist(), strict=True)) == expected
    for i, (w, s) in enumerate(expected):
        np.testing.assert_array_equal(found.positions[i], free.positions[w * 200 + s - 1])
    # the batch shrinks: nobody pays for walkers that stopped
    assert toy.sizes == [5] + [int((crossing >= s).sum()) for s in range(1, 201)]


def test_crossing_at_a_regular_frame_is_one_frame():
    start = walkers([cluster(4), cluster(4, 1)], fuse=[21, NEVER])
    toy, rules = Toy(scale=0.01, fault=burst_uncertainty), StoppingRules(max_steps=40)
    found = run_walkers(start, toy, LANGEVIN, rules, frame_interval=10)
    assert found.reasons.tolist() == [StopReason.UNCERTAINTY, StopReason.MAX_STEPS]
    assert found.walker.tolist() == [0, 0, 1, 1, 1, 1]
    assert found.step.tolist() == [10, 20, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("fault", "reason", "rules"),
    [
        (burst_nan, StopReason.NAN, StoppingRules(None, 120)),
        (burst_heat, StopReason.TEMPERATURE, StoppingRules(None, 120, min_distance=None)),
        (burst_contact, StopReason.CLOSE_CONTACT, StoppingRules(None, 120, max_temperature_factor=None)),
        (burst_uncertainty, StopReason.UNCERTAINTY, StoppingRules(50.0, 120)),
    ],
)
def test_one_walker_fails_and_the_others_do_not_notice(fault, reason, rules):
    start = walkers([cluster(6, i) for i in range(4)], fuse=[NEVER, 31, NEVER, NEVER])
    toy = Toy(drive=0.02, fault=fault)
    found = run_walkers(start, toy, LANGEVIN, rules, frame_interval=15)
    assert found.reasons.tolist() == [1, reason, 1, 1]
    assert found.steps[[0, 2, 3]].tolist() == [120] * 3
    assert 30 <= found.steps[1] <= 80
    frames = found.step[found.walker == 1].tolist()
    if reason == StopReason.UNCERTAINTY:
        assert frames == [15, 30]
    else:  # unphysical states are no frames, even when one is due
        assert frames == list(range(15, found.steps[1], 15))
    assert np.isfinite(found.positions).all()
    others = run_walkers(start.select(torch.tensor([0, 2, 3])), toy, LANGEVIN, rules, frame_interval=15)
    for name in EXPLORATION_FIELDS:
        a, b = getattr(found, name), getattr(others, name)
        if name in ("walkers", "reasons", "steps", "temperature", "max_uncertainty"):
            a = a[[0, 2, 3]]
        elif name not in ("numbers", "pbc"):
            a = a[found.walker != 1]
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_unphysical_state_at_a_due_frame_is_dropped():
    start = walkers([cluster(4), cluster(4, 1)], fuse=[21, NEVER])
    rules = StoppingRules(None, max_steps=40)
    found = run_walkers(start, Toy(fault=burst_nan), LANGEVIN, rules, frame_interval=10)
    assert found.steps.tolist() == [20, 40]
    assert found.step.tolist() == [10, 10, 20, 30, 40]


def test_all_walkers_may_fail_without_a_frame():
    start = walkers([cluster(4), cluster(4, 1)], fuse=[4, 2])
    found = run_walkers(start, Toy(fault=burst_nan), LANGEVIN, FREE)
    assert found.n_frames == 0
    assert found.positions.shape == (0, 4, 3)
    assert found.atomic_uncertainty.shape == (0, 4)
    assert found.steps.tolist() == [3, 1]
    assert found.reasons.tolist() == [StopReason.NAN] * 2


def test_periodic_walkers_with_few_rebuilds_equal_many():
    start = walkers([gas(1), gas(2)], temperature=2000.0, cutoff=3.2)
    rules = StoppingRules(None, max_steps=150)
    toy = Toy(cutoff=3.2, epsilon=0.1, sigma=2.4, tether=0.0)
    lazy = run_walkers(start, toy, LANGEVIN, rules, frame_interval=50, skin=1.0)
    eager = run_walkers(start, toy, LANGEVIN, rules, frame_interval=50, skin=0.0)
    np.testing.assert_allclose(lazy.positions, eager.positions, atol=1e-7)
    np.testing.assert_array_equal(lazy.cell[0], gas().cell[:])
    assert lazy.pbc.all()


def test_plain_potential_has_no_uncertainties():
    start = walkers([cluster(4)])
    found = run_walkers(start, Plain(Toy()), LANGEVIN, FREE, frame_interval=30)
    for name in ("uncertainty", "atomic_uncertainty", "tau", "max_uncertainty"):
        assert np.isnan(getattr(found, name)).all(), name
    assert np.isfinite(found.energy).all()
    with pytest.raises(InputError, match="uncertainty_threshold"):
        run_walkers(start, Plain(Toy()), LANGEVIN, StoppingRules())


def test_walkers_are_listed_by_identity():
    start = walkers([cluster(4), cluster(4, 1), cluster(4, 2)], fuse=[NEVER, 10, NEVER])
    start = start.replace(walker=torch.tensor([8, 5, 2]))
    found = run_walkers(start, Toy(fault=burst_nan), LANGEVIN, FREE, frame_interval=60)
    assert found.walkers.tolist() == [2, 5, 8]
    assert found.reasons.tolist() == [1, StopReason.NAN, 1]
    assert found.walker.tolist() == [2, 8]


def test_progress():
    calls = []
    start = walkers([cluster(4), cluster(4, 1)], fuse=[26, NEVER])
    found = run_walkers(
        start,
        Toy(fault=burst_nan),
        LANGEVIN,
        FREE,
        on_progress=lambda *a: calls.append(a),
        progress_interval=20,
    )
    assert [c[:2] for c in calls] == [(40, 2), (65, 1), (85, 0)]
    assert calls[1][2] == pytest.approx(found.max_uncertainty[1], rel=0.5)
    assert all(type(v) is t for c in calls for v, t in zip(c, (int, int, float), strict=True))
    run_walkers(start, Plain(Toy()), LANGEVIN, FREE, on_progress=lambda *a: calls.append(a))


def test_float32_walkers():
    start = walkers([cluster(6, i) for i in range(2)], dtype=torch.float32)
    found = run_walkers(start, Toy(), LANGEVIN, FREE, frame_interval=60)
    double = run_walkers(walkers([cluster(6, i) for i in range(2)]), Toy(), LANGEVIN, FREE, frame_interval=60)
    assert found.positions.dtype == np.float64
    np.testing.assert_allclose(found.positions, double.positions, atol=1e-3)


def test_continues_a_state_that_has_run():
    start = walkers([cluster(6), cluster(6, 1)])
    whole = run_walkers(start, Toy(drive=0.02), LANGEVIN, FREE, frame_interval=60)
    state = evaluate(start, Toy(drive=0.02))
    noise = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu")
    for _ in range(37):
        state = LANGEVIN(state, Toy(drive=0.02), noise.next())
    assert state.step.tolist() == [37, 37]
    toy = Toy(drive=0.02)
    found = run_walkers(state, toy, LANGEVIN, FREE, frame_interval=60)
    assert len(toy.sizes) == 23  # the state knew its forces
    # what the walkers met earlier is not in the state
    assert_same(replace(found, max_uncertainty=whole.max_uncertainty), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_walkers_on_the_gpu():
    start = walkers([cluster(6, i) for i in range(4)], fuse=[NEVER, 20, NEVER, NEVER])
    cpu = run_walkers(start, Toy(drive=0.02, fault=burst_nan), LANGEVIN, FREE, frame_interval=20)
    start = type(start).from_state_dict(start.state_dict(), device="cuda")
    gpu = run_walkers(start, Toy(drive=0.02, fault=burst_nan), LANGEVIN, FREE, frame_interval=20)
    assert gpu.steps.tolist() == cpu.steps.tolist()
    np.testing.assert_allclose(gpu.positions, cpu.positions, atol=1e-8)


@pytest.mark.parametrize(
    ("structures", "word"),
    [
        ([cluster(4), cluster(5)], "same atoms"),
        ([cluster(4), cluster(4, symbol="OHCN")], "same atoms"),
        ([gas(), Atoms("C27", positions=gas().positions)], "periodic"),
    ],
)
def test_refuses_walkers_of_different_kinds(structures, word):
    with pytest.raises(InputError, match=word):
        run_walkers(walkers(structures), Toy(), LANGEVIN, FREE)


@pytest.mark.parametrize(
    "wrong", [{"frame_interval": 0}, {"skin": -1.0}, {"skin": math.nan}, {"checkpoint_interval": 0}]
)
def test_refuses_bad_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        run_walkers(walkers([cluster(4)]), Toy(), LANGEVIN, FREE, **wrong)


def test_refuses_an_empty_batch():
    nobody = walkers([cluster(4)]).select(torch.tensor([], dtype=torch.int64))
    with pytest.raises(InputError, match="at least one"):
        run_walkers(nobody, Toy(), LANGEVIN, FREE)

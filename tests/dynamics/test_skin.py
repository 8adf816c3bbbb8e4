from __future__ import annotations

import torch

from tests.dynamics.walker_toys import Toy, cluster, gas, walkers
from ubmd.dynamics.langevin import Langevin
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.skin import outran_skin, rebuild_neighbours, refresh_neighbours
from ubmd.dynamics.state import WalkerState, evaluate

CUTOFF = 3.2


def energies(state: WalkerState) -> torch.Tensor:
    return Toy(cutoff=CUTOFF, epsilon=0.1, sigma=2.4, tether=0.0).energy_and_forces(state.batch)[0]


def hot_gas(skin: float, steps: int):
    """States of a gas that crosses the walls of its cell, each with the list it was evaluated with."""
    toy = Toy(cutoff=CUTOFF, epsilon=0.1, sigma=2.4, tether=0.0)
    structures = [gas(1), gas(2)]
    structures[1].positions[::2] += [2, -1, 3] @ structures[1].cell[:]  # unwrapped by whole cells
    state = rebuild_neighbours(walkers(structures, temperature=3000.0), CUTOFF, skin)
    state = evaluate(state, toy)
    halves = Langevin(dt=1.0, temperature=3000.0).prepare(state)
    source = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu")
    for _ in range(steps):
        noise = source.next()
        moved = halves.first_half(state, noise)
        fresh = refresh_neighbours(moved, CUTOFF, skin)
        state = halves.second_half(fresh, toy(fresh.batch, fresh.memory), noise)
        yield state, fresh is not moved


def test_periodic_gas_has_the_energy_of_fresh_lists_at_every_step():
    rebuilt, state, first = 0, None, None
    for state, new in hot_gas(skin=0.8, steps=200):
        first = first or state
        rebuilt += new
        fresh = state.replace(batch=state.batch.with_neighbours(CUTOFF))
        torch.testing.assert_close(energies(state), energies(fresh), atol=1e-10, rtol=0)
    assert state is not None
    assert first is not None
    assert 3 < rebuilt < 100
    # the test would notice: the list of the first step is wrong by now, and atoms left the cell
    stale = first.batch.replace(positions=state.batch.positions)
    wrong = energies(state.replace(batch=stale)) - energies(state)
    assert wrong.abs().min() > 0.01
    fractional = state.batch.positions[:27] @ torch.linalg.inv(state.batch.cell[0])
    assert fractional.min() < -0.1


def test_zero_skin_means_fresh_lists_always():
    assert all(new for _, new in hot_gas(skin=0.0, steps=5))


def test_limit_is_half_the_skin_of_any_atom():
    state = walkers([cluster(5), cluster(6)])
    for distance, expected in ((0.49, False), (0.51, True)):
        positions = state.batch.positions.clone()
        positions[7] += distance * torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
        moved = state.replace(batch=state.batch.replace(positions=positions))
        assert bool(outran_skin(moved, 1.0)) is expected
        assert (refresh_neighbours(moved, 6.0, 1.0) is not moved) is expected


def test_a_walker_that_is_nan_does_not_hide_the_others():
    state = walkers([cluster(5), cluster(5)])
    positions = state.batch.positions.clone()
    positions[0] = torch.nan
    positions[7] += 2.0
    assert bool(outran_skin(state.replace(batch=state.batch.replace(positions=positions)), 1.0))

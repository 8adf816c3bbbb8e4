from __future__ import annotations

import pytest
import torch
from ase import Atoms

from tests.dynamics.walker_toys import Toy, cluster, gas, walkers
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.skin import outran_skin, rebuild_neighbours, refresh_neighbours
from ubmd.dynamics.state import WalkerState, evaluate
from ubmd.testing.potentials import crystal

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
        assert bool(outran_skin(moved, 6.0, 1.0)) is expected
        assert (refresh_neighbours(moved, 6.0, 1.0) is not moved) is expected


def test_a_walker_that_is_nan_does_not_hide_the_others():
    state = walkers([cluster(5), cluster(5)])
    positions = state.batch.positions.clone()
    positions[0] = torch.nan
    positions[7] += 2.0
    assert bool(outran_skin(state.replace(batch=state.batch.replace(positions=positions)), 6.0, 1.0))


def pairs(batch, cutoff: float) -> set[tuple[int, int, tuple[float, ...]]]:
    """Atoms and lattice translation of every listed pair that is within the cutoff at present."""
    near = batch.mask & (batch.vectors().norm(dim=2) < cutoff)
    rows, columns = near.nonzero().unbind(1)
    others, shifts = batch.neighbours[rows, columns], batch.shifts[rows, columns]
    return {(int(i), int(j), tuple(s.tolist())) for i, j, s in zip(rows, others, shifts, strict=True)}


def brute_force(batch, cutoff: float, reach: int = 5) -> set[tuple[int, int, tuple[float, ...]]]:
    """The same from all images up to ``reach`` cells away, one by one."""
    images = torch.cartesian_prod(*[torch.arange(-reach, reach + 1)] * 3).to(batch.cell)
    found = set()
    for i in range(len(batch.positions)):
        for j in range(len(batch.positions)):
            if batch.system_idx[i] == batch.system_idx[j]:
                vectors = batch.positions[i] - batch.positions[j] - images @ batch.cell[batch.system_idx[i]]
                near = images[(vectors.norm(dim=1) < cutoff) & ~((images == 0).all(1) & (i == j))]
                found |= {(i, j, tuple(s.tolist())) for s in near}
    return found


@pytest.mark.parametrize("seed", range(3))
def test_lists_hold_every_pair_until_they_are_said_to_be_outrun(seed: int) -> None:
    # crystals whose cells, smaller than the cutoff, are strained while the atoms move, until the limit is reached
    cutoff, skin, random = 4.0, 0.9, torch.Generator().manual_seed(seed)
    start = rebuild_neighbours(walkers([crystal(), crystal().repeat((2, 1, 1))], cutoff=cutoff), cutoff, skin)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    rate, velocity = 0.02 * normal(2, 3, 3), 0.02 * normal(len(start.momenta), 3)
    valid = 0
    for time in torch.linspace(0, 8, 33):
        strain = torch.eye(3) + time * rate
        positions = torch.einsum("na,nab->nb", start.batch.positions, strain[start.batch.system_idx])
        batch = start.batch.replace(positions=positions + time * velocity, cell=start.batch.cell @ strain)
        if outran_skin(start.replace(batch=batch), cutoff, skin):
            break
        assert pairs(batch, cutoff) == brute_force(batch, cutoff)
        valid += 1
    assert 2 < valid < 33


def test_limit_of_a_strained_cell_is_reached_by_the_worst_pair() -> None:
    # two atoms along the axis of compression: a pair just outside the list comes within the cutoff at the limit
    cutoff, skin = 4.0, 1.0
    atoms = Atoms("C2", positions=[[0, 0, 0], [5.001, 0, 0]], cell=[10.5, 20, 20], pbc=True)
    state = rebuild_neighbours(walkers([atoms], cutoff=cutoff), cutoff, skin)
    assert not state.batch.mask.any()

    def squeezed(share: float) -> WalkerState:
        strain = torch.diag(torch.tensor([1 - share, 1.0, 1.0], dtype=torch.float64))
        batch = state.batch.replace(positions=state.batch.positions @ strain, cell=state.batch.cell @ strain)
        return state.replace(batch=batch)

    for share, expected in ((0.1999, False), (0.2001, True)):
        assert bool(outran_skin(squeezed(share), cutoff, skin)) is expected
        assert not outran_skin(rebuild_neighbours(squeezed(share), cutoff, skin), cutoff, skin)
        assert bool(brute_force(squeezed(share + 2e-4).batch, cutoff)) is expected

"""What every integrator must fulfil: checks to run on any of them, as those of :mod:`ubmd.testing.potentials`.

A check takes the settings of an integrator (:class:`~ubmd.dynamics.walkers.Integrator`), for walkers of about 300 K and
steps of about 1 fs; it raises ``AssertionError`` when it fails. The walkers are small crystals in a pair potential.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from ase.build import bulk
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch, collate
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.skin import refresh_neighbours
from ubmd.dynamics.state import WalkerState, evaluate, initial_state
from ubmd.dynamics.walkers import Integrator
from ubmd.models.base import AtomicOutput
from ubmd.models.potential import Potential

STEPS, SKIN = 12, 0.5


class Pairs(nn.Module):
    """A pair potential that binds copper, and ends smoothly at its cutoff."""

    cutoff = 4.2
    by_pair_vectors = True

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Half of each pair's energy for either atom, eV."""
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        decay = (-1.5 * (distance - 2.5)).exp()
        inside = (1 - distance / self.cutoff).clamp(min=0.0).square()
        return AtomicOutput((decay.square() - 2 * decay).mul(inside).sum(1))


POTENTIAL = Potential(Pairs())


def started(n_walkers: int = 3) -> WalkerState:
    """Walkers at different places with different momenta, in float64, not yet evaluated."""
    listed = [bulk("Cu", cubic=True, a=3.6 + 0.05 * i) for i in range(n_walkers)]
    for i, atoms in enumerate(listed):
        atoms.rattle(0.05, seed=i)
    batch = collate(listed, POTENTIAL.cutoff + SKIN, dtype=torch.float64)
    return initial_state(batch, temperature=300.0, seeds=[5 + i for i in range(n_walkers)])


def _noise(state: WalkerState) -> WalkerNoise:
    return WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=state.momenta.dtype, device="cpu")


@torch.no_grad()
def advanced(state: WalkerState, integrator: Integrator, steps: int = STEPS) -> WalkerState:
    """The walkers some steps later."""
    stress, noise = integrator.needs_stress, _noise(state)
    state = state if state.evaluated else evaluate(state, POTENTIAL, stress=stress)
    halves = integrator.prepare(state)
    for _ in range(steps):
        drawn = noise.next()
        ahead = refresh_neighbours(halves.first_half(state, drawn), POTENTIAL.cutoff, SKIN)
        state = halves.second_half(ahead, POTENTIAL(ahead.batch, ahead.memory, stress=stress), drawn)
    return state


def assert_same(found: WalkerState, expected: WalkerState, *, exact: bool = True) -> None:
    """Places, cells, momenta and the integrator's own variables agree: bit by bit, or but for rounding."""
    tolerance = 0.0 if exact else 1e-9
    pairs = {name: (found.extended[name], value) for name, value in expected.extended.items()}
    pairs |= {"positions": (found.batch.positions, expected.batch.positions)}
    pairs |= {name: (getattr(found.batch, name), getattr(expected.batch, name)) for name in ("cell", "system_idx")}
    pairs |= {name: (getattr(found, name), getattr(expected, name)) for name in ("momenta", "forces", "step", "walker")}
    for name, (one, other) in pairs.items():
        torch.testing.assert_close(
            one, other, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def shapes_and_counts(integrator: Integrator) -> None:
    """Walkers move, keep shapes and types, count their steps and stay finite; settings show in the repr."""
    start = started()
    end = advanced(start, integrator)
    assert (end.step == STEPS).all()
    assert (end.batch.positions - start.batch.positions).abs().amax() > 1e-4, "nothing moved"
    for found, before in ((end.batch.positions, start.batch.positions), (end.momenta, start.momenta)):
        assert found.shape == before.shape
        assert found.dtype == before.dtype
        assert torch.isfinite(found).all()
    assert end.evaluated
    assert all(len(value) == end.n_walkers for value in end.extended.values()), "extended is not one a walker"
    assert " at 0x" not in repr(integrator), "checkpoints are recognised by the repr, which must show the settings"


def same_seed_same_run(integrator: Integrator) -> None:
    """The walkers' seeds alone decide, not random numbers of the process."""
    torch.manual_seed(1)
    first = advanced(started(), integrator)
    torch.manual_seed(2)
    assert_same(advanced(started(), integrator), first)


def walkers_are_independent(integrator: Integrator) -> None:
    """A walker goes its way whatever its company, also after others have left."""
    together = advanced(started(), integrator)
    for i in range(together.n_walkers):
        one = torch.tensor([i])
        assert_same(advanced(started().select(one), integrator), together.select(one), exact=False)
    fewer = torch.tensor([2, 0])
    left = advanced(together.select(fewer), integrator)
    assert_same(left, advanced(together, integrator).select(fewer), exact=False)


@torch.no_grad()
def walkers_may_begin_later(integrator: Integrator) -> None:
    """Walkers begin beside others that run: each part does the first half of a step by itself, then all are one."""
    before = 3
    parts = [advanced(started().select(torch.tensor(i)), integrator, n) for i, n in (([0, 2], before), ([1], 0))]
    ahead = WalkerState.joined([integrator.prepare(part).first_half(part, _noise(part).next()) for part in parts])
    halves, drawn = integrator.prepare(ahead), _noise(ahead).next()
    ahead = refresh_neighbours(ahead, POTENTIAL.cutoff, SKIN)
    prediction = POTENTIAL(ahead.batch, ahead.memory, stress=integrator.needs_stress)
    state = halves.second_half(ahead, prediction, drawn)
    expected = advanced(started(), integrator)
    for i, done in enumerate((before + 1, before + 1, 1)):
        walker = torch.tensor([i])
        found = advanced(state.select(walker), integrator, STEPS - done)
        assert_same(found, expected.select(state.walker[walker]), exact=False)


def runs_continue(integrator: Integrator) -> None:
    """A saved state is all that a run needs to go on as if it had not been interrupted."""
    half = advanced(started(), integrator, STEPS // 2)
    loaded = WalkerState.from_state_dict(half.state_dict())
    assert_same(advanced(loaded, integrator, STEPS - STEPS // 2), advanced(started(), integrator))


def state_is_not_changed(integrator: Integrator) -> None:
    """A step gives a new state and leaves the old one as it was."""
    for state in (started(), advanced(started(), integrator, 2)):
        kept = WalkerState.from_state_dict(state.state_dict())
        advanced(state, integrator, 2)
        assert_same(state, kept)


CHECKS: tuple[Callable[[Integrator], None], ...] = (
    shapes_and_counts,
    same_seed_same_run,
    walkers_are_independent,
    walkers_may_begin_later,
    runs_continue,
    state_is_not_changed,
)


def name(check: Callable[[Integrator], None]) -> str:
    """The name of a check."""
    return check.__name__

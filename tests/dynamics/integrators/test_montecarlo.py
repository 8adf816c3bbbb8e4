from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from torch import Tensor

from tests.dynamics.walker_toys import Toy, assert_same, cluster, walkers
from ubmd.data.batch import collate
from ubmd.dynamics.connectivity import Rotation, rotations
from ubmd.dynamics.integrators.montecarlo import Metropolis, MonteCarlo, rotated
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.state import WalkerState, evaluate, resting_state
from ubmd.dynamics.stopping import StoppingRules
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.observables.geometry import torsion_angles
from ubmd.reference.alanine_dipeptide import initial_structure
from ubmd.units import KB

KT = KB * 300


class Surface:
    """Any energy [w] of the positions [w, n, 3]; Monte Carlo needs no forces."""

    cutoff = 1.0

    def __init__(self, energy):
        self.energy = energy

    def __call__(self, batch, memory=None, *, stress=False) -> Prediction:
        energy = self.energy(batch.positions.view(batch.n_systems, -1, 3)).double()
        return Prediction(energy=energy, forces=torch.zeros_like(batch.positions), memory=memory)


def resting(structures: list[Atoms], temperature: float = 300.0, cutoff: float = 1.0) -> WalkerState:
    batch = collate(structures, cutoff, dtype=torch.float64)
    return resting_state(batch, temperature=temperature, seeds=[11 + 7 * i for i in range(len(structures))])


def moves(state: WalkerState, potential, simulation: Metropolis, steps: int):
    """Positions [w, n, 3] after each move of a fixed set of walkers."""
    state = state if state.evaluated else evaluate(state, potential)
    halves = simulation.prepare(state)
    noise = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu")
    for _ in range(steps):
        numbers = noise.next()
        ahead = halves.first_half(state, numbers)
        state = halves.second_half(ahead, potential(ahead.batch, ahead.memory), numbers)
        yield state.batch.positions.view(state.n_walkers, -1, 3)


def test_moments_of_a_harmonic_well() -> None:
    """Every coordinate is normal with variance k_B T / k, at each walker's own temperature."""
    stiffness = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)[:, None]
    potential = Surface(lambda r: 0.5 * (stiffness * r.square()).sum((1, 2)))
    state = resting([Atoms("C3", positions=np.zeros((3, 3)))] * 60)
    kelvin = torch.tensor([300.0, 600.0], dtype=torch.float64).repeat(30)
    state = state.replace(temperature=kelvin)
    kept, moved, last = [], 0.0, None
    simulation = Metropolis(MonteCarlo(displacement=0.15, torsion_fraction=0.0))
    for step, positions in enumerate(moves(state, potential, simulation, 3000)):
        if last is not None:
            moved += float((positions != last).any((1, 2)).double().mean()) / 2999
        last = positions
        if step >= 200 and step % 5 == 0:
            kept.append(positions * (stiffness / (KB * kelvin[:, None, None])).sqrt())
    reduced = torch.stack(kept)
    for group in (reduced[:, ::2], reduced[:, 1::2]):
        for atom in range(3):
            x = group[:, :, atom]
            assert x.square().mean().item() == pytest.approx(1.0, abs=0.04)
            assert x.pow(4).mean().item() == pytest.approx(3.0, abs=0.3)
            assert abs(x.mean().item()) < 0.04
    assert 0.3 < moved < 0.9, "neither everything nor nothing is accepted"


def chain() -> Atoms:
    return Atoms("C4", positions=[[0, 1.4, 0.3], [0, 0, 0], [1.5, 0, 0], [1.9, 0.6, 1.2]])


@pytest.mark.parametrize("axis", [(1, 2), (2, 1)])
def test_torsion_moves_sample_the_boltzmann_distribution(axis: tuple[int, int]) -> None:
    """The torsion's distribution in an unsymmetric potential; nothing else of the molecule changes."""

    def energy(phi: Tensor) -> Tensor:
        return KT * (1.5 * torch.cos(phi - 1.0) + torch.cos(2 * phi))

    def angle(r: Tensor) -> Tensor:
        return torsion_angles(*(r[:, i + 1] - r[:, i] for i in range(3)))

    beyond = (3,) if axis == (1, 2) else (0,)
    simulation = Metropolis(MonteCarlo(angle=1.5, torsion_fraction=1.0), (Rotation(axis, beyond),))
    found = []
    positions = None
    for step, positions in enumerate(
        moves(resting([chain()] * 100), Surface(lambda r: energy(angle(r))), simulation, 1200)
    ):
        if step >= 100 and step % 4 == 0:
            found.append(angle(positions))
    phi = torch.cat(found)
    grid = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64)[:-1]
    weight = torch.softmax(-energy(grid) / KT, 0)
    for function in (torch.cos, torch.sin, lambda x: torch.cos(2 * x), lambda x: torch.sin(2 * x)):
        assert function(phi).mean().item() == pytest.approx((weight * function(grid)).sum().item(), abs=0.02)
    assert positions is not None
    start = chain().positions
    for i, j in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3)):
        length = np.linalg.norm(start[i] - start[j])
        np.testing.assert_allclose((positions[:, i] - positions[:, j]).norm(dim=1), length, rtol=1e-10)


def test_rates_of_a_torsion_move_and_its_opposite_are_balanced() -> None:
    """Detailed balance itself: as many jumps between two ranges of φ one way as the other, though one is likelier."""

    def angle(r: Tensor) -> Tensor:
        return torsion_angles(*(r[:, i + 1] - r[:, i] for i in range(3)))

    potential = Surface(lambda r: KT * torch.cos(angle(r) - 1.0))
    simulation = Metropolis(MonteCarlo(angle=2.0, torsion_fraction=1.0), (Rotation((1, 2), (3,)),))
    places = torch.stack([angle(r) for r in moves(resting([chain()] * 200), potential, simulation, 500)][50:])
    cell = torch.floor((places + math.pi) / (2 * math.pi / 3)).long()
    flow = torch.zeros(3, 3)
    flow.index_put_((cell[:-1].flatten(), cell[1:].flatten()), torch.ones(cell[1:].numel()), accumulate=True)
    # cyclic flow 0 -> 1 -> 2 -> 0 against its opposite, which stationarity alone would allow to differ
    for i, j in ((0, 1), (1, 2), (2, 0)):
        there, back = flow[i, j].item(), flow[j, i].item()
        assert there > 1000
        assert abs(there - back) < 4 * math.sqrt(there + back)
    visits = flow.sum(1)
    assert visits.max() > 1.5 * visits.min()


def single(n: int) -> WalkerState:
    state = resting([Atoms("C")] * n)
    flat = Surface(lambda r: 0 * r.sum((1, 2)))
    return evaluate(state, flat)


@pytest.mark.parametrize("change", [-0.01, 0.0, 0.02, 0.05])
def test_acceptance(change: float) -> None:
    state = single(20000)
    halves = Metropolis(MonteCarlo(torsion_fraction=0.0)).prepare(state)
    noise = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu").next()
    ahead = halves.first_half(state, noise)
    prediction = Prediction(energy=torch.full((20000,), change, dtype=torch.float64), forces=torch.ones(20000, 3))
    after = halves.second_half(ahead, prediction, noise)
    accepted = (after.batch.positions == ahead.batch.positions).all(1)
    assert ((after.batch.positions == 0).all(1) == ~accepted).all()
    expected = min(1.0, math.exp(-change / KT))
    assert accepted.double().mean().item() == pytest.approx(
        expected, abs=4 * math.sqrt(expected * (1 - expected) / 2e4)
    )
    assert torch.equal(after.energy == change, accepted | torch.tensor(change == 0.0))
    assert torch.equal((after.forces == 1).all(1), accepted)
    assert (after.step == 1).all()


def test_both_ends_of_a_move_have_the_same_biasing_strength() -> None:
    """With tau 2 before and 3 after, u 0.1 before and 0.12 after: the change is that at tau = 2."""
    n = 20000
    state = single(n)
    full = torch.ones(n, dtype=torch.float64)
    before = state.replace(tau=2 * full, bias_energy=-2 * 0.1 * full, energy=full, memory={"w": full})
    halves = Metropolis(MonteCarlo(torsion_fraction=0.0)).prepare(before)
    noise = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu").next()
    ahead = halves.first_half(before, noise)
    cost = 0.06 - 2 * (0.12 - 0.1)
    bias = -3 * 0.12 * full
    prediction = Prediction(
        energy=1.06 * full + bias,
        forces=torch.zeros(n, 3),
        tau=3 * full,
        bias_energy=bias,
        memory={"w": 2 * full, "montecarlo_positions": ahead.memory["montecarlo_positions"]},
    )
    after = halves.second_half(ahead, prediction, noise)
    accepted = (after.batch.positions == ahead.batch.positions).all(1)
    expected = math.exp(-cost / KT)
    assert accepted.double().mean().item() == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))
    assert after.tau is not None
    assert after.bias_energy is not None
    torch.testing.assert_close(after.tau, torch.where(accepted, 3.0, 2.0).double())
    torch.testing.assert_close(after.bias_energy, torch.where(accepted, bias, -0.2))
    # a refused proposal leaves no trace in the bias's memory
    assert list(after.memory) == ["w"]
    torch.testing.assert_close(after.memory["w"], torch.where(accepted, 2.0, 1.0).double())


def test_what_cannot_be_evaluated_is_refused() -> None:
    state = single(50)
    halves = Metropolis(MonteCarlo(torsion_fraction=0.0)).prepare(state)
    noise = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=torch.float64, device="cpu").next()
    ahead = halves.first_half(state, noise)
    for energy in (torch.nan, torch.inf):
        prediction = Prediction(torch.full((50,), energy, dtype=torch.float64), torch.full((50, 3), torch.nan))
        after = halves.second_half(ahead, prediction, noise)
        assert torch.equal(after.batch.positions, state.batch.positions)
        assert torch.equal(after.forces, state.forces)


def test_walkers_do_not_depend_on_their_company() -> None:
    state = walkers([cluster(6, i) for i in range(5)])
    simulation = Metropolis(MonteCarlo(displacement=0.2, torsion_fraction=0.3), (Rotation((0, 1), (2, 3)),))
    rules = StoppingRules(None, max_steps=60, min_distance=None, max_temperature_factor=None)
    options = {"frame_interval": 7, "skin": 0.4}
    together = run_walkers(state, Toy(), simulation, rules, **options)
    some = run_walkers(state.select(torch.tensor([3, 1])), Toy(), simulation, rules, **options)
    for walker in (1, 3):
        a, b = together.walker == walker, some.walker == walker
        np.testing.assert_array_equal(together.positions[a], some.positions[b])
        np.testing.assert_allclose(together.energy[a], some.energy[b], rtol=1e-12)
    assert len(np.unique(together.energy)) > 20


def test_energies_are_those_of_the_positions() -> None:
    """After many moves, refusals and new neighbour lists, a fresh evaluation says the same."""
    state = walkers([cluster(6, i) for i in range(4)])
    rules = StoppingRules(None, max_steps=100, min_distance=None, max_temperature_factor=None)
    simulation = Metropolis(MonteCarlo(displacement=0.4, torsion_fraction=0.5), (Rotation((0, 1), (2, 3)),))
    toy = Toy(cutoff=2.0)
    found = run_walkers(state, toy, simulation, rules, frame_interval=10, skin=0.2)
    frames = [Atoms(found.numbers, positions=p) for p in found.positions]
    energy, _ = toy.energy_and_forces(collate(frames, 2.0, dtype=torch.float64))
    np.testing.assert_allclose(found.energy, energy, rtol=1e-10)


def test_a_turn_is_a_rotation() -> None:
    """Against a rotation matrix of scipy."""
    from scipy.spatial.transform import Rotation as Matrix

    rng = np.random.default_rng(0)
    positions, angle = rng.normal(size=(5, 6, 3)), rng.uniform(-3, 3, size=5)
    moved = torch.tensor([False, False, True, True, False, True]).expand(5, -1)
    axes = torch.tensor([[0, 1], [1, 0], [4, 1], [0, 4], [1, 4]])
    found = rotated(torch.tensor(positions), axes, moved, torch.tensor(angle)).numpy()
    for walker, (i, j) in enumerate(axes.tolist()):
        axis = positions[walker, j] - positions[walker, i]
        matrix = Matrix.from_rotvec(angle[walker] * axis / np.linalg.norm(axis))
        expected = positions[walker].copy()
        expected[[2, 3, 5]] = matrix.apply(expected[[2, 3, 5]] - positions[walker, i]) + positions[walker, i]
        np.testing.assert_allclose(found[walker], expected, atol=1e-12)


def test_bonds_of_alanine_dipeptide() -> None:
    """Methyl groups (3), amide bonds (2), φ and ψ; the smaller end turns."""
    found = {tuple(sorted(r.axis)): r for r in rotations(initial_structure())}
    assert set(found) == {(1, 4), (8, 10), (16, 18), (4, 6), (14, 16), (6, 8), (8, 14)}
    assert set(found[6, 8].moved) == {0, 1, 2, 3, 4, 5, 7}
    assert found[6, 8].axis == (8, 6)
    assert set(found[8, 14].moved) == {15, 16, 17, 18, 19, 20, 21}
    assert set(found[1, 4].moved) == {0, 2, 3}
    (phi,) = rotations(initial_structure(), [[6, 8]])
    assert phi == found[6, 8]


def test_bonds_that_cannot_be_turned() -> None:
    benzene, water = molecule("C6H6"), molecule("H2O")
    for atoms in (benzene, water):
        with pytest.raises(InputError, match="no bond that can be turned"):
            rotations(atoms)
    with pytest.raises(InputError, match=r"\[0, 1\].*ring"):
        rotations(benzene, [[0, 1]])
    with pytest.raises(InputError, match="not two bonded atoms"):
        rotations(water, [[1, 2]])
    with pytest.raises(InputError, match="periodic"):
        rotations(Atoms("C", cell=[3, 3, 3], pbc=True))
    assert MonteCarlo(torsion_fraction=0.0).of(water).rotations == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"displacement": -0.1}, "displacement"),
        ({"angle": 4.0}, "angle"),
        ({"torsion_fraction": 1.5}, "torsion_fraction"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MonteCarlo(**options)


def test_lists_and_tuples_are_the_same_setting() -> None:
    assert repr(MonteCarlo(bonds=[[6, 8]])) == repr(MonteCarlo(bonds=((6, 8),)))
    assert replace(MonteCarlo(), angle=0.5) == MonteCarlo()


def test_no_walker_is_lost() -> None:
    state = walkers([cluster(6, i) for i in range(3)])
    rules = StoppingRules(5.0, max_steps=30, min_distance=None)
    simulation = Metropolis(MonteCarlo(torsion_fraction=0.0))
    once, again = (run_walkers(state, Toy(), simulation, rules, frame_interval=5) for _ in range(2))
    assert_same(once, again)
    assert once.walkers.tolist() == [0, 1, 2]

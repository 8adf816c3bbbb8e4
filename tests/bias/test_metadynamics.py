from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from tests.dynamics.walker_toys import Plain, Toy, cluster, gas, walkers
from ubmd.bias.metadynamics import Metadynamics, hills
from ubmd.data.batch import AtomicBatch, collate
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.state import WalkerState, evaluate, initial_state
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Prediction
from ubmd.observables import CellLength, CollectiveVariable, Coordination, Distance, Structures, Torsion, Volume
from ubmd.units import KB

KT = KB * 300


class Along(CollectiveVariable):
    """The first atom's x coordinate."""

    def __call__(self, structures: Structures, /) -> Tensor:
        return structures.positions[:, 0, 0]


def free_energy(potential: Metadynamics, memory: Memory, grid: Tensor) -> Tensor:
    """F(s) = -gamma / (gamma - 1) V(s) of each walker's hills, [walkers, m], up to a constant; grid is [m, d]."""
    centres, heights = memory["metadynamics_centres"][:, None], memory["metadynamics_heights"][:, None]
    energy, _ = hills(grid.to(centres), centres, heights, potential.widths, potential.periods)
    return -energy / (1 - 1 / potential.bias_factor)


class Surface:
    """Any energy [w] of the positions [w, n, 3]."""

    cutoff = 1.0

    def __init__(self, energy):
        self.energy = energy

    def __call__(self, batch: AtomicBatch, memory: Memory | None = None, *, stress: bool = False) -> Prediction:
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_()
            energy = self.energy(positions.view(batch.n_systems, -1, 3))
            (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return Prediction(energy=energy.detach().double(), forces=-gradient, memory=memory)


def dynamics(state: WalkerState, potential, steps: int, integrator: Langevin):
    """The states after each step of a fixed set of walkers, neighbours as they are."""
    with torch.no_grad():
        state = state if state.evaluated else evaluate(state, potential)
        halves = integrator.prepare(state)
        dtype, device = state.momenta.dtype, state.momenta.device
        noise = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=dtype, device=device)
        for _ in range(steps):
            numbers = noise.next()
            ahead = halves.first_half(state, numbers)
            state = halves.second_half(ahead, potential(ahead.batch, ahead.memory), numbers)
            yield state


def aligned_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two free energies, in k_B T, apart from a constant."""
    difference = found - expected
    return float((difference - difference.mean()).abs().max() / KT)


@pytest.mark.slow
def test_recovers_a_double_well() -> None:
    """F(x) of a double well 6 k_B T high: the mean of 48 independent estimates, and most of them alone."""
    height = 6 * KT

    def energy(r: Tensor) -> Tensor:
        x = r[:, 0, 0]
        return height * (x * x - 1) ** 2 + 2.5 * (r[:, 0, 1] ** 2 + r[:, 0, 2] ** 2)

    batch = collate([Atoms("C", positions=[[-1, 0, 0]])] * 48, 1.0, dtype=torch.float64)
    start = initial_state(batch, temperature=300.0, seeds=list(range(48)))
    potential = Metadynamics(
        Surface(energy), variables={"x": Along(width=0.12)}, height=0.5 * KT, stride=40, bias_factor=6.0, capacity=300
    )
    crossed = torch.zeros(48, dtype=torch.bool)
    state = start
    for state in dynamics(start, potential, 10000, Langevin(dt=2.0, friction=0.01)):
        crossed |= state.batch.positions[:, 0] > 0.8
    assert crossed.all(), "every walker has seen the other well"
    grid = torch.linspace(-1.35, 1.35, 91, dtype=torch.float64)
    expected = height * (grid**2 - 1) ** 2
    found = free_energy(potential, state.memory, grid[:, None])
    error = aligned_error(found.mean(0), expected)
    print(f"double well: {error:.3f} kT")
    assert error < 0.5
    # the bias alone, without gamma / (gamma - 1), would be wrong by a sixth of the barrier
    assert aligned_error(found.mean(0) * (1 - 1 / 6), expected) > 0.5
    alone = [aligned_error(one, expected) for one in found]
    assert np.median(alone) < 1.5


@pytest.mark.slow
def test_recovers_the_free_energy_of_a_torsion() -> None:
    """A chain of four atoms: bonds and angles do not depend on the torsion, so F(φ) is its energy."""
    a, b = 2.0 * KT, 1.5 * KT

    def torsional(phi: Tensor) -> Tensor:
        return a * torch.cos(phi - 0.5) + b * torch.cos(2 * phi)

    chain = Atoms("C4", positions=[[0, 1.5, 0], [0, 0, 0], [1.5, 0, 0], [1.5, 0.6, 1.37]])
    batch = collate([chain] * 32, 1.0, dtype=torch.float64)
    variable = Torsion([0, 1, 2, 3], width=0.3)

    def energy(r: Tensor) -> Tensor:
        bond, next_bond, last = r[:, 1] - r[:, 0], r[:, 2] - r[:, 1], r[:, 3] - r[:, 2]
        stretch = sum((v.norm(dim=1) - 1.5) ** 2 for v in (bond, next_bond, last))
        bend = (bond * next_bond).sum(1) ** 2 + (next_bond * last).sum(1) ** 2
        return 5.0 * stretch + 0.2 * bend + torsional(dihedral(r))

    def dihedral(r: Tensor) -> Tensor:
        return variable(Structures.of_batch(batch.replace(positions=r.reshape(-1, 3))))

    start = initial_state(batch, temperature=300.0, seeds=list(range(32)))
    potential = Metadynamics(
        Surface(energy), variables={"phi": variable}, height=0.4 * KT, stride=40, bias_factor=8.0, capacity=150
    )
    *_, state = dynamics(start, potential, 6000, Langevin(dt=2.0, friction=0.01))
    assert (state.memory["metadynamics_count"] == 150).all()
    grid = torch.linspace(-math.pi, math.pi, 73, dtype=torch.float64)
    found = free_energy(potential, state.memory, grid[:, None])
    torch.testing.assert_close(found[:, 0], found[:, -1])  # periodic
    error = aligned_error(found.mean(0), torsional(grid))
    print(f"torsion: {error:.3f} kT")
    assert error < 0.5


def central(function, size: int, step: float) -> np.ndarray:
    """Derivatives of ``function`` of a vector at zero, fourth order."""
    out = []
    for index in range(size):
        at = [function(k * step * np.eye(size)[index]) for k in (-2, -1, 1, 2)]
        out.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step))
    return np.array(out)


def skewed(n: int = 3) -> AtomicBatch:
    return collate([gas(seed) for seed in range(n)], 3.0, dtype=torch.float64)


@pytest.mark.parametrize(
    "variables",
    [
        [Torsion([0, 1, 5, 7]), Torsion([3, 2, 9, 4])],
        [Volume()],
        [CellLength(2), CellLength(0)],
        [Volume(), Torsion([0, 1, 5, 7])],
        [Distance([0, 26]), Coordination([5], [0, 9, 13, 26], distance=4.0)],
    ],
)
def test_bias_against_finite_differences(variables: list[CollectiveVariable]) -> None:
    """Forces and stress of hills around the present place, by displacing atoms and straining the cell."""
    batch = skewed()
    potential = Metadynamics(
        Plain(Toy(cutoff=3.0, plain=True)),
        variables={f"v{k}": variable for k, variable in enumerate(variables)},
        height=0.1,
        stride=1,
        bias_factor=5.0,
        capacity=4,
    )
    memory = potential(batch).memory
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # hills beside the place that is tested
        shift = 0.15 * torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
        memory = potential(batch.replace(positions=batch.positions + shift, cell=1.01 * batch.cell), memory).memory
    assert memory is not None
    assert (memory["metadynamics_heights"][:, :3] > 0).all()
    plain = potential.base(batch)
    biased = potential(batch, memory)

    def bias(positions: Tensor, cell: Tensor) -> np.ndarray:
        return potential(batch.replace(positions=positions, cell=cell), memory).bias_energy.numpy()

    atoms = [0, 5, 9]
    starts = [0, 27, 54]

    def displaced(vector: np.ndarray) -> np.ndarray:
        positions = batch.positions.clone()
        for start in starts:
            positions[[start + i for i in atoms]] += torch.as_tensor(vector).view(3, 3)
        return bias(positions, batch.cell)

    expected = -central(displaced, 9, 1e-3).T.reshape(3, 3, 3)
    forces = (biased.forces - plain.forces).view(3, 27, 3)[:, atoms]
    np.testing.assert_allclose(forces, expected, rtol=1e-6, atol=1e-9)

    def strained(vector: np.ndarray) -> np.ndarray:
        eps = torch.as_tensor(vector).view(3, 3)
        deform = torch.eye(3) + 0.5 * (eps + eps.T)
        return bias(batch.positions @ deform, batch.cell @ deform)

    expected = central(strained, 9, 1e-4).T.reshape(3, 3, 3) / batch.volume.numpy()[:, None, None]
    stress = stress_of(potential, batch, memory).numpy()
    np.testing.assert_allclose(stress, expected, rtol=1e-6, atol=1e-10)
    assert max(abs(expected).max(), abs(forces).max()) > 1e-5


def stress_of(potential: Metadynamics, batch: AtomicBatch, memory: Memory) -> Tensor:
    """The hills' stress, above a potential whose own is zero."""

    class Unstressed:
        cutoff = 3.0

        def __call__(self, batch: AtomicBatch, memory: Memory | None = None, *, stress: bool = False) -> Prediction:
            zero = torch.zeros(batch.n_systems, dtype=torch.float64)
            return Prediction(zero, torch.zeros_like(batch.positions), torch.zeros_like(batch.cell), memory=memory)

    other = Metadynamics(Unstressed(), variables=potential.variables, height=0.1, stride=1, bias_factor=5.0, capacity=4)
    prediction = other(batch, memory, stress=True)
    assert prediction.stress is not None
    return prediction.stress


def test_hills_by_hand() -> None:
    """Places, times and heights of the hills of two walkers that are moved by hand."""
    potential = Metadynamics(
        Surface(lambda r: 0 * r.sum((1, 2))),
        variables={"x": Along(width=0.5)},
        height=0.2,
        stride=2,
        bias_factor=3.0,
        capacity=2,
    )
    batch = collate([Atoms("C")] * 2, 1.0, dtype=torch.float64)
    memory, hills = None, [[], []]
    for evaluation in range(8):
        places = np.array([0.1 * evaluation, 0.5 - 0.2 * evaluation])
        moved = batch.replace(positions=torch.tensor([[x, 0.0, 0.0] for x in places], dtype=torch.float64))
        prediction = potential(moved, memory)
        memory = prediction.memory
        for walker, x in enumerate(places):
            energy = sum(h * math.exp(-((x - c) ** 2) / (2 * 0.25)) for c, h in hills[walker])
            assert prediction.energy[walker] == pytest.approx(energy)
            assert prediction.bias_energy is not None
            assert prediction.bias_energy[walker] == pytest.approx(energy)
            # evaluations 2 and 4; the third hill does not fit any more
            if evaluation in (2, 4):
                hills[walker].append((x, 0.2 * math.exp(-energy / (2 * KB * 300))))
    assert memory is not None
    assert memory["metadynamics_count"].tolist() == [2, 2]
    np.testing.assert_allclose(memory["metadynamics_heights"], [[h for _, h in w] for w in hills])


def test_shared_hills_are_the_sum_of_all() -> None:
    """Three walkers moved by hand: each feels all hills, whose heights follow from all hills before."""
    variables, places = (
        {"x": Along(width=0.5)},
        np.array([[0.0, 0.4, -0.3], [0.1, 0.2, 0.5], [0.3, -0.1, 0.2], [0.0, 0.0, 0.0]]),
    )
    potential = Metadynamics(
        Surface(lambda r: 0 * r.sum((1, 2))), variables=variables, stride=1, bias_factor=3.0, capacity=6, shared=True
    )
    batch = collate([Atoms("C")] * 3, 1.0, dtype=torch.float64)
    memory, hills = None, []
    for evaluation, row in enumerate(places):
        positions = torch.tensor([[x, 0.0, 0.0] for x in row], dtype=torch.float64)
        prediction = potential(batch.replace(positions=positions), memory)
        memory = prediction.memory
        energies = [sum(h * math.exp(-((x - c) ** 2) / (2 * 0.25)) for c, h in hills) for x in row]
        np.testing.assert_allclose(prediction.energy, energies, rtol=1e-12)
        if evaluation:
            hills += [(x, 0.05 * math.exp(-v / (2 * KT))) for x, v in zip(row, energies, strict=True)]
        hills = hills[:6]  # what fits
    assert memory is not None
    kept = free_energy(potential, {key: value[[1]] for key, value in memory.items()}, torch.zeros(1, 1))
    assert kept.item() == pytest.approx(-1.5 * sum(h * math.exp(-(c**2) / 0.5) for c, h in hills))


def test_a_lost_walker_spoils_no_shared_hills() -> None:
    potential = Metadynamics(
        Surface(lambda r: 0 * r.sum((1, 2))), variables={"x": Along(width=0.5)}, stride=1, capacity=6, shared=True
    )
    batch = collate([Atoms("C")] * 2, 1.0, dtype=torch.float64)
    lost = batch.replace(positions=torch.tensor([[0.3, 0, 0], [torch.nan, 0, 0]], dtype=torch.float64))
    memory = potential(lost, potential(batch).memory).memory
    assert memory is not None
    alone = {key: value[:1] for key, value in memory.items()}
    one = batch.select(torch.tensor([0]))
    energy = potential(one, alone).energy
    assert energy.item() == pytest.approx(0.05 * math.exp(-0.5 * (0.3 / 0.5) ** 2))


def test_beneath_an_uncertainty_it_predicts_that_too() -> None:
    """The Toy predicts uncertainties and a bias of its own; both are kept, and hills come on top."""
    state = walkers([cluster(6, i) for i in range(2)])
    toy = Toy()
    potential = Metadynamics(toy, variables={"a": Torsion([0, 1, 2, 3])}, stride=1)
    memory = potential(state.batch).memory
    memory = potential(state.batch, memory).memory
    biased, plain = potential(state.batch, memory), toy(state.batch)
    torch.testing.assert_close(biased.atomic_uncertainty, plain.atomic_uncertainty)
    torch.testing.assert_close(biased.bias_energy, plain.bias_energy + 0.05)
    torch.testing.assert_close(biased.energy - biased.bias_energy, plain.energy - plain.bias_energy)
    assert potential.cutoff == toy.cutoff


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": {}}, "collective variable"),
        ({"variables": {"x": Along()}}, r"bias\.variables\.x\.width is missing"),
        ({"stride": 0}, r"bias\.stride"),
        ({"capacity": 1.5}, r"bias\.capacity"),
        ({"height": 0.0}, r"bias\.height"),
        ({"temperature": -1.0}, r"bias\.temperature"),
        ({"bias_factor": 1.0}, r"bias\.bias_factor"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Metadynamics(Toy(), **({"variables": {"volume": Volume()}} | options))


def test_variables_that_are_not_there() -> None:
    molecule = collate([cluster(5)], 3.0)
    for variable in (Volume(), CellLength(0)):
        with pytest.raises(InputError, match="periodic"):
            Metadynamics(Toy(), variables={"v": variable})(molecule)
    with pytest.raises(InputError, match="names atom 5"):
        Metadynamics(Toy(), variables={"a": Torsion([0, 1, 2, 5])})(molecule)
    with pytest.raises(InputError, match="the same number of atoms"):
        Metadynamics(Toy(), variables={"a": Torsion([0, 1, 2, 3])})(collate([cluster(5), cluster(7)], 3.0))


def test_another_memory_is_refused() -> None:
    batch = collate([cluster(5)] * 2, 3.0)
    variables = {"a": Torsion([0, 1, 2, 3])}
    memory = Metadynamics(Toy(), variables=variables, capacity=3)(batch).memory
    with pytest.raises(ValueError, match="other walkers or settings"):
        Metadynamics(Toy(), variables=variables, capacity=4)(batch, memory)

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.lj import LennardJones
from ase.md.langevin import Langevin as AseLangevin
from ase.md.verlet import VelocityVerlet

from tests.dynamics.walker_toys import Plain, Toy, cluster, walkers
from ubmd.data.batch import collate
from ubmd.dynamics.integrators.langevin import Langevin, langevin_step
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.state import WalkerState, evaluate, initial_state, kinetic_temperature
from ubmd.errors import InputError
from ubmd.models.potential import Prediction
from ubmd.units import KB

DT, FRICTION, STEPS = 0.7, 0.01, 100
LJ = {"epsilon": 0.02, "sigma": 1.3}


def plain_toy() -> Plain:
    return Plain(Toy(**LJ, tether=0.0, cutoff=30.0, plain=True))


def ase_atoms(structure: Atoms, momenta: torch.Tensor) -> Atoms:
    atoms = structure.copy()
    atoms.calc = LennardJones(**LJ, rc=30.0)
    atoms.set_momenta(momenta.numpy() / units.fs)
    return atoms


class Replay:
    """Hands ASE our numbers in the order in which it asks: xi, then eta, step by step."""

    def __init__(self, vectors: np.ndarray):
        self.vectors = iter(vectors)

    def standard_normal(self, size):
        drawn = next(self.vectors)
        assert drawn.shape == tuple(size)
        return drawn.copy()


def ase_langevin(structure: Atoms, momenta: torch.Tensor, kelvin: float, noise: torch.Tensor) -> Atoms:
    atoms = ase_atoms(structure, momenta)
    replay = Replay(noise.transpose(1, 2).flatten(0, 1).numpy())
    dynamics = AseLangevin(
        atoms, DT * units.fs, temperature_K=kelvin, friction=FRICTION / units.fs, fixcm=False, rng=replay
    )
    dynamics.run(len(noise))
    return atoms


def run(state: WalkerState, potential, steps: int) -> tuple[WalkerState, torch.Tensor]:
    """The final state and the noise [steps, n_atoms, 2, 3]."""
    source = WalkerNoise(state.seed, state.step, state.batch.n_atoms, dtype=state.momenta.dtype, device="cpu")
    used = []
    for _ in range(steps):
        used.append(source.next())
        state = langevin_step(state, potential, dt=DT, friction=FRICTION, noise=used[-1])
    return state, torch.stack(used)


def test_each_walker_of_a_mixed_batch_follows_ase():
    structures = [cluster(7, 1), cluster(12, 2), cluster(3, 3)]
    kelvins = [300.0, 900.0, 50.0]
    start = walkers(structures, temperature=kelvins, cutoff=30.0)
    end, noise = run(start, plain_toy(), STEPS)
    assert end.step.tolist() == [STEPS] * 3
    sizes = [len(a) for a in structures]
    places = torch.arange(sum(sizes)).split(sizes)
    for structure, kelvin, atoms in zip(structures, kelvins, places, strict=True):
        expected = ase_langevin(structure, start.momenta[atoms], kelvin, noise[:, atoms])
        moved = np.abs(expected.positions - structure.positions).max()
        assert moved > 0.3  # otherwise agreement would mean little
        np.testing.assert_allclose(end.batch.positions[atoms].numpy(), expected.positions, atol=1e-8, rtol=0)
        momenta = expected.get_momenta() * units.fs
        np.testing.assert_allclose(end.momenta[atoms].numpy(), momenta, atol=1e-8, rtol=0)
        assert kinetic_temperature(end)[kelvins.index(kelvin)] == pytest.approx(expected.get_temperature())


def test_a_walker_alone_is_the_same_as_in_a_batch():
    structures = [cluster(7, 1), cluster(12, 2), cluster(3, 3)]
    start = walkers(structures, temperature=[300.0, 900.0, 50.0])
    together, _ = run(start, Toy(drive=0.01), 50)
    for i in range(3):
        alone, _ = run(start.select(torch.tensor([i])), Toy(drive=0.01), 50)
        part = together.select(torch.tensor([i]))
        torch.testing.assert_close(alone.batch.positions, part.batch.positions, atol=1e-12, rtol=0)
        torch.testing.assert_close(alone.momenta, part.momenta, atol=1e-12, rtol=0)


def test_without_friction_it_is_velocity_verlet():
    structure = cluster(8, 4)
    state = start = walkers([structure], cutoff=30.0)
    atoms = ase_atoms(structure, start.momenta)
    VelocityVerlet(atoms, DT * units.fs).run(STEPS)
    noise = torch.randn(8, 2, 3, dtype=torch.float64)  # must not matter
    for _ in range(STEPS):
        state = langevin_step(state, plain_toy(), dt=DT, friction=0.0, noise=noise)
    np.testing.assert_allclose(state.batch.positions.numpy(), atoms.positions, atol=1e-8, rtol=0)


class Springs:
    """Every atom on its own spring to the origin, k in eV/Å²: all averages are known."""

    cutoff = 1.0

    def __init__(self, k: float, forces_dtype: torch.dtype | None = None):
        self.k, self.forces_dtype = k, forces_dtype

    def __call__(self, batch, memory=None, *, stress=False):
        energy = 0.5 * self.k * batch.sum_atoms(batch.positions.square().sum(1)).double()
        forces = -self.k * batch.positions
        return Prediction(energy=energy, forces=forces.to(self.forces_dtype or forces.dtype))


def block_errors(samples: np.ndarray, block: int) -> tuple[float, float]:
    """Mean and standard error of [steps, walkers] from blocks much longer than the autocorrelation time."""
    steps = len(samples) // block * block
    means = samples[:steps].reshape(-1, block, samples.shape[1]).mean(1).ravel()
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_samples_the_canonical_ensemble(dtype):
    # friction 0.05/fs and omega about 0.1/fs decorrelate within some 40 fs; a block is 400 steps
    n_atoms, k, potential = 22, 2.0, Springs(2.0)
    kelvins = torch.linspace(100, 800, 8, dtype=torch.float64)
    batch = collate([Atoms("CH" * 11, positions=np.zeros((n_atoms, 3)))] * 8, 1.0, dtype=dtype)
    batch = batch.replace(mask=torch.zeros_like(batch.mask))
    state = evaluate(initial_state(batch, temperature=kelvins, seeds=range(8)), potential)
    step = Langevin(dt=1.0, friction=0.05).prepare(state)
    source = WalkerNoise(state.seed, state.step, batch.n_atoms, dtype=dtype, device="cpu")
    kinetic, square = [], []
    for i in range(6400):
        noise = source.next()
        state = step.first_half(state, noise)
        state = step.second_half(state, potential(state.batch), noise)
        if i >= 400:
            kinetic.append(kinetic_temperature(state) / kelvins)
            square.append(batch.sum_atoms(state.batch.positions.square().sum(1)))
    assert state.momenta.dtype == dtype
    temperature = torch.stack(kinetic).double().numpy()
    variance = torch.stack(square).double().numpy() / (3 * n_atoms) * k / (KB * kelvins.numpy())
    for samples, expected, resolution in (
        (temperature, 1.0, 0.004),  # mean kinetic temperature
        ((temperature - 1) ** 2, 2 / (3 * n_atoms), 0.002),  # its fluctuation: 2 T²/(3N)
        (variance, 1.0, 0.01),  # equipartition: <x²> = kT/k
    ):
        mean, error = block_errors(samples, 400)
        assert error < resolution  # sharp enough to notice a wrong coefficient
        assert abs(mean - expected) < 4 * error
    # walkers at different temperatures all agree with their own
    assert np.abs(temperature.mean(0) - 1).max() < 0.02


def test_keeps_the_precision_of_the_walkers():
    state = walkers([cluster(4)], dtype=torch.float32)
    noise = torch.zeros(4, 2, 3)
    state = langevin_step(state, Springs(1.0, torch.float64), dt=0.5, friction=0.01, noise=noise)
    found = {state.batch.positions.dtype, state.momenta.dtype, state.forces.dtype}
    assert found == {torch.float32}


def test_one_evaluation_a_step_and_no_mutation():
    toy, state = Toy(), evaluate(walkers([cluster(5), cluster(5)]), Toy())
    before = {k: v.clone() for k, v in state.state_dict()["batch"].items()}, state.momenta.clone()
    langevin_step(state, toy, dt=0.5, friction=0.01, noise=torch.ones(10, 2, 3, dtype=torch.float64))
    assert toy.sizes == [2]
    assert all(torch.equal(v, before[0][k]) for k, v in state.state_dict()["batch"].items())
    assert torch.equal(state.momenta, before[1])


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"dt": -0.5}, "dt"),
        ({"dt": float("nan")}, "dt"),
        ({"friction": -1.0}, "friction"),
        ({"friction": 3.0}, "friction"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
    ],
)
def test_refuses_bad_settings(wrong, word):
    with pytest.raises(InputError, match=word):
        Langevin(**wrong)

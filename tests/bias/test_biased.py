from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from ubmd.bias.adaptive import SpeciesBalancedBias
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Memory, Potential, Prediction
from ubmd.uncertainty import FeatureUncertainty, SketchedGradients

CUTOFF = 4.0


def molecules(count: int, seed: int, amplitude: float = 0.1) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    base = np.array([[0, 0, 0], [1.2, 0.1, 0], [-0.6, 0.9, 0.1], [-0.5, -0.9, 0.3], [1.8, 1.1, 0.9]])
    return [Atoms("COHHH", positions=base + amplitude * rng.normal(size=(5, 3))) for _ in range(count)]


def crystals(count: int, seed: int) -> list[Atoms]:
    """Triclinic, and smaller than the cutoff in every direction: atoms neighbour their own images."""
    rng = np.random.default_rng(seed)
    cell = np.array([[2.9, 0.0, 0.0], [0.7, 3.1, 0.0], [-0.4, 0.5, 3.4]])
    points = np.array([[0.0, 0.0, 0.0], [0.45, 0.55, 0.4], [0.1, 0.5, 0.8]]) @ cell
    return [Atoms("COH", positions=points + 0.1 * rng.normal(size=(3, 3)), cell=cell, pbc=True) for _ in range(count)]


def batch_of(structures: list[Atoms]) -> AtomicBatch:
    # the list reaches beyond the cutoff, so that small displacements do not change it
    return collate(structures, CUTOFF + 0.5, dtype=torch.float64)


@pytest.fixture(scope="module")
def parts() -> tuple[Potential, FeatureUncertainty]:
    model = GMNN(["H", "C", "O"], cutoff=CUTOFF, n_basis=3, hidden=(16, 16), seed=2).double()
    features = partial(SketchedGradients, n_projections=32)
    uncertainty = FeatureUncertainty(features, model, seed=1)
    uncertainty.fit(model, [batch_of(molecules(6, 10)), batch_of(crystals(6, 11))])
    uncertainty.total_scale.fill_(1.7)
    uncertainty.atomic_scale.fill_(0.6)
    return Potential(model), uncertainty


Parts = tuple[Potential, FeatureUncertainty]


def total_uncertainty(parts: Parts, batch: AtomicBatch) -> Tensor:
    potential, uncertainty = parts
    vectors = batch.vectors()
    return uncertainty(potential.model, potential.model(vectors, batch), vectors, batch)[0]


def central(parts: Parts, batch: AtomicBatch, moved: list[AtomicBatch], step: float) -> np.ndarray:
    """Fourth-order central differences of u; ``moved`` holds the points -2, -1, 1, 2 of every direction."""
    everything = [total_uncertainty(parts, m).detach().numpy() for m in moved]
    values = np.array(everything).reshape(-1, 4, batch.n_systems)
    return np.einsum("dps,p->ds", values, np.array([1, -8, 8, -1]) / (12 * step))


POINTS = (-2, -1, 1, 2)


def difference_gradient(parts: Parts, batch: AtomicBatch) -> np.ndarray:
    """du/dr [n_atoms, 3] of a batch of one structure."""
    step, moved = 1e-4, []
    for index in np.ndindex(len(batch.numbers), 3):
        shift = torch.zeros_like(batch.positions)
        shift[index] = step
        moved += [batch.replace(positions=batch.positions + k * shift) for k in POINTS]
    return central(parts, batch, moved, step).reshape(-1, 3)


def difference_strain(parts: Parts, batch: AtomicBatch) -> np.ndarray:
    """du/deps [3, 3] for a symmetric strain of a batch of one structure."""
    step, moved = 1e-4, []
    for a, b in np.ndindex(3, 3):
        for k in POINTS:
            deform = torch.eye(3, dtype=torch.float64)
            deform[a, b] += 0.5 * k * step
            deform[b, a] += 0.5 * k * step
            # row vectors, and the deformation is symmetric
            moved.append(batch.replace(positions=batch.positions @ deform, cell=batch.cell @ deform))
    return central(parts, batch, moved, step).reshape(3, 3)


@pytest.mark.parametrize("make", [molecules, crystals])
def test_bias_forces_against_finite_differences(parts: Parts, make: object) -> None:
    batch = batch_of(make(1, 20))  # pyright: ignore[reportCallIssue]
    prediction = BiasedPotential(*parts, tau=0.8, rescale=False)(batch)
    expected = 0.8 * difference_gradient(parts, batch)
    bias = (prediction.forces - parts[0](batch).forces).numpy()
    assert np.linalg.norm(expected) > 1e-3
    assert np.linalg.norm(bias - expected) < 1e-6 * np.linalg.norm(expected)


def test_bias_stress_against_finite_differences(parts: Parts) -> None:
    batch = batch_of(crystals(1, 20))
    prediction = BiasedPotential(*parts, tau=0.8, tau_stress=0.5, rescale=False)(batch, stress=True)
    plain = parts[0](batch, stress=True)
    assert prediction.stress is not None
    assert plain.stress is not None
    volume = abs(np.linalg.det(batch.cell[0].numpy()))
    expected = -0.5 * difference_strain(parts, batch) / volume
    bias = (prediction.stress - plain.stress)[0].numpy()
    assert np.linalg.norm(expected) > 1e-6
    assert np.linalg.norm(bias - expected) < 1e-6 * np.linalg.norm(expected)


def test_energy_and_bookkeeping(parts: Parts) -> None:
    batch = batch_of(molecules(3, 21))
    plain, prediction = parts[0](batch), BiasedPotential(*parts, tau=0.8, rescale=False)(batch)
    u = total_uncertainty(parts, batch).detach()
    torch.testing.assert_close(prediction.uncertainty, u)
    torch.testing.assert_close(prediction.tau, torch.full_like(u, 0.8))
    torch.testing.assert_close(prediction.bias_energy, -0.8 * u)
    torch.testing.assert_close(prediction.energy, plain.energy - 0.8 * u)
    assert prediction.stress is None
    tensors = [v for v in vars(prediction).values() if isinstance(v, Tensor)]
    assert not any(t.requires_grad for t in tensors)


def gradient_by_positions(parts: Parts, batch: AtomicBatch) -> np.ndarray:
    """du/dr by automatic differentiation with respect to positions, not pair vectors."""
    positions = batch.positions.clone().requires_grad_()
    total_uncertainty(parts, batch.replace(positions=positions)).sum().backward()
    assert positions.grad is not None
    return positions.grad.numpy()


def test_eq_8_against_a_plain_loop(parts: Parts) -> None:
    """250 steps of two walkers with a window of 40 and species weights, against lists and sums."""
    window, tau, weights = 40, 0.3, {"H": 0.0, "O": 0.5}
    biased = BiasedPotential(*parts, tau=tau, window=window, species_weights=weights)
    batch = batch_of([*molecules(1, 22), *crystals(1, 22)])
    factor = np.array([weights.get(symbol, 1.0) for symbol in [*"COHHH", *"COH"]])[:, None]
    rows = [slice(0, 5), slice(5, 8)]
    history: list[list[tuple[float, float]]] = [[], []]
    generator = torch.Generator().manual_seed(0)
    memory = None
    for step in range(250):
        noise = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
        now = batch.replace(positions=batch.positions + (0.02 + 0.04 * (step > 100)) * noise)
        prediction = biased(now, memory)
        memory = prediction.memory
        plain, slope = parts[0](now).forces.numpy(), gradient_by_positions(parts, now)
        expected = plain.copy()
        for walker, atoms in enumerate(rows):
            history[walker].append((np.sum(plain[atoms] ** 2), np.sum(slope[atoms] ** 2)))
            recent = np.array(history[walker][-window:])
            strength = 0.0
            if len(recent) == window:
                strength = tau * np.sqrt(recent[:, 0].sum()) / np.sqrt(recent[:, 1].sum())
            assert prediction.tau is not None
            np.testing.assert_allclose(prediction.tau[walker], strength, rtol=1e-9)
            expected[atoms] += strength * factor[atoms] * slope[atoms]
        np.testing.assert_allclose(prediction.forces, expected, rtol=1e-8, atol=1e-10)
        if step < window - 1:
            assert torch.equal(prediction.forces, torch.from_numpy(plain)), "no bias until the window is full"
            assert (prediction.bias_energy == 0).all()
        else:
            assert (prediction.bias_energy < 0).all()
            assert (prediction.forces[factor[:, 0] > 0] != torch.from_numpy(plain[factor[:, 0] > 0])).all()
    assert history[0][0][0] != history[0][-1][0]


@pytest.mark.parametrize("kind", [BiasedPotential, SpeciesBalancedBias])
def test_stress_window(parts: Parts, kind: type[BiasedPotential]) -> None:
    """Eq. 8 for stresses has a window of its own; it holds stresses, of cells that grow, and not strain derivatives."""
    biased = kind(*parts, tau=0.0, tau_stress=0.5, window=3)
    batches = []
    for seed in range(5):
        structures = crystals(2, seed)
        for atoms in structures:
            atoms.set_cell((1 + 0.03 * seed) * np.asarray(atoms.cell), scale_atoms=True)
        batches.append(batch_of(structures))
    memory, stresses, slopes = None, [], []
    for step, batch in enumerate(batches):
        prediction = biased(batch, memory)
        memory = prediction.memory
        plain = parts[0](batch, stress=True)
        whole = BiasedPotential(*parts, tau=0.0, tau_stress=1.0, rescale=False)(batch, stress=True)
        assert prediction.stress is not None
        assert plain.stress is not None
        assert whole.stress is not None
        stresses.append(plain.stress)
        slopes.append(plain.stress - whole.stress)
        assert torch.equal(prediction.forces, plain.forces)
        assert (prediction.tau == 0).all()
        if step < 2:
            assert torch.equal(prediction.stress, plain.stress)
            continue
        force = torch.stack(stresses[-3:]).square().sum((0, 2, 3))
        gradient = torch.stack(slopes[-3:]).square().sum((0, 2, 3))
        strength = 0.5 * (force / gradient).sqrt()
        torch.testing.assert_close(
            prediction.stress, plain.stress - strength[:, None, None] * slopes[-1], rtol=1e-9, atol=1e-12
        )


def run(biased: BiasedPotential, batches: list[AtomicBatch], memory: Memory | None = None) -> list[Prediction]:
    out = []
    for batch in batches:
        out.append(biased(batch, memory))
        memory = out[-1].memory
    return out


def test_walkers_are_independent(parts: Parts) -> None:
    """Walkers taken out of a batch, in another order, go on as if nothing had happened."""
    biased = BiasedPotential(*parts, tau=0.4, tau_stress=0.2, window=4)
    batches = [batch_of(crystals(4, seed)) for seed in range(9)]
    together = run(biased, batches)
    keep = torch.tensor([2, 0])
    memory = together[4].memory
    assert memory is not None
    subset = [batch.select(keep) for batch in batches]
    resumed = run(biased, subset[5:], {key: value[keep] for key, value in memory.items()})
    alone = run(biased, subset)
    for step, whole in enumerate(together[5:]):
        for other in (resumed[step], alone[5 + step]):
            rows = torch.cat([torch.arange(3) + 3 * w for w in keep.tolist()])
            torch.testing.assert_close(other.forces, whole.forces[rows], rtol=1e-9, atol=1e-11)
            for name in ("energy", "stress", "tau", "uncertainty", "bias_energy"):
                torch.testing.assert_close(getattr(other, name), getattr(whole, name)[keep], rtol=1e-9, atol=1e-11)


def test_nothing_given_is_changed(parts: Parts) -> None:
    biased = BiasedPotential(*parts, tau=0.4, tau_stress=0.2, window=2)
    batch = batch_of(crystals(2, 0))
    memory = run(biased, [batch] * 3)[-1].memory
    assert memory is not None
    before = {key: value.clone() for key, value in memory.items()}
    positions = batch.positions.clone()
    first, second = biased(batch, memory), biased(batch, memory)
    assert memory.keys() == before.keys()
    assert all(torch.equal(memory[key], before[key]) for key in memory)
    assert torch.equal(batch.positions, positions)
    assert torch.equal(first.forces, second.forces)
    assert len({value.data_ptr() for value in biased(batch).memory.values()}) == 3, "windows do not share storage"


def test_empty_memory_is_a_first_step(parts: Parts) -> None:
    biased = BiasedPotential(*parts, window=2)
    batch = batch_of(molecules(2, 0))
    memory = biased(batch, {}).memory
    assert memory is not None
    assert all(torch.equal(memory[key], value) for key, value in (biased(batch).memory or {}).items())


def test_without_bias_it_is_the_potential_with_uncertainties(parts: Parts) -> None:
    biased = BiasedPotential(*parts, tau=0)
    batch = batch_of(crystals(3, 1))
    memory = {"other": torch.ones(3)}
    with torch.no_grad():
        prediction, plain = biased(batch, memory, stress=True), parts[0](batch, stress=True)
    for name in ("energy", "forces", "stress"):
        assert torch.equal(getattr(prediction, name), getattr(plain, name))
    torch.testing.assert_close(prediction.uncertainty, total_uncertainty(parts, batch).detach())
    assert prediction.atomic_uncertainty is not None
    assert prediction.atomic_uncertainty.shape == (9,)
    assert (prediction.tau == 0).all()
    assert (prediction.bias_energy == 0).all()
    assert prediction.memory is memory
    assert biased.cutoff == CUTOFF


def test_a_lost_walker_stays_alone(parts: Parts) -> None:
    biased = BiasedPotential(*parts, tau=0.4, window=2)
    batches = [batch_of(molecules(3, seed)) for seed in range(4)]
    sound = run(biased, batches)
    atoms = torch.tensor([0, 1, 2, 3, 4, 10, 11, 12, 13, 14])
    positions = batches[1].positions.clone()
    positions[7] = torch.nan
    lost = run(biased, [batches[0], batches[1].replace(positions=positions), *batches[2:]])
    assert lost[1].forces[5:10].isnan().any()
    for a, b in zip(lost, sound, strict=True):
        assert torch.isfinite(b.forces).all()
        torch.testing.assert_close(a.forces[atoms], b.forces[atoms], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(a.energy[[0, 2]], b.energy[[0, 2]])


def test_flat_uncertainty_gives_no_bias(parts: Parts) -> None:
    """Atoms out of each other's reach: neither forces nor gradients, and no 0 / 0."""
    far = [Atoms("HH", positions=[[0, 0, 0], [0, 0, 3 * CUTOFF]])]
    batch = collate(far, 4 * CUTOFF, dtype=torch.float64)
    prediction = run(BiasedPotential(*parts, tau=0.4, window=1), [batch] * 2)[-1]
    assert (prediction.forces == 0).all()
    assert (prediction.tau == 0).all()
    assert torch.isfinite(prediction.energy).all()


def test_hydrogen_weight_zero_is_exact(parts: Parts) -> None:
    batch = batch_of(molecules(2, 3))
    plain = parts[0](batch).forces
    forces = BiasedPotential(*parts, tau=0.4, rescale=False, species_weights={"H": 0})(batch).forces
    hydrogen = batch.numbers == 1
    assert torch.equal(forces[hydrogen], plain[hydrogen])
    assert (forces[~hydrogen] != plain[~hydrogen]).all()


def test_single_precision_agrees(parts: Parts) -> None:
    """The whole thing in float32, as in production, is the same to a thousandth."""
    potential, uncertainty = parts
    biased = BiasedPotential(potential, uncertainty, tau=0.4, window=2)
    batches = [batch_of(molecules(2, seed)) for seed in range(3)]
    expected = run(biased, batches)[-1]
    try:
        biased.float()
        prediction = run(biased, [batch.to(torch.float32) for batch in batches])[-1]
    finally:
        biased.double()
    assert prediction.forces.dtype == torch.float32
    assert prediction.tau is not None
    assert prediction.tau.dtype == torch.float32
    torch.testing.assert_close(prediction.forces.double(), expected.forces, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(prediction.uncertainty.double(), expected.uncertainty, rtol=1e-3, atol=0)


def test_foreign_memory_is_refused(parts: Parts) -> None:
    batch = batch_of(molecules(2, 0))
    memory = BiasedPotential(*parts, window=5)(batch).memory
    for other, structures in (
        (BiasedPotential(*parts, window=6), batch),
        (BiasedPotential(*parts, window=5), None),
    ):
        with pytest.raises(ValueError, match="memory of other walkers"):
            other(structures or batch.select(torch.tensor([0])), memory)
    with pytest.raises(ValueError, match="bias_stress_window"):
        BiasedPotential(*parts, tau_stress=1.0, window=5)(batch, memory)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -0.1}, r"bias\.tau .*-0\.1"),
        ({"tau_stress": float("nan")}, r"bias\.tau_stress .*nan"),
        ({"tau": "0.1"}, r"bias\.tau .*'0\.1'"),
        ({"window": 0}, r"bias\.window .*0"),
        ({"window": 1.5}, r"bias\.window .*1\.5"),
        ({"species_weights": {"h": 0}}, r"'h'.*'H'"),
        ({"species_weights": {"AL": 0}}, r"'AL'.*'Al'"),
        ({"species_weights": {False: 0}}, r"'False'"),
        ({"species_weights": {"H": -1}}, r"species_weights\.H .*-1"),
        ({"species_weights": {"H": None}}, r"species_weights\.H .*None"),
    ],
)
def test_bad_options(parts: Parts, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BiasedPotential(*parts, **options)


def test_weights_move_with_the_module(parts: Parts) -> None:
    biased = BiasedPotential(*parts, species_weights={"H": 0.25})
    assert biased.weights[1] == 0.25
    assert biased.weights[[6, 8]].tolist() == [1.0, 1.0]
    assert "weights" in dict(biased.named_buffers())
    assert "weights" not in biased.state_dict()


def test_prediction_can_be_copied(parts: Parts) -> None:
    prediction = BiasedPotential(*parts)(batch_of(molecules(1, 0)))
    assert replace(prediction, tau=None).memory is prediction.memory

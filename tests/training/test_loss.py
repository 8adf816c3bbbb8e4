from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms

from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential, Prediction
from ubmd.testing import potentials as contract
from ubmd.training.loss import HuberLoss, SquaredLoss, virial_triangle


def labelled(atoms: Atoms, seed: int) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms.info["REF_energy"] = float(rng.normal())
    atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
    stress = rng.normal(size=(3, 3))
    atoms.info["REF_stress"] = 0.1 * (stress + stress.T)
    return atoms


@pytest.fixture
def batch() -> AtomicBatch:
    supercell = contract.crystal().repeat((1, 2, 1))
    supercell.rattle(0.1, seed=0)
    return collate([labelled(contract.crystal(), 0), labelled(supercell, 1)], 4.0, dtype=torch.float64)


@pytest.fixture
def potential() -> Potential:
    model = GMNN(contract.SPECIES, cutoff=4.0, n_basis=3, n_gauss=4, hidden=(6, 5), seed=1).double()
    with torch.no_grad():
        model.energy_unit.fill_(0.7)
        for bias in model.readout.biases:
            bias.fill_(0.5)
    return Potential(model)


@pytest.mark.parametrize("weights", [(1.0, 4.0, 0.01), (2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 1.0)], ids=str)
def test_equals_the_formula(batch: AtomicBatch, potential: Potential, weights: tuple[float, ...]) -> None:
    """Eq. 14 by loops; of the symmetric stress the upper triangle counts, once each, times the volume."""
    energy, forces, stress = weights
    prediction = potential(batch, stress=True)
    assert batch.energy is not None
    assert batch.forces is not None
    assert batch.stress is not None
    assert prediction.stress is not None
    expected = 0.0
    for k in range(2):
        expected += energy * float(prediction.energy[k] - batch.energy[k]) ** 2
        volume = abs(np.linalg.det(batch.cell[k].numpy()))
        for a, b in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]:
            error = volume * float(prediction.stress[k, a, b] - batch.stress[k, a, b])
            expected += stress * error**2
    for i in range(len(batch.positions)):
        for a in range(3):
            expected += forces * float(prediction.forces[i, a] - batch.forces[i, a]) ** 2
    found = SquaredLoss(energy, forces, stress)(prediction, batch)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert expected > 0


@pytest.mark.parametrize("loss", [SquaredLoss(stress=0.5), HuberLoss(stress=0.5)], ids=["squared", "huber"])
def test_only_a_stress_that_there_is_counts(potential: Potential, loss: SquaredLoss | HuberLoss) -> None:
    """With molecules and slabs beside crystals, loss and slope are those of the crystals' stress alone."""
    molecule, slab, bare = (labelled(contract.crystal(), seed) for seed in (2, 3, 4))
    molecule.pbc, slab.pbc = False, (True, True, False)
    del bare.info["REF_stress"]
    others = [molecule, slab, bare]
    crystals = [labelled(contract.crystal(), 0)]

    def found(structures: list[Atoms], loss: SquaredLoss | HuberLoss) -> tuple[float, torch.Tensor]:
        batch = collate(structures, 4.0, dtype=torch.float64)
        value = loss(potential(batch, stress=True, training=True), batch)
        weights = [p for p in potential.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(value, weights, allow_unused=True)
        return value.item(), torch.cat([s.flatten() for s in slopes if s is not None])

    together, slope = found([*crystals, *others], loss)
    alone, alone_slope = found(crystals, loss)
    rest, rest_slope = found(others, replace(loss, stress=0.0))
    assert together == pytest.approx(alone + rest, rel=1e-10)
    torch.testing.assert_close(slope, alone_slope + rest_slope)
    assert slope.isfinite().all()


def test_weights_of_the_paper() -> None:
    assert SquaredLoss() == SquaredLoss(energy=1.0, forces=4.0, stress=0.0)


def test_sums_over_structures(batch: AtomicBatch, potential: Potential) -> None:
    loss = SquaredLoss(1.0, 4.0, 0.01)
    parts = [batch.select(torch.tensor([k])) for k in range(2)]
    total = loss(potential(batch, stress=True), batch)
    torch.testing.assert_close(total, sum(loss(potential(p, stress=True), p) for p in parts))


def test_perfect_prediction_costs_nothing(batch: AtomicBatch) -> None:
    assert batch.energy is not None
    assert batch.forces is not None
    prediction = Prediction(batch.energy, batch.forces, batch.stress)
    assert SquaredLoss(1.0, 4.0, 0.01)(prediction, batch) == 0.0


def test_stress_may_be_missing_if_it_has_no_weight(batch: AtomicBatch, potential: Potential) -> None:
    bare = batch.replace(stress=None)
    torch.testing.assert_close(SquaredLoss()(potential(bare), bare), SquaredLoss()(potential(batch), batch))


def test_virial_triangle() -> None:
    stress = torch.arange(9.0).reshape(1, 3, 3)
    assert virial_triangle(stress, torch.tensor([10.0])).tolist() == [[0.0, 10.0, 20.0, 40.0, 50.0, 80.0]]


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_negative_weights(name: str) -> None:
    with pytest.raises(InputError, match=rf"training\.loss\.{name}=-1\.0 must not be negative"):
        SquaredLoss(**{name: -1.0})


@pytest.mark.parametrize("group", ["readout", "representation", "shift", "scale"])
def test_gradient_of_the_loss(batch: AtomicBatch, potential: Potential, group: str) -> None:
    """Through forces and stress, which are derivatives themselves, against differences of the loss."""
    loss = SquaredLoss(1.0, 4.0, 0.5)
    for parameter in potential.model.parameter_groups()[group]:  # pyright: ignore
        prediction = potential(batch, stress=True, training=True)
        (gradient,) = torch.autograd.grad(loss(prediction, batch), parameter)
        flat, kept = parameter.data.view(-1), parameter.data.clone().view(-1)
        chosen = np.random.default_rng(0).permutation(len(flat))[:6]
        for index in chosen:
            values = []
            for step in (1e-5, -1e-5):
                flat[index] = kept[index] + step
                values.append(loss(potential(batch, stress=True), batch).item())
                flat[index] = kept[index]
            quotient = (values[0] - values[1]) / 2e-5
            assert gradient.view(-1)[index].item() == pytest.approx(
                quotient, rel=1e-5, abs=1e-6 * gradient.abs().max().item() + 1e-9
            )
        assert gradient.abs().max() > 0


def test_prediction_is_differentiable_only_in_training(batch: AtomicBatch, potential: Potential) -> None:
    for training in (True, False):
        prediction = potential(batch, stress=True, training=training)
        assert prediction.stress is not None
        for tensor in (prediction.energy, prediction.forces, prediction.stress):
            assert tensor.requires_grad is training

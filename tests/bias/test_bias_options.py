from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.bias.bias_parts import (
    Parts,
    batch_of,
    crystals,
    difference_gradient,
    difference_strain,
    fitted_parts,
    molecules,
)
from ubmd.bias.adaptive import SpeciesBalancedBias
from ubmd.bias.biased import BiasedPotential
from ubmd.bias.quantity import SumOfAtomic
from ubmd.data.batch import AtomicBatch
from ubmd.dynamics.adversarial import AdversarialPotential
from ubmd.errors import InputError
from ubmd.units import KB


@pytest.fixture(scope="module")
def parts() -> Parts:
    return fitted_parts()


def uncertainties(parts: Parts, batch: AtomicBatch) -> tuple[Tensor, Tensor]:
    potential, uncertainty = parts
    vectors = batch.vectors()
    total, atomic = uncertainty(potential.model, potential.model(vectors, batch), vectors, batch)
    return total.detach(), atomic.detach()


def test_bias_by_the_sum_of_atomic_uncertainties(parts: Parts) -> None:
    """Energy, forces and stress of E - tau sum_i u_i; the predicted uncertainties stay what they are."""

    def summed(batch: AtomicBatch) -> Tensor:
        return batch.sum_atoms(uncertainties(parts, batch)[1])

    biased = BiasedPotential(*parts, tau=0.8, tau_stress=0.5, rescale=False, quantity=SumOfAtomic())
    for structures in (molecules(1, 20), crystals(1, 20)):
        batch = batch_of(structures)
        prediction, plain = biased(batch, stress=True), parts[0](batch, stress=True)
        total, atomic = uncertainties(parts, batch)
        torch.testing.assert_close(prediction.uncertainty, total)
        torch.testing.assert_close(prediction.atomic_uncertainty, atomic)
        torch.testing.assert_close(prediction.bias_energy, -0.8 * atomic.sum()[None])
        expected = 0.8 * difference_gradient(summed, batch)
        found = (prediction.forces - plain.forces).numpy()
        assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
    expected = -0.5 * difference_strain(summed, batch) / batch.volume.item()
    found = (prediction.stress - plain.stress)[0].numpy()
    assert np.linalg.norm(expected) > 1e-6
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)


def test_eq_8_holds_for_the_sum_as_well(parts: Parts) -> None:
    biased = BiasedPotential(*parts, tau=0.3, window=1, quantity=SumOfAtomic())
    batch = batch_of(molecules(2, 3))
    plain = parts[0](batch).forces
    bias = biased(batch).forces - plain
    for atoms in (slice(0, 5), slice(5, 10)):
        assert bias[atoms].norm().item() == pytest.approx(0.3 * plain[atoms].norm().item())


@pytest.mark.parametrize("quantity", [None, SumOfAtomic()])
def test_adversarial_potential(parts: Parts, quantity: SumOfAtomic | None) -> None:
    """Its forces are k_B T times the gradient of ln(u exp(-E / k_B T)), which here is differentiated itself."""
    kelvin = 2000.0
    potential = AdversarialPotential(*parts, temperature=kelvin, quantity=quantity)

    def log_objective(batch: AtomicBatch) -> Tensor:
        total, atomic = uncertainties(parts, batch)
        u = total if quantity is None else atomic.sum()[None]
        return (u * torch.exp(-(parts[0](batch).energy - reference) / (KB * kelvin))).log()

    batch = batch_of(molecules(1, 20))
    reference = parts[0](batch).energy
    prediction = potential(batch)
    expected = KB * kelvin * difference_gradient(log_objective, batch)
    assert np.linalg.norm(prediction.forces.numpy() - expected) < 1e-6 * np.linalg.norm(expected)
    bias = (prediction.forces - parts[0](batch).forces).norm().item()
    assert bias > 1e-3
    moved = batch_of(molecules(1, 21))
    found = (potential(moved).energy - prediction.energy).item()
    assert found == pytest.approx(-KB * kelvin * (log_objective(moved) - log_objective(batch)).item())
    with pytest.raises(InputError, match="temperature"):
        AdversarialPotential(*parts, temperature=0.0)


def balanced_weights(
    parts: Parts, batches: list[AtomicBatch], horizon: int, symbols: list[str]
) -> list[dict[str, float]]:
    """Weights of one walker after each evaluation, in plain Python."""
    means: dict[str, list[float]] = {s: [0.0, 0.0] for s in symbols}
    out = []
    for step, batch in enumerate(batches, 1):
        plain = parts[0](batch).forces.numpy()
        slope = BiasedPotential(*parts, tau=1.0, rescale=False)(batch).forces.numpy() - plain
        for symbol in means:
            atoms = [i for i, s in enumerate(symbols) if s == symbol]
            for k, values in enumerate((plain, slope)):
                means[symbol][k] += (np.sum(values[atoms] ** 2) - means[symbol][k]) / min(step, horizon)
        force, gradient = np.sum(list(means.values()), axis=0)
        out.append({s: math.sqrt(f / g / (force / gradient)) for s, (f, g) in means.items()})
    return out


def test_balanced_species_against_a_plain_loop(parts: Parts) -> None:
    biased = SpeciesBalancedBias(*parts, tau=0.3, window=3, species_weights={"O": 0.5})
    plain_bias = BiasedPotential(*parts, tau=0.3, window=3)
    batches = [batch_of([*molecules(1, seed), *crystals(1, seed)]) for seed in range(8)]
    expected = [
        balanced_weights(parts, [b.select(torch.tensor([w])) for b in batches], 3, symbols)
        for w, symbols in enumerate((list("COHHH"), list("COH")))
    ]
    memory = other = None
    for step, batch in enumerate(batches):
        prediction, unweighted = biased(batch, memory), plain_bias(batch, other)
        memory, other = prediction.memory, unweighted.memory
        forces = parts[0](batch).forces
        torch.testing.assert_close(prediction.tau, unweighted.tau)
        factors = [expected[0][step][s] for s in "COHHH"] + [expected[1][step][s] for s in "COH"]
        factors[1] *= 0.5
        factors[6] *= 0.5
        bias = torch.tensor(factors, dtype=torch.float64)[:, None] * (unweighted.forces - forces)
        torch.testing.assert_close(prediction.forces - forces, bias, rtol=1e-8, atol=1e-10)
        assert (bias.abs().sum() > 0) == (step >= 2), "no bias until the window is full"
    assert abs(expected[0][-1]["H"] - 1) > 0.03, "weights that do nothing test nothing"


def test_balanced_species_get_the_same_fraction_of_their_forces(parts: Parts) -> None:
    biased = SpeciesBalancedBias(*parts, tau=0.3, window=1)
    batch = batch_of(molecules(3, 5))
    plain = parts[0](batch).forces
    bias = biased(batch).forces - plain
    for walker in range(3):
        for number in (1, 6, 8):
            atoms = (batch.system_idx == walker) & (batch.numbers == number)
            assert bias[atoms].norm().item() == pytest.approx(0.3 * plain[atoms].norm().item())


def test_balanced_walkers_are_independent(parts: Parts) -> None:
    biased = SpeciesBalancedBias(*parts, tau=0.3, window=2)
    batches = [batch_of(molecules(3, seed)) for seed in range(5)]
    keep = torch.tensor([2, 0])
    memory = part = None
    for batch in batches:
        prediction = biased(batch, memory)
        memory = prediction.memory
        some = biased(batch.select(keep), part)
        part = some.memory
        rows = torch.cat([torch.arange(5) + 5 * w for w in keep.tolist()])
        torch.testing.assert_close(some.forces, prediction.forces[rows], rtol=1e-9, atol=1e-11)
    assert memory is not None
    assert all(len(value) == 3 for value in memory.values())


def test_memory_of_others_is_left_alone(parts: Parts) -> None:
    """An integrator keeps its own things in the same memory, from before the first evaluation on."""
    batch = batch_of(molecules(2, 0))
    own = {"integrator": torch.ones(2, 3)}
    for potential in (BiasedPotential(*parts), SpeciesBalancedBias(*parts), AdversarialPotential(*parts)):
        memory = potential(batch, potential(batch, own).memory).memory
        assert memory is not None
        assert memory["integrator"] is own["integrator"]

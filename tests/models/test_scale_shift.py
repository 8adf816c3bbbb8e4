from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms

from ubmd.data.batch import collate
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.models.scale_shift import ShiftedModel

SPECIES = ["H", "C", "O"]
ATOMIC_ENERGIES = np.array([-13.7, -1030.2, -2043.9])
COMPOSITIONS = np.array([[4, 1, 0], [2, 0, 1], [4, 1, 1], [6, 2, 0], [0, 1, 2], [2, 6, 1]])


def fitted(energy: np.ndarray, composition: np.ndarray) -> tuple[GMNN, np.ndarray]:
    """A model after the regression and its energies per atom of each species, c mu."""
    model = GMNN(SPECIES, n_basis=2, hidden=(4,)).double()
    torch.nn.init.constant_(model.scale, 3.0)
    model.fit_scale_shift(torch.from_numpy(energy), torch.from_numpy(composition))
    return model, (model.energy_unit * model.shift).detach().numpy()


def test_recovers_atomic_energies() -> None:
    model, atomic = fitted(COMPOSITIONS @ ATOMIC_ENERGIES, COMPOSITIONS)
    np.testing.assert_allclose(atomic, ATOMIC_ENERGIES, rtol=1e-9)
    # nothing is left over: the unit of energy stays away from zero
    assert model.energy_unit.item() == pytest.approx(1e-3)
    assert model.scale.tolist() == [1.0, 1.0, 1.0]
    assert model.shift.requires_grad


def test_unit_is_the_error_per_atom() -> None:
    rng = np.random.default_rng(0)
    composition = rng.integers(1, 9, size=(40, 3))
    energy = composition @ ATOMIC_ENERGIES + rng.normal(scale=2.0, size=40)
    n_atoms = composition.sum(1)
    model, atomic = fitted(energy, composition)
    expected = np.linalg.solve(
        (composition / n_atoms[:, None] ** 2).T @ composition, (composition / n_atoms[:, None] ** 2).T @ energy
    )
    np.testing.assert_allclose(atomic, expected, rtol=1e-8)
    rmse = np.sqrt(np.mean(((energy - composition @ expected) / n_atoms) ** 2))
    assert model.energy_unit.item() == pytest.approx(rmse, rel=1e-8)
    assert rmse > 0.05


def test_one_molecule_only() -> None:
    """Atomic energies are not determined then: finite, and the mean energy is right."""
    composition = np.tile([6, 2, 1], (10, 1))
    energy = -4500.0 + np.random.default_rng(1).normal(scale=0.3, size=10)
    model, atomic = fitted(energy, composition)
    assert np.isfinite(atomic).all()
    assert composition[0] @ atomic == pytest.approx(energy.mean(), rel=1e-10)
    assert model.energy_unit.item() == pytest.approx(energy.std() / 9, rel=1e-6)


def test_a_species_that_does_not_occur() -> None:
    composition = np.array([[2, 0, 1], [2, 0, 2], [4, 0, 2]])
    model, atomic = fitted(composition @ ATOMIC_ENERGIES, composition)
    np.testing.assert_allclose(atomic[[0, 2]], ATOMIC_ENERGIES[[0, 2]], rtol=1e-9)
    assert np.isfinite(atomic[1])
    assert torch.isfinite(model.energy_unit)


def test_a_single_structure() -> None:
    model, atomic = fitted(np.array([-100.0]), np.array([[2, 1, 0]]))
    assert np.array([2, 1, 0]) @ atomic == pytest.approx(-100.0)
    assert model.energy_unit.item() == pytest.approx(1e-3)


@pytest.mark.parametrize("species", [["H", "C", "O"], ["O", "C", "H"]])
def test_energies_of_structures_are_those_of_the_regression(species: list[str]) -> None:
    """With a silent network, energies are sums of the fitted atomic energies (Eq. 10)."""
    structures = [Atoms("CH4"), Atoms("OH2"), Atoms("CO2"), Atoms("C2H6O")]
    for atoms in structures:
        atoms.positions = 1.5 * np.random.default_rng(len(atoms)).permutation(27)[: len(atoms), None] * [1, 0.1, 0]
        atoms.info["REF_energy"] = sum({1: -13.7, 6: -1030.2, 8: -2043.9}[z] for z in atoms.numbers)
    batch = collate(structures, 4.0, dtype=torch.float64)
    model = GMNN(species, cutoff=4.0, n_basis=2, hidden=(4,)).double()
    counts = model.composition(batch)
    assert counts.tolist() == [[4, 1, 0], [2, 0, 1], [0, 1, 2], [6, 2, 1]]
    assert batch.energy is not None
    model.fit_scale_shift(batch.energy, counts)
    torch.nn.init.zeros_(model.readout.weights[-1])
    energies = batch.sum_atoms(model(batch.vectors(), batch).energies)
    torch.testing.assert_close(energies.detach(), batch.energy, rtol=1e-10, atol=0)


def test_scale_and_unit_multiply_the_network() -> None:
    """E_i = c (rho y_i + mu), species by species."""
    batch = collate([Atoms("OH2", [[0, 0, 0], [1, 0, 0], [0, 1.1, 0]])], 4.0, dtype=torch.float64)
    model = GMNN(["H", "O"], cutoff=4.0, n_basis=2, hidden=(4,)).double()
    y = model(batch.vectors(), batch).layers.output.detach()
    with torch.no_grad():
        model.scale.copy_(torch.tensor([2.0, 3.0]))
        model.shift.copy_(torch.tensor([5.0, 7.0]))
        model.energy_unit.fill_(0.5)
    found = model(batch.vectors(), batch).energies.detach()
    torch.testing.assert_close(found[0], 0.5 * (3 * y[0] + 7))
    torch.testing.assert_close(found[1:], 0.5 * (2 * y[1:] + 5))


def ensemble(species: list[str]) -> Ensemble:
    def member(species: list[str], seed: int = 0) -> GMNN:
        return GMNN(species, cutoff=4.0, n_basis=2, hidden=(4,), seed=seed)

    return Ensemble(species, member, 2)


def single(species: list[str]) -> GMNN:
    return GMNN(species, cutoff=4.0, n_basis=2, hidden=(4,))


@pytest.mark.parametrize("build", [single, ensemble])
@pytest.mark.parametrize("atomic", [-50.0, -520000.0])
def test_energies_are_smooth_whatever_the_shifts(build: Callable[[list[str]], ShiftedModel], atomic: float) -> None:
    """Energies of all electrons leave nothing for the rest in float32; a structure's change by far less."""
    model = build(["H", "O"])
    energy = torch.tensor([3 * atomic + 0.3, 6 * atomic - 0.5, 5 * atomic], dtype=torch.float64)
    model.fit_scale_shift(energy, torch.tensor([[2, 1], [4, 2], [3, 2]]))
    batch = collate([Atoms("OH2", [[0, 0, 0], [1, 0, 0], [0, 1.1, 0]])], 4.0)
    potential, steps = Potential(model), np.linspace(-0.02, 0.02, 21)
    energies = []
    for step in steps:
        moved = batch.replace(positions=batch.positions + torch.tensor([[step, 0, 0], [0, 0, 0], [0, 0, 0]]).float())
        energies.append(potential(moved).energy.item())
    assert len(set(energies)) == len(steps)
    slope = np.polyfit(steps, np.array(energies) - energies[0], 3)[2]
    assert -slope == pytest.approx(potential(batch).forces[0, 0].item(), rel=2e-3)
    double = build(["H", "O"]).double()
    double.load_state_dict(model.state_dict())
    found = Potential(double)(batch.to(torch.float64)).energy.item()
    assert potential(batch).energy.item() == pytest.approx(found, abs=1e-5)


def test_shifts_keep_their_digits_when_a_model_is_converted() -> None:
    model = single(["H"])
    with torch.no_grad():
        model.shift.fill_(-520000.123456789)
    parameter = model.shift
    converted = model.double().float().to(dtype=torch.float32, device="cpu")
    assert converted.shift is parameter
    assert converted.shift.dtype == torch.float64
    assert converted.shift.item() == -520000.123456789
    assert {v.dtype for k, v in converted.named_parameters() if k != "shift"} == {torch.float32}

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from tests.models.test_ensemble import batch_of, ensemble, members
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential, differentiate
from ubmd.testing import potentials as contract
from ubmd.uncertainty import EnsembleUncertainty, FeatureUncertainty, SketchedGradients
from ubmd.uncertainty.checkpoint import load_potential, save_potential


def calibrated(model: Ensemble) -> EnsembleUncertainty:
    uncertainty = EnsembleUncertainty(model)
    uncertainty.total_scale.fill_(1.7)
    uncertainty.atomic_scale.copy_(0.5 + torch.arange(119) / 10)
    return uncertainty


def evaluate(model: Ensemble, uncertainty: EnsembleUncertainty, batch: AtomicBatch) -> tuple[Tensor, Tensor, Tensor]:
    output, vectors = Potential(model).atoms(batch)
    return *uncertainty(model, output, vectors, batch), vectors


def test_equals_statistics_over_a_loop_of_members() -> None:
    model = ensemble()
    batch = batch_of(contract.structures())
    total, atomic, _ = evaluate(model, calibrated(model), batch)
    alone = [Potential(m)(batch) for m in members(model)]
    energies, forces = torch.stack([p.energy for p in alone]), torch.stack([p.forces for p in alone])
    variance = sum((e - energies.mean(0)) ** 2 for e in energies) / 3
    force_variance = sum(((f - forces.mean(0)) ** 2).sum(1) for f in forces) / 9
    torch.testing.assert_close(total, 1.7 * variance.sqrt() / batch.n_atoms, rtol=1e-9, atol=1e-12)
    factor = 0.5 + batch.numbers / 10
    torch.testing.assert_close(atomic, factor * force_variance.sqrt(), rtol=1e-9, atol=1e-12)
    assert (total > 1e-4).all()
    assert atomic[batch.system_idx == 2].item() == 0, "a lone atom feels no force, whoever predicts it"


@pytest.mark.parametrize("which", ["total", "atomic"])
def test_gradients_against_differences(which: str) -> None:
    model = ensemble()
    uncertainty = calibrated(model)
    batch = batch_of([contract.molecule(), contract.crystal()])
    weights = torch.linspace(0.5, 1.5, len(batch.numbers), dtype=torch.float64)

    def value(positions: Tensor) -> tuple[Tensor, Tensor]:
        total, atomic, vectors = evaluate(model, uncertainty, batch.replace(positions=positions))
        return (total if which == "total" else batch.sum_atoms(weights * atomic)), vectors

    slope, _ = differentiate(*value(batch.positions), batch)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (value(batch.positions + h * direction)[0].detach() for h in (1e-5, -1e-5))
        expected = batch.sum_atoms((slope * direction).sum(1))
        torch.testing.assert_close((ahead - behind) / 2e-5, expected, rtol=1e-5, atol=1e-8)
    assert slope.abs().max() > 1e-3


def test_agreeing_members_are_certain_and_flat() -> None:
    model = ensemble()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter[:1].clone().expand_as(parameter))
    batch = batch_of([contract.molecule()])
    total, atomic, vectors = evaluate(model, calibrated(model), batch)
    assert total.abs().max() < 1e-12
    assert atomic.abs().max() < 1e-12
    for value in (total, batch.sum_atoms(atomic)):
        slope, _ = differentiate(value, vectors, batch, retain_graph=True)
        assert torch.isfinite(slope).all()


def test_large_atomic_energies_do_not_drown_the_deviation() -> None:
    """In float32 an atomic energy of -2000 eV is known to 0.1 meV; what the members differ by is kept apart."""
    model = ensemble()
    with torch.no_grad():
        model.stack.shift[:] = torch.tensor([-20.0, -1500.0, -3000.0], dtype=torch.float64)
    batch = batch_of([contract.molecule()])
    exact = evaluate(model, EnsembleUncertainty(model), batch)[0]
    single = model.float()
    found = evaluate(single, EnsembleUncertainty(single), batch.to(torch.float32))[0]
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0.0)


def test_biased_potential() -> None:
    """The bias follows the deviation of the energies; energy and forces are those of the mean."""
    model = ensemble()
    uncertainty = calibrated(model)
    batch = batch_of(contract.structures())
    potential = BiasedPotential(Potential(model), uncertainty, tau=0.3, rescale=False)
    found, plain = potential(batch, None, stress=True), Potential(model)(batch, stress=True)
    total, atomic, vectors = evaluate(model, uncertainty, batch)
    slope, _ = differentiate(total, vectors, batch)
    torch.testing.assert_close(found.forces, plain.forces + 0.3 * slope)
    torch.testing.assert_close(found.energy, plain.energy - 0.3 * total.detach())
    torch.testing.assert_close(found.atomic_uncertainty, atomic.detach())
    unbiased = BiasedPotential(Potential(model), uncertainty, tau=0.0)(batch)
    torch.testing.assert_close(unbiased.uncertainty, total.detach())
    torch.testing.assert_close(unbiased.atomic_uncertainty, atomic.detach())
    torch.testing.assert_close(unbiased.forces, plain.forces)


def test_structures_that_blow_up_do_so_alone() -> None:
    model = ensemble()
    batch = batch_of([contract.molecule(), contract.molecule(), contract.crystal()])
    expected, expected_atomic, _ = evaluate(model, calibrated(model), batch)
    ill = batch.system_idx == 1
    positions = torch.where(ill[:, None], torch.nan, batch.positions)
    total, atomic, vectors = evaluate(model, calibrated(model), batch.replace(positions=positions))
    assert total.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(total[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(atomic[~ill], expected_atomic[~ill])
    slope, _ = differentiate(total, vectors, batch)
    assert torch.isfinite(slope[~ill]).all()


def test_round_trip(tmp_path: Path) -> None:
    network = {"_target_": "ubmd.models.gmnn.GMNN", "_partial_": True, "cutoff": 4.0, "n_basis": 3, "hidden": [8, 6]}
    config: dict[str, Any] = {
        "_target_": "ubmd.models.ensemble.Ensemble",
        "species": ["H", "C", "O"],
        "member": network,
        "n_members": 4,
    }
    model = instantiate(config, seed=3)
    uncertainty = calibrated(model)
    path = tmp_path / "model.ckpt"
    own = {"_target_": "ubmd.uncertainty.EnsembleUncertainty", "_partial_": True}
    save_potential(path, model, uncertainty, model_config=config, uncertainty_config=own)
    loaded = load_potential(path)
    batch = collate([contract.molecule(), contract.crystal()], 4.0)
    assert isinstance(loaded.model, Ensemble)
    assert isinstance(loaded.uncertainty, EnsembleUncertainty)
    assert torch.equal(Potential(loaded.model)(batch).forces, Potential(model)(batch).forces)
    pairs = zip(evaluate(loaded.model, loaded.uncertainty, batch), evaluate(model, uncertainty, batch), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_fit_forgets_the_calibration() -> None:
    model = ensemble()
    uncertainty = calibrated(model)
    uncertainty.fit(model, [])
    assert uncertainty.total_scale == 1
    assert (uncertainty.atomic_scale == 1).all()
    assert uncertainty.total_features(model, batch_of(contract.structures())).shape == (4, uncertainty.n_features)


def test_wrong_pairs_of_model_and_uncertainty() -> None:
    with pytest.raises(InputError, match=r"needs model=ensemble, got a GMNN"):
        EnsembleUncertainty(GMNN(["H"]))
    with pytest.raises(InputError, match=r"Ensemble shows no features .*uncertainty=ensemble"):
        FeatureUncertainty(SketchedGradients, ensemble())


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    """Their ensembles had no stack."""
    network = {"_target_": "ubmd.models.gmnn.GMNN", "_partial_": True, "cutoff": 4.0, "n_basis": 3, "hidden": [8, 6]}
    config = {"_target_": "ubmd.models.ensemble.Ensemble", "species": ["H", "C", "O"], "member": network}
    model = instantiate(config, seed=3)
    path = tmp_path / "model.ckpt"
    own = {"_target_": "ubmd.uncertainty.EnsembleUncertainty", "_partial_": True}
    save_potential(path, model, EnsembleUncertainty(model), model_config=config, uncertainty_config=own)
    content = torch.load(path, weights_only=True)
    del content["digest"]
    content["model_state"] = {k.removeprefix("stack."): v for k, v in content["model_state"].items()}
    torch.save(content, path)
    batch = collate([contract.molecule()], 4.0)
    assert torch.equal(Potential(load_potential(path).model)(batch).forces, Potential(model)(batch).forces)

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from hydra.utils import instantiate

from tests.interfaces.test_ase import CUTOFF, MODEL, UNCERTAINTY, crystals, molecules
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.interfaces.scripted import ScriptedPotential
from ubmd.models.potential import Potential
from ubmd.uncertainty.feature_uncertainty import DistanceUncertainty, FeatureUncertainty
from ubmd.uncertainty.features import FullGradients, LastLayer, SketchedGradients
from ubmd.uncertainty.potential import UncertainPotential

ENSEMBLE = {
    "_target_": "ubmd.models.ensemble.Ensemble",
    "species": ["H", "C", "O"],
    "n_members": 3,
    "member": {k: v for k, v in MODEL.items() if k not in ("species", "seed")} | {"_partial_": True},
}


def potential(model: dict[str, Any], uncertainty: Any, dtype: torch.dtype = torch.float64) -> UncertainPotential:
    """A fitted potential whose numbers are all different from their defaults."""
    made = instantiate(model).to(dtype)
    shifted = getattr(made, "_shifted", made)
    shifted.energy_unit.fill_(3.0)
    with torch.no_grad():
        shifted.shift += torch.linspace(-1, 1, shifted.shift.numel()).view(shifted.shift.shape)
        shifted.scale += torch.linspace(-0.2, 0.3, shifted.scale.numel()).view(shifted.scale.shape)
        for bias in (made.readout if hasattr(made, "readout") else made.stack.readout).biases:
            bias += torch.linspace(-1, 1, bias.numel()).view(bias.shape)
    fitted = uncertainty(model=made).to(dtype)
    fitted.fit(made, [collate([a], CUTOFF, dtype=dtype) for a in (*molecules(6, 10), *crystals(6, 11))])
    fitted.total_scale.fill_(1.7)
    fitted.atomic_scale.copy_(torch.linspace(0.5, 2.0, len(fitted.atomic_scale)))
    return UncertainPotential(Potential(made), fitted).requires_grad_(False)


def sketched(**options: Any) -> Any:
    return lambda layer_sizes, seed: SketchedGradients(layer_sizes, n_projections=32, seed=seed, **options)


UNCERTAINTIES: dict[str, Any] = {
    "sketched": lambda model: FeatureUncertainty(sketched(), model),
    "last layer": lambda model: FeatureUncertainty(LastLayer, model),
    "projected": lambda model: FeatureUncertainty(
        lambda layer_sizes, seed: LastLayer(layer_sizes, n_projections=8, seed=seed), model
    ),
    "distance": lambda model: DistanceUncertainty(sketched(), model, max_points=20),
    "distance, last layer": lambda model: DistanceUncertainty(LastLayer, model),
}


def pairs(batch: AtomicBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The neighbours of a batch as a flat list of vectors, first and second atoms."""
    first, column = batch.mask.nonzero(as_tuple=True)
    return batch.vectors()[first, column], first, batch.neighbours[first, column]


@pytest.mark.parametrize("name", UNCERTAINTIES)
def test_equals_the_potential(name: str) -> None:
    compare(potential(MODEL, UNCERTAINTIES[name]))


ZBL = {"repulsion": "zbl", "repulsion_cutoff": 1.5}


def test_repulsion() -> None:
    compare(potential(MODEL | ZBL, UNCERTAINTIES["last layer"]))


@pytest.mark.parametrize("l_max", [0, 1, 2])
def test_lower_ranks(l_max: int) -> None:
    compare(potential(MODEL | {"l_max": l_max}, UNCERTAINTIES["sketched"]))


def compare(trained: UncertainPotential) -> None:
    """Energies, forces and uncertainties of molecules and crystals in one batch."""
    scripted = torch.jit.script(ScriptedPotential(copy.deepcopy(trained)))
    batch = collate([*molecules(2, 0), *crystals(2, 0), Atoms("C")], CUTOFF, dtype=torch.float64)
    vectors, first, second = pairs(batch)
    vectors.requires_grad_()
    expected = trained(batch)
    found = scripted(vectors, first, second, batch.numbers)
    (energies,) = found["energies"]
    np.testing.assert_allclose(batch.sum_atoms(energies).detach(), expected.energy, rtol=1e-10)
    (slopes,) = torch.autograd.grad(energies.sum(), vectors)
    gradient = torch.zeros_like(batch.positions).index_add(0, first, slopes).index_add(0, second, -slopes)
    np.testing.assert_allclose(-gradient, expected.forces, atol=1e-10)
    np.testing.assert_allclose(found["uncertainty"].detach(), expected.atomic_uncertainty, rtol=1e-7, atol=1e-9)
    total = scripted.total_uncertainty(batch.sum_atoms(found["features"]), batch.n_atoms.double())
    np.testing.assert_allclose(total.detach() / batch.n_atoms, expected.uncertainty, rtol=1e-7, atol=1e-9)
    output, _ = trained.potential.atoms(batch)
    assert output.features is not None
    np.testing.assert_allclose(found["last_layer"].detach(), output.features.detach(), atol=1e-10)


@pytest.mark.parametrize("options", [{}, ZBL], ids=["", "repulsion"])
def test_an_ensemble(options: dict[str, Any]) -> None:
    trained = potential(
        ENSEMBLE | {"member": ENSEMBLE["member"] | options},
        instantiate({"_target_": "ubmd.uncertainty.ensemble.EnsembleUncertainty", "_partial_": True}),
    )
    scripted = torch.jit.script(ScriptedPotential(trained))
    batch = collate([*molecules(2, 0), *crystals(2, 0)], CUTOFF, dtype=torch.float64)
    expected = trained(batch)
    found = scripted(*pairs(batch), batch.numbers)
    members = batch.sum_atoms(found["energies"].T)
    np.testing.assert_allclose(members.mean(1), expected.energy, rtol=1e-10)
    total = scripted.total_uncertainty(members, batch.n_atoms.double())
    np.testing.assert_allclose(total / batch.n_atoms, expected.uncertainty, rtol=1e-8)
    assert set(found) == {"energies"}


def test_what_has_no_script() -> None:
    with pytest.raises(InputError, match="uncertainties of FullGradients cannot be exported"):
        ScriptedPotential(potential(MODEL, lambda model: FeatureUncertainty(FullGradients, model)))
    trained = potential(MODEL, instantiate(UNCERTAINTY))
    trained.potential.model = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="a Linear cannot be exported"):
        ScriptedPotential(trained)

"""CHGNet as a model, beside its own calculator, in fits, and in biased dynamics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write
from torch import Tensor

from tests.bias.bias_parts import difference_gradient, difference_strain
from tests.models.foundation_parts import QUICK, copper, run
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.chgnet import CHGNet
from ubmd.models.potential import Potential
from ubmd.models.scale_shift import make_model
from ubmd.testing import potentials
from ubmd.uncertainty import FeatureUncertainty, LastLayer, SketchedGradients
from ubmd.uncertainty.checkpoint import load_potential

pytest.importorskip("chgnet", reason="needs the extra chgnet")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]

LEFT_OUT = (potentials.smoothness_at_the_cutoff,)
"""It vanishes with a higher power than this looks for."""


@pytest.fixture(scope="module")
def potential() -> Potential:
    return Potential(make_model(CHGNet, species=[*potentials.SPECIES, "Na", "Cl", "Si"]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_its_calculator(dtype: torch.dtype, potential: Potential) -> None:
    """The calculator is one of float32."""
    from chgnet.model.dynamics import CHGNetCalculator

    listed = [bulk("NaCl", "rocksalt", 5.6, cubic=True), potentials.crystal(), bulk("Si").repeat((2, 1, 1))]
    listed[0].rattle(0.1, seed=1)
    listed[2].rattle(0.1, seed=2)
    found = potential.to(dtype)(collate(listed, potential.cutoff + 0.7, dtype=dtype), stress=True)
    potential.double()
    assert found.stress is not None
    last, calculator = 0, CHGNetCalculator(use_device="cpu")
    for place, atoms in enumerate(listed):
        atoms.calc = calculator
        first, last = last, last + len(atoms)
        np.testing.assert_allclose(found.energy[place].item(), atoms.get_potential_energy(), atol=3e-6 * len(atoms))
        np.testing.assert_allclose(found.forces[first:last].numpy(), atoms.get_forces(), atol=5e-5)
        np.testing.assert_allclose(found.stress[place].numpy(), calculator.results["stress"], atol=5e-6)


@pytest.mark.parametrize("check", [c for c in potentials.CHECKS if c not in LEFT_OUT], ids=potentials.name)
def test_contract(check: Callable[[Potential], None], potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(potentials, "STEP", 1e-4)  # it has a long way to its fifth derivatives
    check(potential)


@pytest.mark.parametrize("features", [LastLayer, partial(SketchedGradients, n_projections=24)])
def test_bias_forces_and_stress_are_differences(features: Callable[..., torch.nn.Module], potential: Potential) -> None:
    def batch(listed: list[Atoms]) -> AtomicBatch:
        return collate(listed, potential.cutoff + 0.5, dtype=torch.float64)

    uncertainty = FeatureUncertainty(features, potential.model)  # pyright: ignore
    uncertainty.fit(potential.model, [batch(potentials.structures())])
    biased = BiasedPotential(potential, uncertainty, 0.3, tau_stress=0.3, rescale=False)
    atoms = potentials.crystal()
    found, plain = biased(batch([atoms]), None, stress=True), potential(batch([atoms]), stress=True)
    assert (found.forces - plain.forces).abs().max() > 1e-5, "no bias"

    def energy(moved: AtomicBatch) -> Tensor:
        return biased(moved).energy

    expected = -difference_gradient(energy, batch([atoms]))
    assert np.abs(found.forces.numpy() - expected).max() < 1e-6 * np.abs(expected).max()
    expected = difference_strain(energy, batch([atoms])) / atoms.get_volume()
    assert found.stress is not None
    assert np.abs(found.stress[0].numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def test_train_start_and_npt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("data.extxyz", copper(10, 0))
    data = ("data.train=data.extxyz", "data.validation_fraction=0.3", "training.loss.stress=1")
    fit = ("model=chgnet", "size=small", *QUICK, *data, "trainer.max_epochs=2")
    assert run("train", *fit, "model.trained=readout", "paths.run=first") == 0
    assert run("train", *fit, "paths.run=next", "training.start=first/model.ckpt") == 0
    first, second = (load_potential(f"{name}/model.ckpt").model.state_dict() for name in ("first", "next"))
    untouched = make_model(CHGNet, species=["Cu"]).state_dict()
    names = [key for key in untouched if key.startswith("model.")]
    changed = {key for key in names if not torch.equal(first[key], untouched[key])}
    assert changed == {key for key in names if key.startswith("model.network.mlp.")}
    key = "model.network.bond_embedding.weight"
    assert not torch.equal(first[key], second[key])
    dynamics = ("dynamics=npt", "dynamics.n_walkers=3", "dynamics.stopping.max_steps=6", "dynamics.frame_interval=2")
    start = ("system.structure=data.extxyz", "dynamics.stopping.uncertainty_threshold=1e6", "bias=stress")
    words = ("bias.window=2", "device=cpu", "paths.run=md")
    assert run("md", "potential=next/model.ckpt", *start, *dynamics, *words) == 0


def test_what_cannot_be(tmp_path: Path) -> None:
    torch.save({"model": {"model_args": {"mlp_first": False}, "state_dict": {}}}, tmp_path / "whole.pth")
    for options, match in (
        ({"checkpoint": "0.4.0"}, "come with chgnet"),
        ({"checkpoint": str(tmp_path / "whole.pth")}, "without energies of atoms"),
        ({"species": ["Am"]}, "does not know the element Am"),
        ({"trained": "nothing"}, "all or readout"),
        ({"architecture": {"atom_fea_dim": 10**9}}, "no size of a network"),
    ):
        with pytest.raises(InputError, match=match):
            CHGNet(**{"species": ["H"], **options})  # pyright: ignore

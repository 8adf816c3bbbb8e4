"""Every uncertainty, calibration and selection of the configuration, from a fit to a loaded potential."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from ase import Atoms
from lightning.pytorch import Trainer

from tests.models.test_ensemble import copper
from ubmd import paths
from ubmd.bias.biased import BiasedPotential
from ubmd.callbacks.calibrate import Calibrate
from ubmd.callbacks.scale_shift import FitScaleShift
from ubmd.cli.app import compose
from ubmd.config import build, plain
from ubmd.data.batch import collate
from ubmd.data.datamodule import GrowingDataModule
from ubmd.models.potential import Potential
from ubmd.selection import Pool, check_selection
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.checkpoint import load_potential, save_potential

TINY = ["system.structure=none", "reference.calculator._target_=ase.calculators.emt.EMT"]
SPECIES = ["Cu", "Au"]


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (paths.config_dir() / group).glob("*.yaml"))


UNCERTAINTIES = [
    [f"uncertainty={name}", *(f"uncertainty/features={features}" for features in (given,) if features)]
    for name in options("uncertainty")
    for given in ([None] if name == "ensemble" else options("uncertainty/features"))
]


CASES = [(calibration, uncertainty) for calibration in ("conformal", "mondrian") for uncertainty in UNCERTAINTIES]
CASES += [("cross", ["uncertainty=posterior"]), ("cross", ["uncertainty=distance"])]
CASES += [("prequential", ["uncertainty=ensemble"])]
assert {calibration for calibration, _ in CASES} == set(options("calibration"))


@pytest.mark.parametrize(("calibration", "uncertainty"), CASES, ids=str)
def test_fit_calibrate_save_load_bias(calibration: str, uncertainty: list[str], tmp_path: Path) -> None:
    ensemble = uncertainty == ["uncertainty=ensemble"]
    prefix = "model.member" if ensemble else "model"
    small = [f"{prefix}.{k}" for k in ("n_basis=2", "n_gauss=4", "hidden=[8,8]")]
    choice = [f"model={'ensemble' if ensemble else 'gmnn'}", "size=small", *uncertainty, f"calibration={calibration}"]
    cfg = compose("learn", [*TINY, *choice, *small, "dtype=float64"], folder=tmp_path)
    model = build(cfg, "model")(species=SPECIES, seed=1).double()
    uncertain = build(cfg, "uncertainty")(model=model, seed=2).double()
    test = copper(20, 1)
    data = GrowingDataModule(
        model.cutoff, SPECIES, validation_fraction=0.5, test=test, dtype=torch.float64, members=model.n_members
    )
    data.set_round(0, copper(60, 0))
    save = partial(
        save_potential,
        tmp_path / "model.ckpt",
        model,
        uncertain,
        model_config=plain(cfg.model) | {"_partial_": False, "species": SPECIES},
        uncertainty_config=plain(cfg.uncertainty),
    )
    methods = {name: build(cfg, f"calibration.{name}") for name in ("atomic", "total", "evidence")}
    calibrate = Calibrate(uncertain, **methods, done=save)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[FitScaleShift(), calibrate],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
    )
    module = PotentialModule(model)
    trainer.fit(module, data)
    trainer.predict(module, data, return_predictions=False)

    loaded = load_potential(tmp_path / "model.ckpt")
    potential = BiasedPotential(Potential(loaded.model), loaded.uncertainty, tau=0.25, rescale=False)
    assert calibrate.coverage == pytest.approx(calibrate.coverage | by_hand(potential, test), abs=1e-9)
    assert 0.7 < calibrate.coverage["test_coverage_atom"] <= 1
    assert 0.2 < calibrate.coverage["test_coverage_atom_50"] < 0.8
    found = potential(collate(test[:2], potential.cutoff, dtype=torch.float64))
    assert found.uncertainty is not None
    plain_forces = Potential(loaded.model)(collate(test[:2], potential.cutoff, dtype=torch.float64)).forces
    assert (found.forces - plain_forces).abs().max() > 1e-6, "no bias"


def by_hand(potential: BiasedPotential, structures: list[Atoms]) -> dict[str, float]:
    """Fractions of atoms and structures within their uncertainty, one structure after the other."""
    atoms_within, within = [], []
    for atoms in structures:
        batch = collate([atoms], potential.cutoff, dtype=torch.float64)
        exact = Potential(potential.potential.model)(batch)
        found = potential(batch)
        assert batch.energy is not None
        assert batch.forces is not None
        assert found.uncertainty is not None
        assert found.atomic_uncertainty is not None
        error = ((exact.forces - batch.forces).square().sum(1) / 3).sqrt()
        atoms_within += (error <= found.atomic_uncertainty).tolist()
        within.append(bool((exact.energy - batch.energy).abs() / len(atoms) <= found.uncertainty))
    return {
        "test_coverage_atom": sum(atoms_within) / len(atoms_within),
        "test_coverage_total": sum(within) / len(within),
    }


@pytest.mark.parametrize("selection", options("selection"))
def test_selections_of_the_configuration(selection: str) -> None:
    cfg = compose("learn", [*TINY, f"selection={selection}"])
    select = build(cfg, "selection")
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    pool = Pool(features.norm(dim=1), features[:8], features[8:]) if select.needs_features else Pool(torch.rand(8))
    pool = Pool(pool.uncertainty[:8], pool.features, pool.labelled_features)
    assert len(set(select(pool, 5, seed=1).tolist())) == 5
    check_selection(select, build(cfg, "uncertainty")(model=build(cfg, "model")(species=SPECIES)))

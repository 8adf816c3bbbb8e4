"""Weights of an earlier fit: what their file may name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bias.bias_parts import fitted_parts
from ubmd.errors import InputError
from ubmd.training.start import load_weights
from ubmd.uncertainty.checkpoint import save_potential

SKETCH = {"_target_": "ubmd.uncertainty.SketchedGradients", "_partial_": True, "n_projections": 32}
UNCERTAINTY = {"_target_": "ubmd.uncertainty.FeatureUncertainty", "_partial_": True, "features": SKETCH}


def test_parts_of_pytorch_are_not_allowed_because_models_are_made_of_them(tmp_path: Path) -> None:
    potential, uncertainty = fitted_parts()
    evil = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2, "species": ["H", "C", "O"]}
    save_potential(
        tmp_path / "model.ckpt", potential.model, uncertainty, model_config=evil, uncertainty_config=UNCERTAINTY
    )
    assert any(type(module).__module__.startswith("torch.") for module in potential.model.modules())
    with pytest.raises(InputError, match=r"asks for torch\.nn\.Linear, which is not a part of a potential"):
        load_weights(potential.model, tmp_path / "model.ckpt")


def test_weights_come_back(tmp_path: Path) -> None:
    potential, uncertainty = fitted_parts()
    config = {"_target_": "ubmd.models.gmnn.GMNN", "cutoff": 4.0, "n_basis": 3, "hidden": [16, 16]}
    config["species"] = ["H", "C", "O"]
    save_potential(
        tmp_path / "model.ckpt", potential.model, uncertainty, model_config=config, uncertainty_config=UNCERTAINTY
    )
    other = fitted_parts()[0].model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_weights(other, tmp_path / "model.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), potential.model.parameters(), strict=True))

"""Atomic energies that are given: what they are after a fit, and which are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.test_module import CUTOFF, datamodule, trainer
from tests.training.test_options import MODEL, UNCERTAINTY
from ubmd.callbacks.scale_shift import FitScaleShift
from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.scale_shift import ShiftedModel, make_model
from ubmd.training.module import PotentialModule
from ubmd.uncertainty import FeatureUncertainty, SketchedGradients
from ubmd.uncertainty.checkpoint import save_potential

GIVEN = {"Au": 3.8, "Cu": 3.5, "H": -13.6}
MEMBER = partial(GMNN, cutoff=CUTOFF, n_basis=4, n_gauss=6, hidden=(24, 24))


def model(kind: str) -> nn.Module:
    if kind == "ensemble":
        return Ensemble(["Cu", "Au"], MEMBER, 2)
    return make_model(MEMBER if kind == "gmnn" else partial(Pairs), species=["Cu", "Au"])


class Pairs(nn.Module):
    """A model of one parameter."""

    cutoff = CUTOFF

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.ones(()))

    def forward(self, batch: AtomicBatch) -> AtomicOutput:
        near = (1 - batch.vectors().square().sum(2) / CUTOFF**2).clamp(min=0)
        return AtomicOutput(self.strength * (near**3).sum(1))


@pytest.mark.parametrize("kind", ["gmnn", "ensemble", "pairs"])
def test_shifts_are_and_stay_what_is_given(kind: str) -> None:
    fitted = PotentialModule(model(kind), atomic_energies=GIVEN)
    data = datamodule(members=2 if kind == "ensemble" else 1)
    before = {name: p.detach().clone() for name, p in fitted.model.named_parameters()}
    trainer(FitScaleShift(), max_steps=3, max_epochs=-1).fit(fitted, data)
    shifted = getattr(fitted.model, "_shifted", fitted.model)
    assert isinstance(shifted, ShiftedModel)
    for row in shifted.shifts().view(-1, 2).tolist():
        assert row == pytest.approx([3.5, 3.8], rel=1e-12)
    moved = {name.rpartition(".")[2] for name, p in fitted.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved & {"beta", "strength"}


@pytest.mark.parametrize("kind", ["gmnn", "ensemble", "pairs"])
def test_the_unit_is_what_they_leave_per_atom(kind: str) -> None:
    """A network begins with the mean of it; the rest is left to the fit."""
    network, batch = model(kind), datamodule().split("train")
    module = PotentialModule(network, atomic_energies=GIVEN)
    module.initialise([batch])
    assert batch.energy is not None
    gold = batch.sum_atoms((batch.numbers == 79).double())
    left = (batch.energy - 3.8 * gold - 3.5 * (batch.n_atoms - gold)) / batch.n_atoms
    expected = left.numpy().std() if kind != "pairs" else np.sqrt(np.mean(left.numpy() ** 2))
    shifted = getattr(network, "_shifted", network)
    assert isinstance(shifted, ShiftedModel)
    assert float(shifted.energy_unit) == pytest.approx(expected, rel=1e-6)
    if kind != "pairs":
        found = (module.potential(batch).energy - batch.energy) / batch.n_atoms
        assert float(found.mean().abs()) < 2 * expected < 0.1 * float(left.mean().abs())


def test_weights_of_an_earlier_fit_get_them_too(tmp_path: Path) -> None:
    earlier = MEMBER(["Cu", "Au"])
    with torch.no_grad():
        earlier.shift.fill_(7.0)
        earlier.energy_unit.fill_(0.5)
    uncertainty = FeatureUncertainty(partial(SketchedGradients, n_projections=8), earlier)
    uncertainty.fit(earlier, [datamodule().split("train")])
    save_potential(tmp_path / "model.ckpt", earlier, uncertainty, model_config=MODEL, uncertainty_config=UNCERTAINTY)
    network = MEMBER(["Cu", "Au"])
    fitted = PotentialModule(network, start=str(tmp_path / "model.ckpt"), atomic_energies=GIVEN)
    fitted.initialise([datamodule().split("train")])
    assert network.shifts().tolist() == pytest.approx([3.5, 3.8])
    assert float(network.energy_unit) == 0.5


class Own(Pairs):
    """Energies of its own, in which nothing can be given."""

    species = torch.tensor([29, 79])

    def fit_scale_shift(self, energy: Any, composition: Any) -> None: ...


@pytest.mark.parametrize(
    ("make", "given", "sentence"),
    [
        (model, {"Cu": 3.5}, r"lacks Au; give the energies of Cu, Au in eV"),
        (model, {}, r"lacks Cu, Au"),
        (model, GIVEN | {"Xx": 1.0}, r"names 'Xx', which is no element"),
        (model, GIVEN | {False: 1.0}, r"names 'False', which is no element"),
        (model, GIVEN | {"H": float("inf")}, r"atomic_energies\.H=inf must be a number"),
        (lambda _: Own(), GIVEN, r"a Own has its own"),
    ],
)
def test_refused(make: Any, given: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PotentialModule(make("gmnn"), atomic_energies=given)

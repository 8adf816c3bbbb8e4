"""Repulsion of nuclei: the formula, its derivatives on every path, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.collections import g2
from ase.data import covalent_radii
from scipy import constants
from torch import nn

from tests.bias.bias_parts import fitted_parts
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.models import fused
from ubmd.models.base import AtomicOutput
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.models.scale_shift import make_model
from ubmd.models.zbl import ZBL, pair_energy
from ubmd.testing import potentials as contract
from ubmd.training.module import PotentialModule
from ubmd.training.start import load_weights
from ubmd.uncertainty.checkpoint import load_potential, save_potential
from ubmd.uncertainty.feature_uncertainty import FeatureUncertainty
from ubmd.uncertainty.features import LastLayer
from ubmd.uncertainty.potential import UncertainPotential

FAR = {"repulsion": "zbl", "repulsion_cutoff": 2.0}
"""Far enough for most pairs of the test's structures, and for an atom and its own image."""
SMALL = {"cutoff": 4.0, "n_basis": 3, "n_gauss": 5, "hidden": (8, 8)}


def repulsion(z: int, other: int, r: float) -> float:
    """The universal potential, eV, from constants in SI units."""
    coulomb = constants.e / (4 * np.pi * constants.epsilon_0 * constants.angstrom)  # eV Å
    bohr = constants.value("Bohr radius") / constants.angstrom
    x = r * (z**0.23 + other**0.23) / (0.8854 * bohr)
    terms = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    return coulomb * z * other / r * sum(c * np.exp(-d * x) for c, d in terms)


class Silent(nn.Module):
    """Energies of zero, with a repulsion; computes what it needs from positions and cell."""

    def __init__(self, share: float = 2.0):
        super().__init__()
        self.cutoff = 4.0
        self.repulsion = ZBL(contract.SPECIES, share, self.cutoff)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: AtomicBatch) -> AtomicOutput:
        return AtomicOutput(self.weight * batch.positions.sum(1))


def pair(symbols: str, r: float, share: float = 0.7) -> float:
    """Energy of two atoms, eV."""
    batch = collate([Atoms(symbols, [[0, 0, 0], [0, 0.6 * r, 0.8 * r]])], 5.0, dtype=torch.float64)
    return float(ZBL(["H", "C", "N", "O", "Al", "Au"], share)(batch).energies.sum())


@pytest.mark.parametrize("symbols", ["HH", "CH", "CO", "AlAu"])
def test_is_the_universal_potential_up_to_half_of_where_it_ends(symbols: str) -> None:
    z, other = Atoms(symbols).numbers.tolist()
    end = float(0.7 * (covalent_radii[z] + covalent_radii[other]))
    for r in (0.02, 0.3 * end, 0.5 * end):
        assert pair(symbols, r) == pytest.approx(repulsion(z, other, r), rel=3e-4)
    assert 0 < pair(symbols, 0.9 * end) < 0.06 * repulsion(z, other, 0.9 * end)
    assert pair(symbols, end + 1e-9) == 0


def test_ends_smoothly_and_repels_everywhere() -> None:
    """V falls all the way; its slope is that of autograd, and two derivatives go to zero."""
    r = torch.linspace(0.02, 1.02, 2001, dtype=torch.float64).requires_grad_()
    z, other = torch.full_like(r, 6.0), torch.full_like(r, 8.0)
    energy, slope = pair_energy(r, z, other, torch.full_like(r, 1.0))
    (expected,) = torch.autograd.grad(energy.sum(), r)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)
    inside = r < 1
    assert (slope[inside] < 0).all()
    assert not energy[~inside].any()
    assert not slope[~inside].any()
    depth = 1 - r.detach()[inside][-3:]
    ratio = energy.detach()[inside][-3:] / depth**3  # the third derivative is the first one left
    assert ratio.min() > 0.9 * ratio.max() > 0


def test_bonds_do_not_feel_it() -> None:
    """Molecules with all kinds of bonds, radicals among them, most of them with multiple bonds."""
    structures = [g2[name] for name in g2.names if len(g2[name]) > 1]
    assert len(structures) > 140
    batch = collate(structures, 5.0, dtype=torch.float64)
    species = sorted({symbol for atoms in structures for symbol in atoms.symbols})
    assert not ZBL(species)(batch).energies.any()
    assert ZBL(species, share=1.0)(batch).energies.any()


def test_images_of_an_atom() -> None:
    """A lattice sum over more images than one in each direction; the halves of a pair are with its atoms."""
    atoms = bulk("Al", a=2.6)  # much too dense
    batch = collate([atoms], 4.0, dtype=torch.float64)
    found = ZBL(["Al"], share=1.6)(batch)
    end, total = 1.6 * 2 * covalent_radii[13], 0.0
    for shift in np.ndindex(9, 9, 9):
        r = float(np.linalg.norm((np.array(shift) - 4) @ np.asarray(atoms.cell)))
        if 0 < r < end:
            t = max(0.0, 2 * r / end - 1)
            total += 0.5 * repulsion(13, 13, r) * (1 - 10 * t**3 + 15 * t**4 - 6 * t**5)
    assert float(found.energies) == pytest.approx(total, rel=3e-4)
    assert total > 1
    assert found.gradient.abs().max() < 1e-12 * total


CHECKS = [check for check in contract.CHECKS if check is not contract.smoothness_at_the_cutoff]  # it ends before


@pytest.mark.parametrize("check", CHECKS, ids=contract.name)
def test_contract(check: Callable[[Potential], None]) -> None:
    """Of the repulsion alone, with a model of positions and cells."""
    check(Potential(make_model(partial(Silent), species=contract.SPECIES).double()))


@pytest.mark.parametrize("kernels", ["0", "1"])
@pytest.mark.parametrize("training", [False, True])
def test_is_added_to_a_network(monkeypatch: pytest.MonkeyPatch, kernels: str, training: bool) -> None:
    monkeypatch.setenv(fused.SWITCH, kernels)
    batch = collate(contract.structures(), 4.0, dtype=torch.float64)
    alone, both = (GMNN(contract.SPECIES, **SMALL, **options).double() for options in ({}, FAR))
    with_network = Potential(both)(batch, stress=True, training=training)
    added(with_network, Potential(alone)(batch, stress=True), batch)
    assert with_network.forces.requires_grad == training


def added(found: object, without: object, batch: AtomicBatch) -> None:
    """Checks that two predictions differ by the repulsion of ``FAR`` alone."""
    alone = Potential(Silent())(batch, stress=True)
    crystals = batch.pbc.all(dim=1)
    assert alone.forces.abs().max() > 1
    for name in ("energy", "forces", "stress"):
        a, b, c = (getattr(x, name).detach() for x in (found, without, alone))
        chosen = crystals if name == "stress" else slice(None)
        torch.testing.assert_close(a[chosen], (b + c)[chosen], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("member", [partial(GMNN, **SMALL), Silent], ids=["stacked", "vmap"])
def test_is_added_once_to_an_ensemble(member: Callable[..., nn.Module]) -> None:
    batch = collate(contract.structures(), 4.0, dtype=torch.float64)
    if member is Silent:
        without, options = None, {}
    else:
        without, options = Potential(Ensemble(contract.SPECIES, member).double()), FAR
    model = Ensemble(contract.SPECIES, partial(member, **options)).double()
    found = Potential(model)(batch, stress=True)
    output, _ = Potential(model).atoms(batch)
    torch.testing.assert_close(output.energies, output.offset + output.members.mean(0))  # pyright: ignore
    if without is not None:
        added(found, without(batch, stress=True), batch)
    else:
        torch.testing.assert_close(found.forces, Potential(Silent())(batch).forces)


def test_a_bias_leaves_it_alone() -> None:
    batch = collate(contract.structures(), 4.0, dtype=torch.float64)
    biased = []
    for options in ({}, FAR):
        model = GMNN(contract.SPECIES, **SMALL, **options).double()
        uncertainty = FeatureUncertainty(LastLayer, model)
        uncertainty.fit(model, [batch.select(torch.tensor([0, 1]))])
        moved = batch.replace(positions=batch.positions * 1.01)
        biased.append(BiasedPotential(Potential(model), uncertainty, 0.3, 0.2, rescale=False)(moved, stress=True))
    assert biased[0].bias_energy is not None
    assert biased[0].bias_energy.abs().max() > 1e-6
    added(biased[1], biased[0], moved)
    torch.testing.assert_close(biased[1].uncertainty, biased[0].uncertainty)


def test_a_fit_learns_what_is_left() -> None:
    """Atomic energies, loss and its gradient are those of a network alone with labels that lack the repulsion."""
    listed = [contract.crystal(), contract.crystal().repeat((2, 1, 1)), contract.molecule()]
    batch = collate(listed, 4.0, dtype=torch.float64)
    known = ZBL(contract.SPECIES, 2.0)(batch)
    atomic = torch.tensor([-1.0, -3.0, -5.0], dtype=torch.float64)
    losses = []
    for options, energy, forces in (
        ({}, torch.zeros(3, dtype=torch.float64), torch.zeros_like(batch.positions)),
        (FAR, batch.sum_atoms(known.energies), -known.gradient),
    ):
        module = PotentialModule(GMNN(contract.SPECIES, **SMALL, **options).double())
        counts = module.model.composition(batch).double()  # pyright: ignore[reportCallIssue]
        module.initialise([batch.replace(energy=energy + counts @ atomic, forces=forces + 0.1)])
        assert float(module.model.energy_unit) == pytest.approx(1e-3)  # pyright: ignore
        loss = module._loss(batch.replace(energy=energy + counts @ atomic, forces=forces + 0.1))
        loss.backward(inputs=list(module.parameters()))
        losses.append([loss.detach(), *(p.grad for p in module.parameters())])
    for a, b in zip(*losses, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_is_part_of_a_saved_potential(tmp_path: Path) -> None:
    potential, uncertainty = fitted_parts(**FAR)
    config = {"_target_": "ubmd.models.gmnn.GMNN", "cutoff": 4.0, "n_basis": 3, "hidden": [16, 16], **FAR}
    sketch = {"_target_": "ubmd.uncertainty.SketchedGradients", "_partial_": True, "n_projections": 32}
    save_potential(
        tmp_path / "model.ckpt",
        potential.model,
        uncertainty,
        model_config=config | {"species": ["H", "C", "O"]},
        uncertainty_config={"_target_": "ubmd.uncertainty.FeatureUncertainty", "features": sketch},
    )
    batch = collate([contract.molecule()], 4.0, dtype=torch.float64)
    read = load_potential(tmp_path / "model.ckpt").potential
    torch.testing.assert_close(read(batch).forces, potential(batch).forces)
    assert (read(batch).forces - Potential(fitted_parts()[0].model)(batch).forces).abs().max() > 1
    with pytest.raises(InputError, match=r"fitted with the repulsion ZBL\(share=2\), but this run has None"):
        load_weights(fitted_parts()[0].model, tmp_path / "model.ckpt")


def test_energies_alone_have_it_too() -> None:
    """A calculator that is asked for no forces differentiates nothing, and takes another way to the energy."""
    potential, uncertainty = fitted_parts(**FAR)
    atoms = contract.molecule()
    energies, atomic = [], []
    for properties in (["energies"], ["forces", "energies"]):
        calculator = UBMDCalculator(UncertainPotential(potential, uncertainty))
        calculator.calculate(atoms, properties)
        energies.append(calculator.results["energy"])
        atomic.append(calculator.results["energies"])
    expected = potential(collate([atoms], 4.0, dtype=torch.float64)).energy.item()
    assert energies == pytest.approx([expected] * 2, abs=1e-9)
    assert atomic[0].sum() == pytest.approx(expected, abs=1e-9)
    assert ZBL(contract.SPECIES, 2.0)(collate([atoms], 4.0)).energies.sum() > 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share": 0.0}, "repulsion_cutoff=0.0 must be a share"),
        ({"share": 2.5}, "repulsion_cutoff=2.5 must be a share"),
        ({"share": 1.9, "cutoff": 4.0}, r"up to 5.17 Å, beyond model.cutoff=4 Å"),
        ({"species": ["H", "Es"]}, "covalent radii, known up to Cm, hence not of Es"),
    ],
)
def test_bad_input(options: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ZBL(**{"species": ["H", "Au"], **options})

"""MACE as a model, beside its own calculator, in fits, and in biased dynamics."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from tests.bias.bias_parts import difference_gradient
from tests.models.foundation_parts import QUICK, copper, mixed, run
from tests.models.small_mace import small_mace
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.mace import MACE, write_checkpoint
from ubmd.models.potential import Potential
from ubmd.models.scale_shift import make_model
from ubmd.testing import potentials
from ubmd.uncertainty import FeatureUncertainty, LastLayer
from ubmd.uncertainty.checkpoint import load_potential

pytest.importorskip("mace.modules", reason="needs the extra mace")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

SPECIES = ["H", "C", "O", "Na", "Cl", "Si"]
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "two_levels": {"heads": 2},
    "agnesi": {"distance_transform": "Agnesi", "pair_repulsion": True, "num_bessel": 6},
    "one_layer": {"num_interactions": 1},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mace") / "small.pth"
    write_checkpoint(small_mace(), path)
    return str(path)


@pytest.fixture(scope="module")
def small(checkpoint: str) -> Potential:
    return Potential(make_model(partial(MACE, checkpoint=checkpoint), species=potentials.SPECIES).double())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_its_calculator(kind: str, tmp_path: Path) -> None:
    """Of a file that MACE itself has written and read, for all levels of theory."""
    from mace.calculators import MACECalculator  # pyright: ignore[reportMissingImports]

    torch.save(small_mace(**KINDS[kind]), tmp_path / "own.model")
    loaded = torch.load(tmp_path / "own.model", weights_only=False)  # of this test
    write_checkpoint(loaded, tmp_path / "small.pth")
    for head in ("PBE", "R2SCAN") if kind == "two_levels" else (None,):
        factory = partial(MACE, checkpoint=str(tmp_path / "small.pth"), head=head)
        potential = Potential(make_model(factory, species=SPECIES).double())
        calculator = MACECalculator(models=loaded, device="cpu", default_dtype="float64", head=head or "Default")
        torch.set_default_dtype(torch.float32)  # the calculator changes it
        listed = mixed()
        found = potential(collate(listed, potential.cutoff + 0.7, dtype=torch.float64), stress=True)
        assert found.stress is not None
        last = 0
        for place, atoms in enumerate(listed):
            atoms.calc = calculator
            first, last = last, last + len(atoms)
            np.testing.assert_allclose(found.energy[place].item(), atoms.get_potential_energy(), rtol=0, atol=1e-9)
            np.testing.assert_allclose(found.forces[first:last].numpy(), atoms.get_forces(), atol=1e-10)
            if atoms.pbc.all():
                stress = atoms.get_stress(voigt=False)
                np.testing.assert_allclose(found.stress[place].numpy(), stress, atol=1e-12)


LEFT_OUT = (potentials.smoothness_at_the_cutoff,)
"""It vanishes with a higher power than this looks for."""


@pytest.mark.parametrize("check", [c for c in potentials.CHECKS if c not in LEFT_OUT], ids=potentials.name)
def test_contract(check: Callable[[Potential], None], small: Potential) -> None:
    check(small)


def test_features_are_what_the_energy_is_linear_in(small: Potential) -> None:
    """The derivative of all energies by the last weights, by autograd."""
    batch = collate(potentials.structures(), small.cutoff, dtype=torch.float64)
    output, _ = small.atoms(batch)
    network: Any = small.model.model.network  # pyright: ignore
    weights = [network.readouts[0].linear.weight, network.readouts[1].linear_2.weight]
    expected = torch.cat(torch.autograd.grad(output.energies.sum(), weights))
    assert output.features is not None
    torch.testing.assert_close(output.features.sum(0) * float(network.scale_shift.scale), expected)


def test_bias_forces_are_differences(small: Potential) -> None:
    def batch(listed: list[Atoms]) -> AtomicBatch:
        return collate(listed, small.cutoff + 0.5, dtype=torch.float64)

    uncertainty = FeatureUncertainty(LastLayer, small.model)
    uncertainty.fit(small.model, [batch(potentials.structures())])
    biased = BiasedPotential(small, uncertainty, 0.3, tau_stress=0.3, rescale=False)
    atoms = potentials.crystal()
    found, plain = biased(batch([atoms]), None, stress=True), small(batch([atoms]), stress=True)
    assert (found.forces - plain.forces).abs().max() > 1e-5, "no bias"
    expected = -difference_gradient(lambda moved: biased(moved).energy, batch([atoms]))
    assert np.abs(found.forces.numpy() - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.slow
def test_torch_stays_careful_with_files(checkpoint: str) -> None:
    """In a process that imports the package for a model alone."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    code = f"""
import os, sys
from ubmd.models.mace import MACE
MACE(["H"], checkpoint={checkpoint!r})
assert "mace.modules" in sys.modules and {name!r} not in os.environ
"""
    env = {key: value for key, value in os.environ.items() if key != name}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, check=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"checkpoint": None}, "write_checkpoint"),
        ({"checkpoint": "nowhere.pth"}, "does not exist"),
        ({"species": ["H", "Po"]}, "does not know the element Po"),
        ({"head": "PBE"}, "must be one of Default"),
        ({"trained": "nothing"}, "all or readout"),
        ({"architecture": {"r_max": 5.0}}, "has no"),
    ],
)
def test_what_cannot_be(options: dict[str, object], match: str, checkpoint: str) -> None:
    with pytest.raises(InputError, match=match):
        MACE(**{"species": ["H"], "checkpoint": checkpoint, **options})  # pyright: ignore


def test_sizes_that_no_network_has(checkpoint: str) -> None:
    sizes = MACE(["H"], checkpoint=checkpoint).portable["architecture"]
    for key, value in (
        ("hidden_irreps", "999999x0e"),
        ("num_bessel", 10**9),
        ("radial_MLP", [64, 10**9]),
        ("gate", "exec"),
        ("interaction_cls", "os.system"),
    ):
        with pytest.raises(InputError, match=key):
            MACE(["H"], architecture={**sizes, key: value})


def test_its_own_files_are_not_read(tmp_path: Path) -> None:
    torch.save(small_mace(), tmp_path / "own.model")
    with pytest.raises(InputError, match=r"run code when they are read, which ubmd does not: write one"):
        MACE(["H"], checkpoint=str(tmp_path / "own.model"))
    with pytest.raises(InputError, match="no ScaleShiftMACE"):
        write_checkpoint(torch.nn.Linear(1, 1), tmp_path / "small.pth")


@pytest.mark.slow
def test_train_and_npt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
    monkeypatch.chdir(tmp_path)
    write("data.extxyz", copper(10, 0))
    (tmp_path / "small.pth").write_bytes(Path(checkpoint).read_bytes())
    data = ("data.train=data.extxyz", "data.validation_fraction=0.3", "training.loss.stress=1")
    ours = ("model=mace", "model.checkpoint=small.pth", "size=small", "uncertainty/features=last_layer")
    fit = (*ours, *QUICK, *data, "trainer.max_epochs=2")
    assert run("train", *fit, "model.trained=readout", "paths.run=first") == 0
    assert run("train", *fit, "paths.run=next", "training.start=first/model.ckpt") == 0
    (tmp_path / "small.pth").unlink()  # a potential's file is complete
    first, second = (load_potential(f"{name}/model.ckpt").model.state_dict() for name in ("first", "next"))
    untouched = make_model(partial(MACE, checkpoint=checkpoint), species=["Cu"]).state_dict()
    names = [key for key in untouched if key.startswith("model.")]
    changed = {key for key in names if not torch.equal(first[key], untouched[key].to(first[key]))}
    assert changed
    assert all(key.startswith("model.network.readouts.") for key in changed)
    key = "model.network.node_embedding.linear.weight"
    assert not torch.equal(first[key], second[key])
    write("start.xyz", bulk("Cu", "fcc", 3.6, cubic=True))
    dynamics = ("dynamics=npt", "dynamics.n_walkers=3", "dynamics.stopping.max_steps=6", "dynamics.frame_interval=2")
    start = ("system.structure=start.xyz", "dynamics.stopping.uncertainty_threshold=1e6", "bias=stress")
    assert run("md", "potential=next/model.ckpt", *start, *dynamics, "bias.window=2", "device=cpu", "paths.run=md") == 0

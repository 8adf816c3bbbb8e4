"""SevenNet as a model, beside its own calculator, in fits, and in biased dynamics."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.io import write
from torch import Tensor

from tests.bias.bias_parts import difference_gradient, difference_strain
from tests.models.foundation_parts import QUICK, copper, mixed, run
from tests.models.small_sevennet import of_two_levels, write_checkpoint
from ubmd.bias.biased import BiasedPotential
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.models.ensemble import Ensemble
from ubmd.models.potential import Potential
from ubmd.models.scale_shift import make_model
from ubmd.models.sevennet import SevenNet
from ubmd.runs.store import RoundStore
from ubmd.testing import potentials
from ubmd.training.module import PotentialModule
from ubmd.uncertainty import FeatureUncertainty, LastLayer
from ubmd.uncertainty.checkpoint import load_potential

pytest.importorskip("sevenn", reason="needs the extra sevennet")
pytestmark = pytest.mark.filterwarnings("ignore:::sevenn", "ignore:::e3nn", "ignore::UserWarning:torch")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("sevennet") / "small.pth"))


@pytest.fixture(scope="module")
def small(checkpoint: str) -> Potential:
    model = make_model(partial(SevenNet, checkpoint=checkpoint), species=potentials.SPECIES)
    return Potential(model.double())


def calculator(model: str, modal: str | None = None) -> Calculator:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(model, device="cpu", modal=modal)


def check_equal(potential: Potential, calculated: Calculator, dtype: torch.dtype) -> None:
    """The calculator is one of float32."""
    potential.to(dtype)
    listed = mixed()
    found = potential(collate(listed, potential.cutoff + 0.7, dtype=dtype), stress=True)
    assert found.stress is not None
    last = 0
    for place, atoms in enumerate(listed):
        atoms.calc = calculated
        first, last = last, last + len(atoms)
        np.testing.assert_allclose(found.energy[place].item(), atoms.get_potential_energy(), atol=1e-6 * len(atoms))
        np.testing.assert_allclose(found.forces[first:last].numpy(), atoms.get_forces(), atol=1e-5)
        if atoms.pbc.all():
            np.testing.assert_allclose(found.stress[place].numpy(), atoms.get_stress(voigt=False), atol=1e-6)


@pytest.mark.slow
def test_sevennet_0_is_its_calculator() -> None:
    potential = Potential(make_model(SevenNet, species=["H", "C", "O", "Na", "Cl", "Si"]))
    its_own = calculator("7net-0")
    for dtype in (torch.float32, torch.float64):
        check_equal(potential, its_own, dtype)
    potentials.smoothness_at_the_cutoff(potential)


def test_a_level_of_theory_is_its_calculator(tmp_path: Path) -> None:
    path = str(of_two_levels(tmp_path / "two.pth"))
    make = partial(SevenNet, checkpoint=path, modal="PBE")
    check_equal(
        Potential(make_model(make, species=["H", "C", "O", "Na", "Cl", "Si"])), calculator(path, "PBE"), torch.float32
    )
    with pytest.raises(InputError, match="one of PBE, R2SCAN"):
        SevenNet(["H"], checkpoint=path, modal="PBEsol")
    with pytest.raises(InputError, match="one of PBE, R2SCAN"):
        SevenNet(["H"], checkpoint=path)


LEFT_OUT = (potentials.rotations_and_reflections, potentials.smoothness_at_the_cutoff)
"""Coupling coefficients are float32, hence equivariance is not exact; the small one is nearly blind at its cutoff."""


@pytest.mark.parametrize("check", [c for c in potentials.CHECKS if c not in LEFT_OUT], ids=potentials.name)
def test_contract(check: Callable[[Potential], None], small: Potential) -> None:
    check(small)


def test_bias_forces_and_stress_are_differences(small: Potential) -> None:
    def batch(listed: list[Atoms]) -> AtomicBatch:
        return collate(listed, small.cutoff + 0.5, dtype=torch.float64)

    uncertainty = FeatureUncertainty(LastLayer, small.model)
    uncertainty.fit(small.model, [batch(potentials.structures())])
    biased = BiasedPotential(small, uncertainty, 0.3, tau_stress=0.3, rescale=False)
    atoms = potentials.crystal()
    found, plain = biased(batch([atoms]), None, stress=True), small(batch([atoms]), stress=True)
    assert (found.forces - plain.forces).abs().max() > 1e-5, "no bias"

    def energy(moved: AtomicBatch) -> Tensor:
        return biased(moved).energy

    expected = -difference_gradient(energy, batch([atoms]))
    assert np.abs(found.forces.numpy() - expected).max() < 1e-6 * np.abs(expected).max()
    expected = difference_strain(energy, batch([atoms])) / atoms.get_volume()
    assert found.stress is not None
    assert np.abs(found.stress[0].numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def test_atomic_energies_are_what_the_weights_lack(checkpoint: str) -> None:
    model = make_model(partial(SevenNet, checkpoint=checkpoint), species=["Cu"])
    batch = collate(copper(6, 0), 4.0)
    before = Potential(model)(batch)
    PotentialModule(model).initialise([batch])
    after = Potential(model)(batch)
    torch.testing.assert_close(after.forces, before.forces)
    assert batch.energy is not None
    missing = batch.energy - before.energy
    torch.testing.assert_close(after.energy - before.energy, missing.mean().expand(6))
    assert float(model.energy_unit) == pytest.approx(float((missing / 4).std(unbiased=False)), rel=1e-4)  # pyright: ignore


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"checkpoint": "7net-1"}, "come with sevenn"),
        ({"checkpoint": None}, "name a potential"),
        ({"species": ["H", "Po"]}, "does not know the element Po"),
        ({"modal": "PBE"}, "single level of theory"),
        ({"trained": "nothing"}, "all or readout"),
        ({"architecture": {"elements": ["H"], "channel": 10**9}}, "up to 1024"),
    ],
)
def test_what_cannot_be(options: dict[str, object], match: str, checkpoint: str) -> None:
    with pytest.raises(InputError, match=match):
        SevenNet(**{"species": ["H"], "checkpoint": checkpoint, **options})  # pyright: ignore


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('code of a file was run')",)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    file = tmp_path / "harmful.pth"
    torch.save({"config": Harmful(), "model_state_dict": {}}, file)
    with pytest.raises(InputError, match="no checkpoint of SevenNet"):
        SevenNet(["H"], checkpoint=str(file))
    file.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(InputError, match="no checkpoint of SevenNet"):
        SevenNet(["H"], checkpoint=str(file))


def test_an_ensemble_of_the_same_weights_is_none() -> None:
    with pytest.raises(InputError, match="would stay the same"):
        Ensemble(["H"], partial(SevenNet, checkpoint="7net-0"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "small.pth")
    write("data.extxyz", copper(10, 0))
    return tmp_path


OURS = ("model=sevennet", "model.checkpoint=small.pth", "size=small", "uncertainty/features=last_layer")


@pytest.mark.slow
def test_train_start_and_npt(here: Path) -> None:
    data = ("data.train=data.extxyz", "data.validation_fraction=0.3", "training.loss.stress=1")
    fit = (*OURS, *QUICK, *data, "trainer.max_epochs=2")
    assert run("train", *fit, "model.trained=readout", "paths.run=first") == 0
    assert run("train", *fit, "paths.run=next", "training.start=first/model.ckpt") == 0
    (here / "small.pth").unlink()  # a potential's file is complete
    first, second = (load_potential(f"{name}/model.ckpt").model.state_dict() for name in ("first", "next"))
    untouched = make_model(partial(SevenNet, checkpoint=str(write_checkpoint(here / "again.pth"))), species=["Cu"])
    changed = {
        key
        for key, value in untouched.state_dict().items()
        if key.startswith("model.") and not torch.equal(first[key], value)
    }
    assert changed == {f"model.network.reduce_{part}.linear.weight" for part in ("input_to_hidden", "hidden_to_energy")}
    assert not torch.equal(
        first["model.network.0_self_interaction_1.linear.weight"],
        second["model.network.0_self_interaction_1.linear.weight"],
    )
    dynamics = ("dynamics=npt", "dynamics.n_walkers=3", "dynamics.stopping.max_steps=6", "dynamics.frame_interval=2")
    start = (
        "system.structure=data.extxyz",
        "dynamics.stopping.uncertainty_threshold=1e6",
        "bias=stress",
        "bias.window=2",
    )
    assert run("md", "potential=next/model.ckpt", *start, *dynamics, "device=cpu", "paths.run=md") == 0
    assert run("evaluate", "potential=next/model.ckpt", "structures=data.extxyz", "device=cpu", "paths.run=e") == 0


@pytest.mark.slow
def test_two_rounds_of_learning(here: Path) -> None:
    write("start.xyz", bulk("Cu", "fcc", 3.6, cubic=True))
    words = (
        *("system.structure=start.xyz", "system.n_initial=8", "reference.calculator._target_=ase.calculators.emt.EMT"),
        *(
            "learning.max_rounds=2",
            "learning.batch_size=2",
            "learning.max_structures=40",
            "learning.warm_start=0.5",
        ),
        *("dynamics.n_walkers=2", "dynamics.stopping.max_steps=6", "dynamics.frame_interval=2"),
        *("dynamics.stopping.uncertainty_threshold=1e6", "bias.window=2", "trainer.max_epochs=2"),
    )
    assert run("learn", *OURS, *QUICK, *words, "paths.run=run") == 0
    records = RoundStore(here / "run").records()
    assert len(records) == 2
    assert records[0]["metrics"]["n_selected"] == 2
    loaded = load_potential("run/rounds/001/model.ckpt")
    found = loaded(collate(copper(1, 0), loaded.cutoff))
    assert found.uncertainty is not None
    assert found.uncertainty > 0

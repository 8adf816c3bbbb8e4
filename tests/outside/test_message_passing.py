"""A model from outside goes wherever ubmd's own does, without a change of ubmd."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from torch import Tensor, nn

from tests.bias.bias_parts import batch_of, crystals, difference_gradient, difference_strain, molecules
from tests.outside.message_passing import MessagePassing
from ubmd.bias.biased import BiasedPotential
from ubmd.cli import main as cli
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.models.base import AtomicOutput, atomic_output
from ubmd.models.ensemble import Ensemble, ModuleStack
from ubmd.models.head import linear_sizes, trace_head
from ubmd.models.potential import Potential, differentiate
from ubmd.models.scale_shift import make_model
from ubmd.runs.store import RoundStore
from ubmd.testing import potentials
from ubmd.uncertainty import (
    DistanceUncertainty,
    EnsembleUncertainty,
    FeatureUncertainty,
    FullGradients,
    LastLayer,
    SketchedGradients,
)
from ubmd.uncertainty.base import Uncertainty
from ubmd.uncertainty.checkpoint import load_potential


class Apart(MessagePassing):
    """The same, but what it does cannot be done for several members at once."""

    def forward(self, batch: AtomicBatch) -> AtomicOutput:
        assert float(batch.positions.sum()) is not None
        return super().forward(batch)


def off_start(model: nn.Module) -> nn.Module:
    """Every parameter off its initial value, as after training."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def model(seed: int = 3) -> nn.Module:
    return off_start(make_model(MessagePassing, species=potentials.SPECIES, seed=seed).double())


def ensemble(member: Callable[..., nn.Module] = MessagePassing) -> nn.Module:
    return off_start(make_model(partial(Ensemble, member=member), species=potentials.SPECIES, seed=3).double())


@pytest.mark.parametrize("check", potentials.CHECKS, ids=potentials.name)
@pytest.mark.parametrize("make", [model, ensemble], ids=["model", "ensemble"])
def test_contract(check: Callable[[Potential], None], make: Callable[[], nn.Module]) -> None:
    check(Potential(make()))


METHODS: dict[str, Callable[[nn.Module], Uncertainty]] = {
    "sketch": lambda m: FeatureUncertainty(partial(SketchedGradients, n_projections=24), m, seed=1),
    "last layer": lambda m: FeatureUncertainty(LastLayer, m),
    "distance": lambda m: DistanceUncertainty(partial(SketchedGradients, n_projections=24), m),
    "ensemble": EnsembleUncertainty,
}


@pytest.mark.parametrize("method", [*METHODS])
def test_bias_forces_and_stress_are_differences(method: str) -> None:
    network = ensemble() if method == "ensemble" else model()
    uncertainty = METHODS[method](network)
    uncertainty.fit(network, [batch_of(molecules(5, 10)), batch_of(crystals(5, 11))])
    biased = BiasedPotential(Potential(network), uncertainty, 0.3, tau_stress=0.3, rescale=False)
    plain = Potential(network)
    for atoms in (molecules(1, 3)[0], crystals(1, 4)[0]):
        batch = batch_of([atoms])
        crystal = bool(atoms.pbc.all())
        found, before = biased(batch, None, stress=crystal), plain(batch, stress=crystal)
        assert (found.forces - before.forces).abs().max() > 1e-5, "no bias"

        def energy(moved: AtomicBatch) -> Tensor:
            return biased(moved).energy

        expected = -difference_gradient(energy, batch)
        assert np.abs(found.forces.numpy() - expected).max() < 1e-6 * np.abs(expected).max()
        if crystal:
            assert found.stress is not None
            expected = difference_strain(energy, batch) / atoms.get_volume()
            assert np.abs(found.stress[0].numpy() - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("bias", [True, False])
def test_sketch_of_a_head_is_that_of_its_gradients(bias: bool) -> None:
    """Per-atom gradients by autograd, times random matrices made of outer products (Eqs. 17 to 21)."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(5, 7, bias=bias), nn.SiLU(inplace=True), nn.LayerNorm(7), nn.Linear(7, 1)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    output = AtomicOutput(torch.zeros(4), layers=trace_head(head, x))
    assert linear_sizes(head) == [(5, 7), (7, 1)]
    rows = []
    for row in x:
        value = head(row[None]).sum()
        layers = []
        for layer in (head[0], head[3]):
            assert isinstance(layer, nn.Linear)
            (weight,) = torch.autograd.grad(value, layer.weight, retain_graph=True)
            slope = weight.new_zeros(len(weight))
            if layer.bias is not None:
                (slope,) = torch.autograd.grad(value, layer.bias, retain_graph=True)
            layers.append(torch.cat([weight, slope[:, None]], 1).flatten())
        rows.append(torch.cat(layers))
    full = torch.stack(rows)
    torch.testing.assert_close(FullGradients(linear_sizes(head))(output), full)
    sketched = SketchedGradients(linear_sizes(head), 11, seed=2).double()
    sketch = torch.cat([(o[:, :, None] * i[:, None]).flatten(1) for i, o in sketched.projections], dim=1)
    torch.testing.assert_close(sketched(output), full @ sketch.T)
    with torch.no_grad():  # as where an uncertainty is fitted
        torch.testing.assert_close(sketched(AtomicOutput(torch.zeros(4), layers=trace_head(head, x))), full @ sketch.T)


def test_heads_that_are_none() -> None:
    with pytest.raises(InputError, match="one output an atom"):
        trace_head(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3))
    with pytest.raises(InputError, match=r"no nn\.Linear"):
        linear_sizes(nn.Sequential(nn.SiLU()))
    with pytest.raises(InputError, match="once each"):
        trace_head(Crossed(), torch.zeros(4, 3))


class Crossed(nn.Module):
    """Calls its layers in another order than it names them."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(3, 1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_members_one_after_another_are_members_at_once() -> None:
    batch = collate(potentials.structures(), 4.0, dtype=torch.float64)
    found = []
    for member in (MessagePassing, Apart):
        network = ensemble(member)
        output, leaf = Potential(network).atoms(batch)
        total, atomic = EnsembleUncertainty(network)(network, output, leaf, batch)
        found.append((output.energies, total, atomic, *differentiate(total, leaf, batch)))
        assert isinstance(network.stack, ModuleStack)
        assert network.stack._stacks == (member is MessagePassing)
    for at_once, apart in zip(*found, strict=True):
        torch.testing.assert_close(at_once, apart)


def test_structures_of_one_member_each() -> None:
    network = ensemble()
    batch = collate(potentials.structures(), 4.0, dtype=torch.float64)
    owners = torch.tensor([2, 0, 0, 1])
    every, _ = Potential(network).atoms(batch)
    found = atomic_output(network, batch.replace(member=owners)).energies
    torch.testing.assert_close(found, every.members[owners[batch.system_idx], torch.arange(len(found))])


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = make_model(MessagePassing, species=["H"], seed=5)
    before = torch.get_rng_state()
    again = make_model(MessagePassing, species=["H"], seed=5)
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def copper(n: int, seed: int) -> list[Atoms]:
    out = []
    for k in range(n):
        atoms = bulk("Cu", "fcc", 3.6, cubic=True)
        atoms.rattle(0.1, seed=seed + k)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_logging: None) -> Path:
    """A working directory with the model in a file of its own."""
    shutil.copy(Path(__file__).with_name("message_passing.py"), tmp_path / "my_network.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    return tmp_path


MINE = ("model=custom", "model._target_=my_network.MessagePassing", "+model.cutoff=3.5")
QUICK = ("logger=csv", "trainer.accelerator=cpu", "trainer.max_epochs=3", "calibration.total.too_small=maximum")


def run(*words: str) -> int:
    return cli.main([str(word) for word in words])


def test_train_evaluate_md_and_ase(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("data.extxyz", copper(30, 0))
    write("test.extxyz", copper(3, 90))
    small = ("uncertainty=posterior", "uncertainty.features.n_projections=8")
    data = ("data.train=data.extxyz", "data.test=test.extxyz", "data.validation_fraction=0.3")
    assert run("train", *MINE, *QUICK, *small, *data, "paths.run=first") == 0
    assert run("train", *MINE, *QUICK, *small, *data, "paths.run=next", "training.start=first/model.ckpt") == 0
    capsys.readouterr()
    assert run("evaluate", "potential=next/model.ckpt", "structures=test.extxyz", "paths.run=refused") == 2
    said = capsys.readouterr()
    assert "my_network.MessagePassing" in said.err + said.out
    assert "allow=my_network" in said.err + said.out
    assert (
        run("evaluate", "potential=next/model.ckpt", "structures=test.extxyz", "allow=my_network", "paths.run=e") == 0
    )
    dynamics = ("dynamics.n_walkers=2", "dynamics.stopping.max_steps=4", "dynamics.frame_interval=2", "bias.window=2")
    start = ("system.structure=test.extxyz", "dynamics.stopping.uncertainty_threshold=1e6")
    assert run("md", "potential=next/model.ckpt", "allow=[my_network]", *start, *dynamics, "paths.run=md") == 0
    atoms = copper(1, 50)[0]
    atoms.calc = UBMDCalculator(load_potential("next/model.ckpt", allow="my_network"), tau=0.2, rescale=False)
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(InputError, match="do not trust it"):
        UBMDCalculator("next/model.ckpt")


@pytest.mark.parametrize(
    "method",
    [
        (*MINE, "uncertainty=posterior", "uncertainty.features.n_projections=16", "selection=max_det"),
        (*MINE, "uncertainty=distance", "uncertainty/features=last_layer", "selection=max_dist"),
        (
            *("model=custom_ensemble", "model.member._target_=my_network.MessagePassing", "model.n_members=2"),
            *("uncertainty=ensemble", "selection=max_diag"),
        ),
    ],
    ids=["sketch", "last layer", "ensemble"],
)
def test_two_rounds_of_learning(method: tuple[str, ...], here: Path) -> None:
    write("start.xyz", bulk("Cu", "fcc", 3.6, cubic=True))
    system = (
        "system.structure=start.xyz",
        "system.n_initial=8",
        "reference.calculator._target_=ase.calculators.emt.EMT",
    )
    learning = ("learning.max_rounds=2", "learning.batch_size=2", "learning.max_structures=40")
    dynamics = (
        *("dynamics.n_walkers=2", "dynamics.stopping.max_steps=6", "dynamics.frame_interval=2"),
        *("dynamics.stopping.uncertainty_threshold=1e6", "bias.window=2", "calibration.atomic.too_small=maximum"),
    )
    assert run("learn", *method, *QUICK, *system, *learning, *dynamics, "paths.run=run") == 0
    records = RoundStore(here / "run").records()
    assert len(records) == 2
    assert records[0]["metrics"]["n_selected"] == 2
    loaded = load_potential("run/rounds/001/model.ckpt", allow="my_network")
    assert loaded(collate(copper(1, 0), loaded.cutoff)).uncertainty > 0

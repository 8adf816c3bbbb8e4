from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from lightning.pytorch import Trainer
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.data.datamodule import GrowingDataModule, MiniBatches
from ubmd.errors import InputError
from ubmd.models.base import EnsembleOutput
from ubmd.models.ensemble import Ensemble, member_seed
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.testing import potentials as contract
from ubmd.training.loss import SquaredLoss
from ubmd.training.module import PotentialModule

MEMBER = partial(GMNN, cutoff=4.0, n_basis=3, n_gauss=5, hidden=(10, 8))
M = 3


def ensemble(seed: int = 4) -> Ensemble:
    """Members with every parameter off its initial value, as after training."""
    model = Ensemble(contract.SPECIES, MEMBER, seed=seed).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        model.stack.energy_unit.fill_(0.6)
        model.stack.shift.add_(torch.tensor([-1.0, -3.0, -5.0], dtype=torch.float64))
    return model


def member_state(model: Ensemble, member: int) -> dict[str, Tensor]:
    """The state of one member as a network of its own."""
    names = {name for name, _ in model.stack.named_parameters()}
    return {k: v[member] if k in names else v for k, v in model.stack.state_dict().items()}


def members(model: Ensemble) -> list[GMNN]:
    """The members as networks of their own."""
    alone = [MEMBER(contract.SPECIES, seed=99).double() for _ in range(model.n_members)]
    for j, network in enumerate(alone):
        network.load_state_dict(member_state(model, j))
    return alone


def batch_of(structures: list[Atoms]) -> AtomicBatch:
    return collate(structures, 4.0, dtype=torch.float64)


@pytest.mark.parametrize("check", contract.CHECKS, ids=contract.name)
def test_contract(check: Callable[[Potential], None]) -> None:
    check(Potential(ensemble()))


def test_mean_and_members_equal_networks_alone() -> None:
    model, batch = ensemble(), batch_of(contract.structures())
    alone = [Potential(m)(batch, stress=True) for m in members(model)]
    found = Potential(model)(batch, stress=True)
    torch.testing.assert_close(found.energy, torch.stack([p.energy for p in alone]).mean(0))
    torch.testing.assert_close(found.forces, torch.stack([p.forces for p in alone]).mean(0))
    for structure in (1, 3):
        assert found.stress is not None
        stress = torch.stack([p.stress[structure] for p in alone if p.stress is not None]).mean(0)
        torch.testing.assert_close(found.stress[structure], stress)
    output, _ = Potential(model).atoms(batch)
    assert isinstance(output, EnsembleOutput)
    for prediction, energies in zip(alone, output.members, strict=True):
        torch.testing.assert_close(batch.sum_atoms(output.offset + energies), prediction.energy)


def test_structures_of_one_member_each() -> None:
    """As in training: sizes differ, a member may have several structures or none, in any order."""
    model = ensemble()
    batch = batch_of([*contract.structures(), contract.molecule()])
    owners = torch.tensor([2, 0, 0, 2, 0])
    found = Potential(model)(batch.replace(member=owners), stress=True)
    alone = [Potential(m)(batch, stress=True) for m in members(model)]
    for s, owner in enumerate(owners.tolist()):
        atoms = batch.system_idx == s
        torch.testing.assert_close(found.energy[s], alone[owner].energy[s])
        torch.testing.assert_close(found.forces[atoms], alone[owner].forces[atoms])
    picked = batch.replace(member=owners).select(torch.tensor([4, 0]))
    assert picked.member is not None
    assert picked.member.tolist() == [0, 2]


def test_members_start_differently_and_from_the_seed_alone() -> None:
    first, again, other = (Ensemble(contract.SPECIES, MEMBER, seed=s) for s in (1, 1, 2))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.std() > 0:
            assert not torch.equal(a[0], a[1])
            assert not torch.equal(a, c)
    expected = MEMBER(contract.SPECIES, seed=member_seed(1, 2)).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in member_state(first, 2).items())
    assert len({member_seed(s, j) for s in range(50) for j in range(4)}) == 200


def loss_gradients(model: torch.nn.Module, batch: AtomicBatch) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    SquaredLoss()(Potential(model)(batch, training=True), batch).backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def labelled(batch: AtomicBatch) -> AtomicBatch:
    generator = torch.Generator().manual_seed(0)
    return batch.replace(
        energy=torch.randn(batch.n_systems, generator=generator, dtype=torch.float64),
        forces=torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64),
    )


def test_gradients_of_the_loss_do_not_mix() -> None:
    """The stacked gradient is for each member that of its own mini-batch, and zero without one."""
    model = ensemble()
    batch = labelled(batch_of(contract.structures()))
    owners = torch.tensor([0, 0, 2, 2])
    found = loss_gradients(model, batch.replace(member=owners))
    for j, network in enumerate(members(model)):
        own = (owners == j).nonzero().squeeze(1)
        if len(own) == 0:
            assert all((g[j] == 0).all() for g in found.values())
            continue
        expected = loss_gradients(network, batch.select(own))
        for name, gradient in expected.items():
            torch.testing.assert_close(found[f"stack.{name}"][j], gradient, rtol=1e-9, atol=1e-12)


def test_sampler_gives_each_member_all_structures_in_its_own_order() -> None:
    sampler = MiniBatches(10, 4, (1, 2), members=3)
    sampler.set_epoch(5)
    drawn = [np.reshape(batch, (3, -1)) for batch in sampler]
    assert [part.shape for part in drawn] == [(3, 4), (3, 4), (3, 2)]
    orders = np.concatenate(drawn, axis=1).tolist()
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    single = MiniBatches(10, 4, (1, 2))
    single.set_epoch(5)
    assert orders[0] == [i for batch in single for i in batch], "one model sees what it saw before there were ensembles"


def copper(n: int, seed: int) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        atoms = Atoms("CuAuCu", positions=2.5 * np.eye(3) + 0.3 * rng.normal(size=(3, 3)))
        atoms.calc = EMT()
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
        out.append(atoms)
    return out


def datamodule(n_members: int) -> GrowingDataModule:
    module = GrowingDataModule(
        4.0, ["Cu", "Au"], batch_size=4, validation_fraction=0.2, dtype=torch.float64, seed=3, members=n_members
    )
    module.set_round(0, copper(12, 0))
    return module


def trainer(epochs: int, clip: float | None = None) -> Trainer:
    return Trainer(
        gradient_clip_val=clip,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        num_sanity_val_steps=0,
    )


@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_the_ensemble_is_training_its_first_member(clip: float | None) -> None:
    """Several epochs of Adam with mini-batches: the first member's weights are those of a fit without the others."""
    model = Ensemble(["Cu", "Au"], MEMBER, seed=5).double()
    alone = MEMBER(["Cu", "Au"], seed=0).double()
    alone.load_state_dict(member_state(model, 0))
    before = copy.deepcopy(model.state_dict())
    for network, data in ((model, datamodule(M)), (alone, datamodule(1))):
        batch = data.split("train")
        assert batch.energy is not None
        network.fit_scale_shift(batch.energy, network.composition(batch))
        trainer(3, clip).fit(PotentialModule(network), data)  # pyright: ignore[reportArgumentType]
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(member_state(model, 0)[name], value, rtol=1e-6, atol=1e-9)
    for name, value in model.named_parameters():
        assert all((value[j] != before[name][j]).any() for j in range(M)), f"{name} of a member was not trained"
        assert (value[1] != value[0]).any()


def test_parameter_groups_hold_every_parameter_once() -> None:
    model = ensemble()
    grouped = [p for group in model.parameter_groups().values() for p in group]
    assert set(model.parameter_groups()) == {"readout", "representation", "shift", "scale"}
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_scale_and_shift_are_those_of_one_network() -> None:
    model, network = Ensemble(contract.SPECIES, MEMBER), MEMBER(contract.SPECIES)
    composition = torch.tensor([[1, 2, 0], [3, 1, 1], [2, 2, 2], [0, 1, 4]])
    energy = composition.double() @ torch.tensor([-10.0, -800.0, -2000.0]).double() + 0.1 * torch.arange(4)
    for m in (model, network):
        m.fit_scale_shift(energy, composition)
    assert torch.equal(model.stack.energy_unit, network.energy_unit)
    for j in range(M):
        assert torch.equal(model.stack.shift[j], network.shift)
        assert (model.stack.scale[j] == 1).all()


def test_one_member_is_refused() -> None:
    with pytest.raises(InputError, match="n_members=1"):
        Ensemble(contract.SPECIES, MEMBER, n_members=1)

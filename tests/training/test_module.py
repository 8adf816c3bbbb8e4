from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from lightning.pytorch import Callback, LightningModule, Trainer

from ubmd.data.batch import AtomicBatch, collate
from ubmd.data.datamodule import GrowingDataModule
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.training.loss import HuberLoss, Loss, SquaredLoss
from ubmd.training.module import LearningRates, PotentialModule

GPA = 1 / 160.21766208
CUTOFF = 4.0
pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches", "ignore:The '.*_dataloader' does not have many workers"
)


def alloys(n: int, seed: int = 0) -> list[Atoms]:
    """Strained and rattled copper and gold in cells of four atoms, labelled by an analytic potential."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True, a=3.8)
        atoms.numbers[rng.integers(4, size=rng.integers(3))] = 79
        atoms.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.15, size=(4, 3))
        atoms.calc = EMT()
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.info["REF_stress"] = atoms.get_stress(voigt=False)
        atoms.calc = None
        out.append(atoms)
    return out


STRUCTURES, TEST = alloys(20), alloys(7, seed=1)


def datamodule(**options: Any) -> GrowingDataModule:
    defaults = {"batch_size": 5, "evaluation_batch_size": 3, "stress": True, "test": TEST}
    data = GrowingDataModule(CUTOFF, ["Cu", "Au"], **(defaults | options))
    data.set_round(0, STRUCTURES)
    return data


def module(**options: Any) -> PotentialModule:
    model = GMNN(["Cu", "Au"], cutoff=CUTOFF, n_basis=4, n_gauss=6, hidden=(24, 24), seed=0)
    model.to(options.pop("dtype", torch.float32))
    return PotentialModule(model, **options)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        num_sanity_val_steps=0,
        **({"max_epochs": 3} | options),
    )


def initialise(fitted: PotentialModule, data: GrowingDataModule) -> None:
    batch = data.split("train")
    assert batch.energy is not None
    fitted.model.fit_scale_shift(batch.energy, fitted.model.composition(batch))


def force_rmse(fitted: PotentialModule, batch: AtomicBatch) -> float:
    assert batch.forces is not None
    return (fitted.potential(batch).forces - batch.forces).square().mean().sqrt().item()


class Recorder(Callback):
    """Learning rates and energies (which tell the structures apart) of every training step."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.energies: list[list[float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.energies.append(batch.energy.tolist())


def test_learning_rates_of_the_groups_decay_linearly_to_zero() -> None:
    recorder = Recorder()
    rates = LearningRates(readout=0.4, representation=0.3, shift=0.2, scale=0.1)
    trainer(recorder).fit(module(learning_rates=rates), datamodule())
    steps = 3 * 4  # 18 training structures in batches of 5, three times
    expected = [[r * (1 - k / steps) for r in (0.4, 0.3, 0.2, 0.1)] for k in range(steps)]
    np.testing.assert_allclose(recorder.rates, expected, rtol=1e-12)


def test_every_parameter_has_its_group_and_learns() -> None:
    """A group whose rate is zero stays; the others move. Adam's first step is as long as the rate."""
    for frozen in ("readout", "representation", "shift", "scale"):
        rates = {"readout": 0.01, "representation": 0.02, "shift": 0.03, "scale": 0.04} | {frozen: 0.0}
        fitted = module(learning_rates=LearningRates(**rates))
        before = {k: [p.detach().clone() for p in v] for k, v in fitted.model.parameter_groups().items()}
        trainer(max_steps=1).fit(fitted, datamodule())
        for name, group in fitted.model.parameter_groups().items():
            moved = max(float((p.detach() - q).abs().max()) for p, q in zip(group, before[name], strict=True))
            assert moved == pytest.approx(rates[name], rel=1e-3, abs=1e-9), (name, frozen)


def test_optimizer_of_the_paper() -> None:
    fitted = module()
    fit = trainer(max_epochs=1)
    fit.fit(fitted, datamodule())
    (optimizer,) = fit.optimizers
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-7
    assert optimizer.defaults["weight_decay"] == 0
    assert fitted.learning_rates == LearningRates(0.03, 0.02, 0.05, 0.001)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in fitted.parameters()}
    assert len(grouped) == len(list(fitted.parameters()))


def test_epochs_are_shuffled_by_seed_and_epoch_alone() -> None:
    """A fit goes through all structures each epoch, in an order that it would have again."""
    runs = []
    for _ in range(2):
        recorder = Recorder()
        torch.manual_seed(len(runs))
        trainer(recorder).fit(module(), datamodule(seed=5))
        runs.append(recorder.energies)
    assert runs[0] == runs[1]
    epochs = [[e for step in runs[0][k : k + 4] for e in step] for k in (0, 4, 8)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert len(set(epochs[0])) == 18
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_same_seed_same_weights() -> None:
    fits = []
    for _ in range(2):
        fitted, data = module(), datamodule()
        initialise(fitted, data)
        trainer().fit(fitted, data)
        fits.append(fitted.state_dict())
    assert all(torch.equal(fits[0][k], fits[1][k]) for k in fits[0])


@pytest.mark.parametrize("stress", [0.0, 0.3])
def test_fits_an_analytic_potential(stress: float) -> None:
    """Force errors fall to a small part of the forces, on structures of training and on others."""
    data = datamodule(stress=stress > 0)
    fitted = module(loss=SquaredLoss(stress=stress))
    initialise(fitted, data)
    before = force_rmse(fitted, data.split("train"))
    trainer(max_epochs=60, check_val_every_n_epoch=1000).fit(fitted, data)
    assert force_rmse(fitted, data.split("train")) < 0.1 * before
    assert force_rmse(fitted, data.split("test")) < 0.4 * before
    if stress:
        batch = data.split("train")
        assert batch.stress is not None
        error = (fitted(batch).stress - batch.stress).square().mean()
        assert error < 0.05 * batch.stress.var()


def numpy_metrics(fitted: PotentialModule, structures: list[Atoms], data: GrowingDataModule) -> dict[str, float]:
    """Errors over all structures, one structure after the other."""
    errors: dict[str, list[float]] = {k: [] for k in ("energy", "per atom", "force", "stress", "virial")}
    order = [structures.index(a) for a in structures]
    for k in order:
        batch = data.split("test").select(torch.tensor([k]))
        prediction = fitted.potential(batch, stress=True)
        atoms = structures[k]
        energy = float(prediction.energy) - atoms.info["REF_energy"]
        stress = prediction.stress[0].numpy() - atoms.info["REF_stress"]  # pyright: ignore
        errors["energy"].append(energy)
        errors["per atom"].append(1e3 * energy / len(atoms))
        errors["force"].extend((prediction.forces.numpy() - atoms.arrays["REF_forces"]).ravel())
        errors["stress"].extend((stress / (1e-3 * GPA)).ravel())
        errors["virial"].extend((stress * atoms.get_volume())[np.triu_indices(3)])

    def mae(name: str) -> float:
        return float(np.mean(np.abs(errors[name])))

    def rmse(name: str) -> float:
        return float(np.sqrt(np.mean(np.square(errors[name]))))

    return {
        "energy_mae": mae("energy"),
        "force_mae": mae("force"),
        "virial_mae": mae("virial"),
        "energy_rmse_mev_per_atom": rmse("per atom"),
        "force_rmse_ev_per_ang": rmse("force"),
        "stress_rmse_mpa": rmse("stress"),
    }


def with_a_supercell() -> list[Atoms]:
    """Structures of different sizes, so that means over batches or structures differ from means over all."""
    large = TEST[0].repeat((2, 1, 1))
    large.info = {"REF_energy": 2 * TEST[0].info["REF_energy"], "REF_stress": TEST[0].info["REF_stress"]}
    return [*TEST, large]


@pytest.mark.parametrize("stress", [0.0, 0.01])
def test_metrics_of_the_test_set(stress: float) -> None:
    structures = with_a_supercell()
    data = datamodule(test=structures, dtype=torch.float64, evaluation_batch_size=3)
    fitted = module(loss=SquaredLoss(stress=stress), dtype=torch.float64)
    initialise(fitted, data)
    (found,) = trainer().test(fitted, data, verbose=False)
    expected = numpy_metrics(fitted, structures, data)
    if not stress:
        expected = {k: v for k, v in expected.items() if "stress" not in k and "virial" not in k}
    assert found == {f"test/{k}": pytest.approx(v, rel=1e-5) for k, v in expected.items()}
    # an evaluation of other weights starts afresh
    with torch.no_grad():
        fitted.model.scale.mul_(3.0)
    (again,) = trainer().test(fitted, data, verbose=False)
    changed = numpy_metrics(fitted, structures, data)
    assert again == {name: pytest.approx(changed[name.removeprefix("test/")], rel=1e-5) for name in found}
    assert again != pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("loss", [SquaredLoss(stress=0.01), HuberLoss(stress=0.5, energy_delta=1e-4)])
def test_score_of_the_validation_set(loss: Loss) -> None:
    """The loss per structure, by which the best checkpoint is chosen, whatever the batches."""
    scores = []
    for size in (1, 5):
        data = datamodule(dtype=torch.float64, evaluation_batch_size=size, validation_fraction=0.35)
        fitted = module(loss=loss, dtype=torch.float64)
        initialise(fitted, data)
        (found,) = trainer().validate(fitted, data, verbose=False)
        scores.append(found["valid/score"])
    structures = [data.structures[i] for i in data.valid_indices]
    assert len(structures) == 7
    expected = []
    for atoms in structures:
        batch = collate([atoms], CUTOFF, dtype=torch.float64)
        expected.append(loss(fitted(batch), batch).item())
    assert scores == [pytest.approx(np.mean(expected), rel=1e-6)] * 2


def test_score_is_that_of_eq_14() -> None:
    """Squared errors of energy, force components and the upper triangle of the virial, weighted, by hand."""
    data = datamodule(dtype=torch.float64)
    fitted = module(loss=SquaredLoss(2.0, 3.0, 0.01), dtype=torch.float64)
    initialise(fitted, data)
    (found,) = trainer().validate(fitted, data, verbose=False)
    batch = data.split("valid")
    prediction = fitted(batch)
    virial = (prediction.stress - batch.stress) * batch.volume[:, None, None]
    upper = [virial[:, a, b] for a in range(3) for b in range(a, 3)]
    parts = ((2.0, [prediction.energy - batch.energy]), (3.0, [prediction.forces - batch.forces]), (0.01, upper))
    expected = sum(weight * error.square().sum().item() for weight, errors in parts for error in errors)
    assert found["valid/score"] == pytest.approx(expected / batch.n_systems, rel=1e-6)


def test_training_loss_is_logged_per_structure() -> None:
    data = datamodule(dtype=torch.float64)
    still = LearningRates(0.0, 0.0, 0.0, 0.0)
    fitted = module(loss=SquaredLoss(stress=0.01), learning_rates=still, dtype=torch.float64)
    fit = trainer(max_epochs=1)
    fit.fit(fitted, data)
    batch = data.split("train")
    expected = fitted.loss(fitted(batch), batch).item() / batch.n_systems
    assert fit.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-5)


class Collector(Callback):
    """What callbacks get to see of a prediction loop."""

    def __init__(self) -> None:
        self.energies: list[torch.Tensor] = []
        self.forces: list[torch.Tensor] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: int
    ) -> None:
        self.energies.append(outputs["energy"])
        self.forces.append(outputs["forces"])


def test_predictions_are_those_of_the_potential() -> None:
    data, fitted, collector = datamodule(), module(), Collector()
    trainer(collector).predict(fitted, data, return_predictions=False)
    expected = fitted.potential(data.split("valid"))
    torch.testing.assert_close(torch.cat(collector.energies), expected.energy)
    torch.testing.assert_close(torch.cat(collector.forces), expected.forces)


def test_predictions_can_be_returned() -> None:
    data, fitted = datamodule(), module()
    found = trainer().predict(fitted, data)
    assert found is not None
    assert len(found) == 1


@pytest.mark.parametrize("name", ["readout", "representation", "shift", "scale"])
def test_learning_rates_out_of_range(name: str) -> None:
    with pytest.raises(InputError, match=rf"training\.learning_rates\.{name}=-0\.1 must be a number from 0"):
        LearningRates(**{name: -0.1})
    with pytest.raises(InputError, match=r"1e\+300 must be a number from 0 to 1e\+06"):
        LearningRates(**{name: 1e300})

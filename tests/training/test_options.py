"""Options of training: Huber loss, SAM, averaged weights, clipping, and starting from earlier weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from tests.training.test_module import CUTOFF, STRUCTURES, datamodule, initialise, module, trainer
from ubmd.callbacks.ema import ExponentialMovingAverage
from ubmd.callbacks.scale_shift import FitScaleShift
from ubmd.commands.parts import fitting
from ubmd.data.batch import AtomicBatch, collate
from ubmd.errors import InputError
from ubmd.progress import run_progress
from ubmd.rounds.fit import fit_and_predict
from ubmd.rounds.trainer_options import trainer_limits
from ubmd.training.loss import HuberLoss, SquaredLoss
from ubmd.training.module import LearningRates, PotentialModule
from ubmd.training.sam import at_worst_neighbour
from ubmd.uncertainty.checkpoint import save_potential

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches", "ignore:The '.*_dataloader' does not have many workers"
)
MODEL = {"_target_": "ubmd.models.gmnn.GMNN", "species": ["Cu", "Au"], "cutoff": CUTOFF, "n_basis": 4, "n_gauss": 6}
MODEL |= {"hidden": [24, 24], "seed": 0}
UNCERTAINTY = {
    "_target_": "ubmd.uncertainty.feature_uncertainty.FeatureUncertainty",
    "_partial_": True,
    "features": {"_target_": "ubmd.uncertainty.features.SketchedGradients", "_partial_": True, "n_projections": 8},
}


def state(fitted: PotentialModule) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in fitted.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Recorder(Callback):
    """The batch of every step."""

    def __init__(self) -> None:
        self.batches: list[AtomicBatch] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: AtomicBatch, batch_idx: int) -> None:
        self.batches.append(batch)


# Huber


def huber(error: float, delta: float) -> float:
    return error**2 if abs(error) <= delta else delta * (2 * abs(error) - delta)


@pytest.mark.parametrize("deltas", [(0.01, 0.1, 0.001), (1, 1, 1), (1e-4, 1e-3, 1e-5), (float("inf"),) * 3], ids=str)
def test_huber_equals_the_formula(deltas: tuple[float, float, float]) -> None:
    large = STRUCTURES[0].repeat((2, 1, 1))
    large.info = {"REF_energy": 0.3, "REF_stress": STRUCTURES[0].info["REF_stress"]}
    batch = collate([STRUCTURES[1], large, STRUCTURES[2]], CUTOFF, dtype=torch.float64)
    prediction = module(dtype=torch.float64).potential(batch, stress=True)
    assert batch.energy is not None
    assert batch.forces is not None
    assert batch.stress is not None
    assert prediction.stress is not None
    energy = forces = stress = 0.0
    n_beyond = 0
    for k in range(3):
        n, volume = int(batch.n_atoms[k]), float(batch.volume[k])
        per_atom = float(prediction.energy[k] - batch.energy[k]) / n
        energy += n**2 * huber(per_atom, deltas[0])
        n_beyond += abs(per_atom) > deltas[0]
        for a, b in [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]:
            stress += volume**2 * huber(float(prediction.stress[k, a, b] - batch.stress[k, a, b]), deltas[2])
    for error in (prediction.forces - batch.forces).flatten().tolist():
        forces += huber(error, deltas[1])
        n_beyond += abs(error) > deltas[1]
    assert (n_beyond == 0) is (deltas[0] == float("inf"))
    found = HuberLoss(0.7, 3.0, 0.2, *deltas)(prediction, batch)
    assert found.item() == pytest.approx(0.7 * energy + 3.0 * forces + 0.2 * stress, rel=1e-10)
    if deltas[0] == float("inf"):
        torch.testing.assert_close(found, SquaredLoss(0.7, 3.0, 0.2)(prediction, batch))


def test_huber_bounds_the_pull_of_a_bad_label() -> None:
    """The gradient grows no more once the error is beyond the limit."""
    batch = datamodule(dtype=torch.float64).split("train")
    assert batch.forces is not None
    prediction = module(dtype=torch.float64).potential(batch)
    slopes = []
    for error in (0.05, 0.2, 50.0):
        forces = (batch.forces + error).requires_grad_()
        loss = HuberLoss(forces_delta=0.1)(type(prediction)(prediction.energy, forces), batch)
        slopes.append(torch.autograd.grad(loss, forces)[0][0, 0].item())
    assert slopes == pytest.approx([4 * 2 * 0.05, 4 * 2 * 0.1, 4 * 2 * 0.1])


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_bad_huber(name: str) -> None:
    with pytest.raises(InputError, match=rf"training\.loss\.{name}=-1 must not be negative"):
        HuberLoss(**{name: -1})
    with pytest.raises(InputError, match=rf"training\.loss\.{name}_delta=0 must be positive"):
        HuberLoss(**{f"{name}_delta": 0})


def test_trains_with_huber() -> None:
    data, fitted = datamodule(), module(loss=HuberLoss(stress=0.1))
    initialise(fitted, data)
    batch = data.split("train")
    before = fitted.loss(fitted(batch), batch).item()
    trainer(max_epochs=10).fit(fitted, data)
    assert fitted.loss(fitted(batch), batch).item() < 0.75 * before


# SAM


def test_worst_neighbour_by_hand() -> None:
    first, second, still = (torch.nn.Parameter(torch.tensor(v)) for v in ([1.0, 2.0], [3.0], [5.0]))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    with at_worst_neighbour([first, second, still], 0.5):
        torch.testing.assert_close(first.detach(), torch.tensor([1.3, 2.0]))
        torch.testing.assert_close(second.detach(), torch.tensor([3.4]))
        assert still.item() == 5.0
    assert first.tolist() == [1.0, 2.0]
    assert second.tolist() == [3.0]
    with pytest.raises(ZeroDivisionError), at_worst_neighbour([second], 0.5):
        raise ZeroDivisionError
    assert second.tolist() == [3.0]
    second.grad = torch.zeros(1)
    with at_worst_neighbour([second], 0.5):
        assert second.tolist() == [3.0]


def steps_by_hand(
    start: PotentialModule, batches: list[AtomicBatch], rates: list[float], radius: float, clip: float | None
) -> list[list[torch.Tensor]]:
    """Adam with the gradient at w + radius g / |g|, written out (Kingma & Ba; Foret et al., Eq. 2 and Algorithm 1)."""
    model = start.model
    parameters = list(model.parameters())
    groups = list(model.parameter_groups().values())
    group_of = {id(p): k for k, group in enumerate(groups) for p in group}
    mean = [torch.zeros_like(p) for p in parameters]
    square = [torch.zeros_like(p) for p in parameters]

    def gradient(batch: AtomicBatch) -> list[torch.Tensor]:
        loss = start.loss(start.potential(batch, training=True), batch)
        return list(torch.autograd.grad(loss, parameters))

    out = []
    for t, batch in enumerate(batches, start=1):
        kept = [p.detach().clone() for p in parameters]
        g = gradient(batch)
        if radius:
            norm = sum(x.square().sum() for x in g).sqrt()  # pyright: ignore
            with torch.no_grad():
                for p, x in zip(parameters, g, strict=True):
                    p.add_(radius * x / norm)
            g = gradient(batch)
        if clip is not None:
            norm = sum(x.square().sum() for x in g).sqrt()  # pyright: ignore
            g = [x * min(1.0, clip / (norm.item() + 1e-6)) for x in g]
        with torch.no_grad():
            for k, p in enumerate(parameters):
                mean[k] = 0.9 * mean[k] + 0.1 * g[k]
                square[k] = 0.999 * square[k] + 0.001 * g[k] ** 2
                rate = rates[group_of[id(p)]] * (1 - (t - 1) / len(batches))
                step = mean[k] / (1 - 0.9**t) / ((square[k] / (1 - 0.999**t)).sqrt() + 1e-7)
                p.copy_(kept[k] - rate * step)
        out.append([p.detach().clone() for p in parameters])
    return out


@pytest.mark.parametrize(("radius", "clip"), [(0.0, None), (0.3, None), (0.0, 0.5), (0.3, 0.5)])
def test_steps_equal_those_by_hand(radius: float, clip: float | None) -> None:
    data = datamodule(dtype=torch.float64)
    fitted = module(dtype=torch.float64, sam_radius=radius)
    by_hand = module(dtype=torch.float64)
    initialise(fitted, data)
    initialise(by_hand, data)
    recorder = Recorder()
    trainer(recorder, max_epochs=2, gradient_clip_val=clip).fit(fitted, data)
    rates = [0.03, 0.02, 0.05, 0.001]
    expected = steps_by_hand(by_hand, recorder.batches, rates, radius, clip)
    assert len(expected) == 8
    for found, wanted in zip(fitted.model.parameters(), expected[-1], strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-6, atol=1e-8)
    other = steps_by_hand(module(dtype=torch.float64), recorder.batches, rates, 0.0, None)
    assert not torch.allclose(expected[-1][0], other[-1][0]) or not (radius or clip)


def test_sam_logs_the_loss_where_the_weights_are() -> None:
    losses = []
    for radius in (0.0, 5.0):
        data = datamodule(dtype=torch.float64)
        still = LearningRates(0.0, 0.0, 0.0, 0.0)
        fitted = module(dtype=torch.float64, sam_radius=radius, learning_rates=still)
        initialise(fitted, data)
        before = state(fitted)
        fit = trainer(max_epochs=1)
        fit.fit(fitted, data)
        assert equal(state(fitted), before)
        losses.append(fit.callback_metrics["train/loss"].item())
    assert losses[0] == losses[1]


def test_bad_sam() -> None:
    with pytest.raises(InputError, match=r"training\.sam_radius=-0\.1 must be a number from 0"):
        module(sam_radius=-0.1)
    with pytest.raises(InputError, match=r"needs trainer\.accumulate_grad_batches=1"):
        trainer(accumulate_grad_batches=2).fit(module(sam_radius=0.1), datamodule())


# averaged weights


def test_average_equals_that_by_hand(tmp_path: Path) -> None:
    """Validated, saved and left behind are averages of the weights after each step; buffers are copied."""
    data, fitted = datamodule(dtype=torch.float64), module(dtype=torch.float64)
    after: list[list[torch.Tensor]] = []
    scores: list[float] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            after.append([p.detach().clone() for p in pl_module.model.parameters()])

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            scores.append(trainer.callback_metrics["valid/score"].item())

    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    options = {k: v for k, v in config(3).trainer.items() if k != "_target_"}
    fit = Trainer(**options, callbacks=[FitScaleShift(), Look(), ExponentialMovingAverage(0.8), save], logger=False)
    fit.fit(fitted, data)
    assert len(after) == 12
    average = after[0]
    averages = [average]
    for weights in after[1:]:
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)]
        averages.append(average)
    for found, wanted in zip(fitted.model.parameters(), averages[-1], strict=True):
        torch.testing.assert_close(found.detach(), wanted)
    assert fitted.model.species.tolist() == [29, 79]
    assert fitted.model.energy_unit != 1
    plain = module(dtype=torch.float64)
    for epoch in range(3):
        content = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        plain.load_state_dict(content)
        for found, wanted in zip(plain.model.parameters(), averages[4 * epoch + 3], strict=True):
            torch.testing.assert_close(found.detach(), wanted)
        (found,) = trainer().validate(plain, data, verbose=False)
        assert scores[epoch] == pytest.approx(found["valid/score"], rel=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_bad_decay(decay: float) -> None:
    with pytest.raises(InputError, match="must be at least 0 and below 1"):
        ExponentialMovingAverage(decay)


# fit_and_predict


def config(epochs: int = 6, callbacks: dict[str, Any] | None = None, **options: Any) -> Any:
    base = {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "devices": 1, "max_epochs": epochs}
    base |= {"num_sanity_val_steps": 0, "inference_mode": False, "enable_progress_bar": False}
    base |= {"enable_model_summary": False, "max_steps": -1, "check_val_every_n_epoch": 1} | options
    return OmegaConf.create({"trainer": base, "callbacks": callbacks or {}})


class Predicted(Callback):
    """The weights that the predict loop runs with."""

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = state(pl_module)


def run(cfg: Any, folder: Path, fitted: PotentialModule, share: float = 1.0) -> tuple[dict[str, float], Any]:
    predicted = Predicted()
    with run_progress() as progress:
        fit = fit_and_predict(
            fitting(cfg, 2),
            fitted,
            datamodule(dtype=torch.float64),
            folder,
            acquisition=[predicted],
            loggers=[],
            progress=progress,
            title="fit",
            share=share,
        )
    return fit.errors, predicted.weights


EMA = {"ema": {"_target_": "ubmd.callbacks.ema.ExponentialMovingAverage", "decay": 0.9}}


@pytest.mark.parametrize("callbacks", [{}, EMA], ids=["plain", "averaged"])
def test_tests_and_predicts_with_the_best_weights(tmp_path: Path, callbacks: dict[str, Any]) -> None:
    fitted = module(dtype=torch.float64)
    errors, weights = run(config(callbacks=callbacks), tmp_path, fitted)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    kept = content["callbacks"]["FitCheckpoint"]
    best = {k.removeprefix("potential.model."): v for k, v in kept["weights"].items()}
    assert equal(weights, best)
    assert equal(state(fitted), best)
    (validated,) = trainer().validate(fitted, datamodule(dtype=torch.float64), verbose=False)
    assert validated["valid/score"] == pytest.approx(kept["loss"], rel=1e-6)
    if callbacks:
        raw = content["current_model_state"]
        assert not torch.equal(raw["potential.model.beta"], best["beta"])
    test = datamodule(dtype=torch.float64).split("test")
    assert test.forces is not None
    expected = (fitted.potential(test).forces - test.forces).square().mean().sqrt().item()
    assert errors["force_rmse_ev_per_ang"] == pytest.approx(expected, rel=1e-6)


def test_limits() -> None:
    cfg = config(10, max_steps=55).trainer
    assert trainer_limits(cfg, 18, 5) == {"max_epochs": 10, "max_steps": 55}
    assert trainer_limits(cfg, 18, 5, 0.25) == {"max_epochs": 3, "max_steps": 14}
    assert trainer_limits(config(-1).trainer, 18, 5, 0.25) == {"max_epochs": -1, "max_steps": -1}
    few, fewer = (
        config(n, check_val_every_n_epoch=3, **more).trainer for n, more in ((2, {}), (-1, {"max_steps": 11}))
    )
    for bad in (few, fewer):
        with pytest.raises(InputError, match="check_val_every_n_epoch=3 is more than the 2"):
            trainer_limits(bad, 18, 5)
    trainer_limits(config(-1, max_steps=12, check_val_every_n_epoch=3).trainer, 18, 5)


def test_a_share_of_the_epochs(tmp_path: Path) -> None:
    run(config(6), tmp_path, module(dtype=torch.float64), share=0.5)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["epoch"] == 3
    assert content["lr_schedulers"][0]["last_epoch"] == 12
    assert content["lr_schedulers"][0]["_last_lr"][0] == 0


# starting from earlier weights


def saved(folder: Path, **changes: Any) -> Path:
    """A potential with weights that no seed gives."""
    config = MODEL | changes
    model = instantiate(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
        model.energy_unit.fill_(0.3)
    uncertainty = instantiate(UNCERTAINTY)(model=model).double()
    chain = Atoms(config["species"], positions=[[2.5 * k, 0, 0] for k in range(len(config["species"]))])
    uncertainty.fit(model, [collate([chain], CUTOFF, dtype=torch.float64)])
    path = folder / "start.ckpt"
    save_potential(path, model, uncertainty, model_config=config, uncertainty_config=UNCERTAINTY)
    return path


def test_starts_from_the_weights_of_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    fitted = module(dtype=torch.float64, start=str(path))
    content = torch.load(path, weights_only=True)["model_state"]
    assert equal(state(fitted), content)
    assert not equal(state(module(dtype=torch.float64)), content)
    single = module(start=str(path))
    assert single.model.beta.dtype == torch.float32
    # shifts keep their digits
    assert equal(
        state(single),
        {
            k: v.float() if v.is_floating_point() and k not in ("shift", "readout._extra_state") else v
            for k, v in content.items()
        },
    )


def test_fit_keeps_the_start_but_for_the_zero_of_energy(tmp_path: Path) -> None:
    """The regression of Eq. 10 would change the unit of energy, in which the weights express themselves."""
    data = datamodule(dtype=torch.float64)
    fitted = module(dtype=torch.float64, start=str(saved(tmp_path)))
    before = state(fitted)
    batch = data.split("train")
    assert batch.energy is not None
    missing = (batch.energy - fitted.potential(batch).energy).numpy()
    composition = fitted.model.composition(batch).double().numpy()
    weights = 1 / composition.sum(1)
    shift = np.linalg.lstsq(composition * weights[:, None], missing * weights, rcond=None)[0]
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(state(pl_module))

    trainer(FitScaleShift(), Look(), max_steps=1).fit(fitted, data)
    (found,) = seen
    torch.testing.assert_close(found.pop("shift"), before.pop("shift") + torch.tensor(shift / 0.3))
    assert equal(found, before)
    assert np.abs(shift).min() > 1e-3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"species": ["Cu", "Ag"]}, "knows the species Cu, Ag, but this run has Cu, Au"),
        ({"cutoff": 5.0}, "has model.cutoff=5.0, but this run 4.0"),
        ({"n_basis": 3}, "has a model of another size (beta: (2, 12, 3) there, (2, 12, 4) here)"),
        ({"hidden": [24]}, "has a model of another size (readout.weights.1: (1, 24) there, (24, 24) here)"),
        ({"r_min": 0.7}, "has another moments.gaussians.centres"),
    ],
)
def test_a_start_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = saved(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        module(start=str(path))
    assert str(error.value).startswith(f"training.start={path} {sentence}")
    assert "\n" not in str(error.value)


def test_no_start_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        module(start=str(tmp_path / "nothing.ckpt"))
    shutil.copy(__file__, tmp_path / "test.ckpt")
    with pytest.raises(InputError, match="is not a potential written by ubmd"):
        module(start=str(tmp_path / "test.ckpt"))

"""A fit that is interrupted anywhere and continued is the fit that was left alone, bit by bit."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from tests.training.test_module import CUTOFF, STRUCTURES, TEST
from ubmd import interruption
from ubmd.callbacks import checkpoint as checkpoint_module
from ubmd.callbacks.checkpoint import is_resumable
from ubmd.callbacks.steps import CumulativeStep
from ubmd.commands.parts import fitting
from ubmd.data.datamodule import GrowingDataModule
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.progress import run_progress
from ubmd.rounds.fit import Fit, fit_and_predict
from ubmd.training.module import PotentialModule

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:The '.*_dataloader' does not")


class Bomb(Exception):  # noqa: N818
    """What ends a fit."""


class Trace(Callback):
    """Every step of a fit: where it is, the learning rates and the batch; goes off at one of its hooks."""

    def __init__(self, fuse: int = -1):
        self.events: list[tuple[Any, ...]] = []
        self.fuse = fuse

    def _note(self, name: str, trainer: Trainer, *values: Any) -> None:
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k != "step"} if "end" in name else {}
        self.events.append((name, trainer.current_epoch, trainer.global_step, *rates, *scores.items(), *values))
        if len(self.events) - 1 == self.fuse:
            raise Bomb

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._note("epoch start", trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._note("batch start", trainer, batch_idx, *batch.energy.tolist())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._note("batch done", trainer, float(outputs["loss"]))

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._note("validation batch", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._note("validation end", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._note("epoch end", trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._note("fit end", trainer)

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._note("test", trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._note("predict", trainer)


class Log(Logger):
    """What was logged, by step and name; what is logged again replaces it."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[int | None, str], float] = {}

    name = version = "log"  # pyright: ignore

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.values |= {(step, name): value for name, value in metrics.items()}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"callbacks": {"ema": {"_target_": "ubmd.callbacks.ema.ExponentialMovingAverage", "decay": 0.9}}},
    "sharpness": {"module": {"sam_radius": 0.1}},
    "clipped": {"trainer": {"gradient_clip_val": 1.0}},
    "accumulated": {"trainer": {"accumulate_grad_batches": 3}},
    "ensemble": {"members": 2, "trainer": {"gradient_clip_val": 5.0}},
    "steps": {"trainer": {"max_epochs": -1, "max_steps": 22}},
    "seldom": {"trainer": {"check_val_every_n_epoch": 3}},
    "often": {"trainer": {"val_check_interval": 0.5}},
    "by_batches": {"trainer": {"val_check_interval": 3, "check_val_every_n_epoch": None}},
    "stopped": {
        "trainer": {"max_epochs": 30},
        "callbacks": {
            "early": {
                "_target_": "lightning.pytorch.callbacks.EarlyStopping",
                "monitor": "valid/score",
                "patience": 1,
                "min_delta": 0.4,
            }
        },
    },
    "stopped_between": {
        "trainer": {"max_epochs": 30, "check_val_every_n_epoch": 3},
        "callbacks": {
            "early": {
                "_target_": "lightning.pytorch.callbacks.EarlyStopping",
                "monitor": "valid/score",
                "patience": 3,
                "strict": False,
                "check_on_train_epoch_end": True,
            }
        },
    },
    "double": {"dtype": torch.float64},
}


def one_fit(
    folder: Path, name: str, trace: Trace, log: Log, every: int, *further: Callback
) -> tuple[Fit, dict[str, torch.Tensor]]:
    options = OPTIONS[name]
    trainer = {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "devices": 1, "max_epochs": 6}
    trainer |= {"num_sanity_val_steps": 0, "inference_mode": False, "enable_progress_bar": False, "max_steps": -1}
    trainer |= {"enable_model_summary": False, "check_val_every_n_epoch": 1, "log_every_n_steps": 1}
    cfg = OmegaConf.create({"trainer": trainer | options.get("trainer", {}), "callbacks": options.get("callbacks", {})})
    dtype, members = options.get("dtype", torch.float32), options.get("members", 1)

    def network(species: list[str], seed: int = 0) -> GMNN:
        return GMNN(species, cutoff=CUTOFF, n_basis=2, n_gauss=4, hidden=(8, 8), seed=seed)

    model = network(["Cu", "Au"]) if members == 1 else Ensemble(["Cu", "Au"], network, members)
    module = PotentialModule(model.to(dtype), **options.get("module", {}))  # pyright: ignore
    size = options.get("batch_size", 5)
    data = GrowingDataModule(CUTOFF, ["Cu", "Au"], size, 3, stress=True, test=TEST, dtype=dtype, members=members)
    data.set_round(0, STRUCTURES)
    with run_progress() as progress:
        fit = fit_and_predict(
            fitting(cfg, every),
            module,
            data,
            folder,
            acquisition=[CumulativeStep(100), trace, *further],
            loggers=[log],
            progress=progress,
            title="fit",
        )
    return fit, {k: v.clone() for k, v in module.state_dict().items()}


def check(folder: Path, name: str, fuses: Sequence[int] | None) -> None:
    """Blows a fit up at some of its events (None: at each), and compares the continued one with that left alone."""
    whole, log = Trace(), Log()
    fit, weights = one_fit(folder / "whole", name, whole, log, 2)
    n = len(whole.events)
    for fuse in range(n) if fuses is None else [f % n for f in fuses]:
        first, second, again = Trace(fuse), Trace(), Log()
        with pytest.raises(Bomb):
            one_fit(folder / str(fuse), name, first, again, 2)
        found, found_weights = one_fit(folder / str(fuse), name, second, again, 2)
        assert first.events == whole.events[: fuse + 1]
        assert second.events == whole.events[-len(second.events) :], fuse
        assert found.errors == fit.errors
        assert found.steps == fit.steps
        assert all(torch.equal(weights[k], found_weights[k]) for k in weights), fuse
        assert again.values == log.values, fuse


@pytest.mark.parametrize("name", OPTIONS)
def test_interrupted_and_continued(tmp_path: Path, name: str) -> None:
    """In the midst of an epoch behind a saved one, at an epoch's end, and between the fit and its test."""
    check(tmp_path, name, [27, -4, -2])


@pytest.mark.slow
def test_interrupted_anywhere(tmp_path: Path) -> None:
    check(tmp_path, "plain", None)


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_damaged_state(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A fit whose state cannot be used starts afresh and says so."""
    whole, log = Trace(), Log()
    _, weights = one_fit(tmp_path / "whole", "plain", whole, log, 2)
    with pytest.raises(Bomb):
        one_fit(tmp_path / "run", "plain", Trace(50), Log(), 2)
    file = tmp_path / "run" / "last.ckpt"
    content = file.read_bytes()
    if damage == "other":
        torch.save({"callbacks": {}}, file)
    else:
        half = len(content) // 2
        file.write_bytes(content[:half] + (bytes([content[half] ^ 1]) + content[half + 1 :]) * (damage == "changed"))
    assert not is_resumable(file)
    second = Trace()
    _, found = one_fit(tmp_path / "run", "plain", second, Log(), 2)
    assert "last.ckpt is damaged or of another version" in caplog.text
    assert second.events == whole.events
    assert all(torch.equal(weights[k], found[k]) for k in weights)


class Signal(Callback):
    """Sends the process a signal in the midst of an epoch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (3, 1):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("grace", [1e6, 0.0], ids=["epoch", "step"])
def test_signal(tmp_path: Path, grace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch is finished and saved, unless that takes too long; what follows is as if nothing had happened."""
    whole, log = Trace(), Log()
    _, weights = one_fit(tmp_path / "whole", "plain", whole, log, 100)
    monkeypatch.setattr(checkpoint_module, "GRACE", grace)
    first, second, again = Trace(), Trace(), Log()
    with pytest.raises(interruption.Interrupted) as stopped, interruption.handled():
        one_fit(tmp_path / "run", "plain", first, again, 100, Signal())
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (tmp_path / "run" / "last.ckpt").exists() == (grace > 0)
    _, found = one_fit(tmp_path / "run", "plain", second, again, 100)
    expected = whole.events[len(first.events) :] if grace else whole.events
    assert second.events == expected
    assert all(torch.equal(weights[k], found[k]) for k in weights)
    assert again.values == log.values


def test_fit_of_an_earlier_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It chose by another score, which compares with no loss, and its weights do not name the scale of SiLU."""
    with pytest.raises(Bomb):
        one_fit(tmp_path, "plain", Trace(50), Log(), 2)
    file = tmp_path / "last.ckpt"
    content = torch.load(file, weights_only=True)
    kept = content["callbacks"]["FitCheckpoint"]
    kept["score"] = kept.pop("loss") * 1e-9
    for state in (content["state_dict"], kept["weights"]):
        del state["potential.model.readout._extra_state"]
    torch.save(content, file)
    assert is_resumable(file)
    _, found = one_fit(tmp_path, "plain", Trace(), Log(), 2)
    assert caplog.text.count("chose the best weights by another score") == 1
    last = torch.load(file, weights_only=True)["callbacks"]["FitCheckpoint"]
    assert kept["score"] < last["loss"] < math.inf
    assert not torch.equal(found["potential.model.beta"], kept["weights"]["potential.model.beta"])
    assert found["potential.model.readout._extra_state"] == 1.6765

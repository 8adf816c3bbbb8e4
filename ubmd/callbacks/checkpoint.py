"""The best weights of a fit, and its state between two epochs, from which it continues."""

from __future__ import annotations

import logging
import math
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ubmd import interruption
from ubmd.files import save_tensors

__all__ = ["FitCheckpoint", "WholeFiles", "is_resumable"]

log = logging.getLogger(__name__)

GRACE = 10.0
"""How long a signal may wait for the end of an epoch, s; schedulers allow 30 s before they kill."""


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints that are whole or not there, also if the process is killed in the midst."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save_tensors(Path(path), checkpoint)


class FitCheckpoint(Callback):
    """Keeps the weights of the lowest ``valid/score``, and saves the state that an interrupted fit resumes from.

    The state is that between two epochs, before any callback has heard of the next one, so that a continued fit goes
    through the very same motions. It is saved every ``every_n_epochs``, when the fit ends and when a signal asks the
    process to stop; that which stops in the midst of an epoch repeats it. It holds the best weights too: one file
    cannot contradict itself.

    Must come before all callbacks that average weights, which validate with their own, and before all that act on
    the start of an epoch.

    Args:
        file: of the state.
        every_n_epochs: epochs between savings.
    """

    def __init__(self, file: Path, every_n_epochs: int):
        self.file, self.every_n_epochs = file, every_n_epochs
        self.score = math.inf
        self.weights: dict[str, Tensor] = {}
        """State of the module with the best score."""
        self.seconds = 0.0
        """Time spent on the fit, that before an interruption included."""
        self._metrics: dict[str, Tensor] = {}
        self._validated: dict[str, Tensor] = {}
        self._resumed = self._started = 0.0
        self._saved_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interruption.reinstall()
        trainer.callback_metrics.update(self._metrics)  # callbacks may look at those of earlier epochs
        self._resumed, self._started = self.seconds, time.perf_counter()
        self._saved_step = trainer.global_step  # the state here is that of the file, or that of no step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = trainer.current_epoch % self.every_n_epochs == 0
        # of several processes the first alone hears of signals, and all of them have to save
        if (
            due or trainer.strategy.reduce_boolean_decision(interruption.requested(), all=False)
        ) and trainer.global_step != self._saved_step:
            self._save(trainer)
        if interruption.requested():
            interruption.stop()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._stop_within_epoch()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop_within_epoch()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = {k: v.detach().clone() for k, v in pl_module.state_dict().items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        score = float(trainer.callback_metrics.get("valid/score", math.inf))
        if not trainer.sanity_checking and score < self.score:
            self.score, self.weights = score, self._validated
        self._validated = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _stop_within_epoch(self) -> None:
        if interruption.requested(GRACE):
            interruption.stop()

    def _save(self, trainer: Trainer) -> None:
        self.seconds = self._resumed + time.perf_counter() - self._started
        self._metrics = dict(trainer.callback_metrics)
        trainer.save_checkpoint(self.file, weights_only=False)
        self._saved_step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        kept = {"loss": self.score, "weights": self.weights, "seconds": self.seconds}
        return kept | {"metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "loss" not in state_dict:  # the sum of mean errors, by which earlier versions chose, compares with no loss
            log.warning(
                "%s: the fit was begun by an earlier version, which chose the best weights by another score; from here "
                "on they are chosen by the loss of the validation structures, among those of now",
                self.file,
            )
        self.score = state_dict.get("loss", math.inf)
        self.weights, self.seconds, self._metrics = (state_dict[k] for k in ("weights", "seconds", "metrics"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        _end_epoch(checkpoint["loops"]["fit_loop"])
        checkpoint["should_stop"] = trainer.should_stop

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint["should_stop"]  # a fit that was stopped early must not go on


def is_resumable(file: Path) -> bool:
    """Whether a file is there, undamaged and a state that :class:`FitCheckpoint` has saved."""
    try:
        with zipfile.ZipFile(file) as archive:  # torch does not look at its checksums
            if archive.testzip() is not None:
                return False
        content = torch.load(file, map_location="cpu", weights_only=True)
        return FitCheckpoint.__qualname__ in content["callbacks"] and "should_stop" in content
    except (OSError, EOFError, RuntimeError, LookupError, TypeError, ValueError, AttributeError):
        return False
    except (zipfile.BadZipFile, pickle.UnpicklingError):
        return False


def _end_epoch(loops: dict[str, Any]) -> None:
    """Makes the progress of the trainer's loops that between two epochs: nothing of the next one is under way.

    Of a state that is saved within an epoch, or at its end, the trainer repeats or leaves out what it takes to be
    done already, epochs included.
    """
    for name, progress in loops.items():
        if name == "epoch_progress":
            for count in (progress["current"], progress["total"]):
                count["ready"] = count["started"] = count["processed"] = count["completed"]
        elif isinstance(progress, dict):
            _clear(progress)


def _clear(progress: dict[str, Any]) -> None:
    """Sets the counts of the present epoch to zero, those of all epochs stay."""
    for key, value in progress.items():
        if key == "current":
            progress[key] = dict.fromkeys(value, 0)
        elif key == "is_last_batch":
            progress[key] = False
        elif isinstance(value, dict):
            _clear(value)

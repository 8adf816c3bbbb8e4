"""One fit: train with checkpoints, take the best weights, test them, and predict with them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from ubmd import interruption
from ubmd.callbacks.checkpoint import FitCheckpoint, WholeFiles, is_resumable
from ubmd.callbacks.divergence import Divergence, check_best
from ubmd.callbacks.monitor import FitProgress
from ubmd.callbacks.scale_shift import FitScaleShift
from ubmd.commands.trainer_options import trainer_limits
from ubmd.config import build
from ubmd.data.datamodule import GrowingDataModule
from ubmd.errors import InputError
from ubmd.progress import RunProgress
from ubmd.training.module import PotentialModule

__all__ = ["Fit", "fit_and_predict", "predict", "set_up_lightning"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """What came of a fit."""

    errors: dict[str, float]
    """Errors on the test set by name, without ``test/``; empty without a test set."""
    steps: int
    """Optimisation steps that were taken."""
    seconds: float
    """Wall time of the training."""
    device: torch.device
    """Where it took place."""


def fit_and_predict(
    cfg: DictConfig,
    module: PotentialModule,
    datamodule: GrowingDataModule,
    folder: Path,
    *,
    acquisition: Sequence[Callback],
    loggers: list[Logger],
    progress: RunProgress,
    title: str,
    checkpoint_epochs: int,
    share: float = 1.0,
) -> Fit:
    """Trains, or continues an interrupted training; then tests and predicts with the best weights.

    The best weights are those of the lowest ``valid/score``; with a
    :class:`~ubmd.callbacks.ema.ExponentialMovingAverage` among the callbacks they are averaged ones. They are
    in ``module`` when this returns.

    Args:
        cfg: the configuration with its ``trainer`` and ``callbacks``.
        module: to be trained.
        datamodule: of the training, validation and test structures.
        folder: for ``last.ckpt``, from which an interrupted training continues.
        acquisition: callbacks that act in the predict loop, whose dataloader is the calibration split.
        loggers: of the run.
        progress: display.
        title: of the bar.
        checkpoint_epochs: epochs between savings of the state that an interrupted fit resumes from.
        share: of the trainer's epochs and steps to be trained.

    Raises:
        InputError: if the fit would end, or has ended, before its first validation, or diverged.
    """
    limits = trainer_limits(cfg, len(datamodule.train_indices), datamodule.batch_size, share)
    further: list[Callback] = [build(cfg, f"callbacks.{name}") for name in cfg.get("callbacks") or ()]
    checkpoint = FitCheckpoint(folder / "last.ckpt", checkpoint_epochs)
    with progress.stage(title) as stage:
        trainer = _trainer(
            cfg.trainer,
            callbacks=[FitScaleShift(), checkpoint, Divergence(), FitProgress(stage), *acquisition, *further],
            logger=loggers,
            default_root_dir=folder,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in further),
            **limits,
        )
        with interruption.shielded():
            trainer.fit(module, datamodule, ckpt_path=_resumable(checkpoint.file), weights_only=True)
    if not checkpoint.weights:
        raise InputError("the fit ended before its first validation, hence without best weights; train longer")
    module.load_state_dict(checkpoint.weights)
    check_best(module, datamodule)
    errors = trainer.test(module, datamodule, verbose=False)[0] if datamodule.test_structures else {}
    trainer.predict(module, datamodule, return_predictions=False)
    errors = {name.removeprefix("test/"): float(value) for name, value in errors.items()}
    return Fit(errors, trainer.global_step, checkpoint.seconds, trainer.strategy.root_device)


def _trainer(config: DictConfig, **options: Any) -> Trainer:
    """The trainer of the configuration, which writes whole files and does not look for a cluster around it."""
    plugins = [instantiate(p) for p in config.get("plugins") or []]
    # without an environment given, Lightning infers one from that of a cluster's job; it refuses or divides work, and
    # asks SLURM to run the job again
    return instantiate(config, plugins=[*plugins, WholeFiles(), LightningEnvironment()], **options)


def _resumable(file: Path) -> Path | None:
    """The state to continue from, if it is there and can be used."""
    if not file.exists() or is_resumable(file):
        return file if file.exists() else None
    log.warning("%s is damaged or of another version of ubmd; the fit starts afresh", file)
    return None


def predict(
    cfg: DictConfig, module: PotentialModule, datamodule: GrowingDataModule, callbacks: Sequence[Callback]
) -> None:
    """Predicts the calibration split with the weights that the module has, for what the callbacks then do."""
    options = {"callbacks": list(callbacks), "logger": False, "enable_checkpointing": False}
    trainer = _trainer(cfg.trainer, **options)
    trainer.predict(module, datamodule, return_predictions=False)


def set_up_lightning() -> None:
    """Makes Lightning silent about what every round would repeat, and tells it that this process is all there is.

    From variables such as ``SLURM_PROCID`` and ``LOCAL_RANK`` it would take the processes of ``srun`` for parts of one
    training, of which only the first writes logs; they are runs of their own.
    """
    rank_zero_only.rank = 0  # pyright: ignore[reportFunctionMemberAccess]
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",
        ".*Trying to infer the `batch_size`.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*LeafSpec.*is deprecated.*",
        ".*GPU available but not used.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message)

"""One fit: train with checkpoints, take the best weights, test them, and predict with them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_only

from ubmd import interruption
from ubmd.callbacks.checkpoint import FitCheckpoint, WholeFiles, is_resumable
from ubmd.callbacks.divergence import Divergence, check_best
from ubmd.callbacks.monitor import FitProgress
from ubmd.callbacks.scale_shift import FitScaleShift
from ubmd.data.datamodule import GrowingDataModule
from ubmd.devices import first_device, n_processes
from ubmd.errors import InputError
from ubmd.progress import RunProgress
from ubmd.rounds.processes import Together, alone, together
from ubmd.rounds.trainer_options import check_trainer_options, trainer_limits
from ubmd.training.module import PotentialModule

__all__ = ["Fit", "Fitting", "fit_and_predict", "predict", "set_up_lightning"]

log = logging.getLogger(__name__)


_PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


@dataclass(frozen=True)
class Fitting:
    """How potentials are fitted."""

    make_trainer: Callable[..., Trainer]
    """Makes a trainer; what is given replaces its own options, ``plugins`` are added to them."""
    options: Mapping[str, Any]
    """The trainer's own options as plain values."""
    make_callbacks: Callable[[], list[Callback]]
    """Makes the user's own callbacks."""
    checkpoint_epochs: int
    """Epochs between savings of the state that an interrupted fit resumes from."""

    @property
    def processes(self) -> int:
        """How many processes a fit takes, one for each of the trainer's devices."""
        return n_processes(self.options)

    def trainer(self, member: Together | None = None, **options: Any) -> Trainer:
        """A trainer that writes whole files and does not look for a cluster around it.

        Args:
            member: who this process is among those that train together; None for what it does by itself.
            options: replace the trainer's own.
        """
        if member is None or self.processes == 1:
            options |= {"devices": first_device(self.options), "strategy": "auto"}
        elif self.options.get("strategy") in (None, "auto"):
            options["strategy"] = "ddp"
        # without an environment given, Lightning infers one from that of a cluster's job; it refuses or divides work,
        # and asks SLURM to run the job again. Its samplers would count some structures twice
        plugins = [WholeFiles(), member or alone()]
        return self.make_trainer(plugins=plugins, use_distributed_sampler=False, **options)

    def limits(self, n_train: int, batch_size: int, share: float = 1.0) -> dict[str, int]:
        """See :func:`~ubmd.rounds.trainer_options.trainer_limits`; refuses more processes than structures in a step."""
        most = min(n_train, batch_size)
        if self.processes > most:
            raise InputError(
                f"trainer.devices={self.options.get('devices')} are {self.processes} processes, which cannot share a "
                f"mini-batch of {most} structures; use fewer, or a larger data.batch_size"
            )
        return trainer_limits(self.options, n_train, batch_size, share)

    def check(self) -> None:
        """See :func:`~ubmd.rounds.trainer_options.check_trainer_options`; also refuses callbacks that cannot be."""
        check_trainer_options(self.options, partial(self.trainer, Together(0, self.processes, 0)))
        self.make_callbacks()


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
    fitting: Fitting,
    module: PotentialModule,
    datamodule: GrowingDataModule,
    folder: Path,
    *,
    acquisition: Sequence[Callback],
    loggers: list[Logger],
    progress: RunProgress,
    title: str,
    share: float = 1.0,
) -> Fit:
    """Trains, or continues an interrupted training; then tests and predicts with the best weights.

    The best weights are those of the lowest ``valid/score``; with a
    :class:`~ubmd.callbacks.ema.ExponentialMovingAverage` among the callbacks they are averaged ones. They are
    in ``module`` when this returns.

    Args:
        fitting: how to fit.
        module: to be trained.
        datamodule: of the training, validation and test structures.
        folder: for ``last.ckpt``, from which an interrupted training continues.
        acquisition: callbacks that act in the predict loop, whose dataloader is the calibration split.
        loggers: of the run.
        progress: display.
        title: of the bar.
        share: of the trainer's epochs and steps to be trained.

    Raises:
        InputError: if the fit would end, or has ended, before its first validation, or diverged.
    """
    limits = fitting.limits(len(datamodule.train_indices), datamodule.batch_size, share)
    file = folder / "last.ckpt"
    train = partial(_train, fitting, module, datamodule, file, resume=_resumable(file), limits=limits)
    with progress.stage(title) as stage, together(fitting.processes, train) as first:
        callbacks = [FitProgress(stage), *acquisition]
        with interruption.shielded():
            trainer, checkpoint = train(first, callbacks=callbacks, logger=loggers)
    if not checkpoint.weights:
        raise InputError("the fit ended before its first validation, hence without best weights; train longer")
    module.load_state_dict(checkpoint.weights)
    check_best(module, datamodule)
    device = trainer.strategy.root_device
    if fitting.processes > 1:
        trainer = _successor(fitting, trainer)
    errors = trainer.test(module, datamodule, verbose=False)[0] if datamodule.test_structures else {}
    trainer.predict(module, datamodule, return_predictions=False)
    errors = {name.removeprefix("test/"): float(value) for name, value in errors.items()}
    return Fit(errors, trainer.global_step, checkpoint.seconds, device)


def _train(
    fitting: Fitting,
    module: PotentialModule,
    datamodule: GrowingDataModule,
    file: Path,
    member: Together,
    *,
    resume: Path | None,
    limits: Mapping[str, int],
    callbacks: Sequence[Callback] = (),
    logger: list[Logger] | bool = False,
) -> tuple[Trainer, FitCheckpoint]:
    """What every process of a fit does; ``callbacks`` and ``logger`` are those of the first one alone."""
    set_up_lightning()
    further = fitting.make_callbacks()
    if fitting.options.get("profiler") in _PROFILERS and callbacks:  # by its name alone Lightning would only log
        limits = {**limits, "profiler": _PROFILERS[fitting.options["profiler"]](file.parent.parent, "profile")}
    checkpoint = FitCheckpoint(file, fitting.checkpoint_epochs)
    trainer = fitting.trainer(
        member,
        callbacks=[FitScaleShift(), checkpoint, Divergence(), *callbacks, *further],
        logger=logger,
        default_root_dir=file.parent,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in further),
        **limits,
    )
    trainer.fit(module, datamodule, ckpt_path=resume, weights_only=True)
    return trainer, checkpoint


def _successor(fitting: Fitting, trainer: Trainer) -> Trainer:
    """A trainer that goes on alone where one of several processes has ended, with its callbacks, loggers and counts."""
    callbacks, checkpoints = trainer.callbacks, bool(trainer.checkpoint_callbacks)  # pyright: ignore
    options = {"logger": trainer.loggers, "default_root_dir": trainer.default_root_dir}
    after = fitting.trainer(callbacks=callbacks, enable_checkpointing=checkpoints, **options)
    after.fit_loop.load_state_dict(trainer.fit_loop.state_dict())
    return after


def _resumable(file: Path) -> Path | None:
    """The state to continue from, if it is there and can be used."""
    if not file.exists() or is_resumable(file):
        return file if file.exists() else None
    log.warning("%s is damaged or of another version of ubmd; the fit starts afresh", file)
    return None


def predict(
    fitting: Fitting, module: PotentialModule, datamodule: GrowingDataModule, callbacks: Sequence[Callback]
) -> None:
    """Predicts the calibration split with the weights that the module has, for what the callbacks then do."""
    trainer = fitting.trainer(callbacks=list(callbacks), logger=False, enable_checkpointing=False)
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
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # equal in all processes as it is
        "The ``compute`` method of metric .* was called before.*",
        "Grad strides do not match bucket view strides.*",
    ):
        warnings.filterwarnings("ignore", message)

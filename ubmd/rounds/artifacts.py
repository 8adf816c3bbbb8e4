"""What a finished run hands to Weights & Biases: its figures, its potential, its data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger

from ubmd.rounds.wandb_logger import SteadyWandbLogger

__all__ = ["log_results"]


def log_results(loggers: Sequence[Logger], *, figures: Path, potential: Path, dataset: Path | None = None) -> None:
    """Logs figures as images, and potential and data set as artifacts; other loggers than wandb's are left alone.

    Offline runs keep the artifacts until they are synced. The same contents twice make one version.

    Args:
        loggers: of the run.
        figures: the folder of its PNG files.
        potential: a ``model.ckpt``.
        dataset: labelled structures, if they are the run's own.
    """
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            with logger.tolerated():
                _log_results(logger, figures, {"model": potential, "dataset": dataset})


def _log_results(logger: SteadyWandbLogger, figures: Path, files: Mapping[str, Path | None]) -> None:
    import wandb

    for file in sorted(figures.glob("*.png")):
        logger.log_image(f"figures/{file.stem}", [str(file)])
    for kind, path in files.items():
        if path is not None:
            artifact = wandb.Artifact(f"{kind}-{logger.experiment.id}", type=kind)
            artifact.add_file(str(path))
            logger.experiment.log_artifact(artifact)

"""What a run tells Weights & Biases besides plain metrics: each round by its structures, inputs, results."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from ubmd.rounds.wandb_logger import SteadyWandbLogger

__all__ = ["BY_STRUCTURES", "RUN", "STRUCTURES", "log_folder", "log_inputs", "log_results", "log_round"]

STRUCTURES = "al/n_structures"
"""Labelled structures of a round, training and validation together."""
BY_STRUCTURES = "by_structures"
"""Prefix of what is drawn against them: in wandb a metric has one abscissa, and that of ``al/...`` is the round."""

RUN = "run"
"""Type of the artifact with what is in a run's folder for the paper's figures."""
_RUN_FILES = ("config.yaml", "metrics.csv", "metrics.json", "figures/*.csv")
_TRAJECTORIES = "rounds/*/trajectory.h5"

MOST_ROWS = 10_000
"""Of a table, as wandb has it."""


def log_round(loggers: Sequence[Logger], metrics: Mapping[str, Any]) -> None:
    """Logs a round's row of ``metrics.csv`` as ``al/...``; wandb has errors and coverages by structures, too.

    The step is the number of the round, but for wandb, whose steps only grow and whose abscissa is ``al/round``, and
    for Lightning's CSV file, in which it counts what is logged.
    """
    values = {f"al/{name}": float(value) for name, value in metrics.items() if isinstance(value, int | float)}
    results = {name: value for name, value in values.items() if "rmse" in name or "coverage" in name}
    again = {STRUCTURES: values.get("al/n_train", 0.0) + values.get("al/n_valid", 0.0)}
    again |= {f"{BY_STRUCTURES}/{name.removeprefix('al/')}": value for name, value in results.items()}
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            logger.log_metrics(values | again)
        else:
            logger.log_metrics(values, None if isinstance(logger, CSVLogger) else metrics.get("round"))


def log_inputs(loggers: Sequence[Logger], files: Mapping[Path, str]) -> None:
    """Tells wandb which files a run starts from, so that it draws where they come from and what became of them.

    Told are name and digest; contents stay where they are. A file that another run made is known by the name and the
    digest that it had there. Offline wandb knows no inputs.

    Args:
        loggers: of the run.
        files: what each is, ``dataset`` or ``model``.
    """
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            with logger.tolerated():
                for path, kind in files.items() if not logger.experiment.offline else ():
                    artifact = _artifact(kind, path)
                    artifact.add_reference(path.resolve().as_uri(), name=_entry(kind, path))
                    logger.experiment.use_artifact(artifact)


def log_results(
    loggers: Sequence[Logger],
    *,
    figures: Path,
    potential: Path,
    dataset: Path | None = None,
    rounds: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Logs figures as images, tables, and potential and data set as artifacts; only wandb's logger takes them.

    Offline runs keep the artifacts until they are synced. The same contents twice make one version.

    Args:
        loggers: of the run.
        figures: the folder of its PNG files, and of the CSV files with the numbers behind them.
        potential: a ``model.ckpt``.
        dataset: labelled structures, if they are the run's own.
        rounds: rows of ``metrics.csv``.
    """
    last = dict(rounds[-1]) if rounds else {}
    known = {k: v for k, v in last.items() if isinstance(v, int | float) and math.isfinite(v)}
    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            with logger.tolerated():
                for file in sorted(figures.glob("*.png")):
                    logger.log_image(f"figures/{file.stem}", [str(file)])
                _log_tables(logger, figures, rounds)
                for kind, path in {"dataset": dataset, "model": potential}.items():
                    if path is not None:
                        artifact = _artifact(kind, path, {"run": logger.experiment.name, **known})
                        artifact.add_file(str(path), name=_entry(kind, path))
                        logger.experiment.log_artifact(artifact)


def log_folder(loggers: Sequence[Logger], folder: Path) -> None:
    """Logs what the paper's figures are drawn from as an artifact; only wandb's logger takes it.

    Args:
        loggers: of the run.
        folder: of the run, which is finished.
    """
    import wandb

    for logger in loggers:
        if isinstance(logger, SteadyWandbLogger):
            with logger.tolerated():
                artifact = wandb.Artifact(f"{RUN}-{logger.experiment.id}", type=RUN)
                for pattern in (*_RUN_FILES, _TRAJECTORIES):
                    for path in sorted(folder.glob(pattern)):
                        # trajectories are long and stay as they are: no copy until they are sent
                        policy = "immutable" if pattern == _TRAJECTORIES else "mutable"
                        artifact.add_file(str(path), name=path.relative_to(folder).as_posix(), policy=policy)
                logger.experiment.log_artifact(artifact)


def _log_tables(logger: SteadyWandbLogger, figures: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    if rounds:
        columns = list(dict.fromkeys(name for row in rounds for name in row))
        logger.log_table("tables/rounds", columns, [[row.get(name) for name in columns] for row in rounds])
    for file in sorted(figures.glob("*.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            header, *lines = list(csv.reader(stream)) or [[]]
        values = [[float(text) for text in line] for line in lines[:MOST_ROWS]]
        logger.log_table(f"tables/{file.stem}", header, values)


def _artifact(kind: str, path: Path, metadata: dict[str, Any] | None = None) -> Any:
    """An artifact without entries; its name follows from the contents, whatever run it is made by or used in."""
    import wandb

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    return wandb.Artifact(f"{kind}-{digest}", type=kind, metadata=metadata)


def _entry(kind: str, path: Path) -> str:
    """What a file is called in an artifact, of which the artifact's digest is made: the same wherever it lies."""
    return f"{kind}{path.suffix}"

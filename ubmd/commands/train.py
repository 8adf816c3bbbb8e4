"""``ubmd train`` and ``ubmd evaluate``: one potential for a data set, and its errors on another."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig
from rich.console import Console

from ubmd.analysis.evaluation import (
    Evaluation,
    error_metrics,
    errors_table,
    evaluate_structures,
    half_confidence,
    predicted_structures,
    scatter_of_worst_atoms,
)
from ubmd.analysis.figures import save_figure
from ubmd.callbacks.calibrate import Calibrate
from ubmd.commands.loggers import check_loggers, close_loggers, open_loggers
from ubmd.commands.trainer_options import check_trainer_options, trainer_limits
from ubmd.config import build, check_device, plain
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.files import DataFiles
from ubmd.data.io import read_labelled, write_structures
from ubmd.errors import InputError
from ubmd.files import write_text
from ubmd.interfaces.ase import check_elements, torch_device
from ubmd.models.gmnn import species_numbers
from ubmd.progress import RunProgress, run_progress
from ubmd.rounds.artifacts import log_results
from ubmd.rounds.fit import Fit, fit_and_predict, set_up_lightning
from ubmd.runs.store import RoundStore
from ubmd.seeding import Stage, stage_seed
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.checkpoint import check_parts, load_potential, save_potential

__all__ = ["evaluate", "train"]

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float:
    """Fits a potential to the data set in ``cfg.data``, or continues the fit in ``cfg.paths.run``.

    Writes into the run folder ``model.ckpt``, ``metrics.json`` (last, which marks the end) and
    ``figures/calibration.png``.

    Returns:
        the force RMSE on the test set, without one on the validation set, eV/Å (for sweepers).

    Raises:
        InputError: for anything wrong in the configuration or the data, before any expensive work; also if
            the folder holds a fit to other data or with other settings.
    """
    set_up_lightning()
    check_device(cfg.trainer)
    check_loggers(cfg)
    job = _prepare(cfg)
    folder = Path(cfg.paths.run)
    store = RoundStore(folder)
    store.open(plain(cfg) | {"contents": _digests(job.files.structures)})
    record = folder / "metrics.json"
    loggers: list[Logger] = []
    with run_progress() as progress:
        if not store.keeps(record):
            try:
                loggers.extend(open_loggers(cfg, folder))
                metrics = _fit(cfg, job, folder, loggers, progress)
                log_results(loggers, figures=folder / "figures", potential=folder / "model.ckpt")
            finally:
                close_loggers(loggers)
            _write_json(record, metrics)
            store.keep(folder / "model.ckpt", record)
        shutil.rmtree(folder / "fit", ignore_errors=True)
        metrics = json.loads(record.read_text(encoding="utf-8"))
        held_out = {name: metrics[name] for name in ("valid", "test") if name in metrics}
        _report(held_out, f"{folder}: model.ckpt, metrics.json, figures/", progress.console)
    return held_out.get("test", held_out["valid"])["force_rmse_ev_per_ang"]


@dataclass(frozen=True)
class _Job:
    """What a fit is made of."""

    files: DataFiles
    species: list[str]
    datamodule: GrowingDataModule
    module: PotentialModule
    uncertainty: Any
    calibration: dict[str, Any]


def _prepare(cfg: DictConfig) -> _Job:
    """Builds everything, cheapest checks first."""
    if cfg.dtype not in ("float32", "float64"):
        raise InputError(f"dtype={cfg.dtype} must be float32 or float64")
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise InputError(f"seed={cfg.seed} must be zero or a positive whole number")
    if cfg.checkpoint_epochs < 1:
        raise InputError(f"checkpoint_epochs={cfg.checkpoint_epochs} must be at least 1")
    check_trainer_options(cfg)
    calibration = {name: build(cfg, f"calibration.{name}") for name in ("atomic", "total")}
    files = build(cfg, "data")
    if not isinstance(files, DataFiles):
        raise InputError("data must be data=files with data.train=FILE; other data grow in `ubmd learn`")
    species = _species(cfg, files)
    dtype = getattr(torch, cfg.dtype)
    for part in ("model", "uncertainty"):
        check_parts(plain(cfg[part]), part)
    model = build(cfg, "model", species=species, seed=stage_seed(cfg.seed, 0, Stage.WEIGHTS)).to(dtype)
    module: PotentialModule = build(cfg, "training", model=model)
    uncertainty = build(cfg, "uncertainty", model=model, seed=stage_seed(cfg.seed, 0, Stage.SKETCH)).to(dtype)
    datamodule = files.datamodule(
        cutoff=model.cutoff,
        species=species,
        stress=module.stress,
        dtype=dtype,
        seed=cfg.seed,
        members=model.n_members,
    )
    if cfg.training.get("start") is None:  # else it may know elements that are not trained on
        files.check_trained(datamodule)
    trainer_limits(cfg, len(datamodule.train_indices), datamodule.batch_size)
    return _Job(files, species, datamodule, module, uncertainty, calibration)


def _species(cfg: DictConfig, files: DataFiles) -> list[str]:
    """The species of the configuration or else of the data."""
    if cfg.species == "auto":
        return files.symbols
    if not isinstance(cfg.species, ListConfig):
        raise InputError(f"species={cfg.species} must be a list, e.g. species=[H,C,O], or auto")
    species: list[str] = plain(cfg.species)
    species_numbers(species)
    files.check_species(species)
    return species


def _fit(cfg: DictConfig, job: _Job, folder: Path, loggers: list[Logger], progress: RunProgress) -> dict[str, Any]:
    """Trains, calibrates, saves the potential, draws the figure; returns the metrics."""
    model, uncertainty, datamodule = job.module.model, job.uncertainty, job.datamodule
    save = partial(
        save_potential,
        folder / "model.ckpt",
        model,
        uncertainty,
        model_config=plain(cfg.model) | {"_partial_": False, "species": job.species},
        uncertainty_config=plain(cfg.uncertainty),
    )
    calibrate = Calibrate(uncertainty, **job.calibration, done=save)
    fit: Fit = fit_and_predict(
        cfg,
        job.module,
        datamodule,
        folder / "fit",
        acquisition=[calibrate],
        loggers=loggers,
        progress=progress,
        title="fit",
        checkpoint_epochs=cfg.checkpoint_epochs,
    )
    held_out = {"valid": [datamodule.structures[i] for i in datamodule.valid_indices]}
    if datamodule.test_structures:
        held_out["test"] = datamodule.test_structures
    # what is reported is what was saved
    potential = load_potential(folder / "model.ckpt", device=fit.device)
    size = datamodule.evaluation_batch_size
    found = {
        k: evaluate_structures(potential.model, potential.uncertainty, v, batch_size=size) for k, v in held_out.items()
    }
    half = {name: half_confidence(evaluation, found["valid"], **job.calibration) for name, evaluation in found.items()}
    shown = "test" if "test" in found else "valid"
    _draw(found[shown], job.calibration["atomic"].alpha, folder, half[shown])
    metrics: dict[str, Any] = {"n_train": len(datamodule.train_indices), "n_valid": len(datamodule.valid_indices)}
    metrics |= {name: error_metrics(evaluation, half[name]) for name, evaluation in found.items()}
    return metrics | {
        **calibrate.coverage,
        "time_fit_s": fit.seconds,
        "time_calibrate_s": calibrate.seconds,
    }


def evaluate(cfg: DictConfig) -> float:
    """Compares the potential in ``cfg.potential`` with the labels in ``cfg.structures``.

    Writes into the run folder ``metrics.json``, ``predictions.extxyz`` and ``figures/calibration.png``.

    Returns:
        the force RMSE, eV/Å (for sweepers).

    Raises:
        InputError: for anything wrong in the configuration, the potential or the structures, before any work.
    """
    if cfg.get("logger"):
        raise InputError("logger: `ubmd evaluate` logs to no logger, its results are in metrics.json; leave it out")
    for name, low, high in (("alpha", 0, 1), ("batch_size", 0, float("inf"))):
        if isinstance(cfg[name], bool | str) or not low < cfg[name] < high:
            raise InputError(f"{name}={cfg[name]} must be above {low}" + (" and below 1" if high == 1 else ""))
    device = torch_device(cfg.device)
    trained = load_potential(str(cfg.potential), device=device)
    structures = read_labelled(str(cfg.structures))
    for number, atoms in enumerate(structures):
        known = trained.model.species.tolist()
        check_elements(atoms, known, f"structure {number} of {cfg.structures}", cfg.potential)
    folder = Path(cfg.paths.run)
    RoundStore(folder).open(
        plain(cfg)
        | {
            "contents": _digests({"structures": structures})
            | {"potential_sha256": hashlib.sha256(Path(cfg.potential).read_bytes()).hexdigest()}
        },
    )
    with run_progress() as progress:
        with progress.stage("structures", len(structures)) as stage:
            found = evaluate_structures(
                trained.model,
                trained.uncertainty,
                structures,
                batch_size=int(cfg.batch_size),
                on_batch=lambda done: stage.update(done, len(structures)),
            )
        write_structures(folder / "predictions.extxyz", predicted_structures(structures, found))
        _draw(found, cfg.alpha, folder)
        metrics = error_metrics(found)
        _write_json(folder / "metrics.json", metrics)
        written = f"{folder}: metrics.json, predictions.extxyz, figures/calibration.png"
        _report({Path(cfg.structures).name: metrics}, written, progress.console)
    return metrics["force_rmse_ev_per_ang"]


def _draw(found: Evaluation, alpha: float, folder: Path, half: Evaluation | None = None) -> None:
    """Draws the calibration, where there is something to draw."""
    figure = scatter_of_worst_atoms(found, alpha, half)
    if figure is None:
        log.warning("figures/calibration.png is not drawn: no structure has both an error and an uncertainty of forces")
    else:
        save_figure(figure, folder / "figures" / "calibration.png")


def _report(columns: dict[str, dict[str, Any]], written: str, console: Console) -> None:
    console.print(errors_table(columns))
    console.print(written, highlight=False, soft_wrap=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _digests(parts: dict[str, Sequence[Atoms]] | dict[str, list[Atoms]]) -> dict[str, str]:
    """The contents of structure files, whose names alone would not tell one data set from another."""
    out = {}
    for name, structures in parts.items():
        digest = hashlib.sha256()
        for atoms in structures:
            for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.arrays["REF_forces"]):
                digest.update(values.tobytes())
            stress = atoms.info.get("REF_stress")
            digest.update(repr((float(atoms.info["REF_energy"]), None if stress is None else stress.tolist())).encode())
        out[f"{name}_sha256"] = digest.hexdigest()
    return out

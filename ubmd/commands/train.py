"""``ubmd train``: one potential for a data set."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, ListConfig

from ubmd.analysis.evaluation import error_metrics, evaluate_structures, half_confidence
from ubmd.callbacks.calibrate import Calibrate
from ubmd.commands.loggers import check_loggers, close_loggers, open_loggers
from ubmd.commands.parts import checked_dtype, checked_seed, fitting, potentials, take_potentials
from ubmd.commands.results import content_digests, draw_calibration, report_errors, write_json
from ubmd.config import build, plain
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.elements import species_numbers
from ubmd.data.files import DataFiles
from ubmd.devices import check_device
from ubmd.errors import InputError
from ubmd.models.base import n_members
from ubmd.progress import RunProgress, run_progress
from ubmd.rounds.artifacts import log_folder, log_results
from ubmd.rounds.fit import Fit, Fitting, fit_and_predict, set_up_lightning
from ubmd.rounds.run import Potentials
from ubmd.runs.opening import open_run
from ubmd.runs.store import RoundStore
from ubmd.seeding import Stage, stage_seed
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.checkpoint import load_potential, save_potential
from ubmd.uncertainty.evidence import Split

__all__ = ["train"]


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
    take_potentials(cfg)
    check_device(cfg.trainer)
    check_loggers(cfg)
    job = _prepare(cfg)
    folder = Path(cfg.paths.run)
    store = RoundStore(folder)
    open_run(store, plain(cfg) | {"contents": content_digests(job.files.structures)})
    record = folder / "metrics.json"
    loggers: list[Logger] = []
    with run_progress() as progress:
        if not store.keeps(record):
            try:
                loggers.extend(open_loggers(cfg, folder))
                metrics = _fit(job, folder, loggers, progress)
                write_json(record, metrics)
                log_results(loggers, figures=folder / "figures", potential=folder / "model.ckpt")
                log_folder(loggers, folder)
            finally:
                close_loggers(loggers)
            store.keep(folder / "model.ckpt", record)
        shutil.rmtree(folder / "fit", ignore_errors=True)
        metrics = json.loads(record.read_text(encoding="utf-8"))
        held_out = {name: metrics[name] for name in ("valid", "test") if name in metrics}
        report_errors(held_out, f"{folder}: model.ckpt, metrics.json, figures/", progress.console)
    return held_out.get("test", held_out["valid"])["force_rmse_ev_per_ang"]


@dataclass(frozen=True)
class _Job:
    """What a fit is made of."""

    files: DataFiles
    datamodule: GrowingDataModule
    module: PotentialModule
    uncertainty: Any
    potentials: Potentials
    fitting: Fitting


def _prepare(cfg: DictConfig) -> _Job:
    """Builds everything, cheapest checks first."""
    dtype, seed = checked_dtype(cfg), checked_seed(cfg)
    fits = fitting(cfg, cfg.checkpoint_epochs)
    fits.check()
    files = build(cfg, "data")
    if not isinstance(files, DataFiles):
        raise InputError("data must be data=files with data.train=FILE; other data grow in `ubmd learn`")
    species = _species(cfg, files)
    made = potentials(cfg, species)
    model = made.model(species=species, seed=stage_seed(seed, 0, Stage.WEIGHTS)).to(dtype)
    module = made.training(model=model)
    uncertainty = made.uncertainty(model=model, seed=stage_seed(seed, 0, Stage.SKETCH)).to(dtype)
    made.calibration.check(uncertainty, rounds=False)
    datamodule = files.datamodule(
        cutoff=model.cutoff,
        species=species,
        stress=module.stress,
        dtype=dtype,
        seed=seed,
        members=n_members(model),
    )
    known = cfg.training.get("start") is not None or getattr(model, "pretrained", False)
    if not known:  # else it may know elements that are not trained on
        files.check_trained(datamodule)
    fits.limits(len(datamodule.train_indices), datamodule.batch_size)
    return _Job(files, datamodule, module, uncertainty, made, fits)


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


def _fit(job: _Job, folder: Path, loggers: list[Logger], progress: RunProgress) -> dict[str, Any]:
    """Trains, calibrates, saves the potential, draws the figure; returns the metrics."""
    model, uncertainty, datamodule = job.module.model, job.uncertainty, job.datamodule
    save = partial(save_potential, folder / "model.ckpt", model, uncertainty, **job.potentials.configs)
    method = job.potentials.calibration
    atomic, total = method.atomic, method.total
    calibrate = Calibrate(uncertainty, atomic, total, done=save, evidence=method.evidence)
    fit: Fit = fit_and_predict(
        job.fitting,
        job.module,
        datamodule,
        folder / "fit",
        acquisition=[calibrate],
        loggers=loggers,
        progress=progress,
        title="fit",
    )
    held_out = {"valid": [datamodule.structures[i] for i in datamodule.valid_indices]}
    if datamodule.test_structures:
        held_out["test"] = datamodule.test_structures
    # what is reported is what was saved
    potential = load_potential(folder / "model.ckpt", device=fit.device, allow=job.potentials.allow)
    size = datamodule.evaluation_batch_size
    found = {k: evaluate_structures(potential, v, batch_size=size) for k, v in held_out.items()}
    half = dict.fromkeys(found)
    if isinstance(method.evidence, Split):
        half = {k: half_confidence(each, found["valid"], atomic=atomic, total=total) for k, each in found.items()}
    shown = "test" if "test" in found else "valid"
    draw_calibration(found[shown], atomic.alpha, folder, half[shown])
    metrics: dict[str, Any] = {"n_train": len(datamodule.train_indices), "n_valid": len(datamodule.valid_indices)}
    metrics |= {name: error_metrics(evaluation, half[name]) for name, evaluation in found.items()}
    return metrics | {
        **calibrate.coverage,
        "time_fit_s": fit.seconds,
        "time_calibrate_s": calibrate.seconds,
    }

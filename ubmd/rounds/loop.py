"""The round loop: fit, test, calibrate, explore, select, label; again until the data set is large enough."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from ase import Atoms
from lightning.pytorch import Callback

from ubmd.analysis.report import report_run, round_analysis
from ubmd.callbacks.acquire import Acquire
from ubmd.callbacks.calibrate import Calibrate
from ubmd.callbacks.divergence import FitDivergedError
from ubmd.callbacks.explore import Explore
from ubmd.callbacks.steps import CumulativeStep
from ubmd.dynamics.processes import PotentialFile
from ubmd.dynamics.stopping import StopReason
from ubmd.errors import InputError
from ubmd.observables.columns import range_columns
from ubmd.rounds.acquired import acquired_coverage, earlier_data
from ubmd.rounds.artifacts import log_folder, log_results, log_round
from ubmd.rounds.checks import check_complete
from ubmd.rounds.figures import draw_calibration, draw_variable_errors, write_report
from ubmd.rounds.fit import Fit, fit_and_predict, predict
from ubmd.rounds.run import Run, extend, label_initial, relaxed, restore_label_store
from ubmd.rounds.several import acquired_by_system, errors_by_system, round_explorers, round_walkers
from ubmd.runs.folder import RoundFolder
from ubmd.seeding import Stage, stage_seed
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.base import POOLED
from ubmd.uncertainty.checkpoint import load_potential, save_potential
from ubmd.uncertainty.evidence import Prequential

__all__ = ["learn_rounds"]

log = logging.getLogger(__name__)


def learn_rounds(run: Run) -> float | None:
    """Runs active learning to its end, from wherever the run's folder has got to.

    Args:
        run: whose executor is open.

    Returns:
        the last force RMSE on the test set, eV/Å; None without a test set.

    Raises:
        InputError: too few initial structures could be labelled, or a fit diverged.
        StoppedShort: a round acquired no structure, so that the run ended with fewer than it was to have.
    """
    run = relaxed(run)
    label_initial(run)
    restore_label_store(run)
    extend(run)
    for index in range(len(run.store.records()), 10**6):
        structures = run.store.structures(index)
        if run.limits.is_finished(index - 1, run.store.structures(index - 1), structures):
            break
        _round(run, index, structures)
    records = run.store.records()
    draw_calibration(run, len(records) - 1)
    draw_variable_errors(run, len(records) - 1)
    report_run(run.store, run.systems, round_explorers(run, 0), run.progress.console)
    write_report(run)
    potential = run.store.folder(len(records) - 1).model
    rows = [record["metrics"] for record in records]
    log_results(run.loggers, figures=run.store.figures, potential=potential, dataset=run.store.dataset, rounds=rows)
    log_folder(run.loggers, run.store.path)
    check_complete(run.limits, records[-1]["metrics"], len(run.store.structures(len(records))), run.store.dataset)
    return records[-1]["metrics"].get("force_rmse_ev_per_ang")


def _round(run: Run, index: int, structures: list[Atoms]) -> None:
    """One round, or what is left of it."""
    folder = run.store.folder(index)
    run.datamodule.set_round(index, structures)
    module, uncertainty = _build(run, index)
    if folder.model.name not in folder.done()["files"]:
        folder.note(folder.model, metrics=_fit(run, index, folder, module, uncertainty))
    metrics = folder.done()["metrics"]
    if run.limits.is_last(index, len(structures)):
        folder.drop(folder.stages[1:])  # of an acquisition that another limit had begun
    else:
        # what explores is what was saved, also when nothing was interrupted
        trained: Any = load_potential(folder.model, allow=run.potentials.allow)
        module.model.load_state_dict(trained.model.state_dict())
        uncertainty.load_state_dict(trained.uncertainty.state_dict())
        metrics |= _acquire(run, index, structures, module, uncertainty)
    metrics |= round_analysis(
        run.store,
        index,
        run.store.structures(index + 1),
        run.systems,
        round_explorers(run, 0),
    )
    run.store.commit(index, metrics)
    _announce(run, metrics)


def _fit(run: Run, index: int, folder: RoundFolder, module: PotentialModule, uncertainty: Any) -> dict[str, Any]:
    """Trains, tests, calibrates and saves the round's potential; returns its columns of ``metrics.csv``."""
    save = partial(save_potential, folder.model, module.model, uncertainty, **run.potentials.configs)
    calibration = run.potentials.calibration
    earlier = None
    if isinstance(calibration.evidence, Prequential):
        earlier = earlier_data(run, index, calibration.evidence, module.device)
    calibrate = Calibrate(uncertainty, calibration.atomic, calibration.total, save, calibration.evidence, earlier)
    steps = CumulativeStep(sum(record["metrics"].get("fit_steps", 0) for record in run.store.records()))
    fit = _trained(run, module, folder, [steps, calibrate])
    metrics = _fit_metrics(run, index, fit, calibrate, uncertainty) | {"fit_steps": fit.steps}
    return metrics | errors_by_system(run, folder, fit.device)


def _trained(run: Run, module: PotentialModule, folder: RoundFolder, acquisition: list[Callback]) -> Fit:
    """The fit of a round, with what follows it in the predict loop."""
    warm = run.limits.warm_start
    try:
        return fit_and_predict(
            run.fitting,
            module,
            run.datamodule,
            folder.fit,
            acquisition=acquisition,
            loggers=run.loggers,
            progress=run.progress,
            title=f"round {folder.index} fit",
            share=warm if folder.index and warm is not None else 1.0,
        )
    except FitDivergedError as error:
        raise InputError(
            f"round {folder.index}: {error}; the labels are kept: with other settings, another name=... and "
            f"system.initial={run.store.dataset} start from them"
        ) from error


def _acquire(
    run: Run, index: int, structures: list[Atoms], module: PotentialModule, uncertainty: Any
) -> dict[str, Any]:
    """Explores, selects and labels; returns the columns of ``metrics.csv`` that tell about it."""
    folder = run.store.folder(index)
    bias = partial(run.bias, uncertainty=uncertainty)
    elsewhere = partial(run.processes.run, PotentialFile(folder.model, run.bias, run.potentials.allow))
    walkers, workers = round_walkers(run, index, structures), run.exploration.workers
    explore = Explore(walkers, bias, folder, run.progress, run.reference.reads, workers, elsewhere)
    acquire = Acquire(
        explore,
        uncertainty,
        run.selection,
        min(run.limits.batch_size, run.limits.max_structures - len(structures)),
        run.reference,
        run.labels,
        run.executor,
        run.max_force,
        folder,
        run.seed,
        run.progress,
    )
    predict(run.fitting, module, run.datamodule, [explore, acquire])
    metrics = _acquisition_metrics(explore, acquire) | acquired_by_system(run, acquire)
    return metrics | acquired_coverage(run, index, module.device)


def _build(run: Run, index: int) -> tuple[PotentialModule, Any]:
    """The training module of a fresh model and the model's uncertainty."""
    make = run.potentials
    weights = stage_seed(run.seed, index, Stage.WEIGHTS)
    model = make.model(species=run.systems.symbols, seed=weights).to(make.dtype)
    module = make.training(model=model)
    if index and run.limits.warm_start is not None:
        module.start_from(run.store.folder(index - 1).model, "learning.warm_start")
    sketch = stage_seed(run.seed, index, Stage.SKETCH)
    uncertainty = make.uncertainty(model=model, seed=sketch).to(make.dtype)
    return module, uncertainty


def _fit_metrics(run: Run, index: int, fit: Fit, calibrate: Calibrate, uncertainty: Any) -> dict[str, Any]:
    """What a round's fit and calibration came to, by column of ``metrics.csv``."""
    return {
        "round": index,
        "n_train": len(run.datamodule.train_indices),
        "n_valid": len(run.datamodule.valid_indices),
        **{name: value for name, value in fit.errors.items() if "rmse" in name},
        **calibrate.errors,
        **calibrate.coverage,
        "conformal_scale_atom": float(uncertainty.atomic_scale[POOLED]),
        "conformal_scale_total": float(uncertainty.total_scale),
        "time_fit_s": fit.seconds,
        "time_calibrate_s": calibrate.seconds,
    }


def _acquisition_metrics(explore: Explore, acquire: Acquire) -> dict[str, Any]:
    found = explore.result.values()
    return {
        "n_candidates": acquire.n_candidates,
        "n_selected": len(acquire.selected),
        "n_rejected": acquire.n_rejected,
        "md_steps": sum(part.md_steps for part in found),
        "walkers_stopped_by_uncertainty": sum(part.stopped_by(StopReason.UNCERTAINTY) for part in found),
        "time_explore_s": explore.seconds,
        "time_select_s": acquire.seconds_select,
        "time_label_s": acquire.seconds_label,
    }


def _announce(run: Run, metrics: Mapping[str, Any]) -> None:
    """Logs a finished round and prints a line about it."""
    log_round(run.loggers, metrics)
    parts = [f"round {metrics['round']}", f"{metrics['n_train']} + {metrics['n_valid']} structures"]
    kind = "test" if run.datamodule.test_structures else "validation"
    force = metrics["force_rmse_ev_per_ang" if kind == "test" else "valid_force_rmse_ev_per_ang"]
    parts.append(f"{kind} force RMSE {force:.3f} eV/Å")
    if metrics.get("coverage") is not None:
        parts.append(f"coverage {metrics['coverage']:.2f}")
    for explored in range_columns([metrics]):
        ends = f"{metrics[explored.low]:.4g} to {metrics[explored.high]:.4g}"
        parts.append(f"{explored.name} {ends} {explored.unit}".rstrip())
    if "md_steps" in metrics:
        n = metrics["walkers_stopped_by_uncertainty"]
        walkers = sum(metrics[f"n_walkers_{name}"] for name in run.systems.parts if name) or run.exploration.n_walkers
        parts.append(f"{metrics['md_steps']} MD steps, {n}/{walkers} walkers uncertain")
        parts.append(f"{metrics['n_selected'] - metrics['n_rejected']} new labels")
    run.progress.console.print("  ".join(parts), highlight=False, soft_wrap=True)

"""The round loop: fit, test, calibrate, explore, select, label; again until the data set is large enough."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from ase import Atoms
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ubmd.analysis.report import report_run, round_analysis
from ubmd.callbacks.acquire import Acquire, label_with_progress
from ubmd.callbacks.calibrate import Calibrate
from ubmd.callbacks.divergence import FitDivergedError
from ubmd.callbacks.explore import Explore
from ubmd.callbacks.steps import CumulativeStep
from ubmd.config import build, check_device, plain, set_threads
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.io import is_labelled
from ubmd.data.system import System
from ubmd.dynamics.explore import Explorer
from ubmd.dynamics.stopping import StopReason
from ubmd.errors import InputError
from ubmd.interruption import shielded
from ubmd.learning_checks import (
    check_complete,
    check_same_method,
    check_sizes,
    check_test,
    check_trainer,
    trains_stress,
)
from ubmd.learning_figures import draw_calibration, draw_volume_errors
from ubmd.limits import is_finished, is_last
from ubmd.models.checkpoint import check_parts, load_potential, save_potential
from ubmd.progress import RunProgress, run_progress
from ubmd.reference.base import Reference
from ubmd.reference.executors import LabelExecutor
from ubmd.reference.labelling import restore_labels, within_limit
from ubmd.reference.store import LabelStore
from ubmd.round_folder import INITIAL, RoundFolder
from ubmd.rounds import RoundStore
from ubmd.runlock import held
from ubmd.seeding import Stage, stage_rng, stage_seed
from ubmd.selection.base import check_selection
from ubmd.training.artifacts import log_results
from ubmd.training.files import DataFiles
from ubmd.training.fit import Fit, fit_and_predict, predict, set_up_lightning
from ubmd.training.loggers import check_loggers, close_loggers, open_loggers
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.base import POOLED

__all__ = ["learn"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What outlives a round."""

    cfg: DictConfig
    store: RoundStore
    system: System
    reference: Reference
    labels: LabelStore
    executor: LabelExecutor
    datamodule: GrowingDataModule
    exploration: Explorer
    loggers: list[Logger]
    progress: RunProgress

    @property
    def seed(self) -> int:
        return self.cfg.seed


def learn(cfg: DictConfig) -> float | None:
    """Runs active learning to its end, or continues the run in ``cfg.paths.run``.

    Returns:
        the last force RMSE on the test set, eV/Å (for sweepers); None without a test set.

    Raises:
        InputError: for anything wrong in the configuration, before any expensive work.
        StoppedShort: a round acquired no structure, so that the run ended with fewer than it was to have.
    """
    set_up_lightning()
    check_device(cfg.trainer)
    check_loggers(cfg)
    set_threads(cfg.threads)
    loggers: list[Logger] = []
    with run_progress() as progress, ExitStack() as stack:
        try:
            run = _prepare(cfg, progress, loggers, stack)
            stack.enter_context(run.executor)
            run = _relaxed(run)
            _label_initial(run)
            _restore_labels(run)
            _extend(run)
            for index in range(len(run.store.records()), 10**6):
                structures = run.store.structures(index)
                if is_finished(cfg, index - 1, run.store.structures(index - 1), structures):
                    break
                _round(run, index, structures)
            records = run.store.records()
            draw_calibration(run, len(records) - 1)
            if run.system.periodic:
                draw_volume_errors(run, len(records) - 1)
            report_run(run.store, run.system, progress.console, dt=run.exploration.time_step)
            potential = run.store.folder(len(records) - 1).model
            log_results(loggers, figures=run.store.figures, potential=potential, dataset=run.store.dataset)
            check_complete(cfg, records[-1]["metrics"], len(run.store.structures(len(records))), run.store.dataset)
        finally:
            close_loggers(loggers)
    return records[-1]["metrics"].get("force_rmse_ev_per_ang") if records else None


@shielded()  # it imports
def _prepare(cfg: DictConfig, progress: RunProgress, loggers: list[Logger], stack: ExitStack) -> Run:
    """Builds what outlives a round, cheapest checks first; ``loggers`` and ``stack`` take what is to be closed."""
    system: System = build(cfg, "system")
    exploration: Explorer = build(cfg, "dynamics")
    check_sizes(cfg, system, exploration)
    exploration.check_bias(build(cfg, "bias", potential=torch.nn.Identity(), uncertainty=torch.nn.Identity()))
    for part in ("calibration.atomic", "calibration.total"):
        build(cfg, part)
    for part in ("model", "uncertainty"):
        check_parts(plain(cfg[part]), part)
    model = build(cfg, "model", species=system.symbols)
    check_selection(build(cfg, "selection"), build(cfg, "uncertainty", model=model))
    build(cfg, "training", model=model)
    reference: Reference = build(cfg, "reference")
    stress = trains_stress(cfg, system, exploration, reference)
    executor: LabelExecutor = build(cfg, "executor")
    executor.check(reference)
    data = build(cfg, "data")
    if isinstance(data, DataFiles):
        raise InputError("data=files is the data of `ubmd train`; use data=default")
    datamodule: GrowingDataModule = data(
        cutoff=model.cutoff,
        species=system.symbols,
        stress=stress,
        dtype=getattr(torch, cfg.dtype),
        seed=cfg.seed,
        members=model.n_members,
    )
    check_test(cfg, system, datamodule.test_structures)
    check_trainer(cfg, system, datamodule)
    store = RoundStore(cfg.paths.run)
    store.path.mkdir(parents=True, exist_ok=True)
    stack.enter_context(held(store.path))
    store.open(plain(cfg))
    loggers.extend(open_loggers(cfg, store.path))
    labels = LabelStore(store.path / "labels.db")
    if cfg.retry:
        log.info("%d structures that could not be labelled are tried again", labels.forget_failures())
    return Run(cfg, store, system, reference, labels, executor, datamodule, exploration, loggers, progress)


def _relaxed(run: Run) -> Run:
    """The run with its structure relaxed by the reference, if it is still to start from that."""
    system = run.system
    if system.relax is None or system.initial is not None or run.store.records():
        return run
    with run.progress.stage("relaxation") as stage:

        def show(steps: int, force: float) -> None:
            stage.update(steps, detail=f"largest force {force:.3f} eV/Å")

        structure = system.relax(system.atoms, run.reference, executor=run.executor, on_step=show)
    return replace(run, system=replace(system, structure=structure))


def _label_initial(run: Run) -> None:
    """Labels the structures that the first round trains on, as far as they have no labels."""
    if run.store.structures(0):
        return
    structures = run.system.initial_structures(stage_rng(run.seed, 0, Stage.PERTURB), run.reference.reads)
    unknown = [a for a in structures if not is_labelled(a)]
    for atoms in unknown:
        # files hold all digits, but labels of earlier versions belong to structures of as many
        atoms.positions = atoms.positions.round(8)
    report = label_with_progress(
        unknown,
        run.reference,
        run.labels,
        executor=run.executor,
        max_force=run.cfg.labelling.max_force,
        progress=run.progress,
        title="initial labels",
    )
    known, refused = within_limit([a for a in structures if is_labelled(a)], run.cfg.labelling.max_force)
    _compare_given(run, known)
    reasons = [reason for _, reason in [*refused, *report.rejected, *report.failed]]
    for reason in reasons:
        log.warning("initial structure rejected: %s", reason)
    labelled = [*known, *report.labelled]
    if len(labelled) < 2:
        raise InputError(
            f"only {len(labelled)} of {len(structures)} initial structures could be labelled "
            f"({reasons[0]}); check reference, system.displacement and labelling.max_force"
        )
    run.store.add_initial(labelled)


def _compare_given(run: Run, given: list[Atoms]) -> None:
    """Has the first structure that came with a label labelled too, since one data set must be of one method."""
    if not given:
        return
    report = label_with_progress(
        given[:1],
        run.reference,
        run.labels,
        executor=run.executor,
        max_force=None,
        progress=run.progress,
        title="label to compare",
    )
    for computed in report.labelled:
        check_same_method(given[0], computed, len(given))
    for _, reason in report.failed:
        log.warning("labels of system.initial are taken as the reference's, which could not label one: %s", reason)


def _restore_labels(run: Run) -> None:
    """Fills a label store that was lost from the data set."""
    given = any(is_labelled(a) for a in run.system.given)
    structures = run.store.structures(len(run.store.records()) + 1)
    restore_labels([a for a in structures if a.info["round"] != INITIAL or not given], run.reference, run.labels)


def _extend(run: Run) -> None:
    """Takes up the last round again if it acquired nothing only because of a limit that has been raised since."""
    records = run.store.records()
    last = len(records) - 1
    if (
        not records
        or "n_selected" in records[last]["metrics"]
        or is_last(run.cfg, last, len(run.store.structures(last)))
    ):
        return
    run.store.reopen(last)
    batch = run.cfg.learning.batch_size
    before = records[last - 1]["metrics"]["n_selected"] if last else batch
    if before < batch:
        log.warning(
            "round %d acquired %d structures, perhaps because of the limit then; a run with the present "
            "learning.max_structures from its start could have acquired learning.batch_size=%d, and differs",
            *(last - 1, before, batch),
        )


def _round(run: Run, index: int, structures: list[Atoms]) -> None:
    """One round, or what is left of it."""
    folder = run.store.folder(index)
    run.datamodule.set_round(index, structures)
    module, uncertainty = _build(run, index)
    if folder.model.name not in folder.done()["files"]:
        folder.note(folder.model, metrics=_fit(run, index, folder, module, uncertainty))
    metrics = folder.done()["metrics"]
    if is_last(run.cfg, index, len(structures)):
        folder.drop(folder.stages[1:])  # of an acquisition that another limit had begun
    else:
        # what explores is what was saved, also when nothing was interrupted
        trained: Any = load_potential(folder.model)
        module.model.load_state_dict(trained.model.state_dict())
        uncertainty.load_state_dict(trained.uncertainty.state_dict())
        metrics |= _acquire(run, index, structures, module, uncertainty)
    metrics |= round_analysis(
        run.store,
        index,
        run.store.structures(index + 1),
        run.system,
        frame_interval=run.exploration.frame_interval,
        dt=run.exploration.time_step,
    )
    run.store.commit(index, metrics)
    _announce(run, metrics)


def _fit(run: Run, index: int, folder: RoundFolder, module: PotentialModule, uncertainty: Any) -> dict[str, Any]:
    """Trains, tests, calibrates and saves the round's potential; returns its columns of ``metrics.csv``."""
    save = partial(
        save_potential,
        folder.model,
        module.model,
        uncertainty,
        model_config=plain(run.cfg.model) | {"_partial_": False, "species": run.system.symbols},
        uncertainty_config=plain(run.cfg.uncertainty),
    )
    calibration = {name: build(run.cfg, f"calibration.{name}") for name in ("atomic", "total")}
    calibrate = Calibrate(uncertainty, **calibration, done=save)
    steps = CumulativeStep(sum(record["metrics"].get("fit_steps", 0) for record in run.store.records()))
    fit = _trained(run, module, folder, [steps, calibrate])
    return _fit_metrics(run, index, fit, calibrate, uncertainty) | {"fit_steps": fit.steps}


def _trained(run: Run, module: PotentialModule, folder: RoundFolder, acquisition: list[Callback]) -> Fit:
    """The fit of a round, with what follows it in the predict loop."""
    warm = run.cfg.learning.warm_start
    try:
        return fit_and_predict(
            run.cfg,
            module,
            run.datamodule,
            folder.fit,
            acquisition=acquisition,
            loggers=run.loggers,
            progress=run.progress,
            title=f"round {folder.index} fit",
            checkpoint_epochs=run.cfg.learning.checkpoint_epochs,
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
    perturbed = index == 0 and run.system.initial is None
    starts = [run.system.atoms] if perturbed else [a for a in structures if a.info["round"] == index - 1]
    bias = partial(build(run.cfg, "bias"), uncertainty=uncertainty)
    explore = Explore(run.exploration, bias, starts, folder, run.seed, run.progress, run.reference.reads)
    acquire = Acquire(
        explore,
        uncertainty,
        build(run.cfg, "selection"),
        min(run.cfg.learning.batch_size, run.cfg.learning.max_structures - len(structures)),
        run.reference,
        run.labels,
        run.executor,
        run.cfg.labelling.max_force,
        folder,
        run.seed,
        run.progress,
    )
    predict(run.cfg, module, run.datamodule, [explore, acquire])
    return _acquisition_metrics(explore, acquire)


def _build(run: Run, index: int) -> tuple[PotentialModule, Any]:
    """The training module of a fresh model and the model's uncertainty."""
    dtype = getattr(torch, run.cfg.dtype)
    weights = stage_seed(run.seed, index, Stage.WEIGHTS)
    model = build(run.cfg, "model", species=run.system.symbols, seed=weights).to(dtype)
    module = build(run.cfg, "training", model=model)
    if index and run.cfg.learning.warm_start is not None:
        module.start_from(run.store.folder(index - 1).model, "learning.warm_start")
    sketch = stage_seed(run.seed, index, Stage.SKETCH)
    uncertainty = build(run.cfg, "uncertainty", model=model, seed=sketch).to(dtype)
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
    result = explore.result
    assert result is not None
    return {
        "n_candidates": acquire.n_candidates,
        "n_selected": acquire.n_selected,
        "n_rejected": acquire.n_rejected,
        "md_steps": result.md_steps,
        "walkers_stopped_by_uncertainty": result.stopped_by(StopReason.UNCERTAINTY),
        "time_explore_s": explore.seconds,
        "time_select_s": acquire.seconds_select,
        "time_label_s": acquire.seconds_label,
    }


def _announce(run: Run, metrics: Mapping[str, Any]) -> None:
    """Logs a finished round and prints a line about it."""
    values = {f"al/{k}": float(v) for k, v in metrics.items() if isinstance(v, int | float)}
    for logger in run.loggers:
        logger.log_metrics(values)
    parts = [f"round {metrics['round']}", f"{metrics['n_train']} + {metrics['n_valid']} structures"]
    kind = "test" if run.datamodule.test_structures else "validation"
    force = metrics["force_rmse_ev_per_ang" if kind == "test" else "valid_force_rmse_ev_per_ang"]
    parts.append(f"{kind} force RMSE {force:.3f} eV/Å")
    if metrics.get("coverage") is not None:
        parts.append(f"coverage {metrics['coverage']:.2f}")
    if run.system.periodic:
        parts.append(f"volumes {metrics['volume_min_ang3']:.0f} to {metrics['volume_max_ang3']:.0f} Å³")
    if "md_steps" in metrics:
        n = metrics["walkers_stopped_by_uncertainty"]
        parts.append(f"{metrics['md_steps']} MD steps, {n}/{run.exploration.n_walkers} walkers uncertain")
        parts.append(f"{metrics['n_selected'] - metrics['n_rejected']} new labels")
    run.progress.console.print("  ".join(parts), highlight=False, soft_wrap=True)

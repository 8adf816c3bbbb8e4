"""What outlives a round of active learning, and how a run begins or is taken up again."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from ase import Atoms
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ubmd.callbacks.acquire import label_with_progress
from ubmd.commands.loggers import open_loggers
from ubmd.config import build, plain
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.files import DataFiles
from ubmd.data.io import is_labelled
from ubmd.dynamics.explore import Explorer
from ubmd.errors import InputError
from ubmd.interruption import shielded
from ubmd.progress import RunProgress
from ubmd.reference.base import Reference
from ubmd.reference.executors import LabelExecutor
from ubmd.reference.labelling import restore_labels, within_limit
from ubmd.reference.store import LabelStore
from ubmd.rounds.checks import (
    check_same_method,
    check_sizes,
    check_test,
    check_trainer,
    trains_stress,
)
from ubmd.rounds.limits import is_last
from ubmd.runs.folder import INITIAL
from ubmd.runs.lock import held
from ubmd.runs.store import RoundStore
from ubmd.seeding import Stage, stage_rng
from ubmd.selection.base import check_selection
from ubmd.systems.system import System
from ubmd.uncertainty.checkpoint import check_parts

__all__ = ["Run", "extend", "label_initial", "prepare", "relaxed", "restore_label_store"]

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


@shielded()  # it imports
def prepare(cfg: DictConfig, progress: RunProgress, loggers: list[Logger], stack: ExitStack) -> Run:
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


def relaxed(run: Run) -> Run:
    """The run with its structure relaxed by the reference, if it is still to start from that."""
    system = run.system
    if system.relax is None or system.initial is not None or run.store.records():
        return run
    with run.progress.stage("relaxation") as stage:

        def show(steps: int, force: float) -> None:
            stage.update(steps, detail=f"largest force {force:.3f} eV/Å")

        structure = system.relax(system.atoms, run.reference, executor=run.executor, on_step=show)
    return replace(run, system=replace(system, structure=structure))


def label_initial(run: Run) -> None:
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


def restore_label_store(run: Run) -> None:
    """Fills a label store that was lost from the data set."""
    given = any(is_labelled(a) for a in run.system.given)
    structures = run.store.structures(len(run.store.records()) + 1)
    restore_labels([a for a in structures if a.info["round"] != INITIAL or not given], run.reference, run.labels)


def extend(run: Run) -> None:
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

"""Selects candidates and has them labelled."""

from __future__ import annotations

import logging
import time

import torch
from ase import Atoms
from lightning.pytorch import Callback, Trainer

from ubmd.callbacks.explore import Explore
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.io import read_structures, write_structures
from ubmd.data.labels import SYSTEM
from ubmd.dynamics.several import frames_of_systems
from ubmd.progress import RunProgress
from ubmd.reference.base import Reference
from ubmd.reference.executors import LabelExecutor
from ubmd.reference.labelling import LabelReport, label_structures
from ubmd.reference.store import LabelStore
from ubmd.runs.store import RoundFolder
from ubmd.seeding import Stage, stage_seed
from ubmd.selection.base import Pool, Selection, distinct, pool_features
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.base import Uncertainty

__all__ = ["Acquire", "label_with_progress"]

log = logging.getLogger(__name__)


def label_with_progress(
    structures: list[Atoms],
    reference: Reference,
    store: LabelStore,
    *,
    executor: LabelExecutor,
    max_force: float | None,
    progress: RunProgress,
    title: str,
) -> LabelReport:
    """:func:`~ubmd.reference.labelling.label_structures` with a progress bar."""
    with progress.stage(title, len(structures)) as stage:
        return label_structures(
            structures,
            reference,
            store,
            executor=executor,
            max_force=max_force,
            on_label=lambda done, total: stage.update(done, total),
        )


class Acquire(Callback):
    """Writes ``selected.extxyz`` and ``labelled.extxyz``; what is there already is kept.

    Args:
        explore: the callback that ran before and has the candidates.
        uncertainty: of the model, fitted.
        selection: how to choose.
        n_select: how many structures to acquire.
        reference: labels them.
        store: of labels.
        executor: where labels are computed, open.
        max_force: force limit above which a labelled structure is rejected, eV/Å.
        folder: of the round.
        seed: root seed of the run.
        progress: display.
    """

    def __init__(
        self,
        explore: Explore,
        uncertainty: Uncertainty,
        selection: Selection,
        n_select: int,
        reference: Reference,
        store: LabelStore,
        executor: LabelExecutor,
        max_force: float | None,
        folder: RoundFolder,
        seed: int,
        progress: RunProgress,
    ):
        self.explore, self.uncertainty, self.selection, self.n_select = explore, uncertainty, selection, n_select
        self.reference, self.store, self.executor, self.max_force = reference, store, executor, max_force
        self.folder, self.seed, self.progress = folder, seed, progress
        self.n_candidates = 0
        self.selected: list[Atoms] = []
        self.n_rejected = 0
        self.seconds_select = 0.0
        self.seconds_label = 0.0

    def on_predict_end(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        started = time.perf_counter()
        assert self.explore.result
        candidates = frames_of_systems(self.explore.result)
        self.n_candidates = len(candidates)
        if not self.folder.selected.exists():
            datamodule: GrowingDataModule = trainer.datamodule  # pyright: ignore
            with self.progress.stage(f"round {self.folder.index} selection"):
                write_structures(self.folder.selected, self._select(candidates, pl_module, datamodule))
            self.folder.note(self.folder.selected)
        # the file is the truth: labels belong to the coordinates as they are written
        whole = self.folder.selected.stat().st_size > 0
        self.selected = read_structures(self.folder.selected, report=False) if whole else []
        self.seconds_select = time.perf_counter() - started
        self._label(self.selected)

    def _select(self, candidates: list[Atoms], module: PotentialModule, datamodule: GrowingDataModule) -> list[Atoms]:
        """The chosen candidates; copies of one another and of labelled structures are not chosen from."""
        device, size = module.device, datamodule.evaluation_batch_size
        candidates = [candidates[i] for i in distinct(candidates, datamodule.structures)]
        if not candidates:
            return []

        uncertainty = torch.tensor([a.info["uncertainty"] for a in candidates], device=device)
        pool = Pool(uncertainty)
        if self.selection.needs_features:
            features = pool_features(
                self.uncertainty,
                module.model,
                candidates,
                cutoff=datamodule.cutoff,
                batch_size=size,
                dtype=datamodule.dtype,
                device=device,
            )
            labelled = [self.uncertainty.total_features(module.model, b) for b in datamodule.chunks("labelled", device)]
            pool = Pool(uncertainty, features, torch.cat(labelled))
        chosen = self.selection(
            pool,
            min(self.n_select, len(candidates)),
            seed=stage_seed(self.seed, self.folder.index, Stage.SELECT),
        )
        return [candidates[i] for i in chosen.tolist()]

    def _label(self, selected: list[Atoms]) -> None:
        started = time.perf_counter()
        if self.folder.labelled.exists():  # what broke off then is not another matter of luck now
            whole = self.folder.labelled.stat().st_size > 0
            n_labelled = len(read_structures(self.folder.labelled, report=False)) if whole else 0
            self.n_rejected = len(selected) - n_labelled
            return
        report = label_with_progress(
            selected,
            self.reference,
            self.store,
            executor=self.executor,
            max_force=self.max_force,
            progress=self.progress,
            title=f"round {self.folder.index} labels",
        )
        for atoms, reason in [*report.rejected, *report.failed]:
            walker, step = atoms.info["walker"], atoms.info["step"]
            whose = f"{atoms.info[SYSTEM]}, " if SYSTEM in atoms.info else ""
            log.warning("rejected: %swalker %d, step %d: %s", whose, walker, step, reason)
        self.n_rejected = len(report.rejected) + len(report.failed)
        write_structures(self.folder.labelled, report.labelled)
        self.folder.note(self.folder.labelled)
        self.seconds_label = time.perf_counter() - started

"""What outlives a round of active learning, and how a run begins or is taken up again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from ase import Atoms
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray

from ubmd.callbacks.acquire import label_with_progress
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.io import is_labelled
from ubmd.dynamics.explore import Explorer
from ubmd.dynamics.processes import WalkerProcesses
from ubmd.errors import InputError
from ubmd.models.potential import WalkerPotential
from ubmd.progress import RunProgress
from ubmd.reference.base import Reference
from ubmd.reference.executors import LabelExecutor
from ubmd.reference.labelling import restore_labels, within_limit
from ubmd.reference.store import LabelStore
from ubmd.rounds.checks import check_same_method
from ubmd.rounds.fit import Fitting
from ubmd.rounds.limits import Limits
from ubmd.runs.folder import INITIAL
from ubmd.runs.store import RoundStore
from ubmd.selection.base import Selection
from ubmd.systems.several import Systems, of_system
from ubmd.training.module import PotentialModule
from ubmd.uncertainty.calibration import AtomicCalibration, ConformalCalibration
from ubmd.uncertainty.evidence import CrossConformal, Evidence, Prequential
from ubmd.uncertainty.parts import foreign_parts

__all__ = ["Calibration", "Potentials", "Run", "extend", "label_initial", "relaxed", "restore_label_store"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """How uncertainties are calibrated (Eq. 28)."""

    atomic: AtomicCalibration
    total: ConformalCalibration
    evidence: Evidence
    """Which errors calibrate."""

    def check(self, uncertainty: Any, *, rounds: bool = True) -> None:
        """Refuses evidence that there cannot be.

        Args:
            uncertainty: that is to be calibrated.
            rounds: whether potentials of earlier rounds are there.
        """
        if isinstance(self.evidence, CrossConformal) and not uncertainty.n_features:
            raise InputError(
                "calibration=cross leaves structures out of the fit of an uncertainty from features, and a "
                f"{type(uncertainty).__name__} has none; use calibration=conformal"
            )
        if isinstance(self.evidence, Prequential) and not rounds:
            raise InputError(
                "calibration=prequential takes the labels of earlier rounds of `ubmd learn`, of which there are none "
                "here; use calibration=conformal"
            )


@dataclass(frozen=True)
class Potentials:
    """How a round's potential is made."""

    model: Callable[..., Any]
    """Makes a fresh model of ``species`` with weights of a ``seed``."""
    training: Callable[..., PotentialModule]
    """Makes the training module of a ``model``."""
    uncertainty: Callable[..., Any]
    """Makes the uncertainty of a ``model`` with features of a ``seed``."""
    calibration: Calibration
    dtype: torch.dtype
    configs: Mapping[str, Any]
    """``model_config`` and ``uncertainty_config``, which the file of a potential keeps."""

    @property
    def allow(self) -> tuple[str, ...]:
        """What the file may name besides ubmd's own parts: what the configuration names itself."""
        return foreign_parts(*self.configs.values())


@dataclass(frozen=True)
class Run:
    """What outlives a round."""

    seed: int
    limits: Limits
    max_force: float | None
    """Labelled structures with a larger force on any atom are rejected, eV/Å."""
    store: RoundStore
    systems: Systems
    reference: Reference
    labels: LabelStore
    executor: LabelExecutor
    datamodule: GrowingDataModule
    potentials: Potentials
    fitting: Fitting
    bias: Callable[..., WalkerPotential]
    """Makes the biased potential of a ``potential`` and its ``uncertainty``."""
    exploration: Explorer
    """Of the systems that have no dynamics of their own."""
    processes: WalkerProcesses
    selection: Selection
    loggers: list[Logger]
    progress: RunProgress


def relaxed(run: Run) -> Run:
    """The run with structures relaxed by the reference, if it is still to start from them."""
    structures: dict[str, Atoms] = {}
    for name, system in run.systems.parts.items():
        if system.relax is None or system.initial is not None or run.store.records():
            continue
        with run.progress.stage(f"relaxation {name}".strip()) as stage:

            def show(steps: int, force: float, stage: Any = stage) -> None:
                stage.update(steps, detail=f"largest force {force:.3f} eV/Å")

            (start,) = of_system(name, [system.atoms.copy()])
            structures[name] = system.relax(start, run.reference, executor=run.executor, on_step=show)
    return replace(run, systems=run.systems.with_structures(structures)) if structures else run


def label_initial(run: Run) -> None:
    """Labels the structures that the first round trains on, as far as they have no labels."""
    if run.store.structures(0):
        return
    structures = run.systems.initial_structures(run.seed, run.reference.reads, partial(_forces, run))
    unknown = [a for a in structures if not is_labelled(a)]
    for atoms in unknown:
        # files hold all digits, but labels of earlier versions belong to structures of as many
        atoms.positions = atoms.positions.round(8)
    report = label_with_progress(
        unknown,
        run.reference,
        run.labels,
        executor=run.executor,
        max_force=run.max_force,
        progress=run.progress,
        title="initial labels",
    )
    known, refused = within_limit([a for a in structures if is_labelled(a)], run.max_force)
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
    for name in run.systems.parts if run.systems.named else ():
        if not run.systems.own(name, labelled):
            raise InputError(
                f"no initial structure of system {name} could be labelled ({reasons[0]}); check the reference, the "
                "structure and labelling.max_force, or leave the system out"
            )
    run.store.add_initial(labelled)


def _forces(run: Run, moved: Sequence[Atoms]) -> list[NDArray[np.float64]]:
    """Forces of structures that are displaced for a Hessian; all of them are needed."""
    report = label_with_progress(
        list(moved),
        run.reference,
        run.labels,
        executor=run.executor,
        max_force=None,
        progress=run.progress,
        title="normal modes",
    )
    if report.failed:
        raise InputError(
            f"system.normal_modes: {len(report.failed)} of {len(moved)} displaced structures could not be labelled "
            f"({report.failed[0][1]}); check the reference and the structure, or use system.normal_modes=null"
        )
    return [atoms.arrays["REF_forces"] for atoms in report.labelled]


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
    given = any(is_labelled(a) for a in run.systems.given)
    structures = run.store.structures(len(run.store.records()) + 1)
    restore_labels([a for a in structures if a.info["round"] != INITIAL or not given], run.reference, run.labels)


def extend(run: Run) -> None:
    """Takes up the last round again if it acquired nothing only because of a limit that has been raised since."""
    records = run.store.records()
    last = len(records) - 1
    if (
        not records
        or "n_selected" in records[last]["metrics"]
        or run.limits.is_last(last, len(run.store.structures(last)))
    ):
        return
    run.store.reopen(last)
    batch = run.limits.batch_size
    before = records[last - 1]["metrics"]["n_selected"] if last else batch
    if before < batch:
        log.warning(
            "round %d acquired %d structures, perhaps because of the limit then; a run with the present "
            "learning.max_structures from its start could have acquired learning.batch_size=%d, and differs",
            *(last - 1, before, batch),
        )

"""``ubmd learn``: builds what a run of active learning consists of, and runs its rounds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack

import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ubmd.commands.loggers import check_loggers, close_loggers, open_loggers
from ubmd.commands.parts import checked_seed, fitting, label_options, potentials, take_potentials
from ubmd.config import build, plain, set_threads
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.files import DataFiles
from ubmd.data.io import is_labelled, read_structures
from ubmd.devices import check_device
from ubmd.dynamics.explore import Explorer
from ubmd.dynamics.processes import WalkerProcesses
from ubmd.dynamics.several import check_explorers, explorers_of
from ubmd.errors import InputError
from ubmd.interruption import shielded
from ubmd.models.base import n_members
from ubmd.progress import RunProgress, run_progress
from ubmd.reference.base import Reference
from ubmd.reference.executors import LabelExecutor
from ubmd.reference.labelling import check_max_force
from ubmd.reference.store import LabelStore
from ubmd.rounds.checks import check_sizes, check_test, check_trainer, trains_stress
from ubmd.rounds.fit import set_up_lightning
from ubmd.rounds.limits import Limits
from ubmd.rounds.loop import learn_rounds
from ubmd.rounds.run import Run
from ubmd.runs.lock import held
from ubmd.runs.opening import open_run
from ubmd.runs.store import RoundStore
from ubmd.selection.base import Selection, check_selection
from ubmd.systems.several import Systems

__all__ = ["learn", "prepare"]

log = logging.getLogger(__name__)


def learn(cfg: DictConfig) -> float | None:
    """Runs active learning to its end, or continues the run in ``cfg.paths.run``.

    Returns:
        the last force RMSE on the test set, eV/Å (for sweepers); None without a test set.

    Raises:
        InputError: for anything wrong in the configuration, before any expensive work.
        StoppedShort: a round acquired no structure, so that the run ended with fewer than it was to have.
    """
    set_up_lightning()
    take_potentials(cfg)
    check_device(cfg.trainer)
    check_loggers(cfg)
    set_threads(cfg.threads)
    loggers: list[Logger] = []
    with run_progress() as progress, ExitStack() as stack:
        try:
            run = prepare(cfg, progress, loggers, stack)
            with run.executor, run.processes:
                return learn_rounds(run)
        finally:
            close_loggers(loggers)


def _systems(cfg: DictConfig) -> Systems:
    """The systems, with the structures that one starts from as ``cfg.data`` says that their file is to be read."""
    file, options = cfg.system.get("initial"), label_options(cfg)
    if isinstance(file, str) and file:
        initial = read_structures(file, **options)
        return Systems.of(build(cfg, "system", complete=lambda make: make(initial=initial)))
    systems = Systems.of(build(cfg, "system"))
    keys, units = options.get("keys"), options.get("units")
    foreign = (keys is not None and keys.given) or (units is not None and not units.own)
    if foreign and systems.named and any(map(is_labelled, systems.given)):
        raise InputError(
            "data.keys and data.units are not for labels in the files of several systems, which are read as REF_ keys "
            "in eV and Å; leave the options, or these labels, out"
        )
    return systems


@shielded()  # it imports
def prepare(cfg: DictConfig, progress: RunProgress, loggers: list[Logger], stack: ExitStack) -> Run:
    """Builds what a run consists of, cheapest checks first; ``loggers`` and ``stack`` take what is to be closed."""
    seed = checked_seed(cfg)
    check_max_force(cfg.labelling.max_force)
    learning = plain(cfg.learning)
    fits = fitting(cfg, learning.pop("checkpoint_epochs"), "learning.checkpoint_epochs")
    limits = Limits(**learning)
    systems = _systems(cfg)
    exploration: Explorer = build(cfg, "dynamics")
    explorers = explorers_of(systems, exploration)
    check_sizes(limits, systems, explorers)
    bias = build(cfg, "bias", potential=torch.nn.Identity(), uncertainty=torch.nn.Identity())
    check_explorers(systems, explorers, exploration, bias)
    made = potentials(cfg, systems.symbols)
    model = made.model(species=systems.symbols)
    selection: Selection = build(cfg, "selection")
    uncertainty = made.uncertainty(model=model)
    check_selection(selection, uncertainty)
    made.calibration.check(uncertainty)
    module = made.training(model=model)
    reference: Reference = build(cfg, "reference")
    stress = trains_stress(module.loss.stress, systems, explorers, reference)
    executor: LabelExecutor = build(cfg, "executor")
    executor.check(reference)
    data: Callable[..., GrowingDataModule] | DataFiles = build(cfg, "data")
    if isinstance(data, DataFiles) or not callable(data):
        raise InputError("data=files is the data of `ubmd train`; use data=default")
    datamodule: GrowingDataModule = data(
        cutoff=model.cutoff,
        species=systems.symbols,
        stress=stress,
        dtype=made.dtype,
        seed=seed,
        members=n_members(model),
    )
    check_test(plain(cfg.reference), systems, datamodule.test_structures)
    check_trainer(fits, limits, systems.n_start, datamodule)
    store = RoundStore(cfg.paths.run)
    store.path.mkdir(parents=True, exist_ok=True)
    stack.enter_context(held(store.path))
    open_run(store, plain(cfg))
    loggers.extend(open_loggers(cfg, store.path))
    labels = LabelStore(store.path / "labels.db")
    if cfg.retry:
        log.info("%d structures that could not be labelled are tried again", labels.forget_failures())
    return Run(
        seed=seed,
        limits=limits,
        max_force=cfg.labelling.max_force,
        store=store,
        systems=systems,
        reference=reference,
        labels=labels,
        executor=executor,
        datamodule=datamodule,
        potentials=made,
        fitting=fits,
        bias=build(cfg, "bias"),
        exploration=exploration,
        processes=WalkerProcesses(exploration.workers),
        selection=selection,
        loggers=loggers,
        progress=progress,
    )

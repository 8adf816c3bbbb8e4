"""``ubmd md``: walkers with a trained potential, from the structures in a file to a trajectory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from omegaconf import DictConfig
from rich import box
from rich.table import Table
from torch import Tensor

from ubmd.commands.parts import take_potentials
from ubmd.config import build, plain
from ubmd.data.inherit import Inherited, fixed_atoms
from ubmd.data.io import read_structures, write_structures
from ubmd.dynamics.exploration import Exploration, frames_to_atoms
from ubmd.dynamics.explore import Elsewhere, Explorer, group_files
from ubmd.dynamics.processes import PotentialFile, WalkerProcesses
from ubmd.dynamics.recording import Recording, last_line
from ubmd.dynamics.stopping import StopReason
from ubmd.dynamics.trajectory import read_trajectory, write_trajectory
from ubmd.dynamics.walker_run import is_whole, with_frames, without_frames
from ubmd.errors import InputError, StoppedShort
from ubmd.interfaces.ase import check_elements, torch_device
from ubmd.models.potential import WalkerPotential
from ubmd.progress import RunProgress, run_progress
from ubmd.runs.opening import open_run
from ubmd.runs.store import RoundStore
from ubmd.systems.system import System
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential

__all__ = ["run_md", "walkers_table"]

WALKERS = "walkers.pt"
THERMO = "thermo.csv"
LINES = 10
"""Lines of a whole run on the terminal."""


def run_md(cfg: DictConfig) -> None:
    """Runs walkers to their ends, or continues those in ``cfg.paths.run``, and says how each ended.

    Writes into the run folder ``trajectory.h5`` (:mod:`ubmd.dynamics.trajectory`) and the same frames as
    ``trajectory.extxyz``, as it runs the log ``thermo.csv`` (:mod:`ubmd.dynamics.recording`); beforehand
    ``config.yaml``, by which a repeated command recognises its own work: what is finished is kept, what was
    interrupted continues from the files of :func:`~ubmd.dynamics.explore.group_files`, ``walkers.pt`` if all walkers
    are of one group. With a larger ``dynamics.stopping.max_steps`` walkers that had reached it go on, as if it had been
    so from the start.

    Raises:
        InputError: for anything wrong in the configuration, the potential or the structures, before any
            work; also if the folder holds the run of another potential, structure or setting.
        StoppedShort: there is no frame, as every walker stopped before its first one.
    """
    _check_plain_settings(cfg)
    take_potentials(cfg)
    device = torch_device(cfg.device)
    exploration: Explorer = build(cfg, "dynamics")
    trained = load_potential(str(cfg.potential), device=device, allow=plain(cfg)["allow"])
    parts = {"potential": trained.potential, "uncertainty": trained.uncertainty}
    potential: WalkerPotential = build(cfg, "bias", **parts).to(device)
    exploration.check_bias(potential)
    starts = _starts(cfg, trained)
    exploration.check_start(starts[0], "structure 0")
    folder = Path(cfg.paths.run)
    file, saved = folder / "trajectory.h5", group_files(folder / WALKERS, exploration.groups)
    _check_extension(file, saved, exploration)
    # the walkers' checkpoint cannot tell another potential or bias from its own
    store = RoundStore(folder)
    open_run(store, plain(cfg) | {"contents": _digests(cfg, starts)}, extensible=True)
    if store.keeps(file):
        _reopen(store, file, saved, exploration)
    with run_progress() as progress, WalkerProcesses(exploration.workers) as processes:
        if not store.keeps(file):
            weights = next(trained.model.parameters())
            source = PotentialFile(Path(cfg.potential), build(cfg, "bias"), plain(cfg)["allow"])
            elsewhere = partial(processes.run, source)
            write_trajectory(file, _explore(cfg, exploration, potential, weights, starts, progress, elsewhere))
            store.keep(file)
        result = read_trajectory(file)
        frames = folder / "trajectory.extxyz"
        write_structures(frames, frames_to_atoms(result))
        for walkers in saved:
            without_frames(walkers)  # their states stay, for a run that goes on
        progress.console.print(walkers_table(result))
        few = "" if result.n_frames else f": no walker went dynamics.frame_interval={exploration.frame_interval} steps"
        progress.console.print(f"{result.n_frames} frames in {frames}{few}", highlight=False, soft_wrap=True)
        if not result.n_frames and all(StopReason(reason).unphysical for reason in result.reasons):
            raise StoppedShort(
                f"no walker reached its first frame, dynamics.frame_interval={exploration.frame_interval} steps after "
                "its start (see the table for why they stopped); lower dynamics.frame_interval, "
                "dynamics.integrator.dt or bias.tau, or start from other structures, under another name"
            )


def _ended_short(found: Exploration, exploration: Explorer) -> bool:
    """Whether walkers have reached a limit on steps that is lower than the present one."""
    return bool((found.steps[found.reasons == StopReason.MAX_STEPS] < exploration.stopping.max_steps).any())


def _check_extension(file: Path, saved: Sequence[Path], exploration: Explorer) -> None:
    """Refuses to go on from where walkers have ended, if that is not known any more; the run stays as it is."""
    if not file.is_file() or not _ended_short(read_trajectory(file), exploration):
        return
    lost = [walkers.name for walkers in saved if not is_whole(walkers)]
    if lost:
        raise InputError(
            f"dynamics.stopping.max_steps={exploration.stopping.max_steps}: the walkers of {file.parent} have ended, "
            f"and cannot go on without {lost[0]}, which is missing or damaged (earlier versions did not keep it); "
            "restore it, or start from the last frames under another name=..."
        )


def _reopen(store: RoundStore, file: Path, saved: Sequence[Path], exploration: Explorer) -> None:
    """Makes a run that has ended one that was interrupted, if its walkers are to go on."""
    found = read_trajectory(file)
    if not _ended_short(found, exploration):
        return
    for number, walkers in enumerate(saved):
        with_frames(walkers, found, found.walkers[number :: exploration.groups])
    store.release(file)


def walkers_table(exploration: Exploration) -> Table:
    """One line for each walker: its steps, why it stopped and the highest uncertainty that it met."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("walker", justify="right")
    table.add_column("steps", justify="right")
    table.add_column("highest uncertainty\nof a force, eV/Å", justify="right")
    table.add_column("why it stopped")
    for walker, steps, highest, reason in zip(
        exploration.walkers, exploration.steps, exploration.max_uncertainty, exploration.reasons, strict=True
    ):
        table.add_row(f"{walker}", f"{steps}", f"{highest:.3f}", StopReason(reason).description)
    return table


def _check_plain_settings(cfg: DictConfig) -> None:
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise InputError(f"seed={cfg.seed} must be zero or a positive whole number")
    if cfg.log_interval < 1:
        raise InputError(f"log_interval={cfg.log_interval} must be at least 1 step")
    if cfg.get("logger"):
        raise InputError("logger: `ubmd md` logs to no logger, its results are in trajectory.h5; leave it out")


def _starts(cfg: DictConfig, trained: UncertainPotential) -> list[Atoms]:
    """The structures to start from, all of the same atoms in the same order, known to the potential, the same fixed."""
    if "structure" not in cfg.system:
        raise InputError("system: `ubmd md` runs walkers of one system; give system.structure=FILE")
    path = cfg.system.structure
    structures = read_structures(path) if isinstance(path, str) else None
    given: dict[str, Any] = {} if structures is None else {"structure": structures[0]}
    system: System = build(cfg, "system", **given)
    structures = structures or system.starts
    name = path if isinstance(path, str) else "system.structure" if system.smiles is None else "system.smiles"
    known = trained.species
    for number, atoms in enumerate(structures):
        what = f"structure {number} of {name}"
        check_elements(atoms, known, what, cfg.potential)
        if not np.array_equal(atoms.numbers, structures[0].numbers):
            raise InputError(f"{what} is of other atoms, or in another order, than structure 0; run it by itself")
        if not np.array_equal(atoms.pbc, structures[0].pbc):
            raise InputError(f"{what} is periodic along other directions than structure 0; run it by itself")
        if not np.array_equal(fixed_atoms(atoms, what), fixed_atoms(structures[0], what)):
            raise InputError(f"{what} fixes other atoms than structure 0; run it by itself")
    return structures


def _explore(
    cfg: DictConfig,
    exploration: Explorer,
    potential: WalkerPotential,
    weights: Tensor,
    starts: Sequence[Atoms],
    progress: RunProgress,
    elsewhere: Elsewhere,
) -> Exploration:
    """Runs or continues the walkers behind a progress bar, in the precision and on the device of ``weights``."""
    n_walkers = exploration.n_walkers
    if len(starts) > n_walkers:
        progress.console.print(
            f"{n_walkers} walkers: only the first {n_walkers} of {len(starts)} structures are used",
            highlight=False,
        )
    total = n_walkers * exploration.stopping.max_steps
    with progress.stage("walkers", total) as stage:
        recording = Recording(Path(cfg.paths.run) / THERMO, int(cfg.log_interval), exploration.time_step)
        logs = group_files(recording.log, exploration.groups)
        told = 0

        def show(steps: int, running: int, highest: float) -> None:
            nonlocal told
            stage.update(steps, total, f"{running} running, highest uncertainty {highest:.2f} eV/Å")
            if LINES * steps // total > told and (line := last_line(logs)):
                told = LINES * steps // total
                progress.console.print(line, highlight=False, soft_wrap=True)

        return exploration(
            potential,
            starts,
            seed=cfg.seed,
            round_index=0,
            dtype=weights.dtype,
            device=weights.device,
            checkpoint=Path(cfg.paths.run) / WALKERS,
            on_progress=show,
            elsewhere=elsewhere,
            recording=recording,
        )


def _digests(cfg: DictConfig, starts: Sequence[Atoms]) -> dict[str, str]:
    """The contents of the files that the trajectory depends on: their names alone would not tell."""
    structures = hashlib.sha256()
    for atoms in starts:
        for values in (atoms.numbers, atoms.positions, np.asarray(atoms.cell), atoms.pbc):
            structures.update(np.ascontiguousarray(values).tobytes())
        structures.update(Inherited.of(atoms).record().encode())
    return {
        "potential_sha256": hashlib.sha256(Path(cfg.potential).read_bytes()).hexdigest(),
        "structures_sha256": structures.hexdigest(),
    }

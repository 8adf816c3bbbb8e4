"""Each system's part in a round: its walkers beforehand, its errors afterwards."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ase import Atoms

from ubmd.analysis.evaluation import error_metrics, evaluate_structures
from ubmd.callbacks.acquire import Acquire
from ubmd.dynamics.explore import Explorer
from ubmd.dynamics.several import SystemWalkers, explorers_of
from ubmd.dynamics.trajectory import read_trajectories
from ubmd.rounds.run import Run
from ubmd.runs.folder import RoundFolder
from ubmd.uncertainty.checkpoint import load_potential

__all__ = ["acquired_by_system", "errors_by_system", "round_explorers", "round_walkers"]

log = logging.getLogger(__name__)

_ERRORS = ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang", "stress_rmse_mpa")


def round_explorers(run: Run, index: int) -> dict[str, Explorer]:
    """How each system is explored in a round, which may depend on what was met in the round before."""
    met = None
    if run.systems.by_uncertainty and index:
        met = _met_uncertainty(run, index - 1)
    return explorers_of(run.systems, run.exploration, met)


def _met_uncertainty(run: Run, index: int) -> dict[str, float]:
    """By system the highest uncertainty that a walker met, eV/Å, averaged over walkers; that of all where untold.

    It counts up to the threshold at which walkers stop: a walker that goes astray may meet any.
    """
    found = read_trajectories(run.store.folder(index).trajectory)
    explorers = explorers_of(run.systems, run.exploration)
    met = {}
    for name, explored in found.items():
        limit = explorers[name].stopping.uncertainty_threshold
        values = np.minimum(explored.max_uncertainty, np.inf if limit is None else limit)
        values = values[np.isfinite(values) & (values > 0)]
        if len(values):
            met[name] = float(values.mean())
    average = float(np.mean(list(met.values()))) if met else 1.0
    return {name: met.get(name, average) for name in run.systems.parts}


def round_walkers(run: Run, index: int, structures: Sequence[Atoms]) -> dict[str, SystemWalkers]:
    """The walkers of a round by system: from its structures labelled last, or its initial one.

    Args:
        run: of the rounds.
        index: of the round.
        structures: all labelled ones, with the ``round`` in which they were.
    """
    out = {}
    folder = run.store.folder(index)
    for name, explorer in round_explorers(run, index).items():
        system, own = run.systems.parts[name], run.systems.own(name, structures)
        perturbed = index == 0 and system.initial is None
        last = max(atoms.info["round"] for atoms in own) if run.systems.named else index - 1
        starts = [system.atoms] if perturbed else [a for a in own if a.info["round"] == last]
        checkpoint = folder.walkers.with_stem(f"{folder.walkers.stem}-{name}") if name else folder.walkers
        out[name] = SystemWalkers(explorer, starts, run.systems.seed(name, run.seed), checkpoint)
    return out


def errors_by_system(run: Run, folder: RoundFolder, device: torch.device) -> dict[str, float]:
    """Columns of ``metrics.csv``: each system's errors on the test set and on the validation structures.

    They are named as those of all systems together, with the name of the system behind it. A run of a single system
    without a name has none of them; nor has a system without such structures.
    """
    if not run.systems.named:
        return {}
    data = run.datamodule
    parts = {"": data.test_structures, "valid_": [data.structures[i] for i in data.valid_indices]}
    trained = load_potential(folder.model, device=device, allow=run.potentials.allow)
    out: dict[str, float] = {}
    for name in run.systems.parts:
        out[f"n_structures_{name}"] = len(run.systems.own(name, data.structures))
    for prefix, structures in parts.items():
        if not structures:
            continue
        found = evaluate_structures(trained, structures, batch_size=data.evaluation_batch_size)
        whose = [run.systems.name_of(atoms) for atoms in structures]
        for name in [name for name in run.systems.parts if name in whose]:
            errors = error_metrics(found.select([own == name for own in whose]))
            wanted = _ERRORS if data.stress else _ERRORS[:2]
            out |= {f"{prefix}{key}_{name}": errors[key] for key in wanted if key in errors}
    return out


def acquired_by_system(run: Run, acquire: Acquire) -> dict[str, int]:
    """Columns of ``metrics.csv``: walkers of each system, and structures that were selected of it."""
    if not run.systems.named:
        return {}
    selected: Mapping[str | None, int] = Counter(run.systems.name_of(atoms) for atoms in acquire.selected)
    walkers = {f"n_walkers_{name}": len(found.walkers) for name, found in acquire.explore.result.items()}
    return walkers | {f"n_selected_{name}": selected[name] for name in run.systems.parts}

"""What a run of ``ubmd learn`` must fulfil: refused before any expensive work, in one sentence."""

from __future__ import annotations

from omegaconf import DictConfig

from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.io import is_labelled
from ubmd.data.system import System
from ubmd.dynamics.explore import Explorer
from ubmd.errors import InputError
from ubmd.reference.base import Reference
from ubmd.reference.labelling import check_max_force
from ubmd.seeding import Stage, stage_rng
from ubmd.training.fit import trainer_limits

__all__ = ["check_sizes", "check_trainer", "trains_stress"]


def trains_stress(cfg: DictConfig, system: System, exploration: Explorer, reference: Reference) -> bool:
    """Whether the potential learns stress; refuses what this cannot go with."""
    weight = cfg.training.loss.stress
    exploration.check_start(system.atoms, "system.structure")
    if exploration.needs_stress and not weight > 0:
        raise InputError(
            f"training.loss.stress={weight} leaves untrained the stress that dynamics at constant pressure follow; "
            "set it to, say, 0.01 or choose dynamics=langevin"
        )
    if weight > 0 and not system.periodic:
        raise InputError(f"training.loss.stress={weight} needs a periodic system; set it to 0")
    if weight > 0 and any(is_labelled(a) and "REF_stress" not in a.info for a in system.given):
        raise InputError(
            f"training.loss.stress={weight} needs a stress in every label, but a structure of system.initial has a "
            "label without REF_stress; add it, remove the label or set training.loss.stress=0"
        )
    if weight > 0 and not reference.has_stress:
        raise InputError(
            f"training.loss.stress={weight} needs a reference that computes stress, which "
            f"{type(reference).__name__} does not; set it to 0 or choose another reference"
        )
    return weight > 0


def check_sizes(cfg: DictConfig, system: System, exploration: Explorer) -> None:
    """Refuses numbers that are out of range or do not go together."""
    stage_rng(cfg.seed, 0, Stage.PERTURB)  # refuses an impossible seed
    check_max_force(cfg.labelling.max_force)
    learning = cfg.learning
    for name in ("max_structures", "batch_size"):
        if learning[name] < 1:
            raise InputError(f"learning.{name}={learning[name]} must be at least 1")
    if learning.max_rounds is not None and learning.max_rounds < 1:
        raise InputError(f"learning.max_rounds={learning.max_rounds} must be at least 1, or null for no limit")
    if learning.batch_size > exploration.max_candidates:
        raise InputError(
            f"learning.batch_size={learning.batch_size} is larger than the pool, which holds at most "
            f"{exploration.max_candidates} candidates; use more walkers, a longer dynamics.stopping.max_steps "
            "or a smaller batch"
        )
    if learning.max_structures < system.n_start:
        raise InputError(
            f"learning.max_structures={learning.max_structures} is below the {system.n_start} structures that the run "
            "starts from; raise it or lower system.n_initial"
        )
    if learning.warm_start is not None and not 0 < learning.warm_start <= 1:
        raise InputError(f"learning.warm_start={learning.warm_start} must be a share between 0 and 1, or null")
    if cfg.dtype not in ("float32", "float64"):
        raise InputError(f"dtype={cfg.dtype} must be float32 or float64")


def check_trainer(cfg: DictConfig, system: System, datamodule: GrowingDataModule) -> None:
    """Refuses, beforehand, a trainer whose shortest fit, the last one, would end before its first validation."""
    learning = cfg.learning
    largest = learning.max_structures
    if learning.max_rounds is not None:
        largest = min(largest, system.n_start + (learning.max_rounds - 1) * learning.batch_size)
    n_train = max(int((1 - datamodule.validation_fraction) * largest), 1)
    trainer_limits(cfg, n_train, datamodule.batch_size, learning.warm_start or 1.0)

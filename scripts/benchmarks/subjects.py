"""Structures and fitted potentials that are measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig
from torch import nn

from benchmarks.floors import Floors
from benchmarks.rows import wait
from ubmd.callbacks.scale_shift import FitScaleShift
from ubmd.cli.app import compose
from ubmd.commands.parts import fitting, potentials
from ubmd.config import build
from ubmd.data.batch import collate
from ubmd.data.datamodule import GrowingDataModule
from ubmd.dynamics.explore import WalkerExploration
from ubmd.dynamics.state import WalkerState, initial_state
from ubmd.models.base import layer_sizes, n_members
from ubmd.models.potential import Potential, WalkerPotential
from ubmd.rounds.fit import set_up_lightning
from ubmd.systems.mil53 import relaxed_structure
from ubmd.systems.sampling import sample_ff19sb
from ubmd.training.module import PotentialModule
from ubmd.uncertainty import FeatureUncertainty, SketchedGradients
from ubmd.uncertainty.base import Uncertainty
from ubmd.uncertainty.potential import UncertainPotential

BASE = ("system=ala2", "reference=ff19sb", "data.test=null", "logger=csv")
"""Words of a configuration that is not complete without a system."""


@dataclass(frozen=True)
class Subject:
    """A fitted potential with its uncertainty, and how it was configured."""

    cfg: DictConfig
    module: PotentialModule
    uncertainty: Uncertainty
    datamodule: GrowingDataModule
    step_ms: list[float]
    """Of the steps of the fit."""

    @property
    def floors(self) -> Floors | None:
        """For the network's sizes; None for what they are not derived for."""
        features = getattr(self.uncertainty, "features", None)
        if not isinstance(self.uncertainty, FeatureUncertainty) or not isinstance(features, SketchedGradients):
            return None
        return Floors(layer_sizes(self.module.model), features.n_features)

    def potential(self, kind: str, *options: str) -> WalkerPotential:
        """The potential that is ``plain``, ``uncertain`` or ``biased``; options are those of the bias."""
        plain: Potential = self.module.potential
        if kind == "plain":
            return plain
        if kind == "uncertain":
            return UncertainPotential(plain, self.uncertainty)
        bias = build(configuration(*options), "bias") if options else build(self.cfg, "bias")
        return bias(potential=plain, uncertainty=self.uncertainty).to(self.module.device)

    @property
    def dynamics(self) -> WalkerExploration:
        """How walkers are run."""
        return build(self.cfg, "dynamics")

    def walkers(self, starts: Sequence[Atoms], n_walkers: int) -> WalkerState:
        """Walkers from some structures in turn."""
        dynamics, model = self.dynamics, self.module.model
        chosen = [starts[i % len(starts)] for i in range(n_walkers)]
        reach: float = model.cutoff + dynamics.skin  # pyright: ignore
        batch = collate(chosen, reach, device=self.module.device)
        return initial_state(batch, temperature=dynamics.integrator.temperature, seeds=range(n_walkers))


def configuration(*words: str) -> DictConfig:
    """Of ``ubmd learn``."""
    return compose("learn", [*BASE, *words])


def trained(
    cfg: DictConfig,
    structures: Sequence[Atoms],
    steps: int,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    threads: int = 1,
    seed: int = 0,
) -> tuple[PotentialModule, GrowingDataModule, list[float]]:
    """A potential after some steps of training as ``ubmd learn`` trains it, its data, and the times of steps in ms."""
    set_up_lightning()
    torch.set_num_threads(threads)
    species = sorted({symbol for atoms in structures for symbol in atoms.symbols})
    made = potentials(cfg, species)
    model: nn.Module = made.model(species=species, seed=seed)
    module = made.training(model=model)
    data = build(cfg, "data")(cutoff=model.cutoff, species=species, seed=seed, members=n_members(model))
    data.batch_size = batch_size
    data.set_round(0, structures)
    times = StepTimes(batch_size, device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fitting(cfg, 1).trainer(
            accelerator="cpu" if device == "cpu" else "auto",
            callbacks=[FitScaleShift(), times],
            max_epochs=-1,
            max_steps=steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
        trainer.fit(module, data)
    module.to(device)
    return module, data, times.ms


def fitted(
    cfg: DictConfig,
    structures: Sequence[Atoms],
    steps: int,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    threads: int = 1,
) -> Subject:
    """A potential as :func:`trained` makes it, with its uncertainty."""
    module, data, times = trained(cfg, structures, steps, batch_size=batch_size, device=device, threads=threads)
    species = sorted({symbol for atoms in structures for symbol in atoms.symbols})
    uncertainty: Any = potentials(cfg, species).uncertainty(model=module.model, seed=0)
    uncertainty.to(device)
    uncertainty.fit(module.model, data.chunks("train", device))
    return Subject(cfg, module, uncertainty, data, times)


class StepTimes(Callback):
    """Times from the end of a training step to the end of the next one of the same epoch, on as many structures."""

    def __init__(self, batch_size: int, device: str):
        self.batch_size, self.device = batch_size, device
        self.ms: list[float] = []
        self._last = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        wait(self.device)
        now = time.perf_counter()
        if batch_idx > 0 and batch.n_systems == self.batch_size:  # nothing of what is done between epochs
            self.ms.append(1e3 * (now - self._last))
        self._last = now


def molecules(n: int) -> list[Atoms]:
    """Alanine dipeptide at 300 K with labels of ff19SB."""
    return sample_ff19sb(n, duration_ps=max(0.05 * n, 1.0), temperature=300.0, seed=0)


def framework() -> Atoms:
    """MIL-53(Al), 76 atoms."""
    return relaxed_structure("large")


def shaken(atoms: Atoms, n: int, width: float = 0.06) -> list[Atoms]:
    """Structures about ``atoms`` with the labels of springs between its near atoms, which hold it together."""
    i, j, shift = neighbor_list("ijS", atoms, 3.3)

    def vectors(moved: Atoms) -> np.ndarray:
        return moved.positions[j] + shift @ np.asarray(moved.cell) - moved.positions[i]

    rest = np.linalg.norm(vectors(atoms), axis=1)
    strength = 0.5 * 20.0 * np.exp(1.2 - rest)  # eV/Å², half as every pair is there twice
    out = []
    for seed in range(n):
        moved = atoms.copy()
        moved.rattle(width, seed=seed)
        vector = vectors(moved)
        length = np.linalg.norm(vector, axis=1)
        pull = 2 * (strength * (length - rest) / length)[:, None] * vector
        forces = np.zeros_like(moved.positions)
        np.add.at(forces, i, pull)
        np.add.at(forces, j, -pull)
        moved.info["REF_energy"] = float(np.sum(strength * (length - rest) ** 2))
        moved.arrays["REF_forces"] = forces
        out.append(moved)
    return out

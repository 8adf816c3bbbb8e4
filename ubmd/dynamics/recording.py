"""What users of molecular dynamics expect besides the frames of active learning: a log, and frames in full.

The log is a table of comma-separated values with a row for each walker and each ``interval`` steps, its start included.
What does not apply is empty, and so is what is not known between two evaluations of a bias (``bias.every``). Energies
and pressure are without the bias.

Columns:

=============================  =====================================================================================
``walker``, ``step``           identity, and steps that it has done
``time_ps``                    of dynamics in time
``potential_energy_ev``        of the potential
``bias_energy_ev``             what a bias adds to it
``kinetic_energy_ev``          of the atoms
``total_energy_ev``            potential and kinetic energy
``conserved_energy_ev``        what exact dynamics conserves, atoms, bias, thermostat and barostat together, where the
                               integrator knows it (``npt``, ``npt_mtk``); a bias that changes in time breaks it
``temperature_k``              kinetic, of three degrees of freedom for each free atom
``pressure_mpa``               of crystals, with the atoms' motion, positive under compression
``volume_ang3``                of crystals
``uncertainty_ev_per_atom``    of the energy
``max_atomic_uncertainty_ev_per_ang``  highest of a free atom's force
``tau``                        strength of the bias
=============================  =====================================================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ubmd.dynamics.respa import evaluation_interval
from ubmd.dynamics.state import WalkerState, degrees_of_freedom
from ubmd.models.potential import Prediction, WalkerPotential
from ubmd.units import ACCELERATION, KB, MPA

__all__ = ["COLUMNS", "Recorder", "Recording", "last_line"]

log = logging.getLogger(__name__)

COLUMNS = (
    *("walker", "step", "time_ps", "potential_energy_ev", "bias_energy_ev", "kinetic_energy_ev", "total_energy_ev"),
    *("conserved_energy_ev", "temperature_k", "pressure_mpa", "volume_ang3", "uncertainty_ev_per_atom"),
    *("max_atomic_uncertainty_ev_per_ang", "tau"),
)


@dataclass(frozen=True)
class Recording:
    """That frames are kept in full (time, momenta, forces, stress, bias energy), and a log."""

    log: Path
    interval: int
    """Steps of a walker between rows of the log."""
    time_step: float | None
    """fs; None if a step is not one in time."""


class Recorder:
    """Writes the log of walkers, and says what their frames have.

    Forces and stress without the bias, which walkers do not need, take an evaluation of their own for each row (of
    crystals) and frame.

    Args:
        settings: what to record.
        potential: of the walkers, biased or not.
        integrator: of the walkers.
        size: bytes of the log that are known to be of this run; what follows is of steps that are done again.
    """

    def __init__(self, settings: Recording, potential: WalkerPotential, integrator: Any, size: int):
        self._settings, self._integrator, self._every = settings, integrator, evaluation_interval(potential)
        self._unbiased: WalkerPotential = getattr(potential, "unbiased", potential)
        self._last: tuple[WalkerState, Prediction] | None = None
        settings.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = settings.log.open("a", encoding="utf-8", newline="")
        there = self._file.seek(0, os.SEEK_END)
        if size and there < size:
            log.warning("%s is not what this run has written: rows are missing", settings.log)
            size = settings.log.read_bytes().rfind(b"\n") + 1  # without what may be left of half a row
        self._file.truncate(size)
        self._file.seek(size)
        if not self._file.tell():
            self._file.write(",".join(COLUMNS) + "\n")

    def size(self) -> int:
        """Bytes of the log, all of which have been handed to the system."""
        self._file.flush()
        return self._file.tell()

    def close(self) -> None:
        """Closes the log."""
        self._file.close()

    def log(self, state: WalkerState, steps: np.ndarray) -> None:
        """Adds rows of those walkers that have done a multiple of ``interval`` steps [n_walkers]."""
        due = np.flatnonzero(steps % self._settings.interval == 0)
        if not len(due):
            return
        columns = self._columns(state, full=steps[due[0]] % self._every == 0)
        for place in due:
            row = [f"{int(state.walker[place])}", f"{steps[place]}"]
            row += ["" if values is None else f"{float(values[place]):.10g}" for values in columns]
            self._file.write(",".join(row) + "\n")
        self._file.flush()  # whoever follows it sees whole rows

    def details(self, state: WalkerState) -> dict[str, Tensor]:
        """Of all walkers what their frames have besides: fields of :class:`~ubmd.dynamics.exploration.Exploration`."""
        found, n = self._prediction(state), state.n_walkers
        out = {"forces": found.forces.view(n, -1, 3), "bias_energy": _or_zero(state.bias_energy, state)}
        if self._settings.time_step is not None:
            out |= {"momenta": state.momenta.view(n, -1, 3), "time": state.step.double() * self._settings.time_step}
        if found.stress is not None:
            out["stress"] = found.stress
        return {name: values.cpu().double() for name, values in out.items()}

    def _prediction(self, state: WalkerState) -> Prediction:
        if self._last is None or self._last[0] is not state:
            crystal = bool(state.batch.pbc.all())
            self._last = state, self._unbiased(state.batch, None, stress=crystal)
        return self._last[1]

    def _columns(self, state: WalkerState, *, full: bool) -> list[Tensor | None]:
        """[n_walkers] of each column but the first two, on the CPU; None for what does not apply or is not known.

        Args:
            state: of the walkers.
            full: whether the last evaluation was one of the bias too.
        """
        time_step, energy = self._settings.time_step, state.energy
        time = None if time_step is None else state.step.double() * (1e-3 * time_step)
        kinetic = temperature = total = None
        if time_step is not None:
            kinetic = _kinetic(state)
            temperature = 2 * kinetic / KB / degrees_of_freedom(state)
            total = None if energy is None else energy + kinetic
        volume = pressure = None
        if bool(state.batch.pbc.all()):
            volume = state.batch.volume.double()
            stress = self._prediction(state).stress
            assert stress is not None
            trace = stress.double().diagonal(dim1=1, dim2=2).sum(1)
            moving = 0.0 if kinetic is None else 2 * kinetic / volume
            pressure = (moving - trace) / (3 * MPA)
        bias, conserved = (_or_zero(state.bias_energy, state), self._conserved(state)) if full else (None, None)
        values = [time, energy, bias, kinetic, total, conserved]
        values += [temperature, pressure, volume, state.uncertainty, state.max_uncertainty(), state.tau]
        return [None if v is None else v.detach().cpu() for v in values]

    def _conserved(self, state: WalkerState) -> Tensor | None:
        if self._settings.time_step is None or state.energy is None:
            return None
        halves = self._integrator.prepare(state)
        return halves.conserved_energy(state) if hasattr(halves, "conserved_energy") else None


def _kinetic(state: WalkerState) -> Tensor:
    """[n_walkers] eV."""
    twice = state.momenta.double().square().sum(1) / state.masses.double()
    return 0.5 * state.batch.sum_atoms(twice) / ACCELERATION


def _or_zero(values: Tensor | None, state: WalkerState) -> Tensor:
    nothing = torch.zeros(state.n_walkers, dtype=torch.float64, device=state.step.device)
    return nothing if values is None else values + nothing  # which makes 0 of -0


def last_line(logs: Sequence[Path]) -> str:
    """Where walkers are, in words: means of the last rows of their logs that are of one step; "" if there are none."""
    rows: list[dict[str, float]] = []
    for file in logs:
        if file.is_file():
            with file.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
                whole, _, _ = stream.read().rpartition(b"\n")  # another process may be writing the last one
                lines = whole.decode().splitlines()[1:]  # the first one may be half a row, or is the header
            rows += [dict(zip(COLUMNS, map(_number, row.split(",")), strict=True)) for row in lines]
    last = [row for row in rows if row["step"] == max(row["step"] for row in rows)]
    means = {name: float(np.mean([row[name] for row in last])) for name in COLUMNS if last}
    shown = (
        ("step", "step {:.0f}"),
        ("time_ps", "{:.4g} ps"),
        ("temperature_k", "{:.0f} K"),
        ("potential_energy_ev", "potential {:.3f} eV"),
        ("total_energy_ev", "total {:.3f} eV"),
        ("pressure_mpa", "{:.0f} MPa"),
        ("volume_ang3", "{:.1f} Å³"),
        ("max_atomic_uncertainty_ev_per_ang", "uncertainty {:.2f} eV/Å"),
    )
    return ", ".join(text.format(means[name]) for name, text in shown if np.isfinite(means.get(name, np.nan)))


_TAIL = 1 << 16


def _number(text: str) -> float:
    return float(text) if text else np.nan

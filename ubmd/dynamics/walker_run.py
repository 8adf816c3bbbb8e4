"""What changes while walkers run, saved and continued."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ubmd.dynamics.checkpoint import load_checkpoint, save_checkpoint
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.respa import evaluation_interval
from ubmd.dynamics.state import WalkerState
from ubmd.dynamics.stopping import StopReason
from ubmd.models.potential import WalkerPotential

__all__ = ["WalkerRun"]


@dataclass
class WalkerRun:
    """What changes while walkers run; a checkpoint holds all of it but the start."""

    start: WalkerState
    """Of all walkers."""
    waiting: list[int]
    """Places in ``start`` of walkers that have not begun yet."""
    state: WalkerState
    """Of the walkers that run, possibly none."""
    highest: Tensor
    """[n_walkers] highest atomic uncertainty so far, eV/Å; NaN if there is none."""
    rounds: int = 0
    """Steps of the batch."""
    frames: list[dict[str, Tensor]] = field(default_factory=list)
    """Fields of the frames of one step."""
    stopped: list[dict[str, Tensor]] = field(default_factory=list)
    """What is known of walkers that stopped at one step."""

    def __post_init__(self) -> None:
        self.first = int(self.start.step[0])
        self._count()

    @classmethod
    def of(cls, start: WalkerState) -> WalkerRun:
        """The run before its first step."""
        nobody = start.select(torch.zeros(0, dtype=torch.int64, device=start.step.device))
        return cls(start, list(range(start.n_walkers)), nobody, torch.zeros_like(nobody.temperature))

    def _count(self) -> None:
        # known on the host too, because a look at the device's copy would be a wait
        self.steps = self.state.step.cpu().numpy().copy()

    def room(self, slots: int, potential: WalkerPotential) -> int:
        """How many walkers may begin now."""
        free = min(slots - self.state.n_walkers, len(self.waiting))
        if free and len(self.steps) and (self.steps[0] - self.first) % evaluation_interval(potential):
            return 0
        return free

    def next(self, n: int) -> WalkerState:
        """The next walkers, as they start, which :meth:`record` expects behind those that run."""
        start = self.start.select(torch.tensor(self.waiting[:n], device=self.start.step.device))
        self.waiting = self.waiting[n:]
        self.highest = torch.cat([self.highest, torch.full_like(start.temperature, torch.nan)])
        self.steps = np.concatenate([self.steps, start.step.cpu().numpy()])
        return start

    def record(self, state: WalkerState, reasons: np.ndarray | None, frame_interval: int) -> None:
        """Takes in the state after a step, keeps its frames and parts with the walkers that stopped."""
        self.state = state
        self.rounds += 1
        self.steps += 1
        highest = state.max_uncertainty()
        if highest is not None:
            self.highest = torch.fmax(self.highest, highest.to(self.highest.dtype))
        keep = self.steps % frame_interval == 0
        if reasons is not None:
            keep = (keep & (reasons < StopReason.TEMPERATURE)) | (reasons == StopReason.UNCERTAINTY)
        if keep.any():
            self.frames.append(_frames(state, keep))
        if reasons is not None:
            self._part(reasons)

    def _part(self, reasons: np.ndarray) -> None:
        device = self.state.step.device
        gone = torch.as_tensor(np.flatnonzero(reasons), device=device)
        left = torch.as_tensor(np.flatnonzero(reasons == StopReason.RUNNING), device=device)
        self.stopped.append(
            {
                "walkers": self.state.walker[gone].cpu(),
                "reasons": torch.as_tensor(reasons[reasons != StopReason.RUNNING]),
                "steps": self.state.step[gone].cpu(),
                "temperature": self.state.temperature[gone].cpu().double(),
                "max_uncertainty": self.highest[gone].cpu().double(),
            }
        )
        self.state, self.highest = self.state.select(left), self.highest[left]
        self._count()

    def progress(self) -> tuple[int, int, float]:
        """Arguments of ``on_progress``."""
        done = sum(int(s["steps"].sum()) for s in self.stopped) + int(self.steps.sum())
        highest = self.highest[~self.highest.isnan()]
        return done, self.state.n_walkers, float(highest.max()) if len(highest) else float("nan")

    def save(self, path: Path, name: str) -> None:
        """Writes everything to ``path``."""
        values: dict[str, Any] = {
            "state": self.state.state_dict(),
            "waiting": self.waiting,
            "highest": self.highest.cpu(),
            "rounds": self.rounds,
            "frames": self.frames,
            "stopped": self.stopped,
        }
        save_checkpoint(path, name, values)

    @classmethod
    def load(cls, path: Path, name: str, start: WalkerState) -> WalkerRun | None:
        """The run as saved, or None if it was not."""
        saved = load_checkpoint(path, name)
        if saved is None:
            return None
        device = start.step.device
        return cls(
            start,
            # earlier versions had none that wait
            waiting=saved.get("waiting", []),
            state=WalkerState.from_state_dict(saved["state"], device=device),
            highest=saved["highest"].to(device),
            rounds=saved["rounds"],
            frames=saved["frames"],
            stopped=saved["stopped"],
        )

    def result(self, numbers: np.ndarray, pbc: np.ndarray) -> Exploration:
        """All frames and fates in order."""
        frames = _joined(self.frames or [_frames(self.state, np.zeros(0, dtype=bool), len(numbers))])
        fates = _joined(self.stopped)
        frame_order = np.lexsort((frames["step"], frames["walker"]))
        fate_order = np.argsort(fates["walkers"])
        return Exploration(
            numbers=numbers,
            pbc=pbc,
            **{key: value[frame_order] for key, value in frames.items()},  # pyright: ignore[reportArgumentType]
            **{key: value[fate_order] for key, value in fates.items()},  # pyright: ignore[reportArgumentType]
        )


def _frames(state: WalkerState, keep: np.ndarray, n_atoms: int | None = None) -> dict[str, Tensor]:
    """Fields of :class:`Exploration` of the walkers in ``keep`` [n_walkers], on the CPU."""
    batch = state.batch
    size = len(batch.numbers) // batch.n_systems if n_atoms is None else n_atoms
    chosen = torch.as_tensor(np.flatnonzero(keep), device=batch.positions.device)

    def real(values: Tensor | None, *shape: int) -> Tensor:
        if values is None:
            return torch.full((len(chosen), *shape), torch.nan, dtype=torch.float64)
        return values.view(batch.n_systems, *shape)[chosen].cpu().double()

    return {
        "walker": state.walker[chosen].cpu(),
        "step": state.step[chosen].cpu(),
        "positions": real(batch.positions, size, 3),
        "cell": real(batch.cell, 3, 3),
        "energy": real(state.energy),
        "uncertainty": real(state.uncertainty),
        "atomic_uncertainty": real(state.atomic_uncertainty, size),
        "tau": real(state.tau),
    }


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    return {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}

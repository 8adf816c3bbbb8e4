"""What changes while walkers run, saved and continued."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ubmd.dynamics.checkpoint import change_checkpoint, load_checkpoint, save_checkpoint
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.recording import Recorder
from ubmd.dynamics.respa import evaluation_interval
from ubmd.dynamics.state import WalkerState
from ubmd.dynamics.stopping import StopReason
from ubmd.errors import InputError
from ubmd.models.potential import WalkerPotential

__all__ = ["WalkerRun", "is_whole", "with_frames", "without_frames"]

log = logging.getLogger(__name__)


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
    parked: list[dict[str, Any]] | None = None
    """States of walkers that stopped at the limit on steps, as they are saved, for a run that goes beyond it; None if
    there is to be none."""
    log_size: int = 0
    """Bytes of the log that the steps so far have written."""

    def __post_init__(self) -> None:
        self.first = int(self.start.step[0])
        self._count()

    @classmethod
    def of(cls, start: WalkerState, *, extensible: bool = False) -> WalkerRun:
        """The run before its first step."""
        nobody = start.select(torch.zeros(0, dtype=torch.int64, device=start.step.device))
        highest, parked = torch.zeros_like(nobody.temperature), [] if extensible else None
        return cls(start, list(range(start.n_walkers)), nobody, highest, parked=parked)

    def _count(self) -> None:
        # known on the host too, because a look at the device's copy would be a wait
        self.steps = self.state.step.cpu().numpy().copy()

    def room(self, slots: int, potential: WalkerPotential) -> int:
        """How many walkers may begin now."""
        free = min(max(slots - self.state.n_walkers, 0), len(self.waiting))  # those that go on may be more than slots
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

    def record(
        self, state: WalkerState, reasons: np.ndarray | None, frame_interval: int, recorder: Recorder | None = None
    ) -> None:
        """Takes in the state after a step, keeps its frames and parts with the walkers that stopped."""
        if recorder is not None:
            recorder.log(state, self.steps + 1)
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
            self.frames.append(_frames(state, keep, {} if recorder is None else recorder.details(state)))
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
        if self.parked is not None and (reasons == StopReason.MAX_STEPS).any():
            ended = torch.as_tensor(np.flatnonzero(reasons == StopReason.MAX_STEPS), device=device)
            self.parked.append(self.state.select(ended).state_dict())
        self.state, self.highest = self.state.select(left), self.highest[left]
        self._count()

    def extend(self, max_steps: int, slots: int) -> None:
        """Lets walkers that stopped at a lower limit on steps go on to ``max_steps``, all at once.

        Raises:
            InputError: a walker is beyond it, its state was not kept, or others are still running: the batch would be
                another one.
        """
        ended = [part["steps"][part["reasons"] == StopReason.MAX_STEPS] for part in self.stopped]
        steps = np.concatenate([self.steps, *(part.numpy() for part in ended)])
        if steps.max(initial=0) > max_steps:
            raise InputError(f"dynamics.stopping.max_steps={max_steps} is below the {steps.max()} steps that were done")
        if not any((part < max_steps).any() for part in ended):
            return
        if self.state.n_walkers or self.waiting:
            raise InputError(
                "with dynamics.slots, walkers that have reached dynamics.stopping.max_steps go on only when all have "
                "run: continue with the limit that the run has, and raise it then"
            )
        known = {
            int(walker): highest
            for part in self.stopped
            for walker, highest in zip(part["walkers"], part["max_uncertainty"], strict=True)
        }
        parked = self.parked or []
        if sum(len(part["walker"]) for part in parked) < sum(map(len, ended)):
            raise InputError(
                "walkers that have reached dynamics.stopping.max_steps cannot go on: an earlier version has not kept "
                "all of their states; start from the last frames under another name=..."
            )
        device = self.start.step.device
        self.state = WalkerState.joined([WalkerState.from_state_dict(part, device=device) for part in parked])
        if self.state.n_walkers > slots:
            log.warning("dynamics.slots=%d: the %d walkers that go on do so all at once", slots, self.state.n_walkers)
        self.highest = torch.stack([known[walker] for walker in self.state.walker.tolist()]).to(self.highest)
        self.parked = []
        self.stopped = [
            {name: values[part["reasons"] != StopReason.MAX_STEPS] for name, values in part.items()}
            for part in self.stopped
        ]
        self._count()

    def progress(self) -> tuple[int, int, float]:
        """Arguments of ``on_progress``."""
        done = sum(int(s["steps"].sum()) for s in self.stopped) + int(self.steps.sum())
        highest = self.highest[~self.highest.isnan()]
        return done, self.state.n_walkers, float(highest.max()) if len(highest) else float("nan")

    def save(self, path: Path, name: str, longer: str | None = None) -> None:
        """Writes everything to ``path``, for the run called ``name``, and for one that goes on, called ``longer``."""
        values: dict[str, Any] = {
            "state": self.state.state_dict(),
            "waiting": self.waiting,
            "highest": self.highest.cpu(),
            "rounds": self.rounds,
            "frames": self.frames,
            "stopped": self.stopped,
        }
        if self.parked is None:
            save_checkpoint(path, name, values)
        else:
            save_checkpoint(path, name, values | {"parked": self.parked, "log_size": self.log_size}, longer=longer)

    @classmethod
    def load(cls, path: Path, name: str, start: WalkerState, longer: str | None = None) -> WalkerRun | None:
        """The run as saved, or None if it was not."""
        saved = load_checkpoint(path, name, longer=longer)
        if saved is None:
            return None
        if saved["frames"] is None:
            raise InputError(
                f"{path} is of a run that has ended, and its frames are missing; delete it to start afresh"
            )
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
            parked=saved.get("parked", None if longer is None else []),
            log_size=saved.get("log_size", 0),
        )

    def result(self, numbers: np.ndarray, pbc: np.ndarray) -> Exploration:
        """All frames and fates in order."""
        frames = _joined(self.frames or [_frames(self.state, np.zeros(0, dtype=bool), {}, len(numbers))])
        fates = _joined(self.stopped)
        frame_order = np.lexsort((frames["step"], frames["walker"]))
        fate_order = np.argsort(fates["walkers"])
        return Exploration(
            numbers=numbers,
            pbc=pbc,
            **{key: value[frame_order] for key, value in frames.items()},  # pyright: ignore[reportArgumentType]
            **{key: value[fate_order] for key, value in fates.items()},  # pyright: ignore[reportArgumentType]
        )


def is_whole(path: Path) -> bool:
    """Whether there are saved walkers that can be read."""
    return change_checkpoint(path, lambda values: {})


def without_frames(path: Path) -> None:
    """Takes the frames, which are elsewhere, out of the saved walkers of a run that has ended."""
    change_checkpoint(path, lambda values: {} if values["frames"] is None else {"frames": None})


def with_frames(path: Path, found: Exploration, walkers: np.ndarray) -> bool:
    """Puts the frames of ``walkers`` back; returns whether there are saved walkers to go on with."""
    own = torch.as_tensor(np.flatnonzero(np.isin(found.walker, walkers)))
    frames = {name: torch.as_tensor(getattr(found, name)) for name in _FRAME if getattr(found, name) is not None}
    again = [{name: values[own] for name, values in frames.items()}] if len(own) else []
    return change_checkpoint(path, lambda values: {"frames": again} if values["frames"] is None else {})


_FRAME = (
    *("walker", "step", "positions", "cell", "energy", "uncertainty", "atomic_uncertainty", "tau"),
    *("time", "momenta", "forces", "stress", "bias_energy"),
)
"""Fields of a frame; those of the second line need not be there."""


def _frames(
    state: WalkerState, keep: np.ndarray, details: dict[str, Tensor], n_atoms: int | None = None
) -> dict[str, Tensor]:
    """Fields of :class:`Exploration` of the walkers in ``keep`` [n_walkers], on the CPU, ``details`` among them."""
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
        **{name: values[chosen.cpu()] for name, values in details.items()},
    }


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    common = [key for key in parts[0] if all(key in part for part in parts)]
    return {key: torch.cat([part[key] for part in parts]).numpy() for key in common}

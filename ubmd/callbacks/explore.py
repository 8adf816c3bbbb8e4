"""Runs the walkers once the uncertainty is calibrated."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from lightning.pytorch import Callback, Trainer

from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.explore import Elsewhere
from ubmd.dynamics.several import SystemWalkers, explore_systems
from ubmd.dynamics.trajectory import read_trajectories, write_trajectories
from ubmd.models.potential import Potential, WalkerPotential
from ubmd.progress import RunProgress
from ubmd.runs.store import RoundFolder
from ubmd.training.module import PotentialModule

__all__ = ["Explore"]


class Explore(Callback):
    """Explores with the biased potential and writes ``trajectory.h5``; keeps what is there already.

    Args:
        walkers: of each system, by name.
        bias: makes the biased potential of the trained one.
        folder: of the round.
        progress: display.
        reads: names of what the reference reads of a structure besides the usual.
        workers: processes that groups of walkers run in.
        elsewhere: runs groups of walkers in processes of their own.
    """

    def __init__(
        self,
        walkers: Mapping[str, SystemWalkers],
        bias: Callable[[Potential], WalkerPotential],
        folder: RoundFolder,
        progress: RunProgress,
        reads: Collection[str] = (),
        workers: int = 1,
        elsewhere: Elsewhere | None = None,
    ):
        self.walkers, self.bias, self.reads = walkers, bias, reads
        self.folder, self.progress, self.workers, self.elsewhere = folder, progress, workers, elsewhere
        self.result: dict[str, Exploration] = {}
        self.seconds = 0.0

    def on_predict_end(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        started = time.perf_counter()
        if not self.folder.trajectory.exists():
            write_trajectories(self.folder.trajectory, self._run(pl_module))
            self.folder.note(self.folder.trajectory)
        # what later stages see is what is in the file, also when nothing was interrupted
        self.result = read_trajectories(self.folder.trajectory)
        self.seconds = time.perf_counter() - started

    def _run(self, module: PotentialModule) -> dict[str, Exploration]:
        # steps of all walkers together
        most = sum(own.explorer.n_walkers * own.explorer.stopping.max_steps for own in self.walkers.values())
        with self.progress.stage(f"round {self.folder.index} walkers", most) as stage:

            def show(steps: int, running: int, highest: float) -> None:
                stage.update(steps, most, f"{running} running, highest uncertainty {highest:.2f} eV/Å")

            return explore_systems(
                self.walkers,
                self.bias(module.potential).to(module.device),  # pyright: ignore[reportAttributeAccessIssue]
                round_index=self.folder.index,
                workers=self.workers,
                dtype=next(module.parameters()).dtype,
                device=module.device,
                on_progress=show,
                reads=self.reads,
                elsewhere=self.elsewhere,
            )

"""Runs the walkers once the uncertainty is calibrated."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from ase import Atoms
from lightning.pytorch import Callback, Trainer

from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.explore import Elsewhere, Explorer
from ubmd.dynamics.trajectory import read_trajectory, write_trajectory
from ubmd.models.potential import Potential, WalkerPotential
from ubmd.progress import RunProgress
from ubmd.runs.store import RoundFolder
from ubmd.training.module import PotentialModule

__all__ = ["Explore"]


class Explore(Callback):
    """Explores with the biased potential and writes ``trajectory.h5``; keeps what is there already.

    Args:
        exploration: how to explore.
        bias: makes the biased potential of the trained one.
        starts: structures that walkers start from.
        folder: of the round.
        seed: root seed of the run.
        progress: display.
        reads: names of what the reference reads of a structure besides the usual.
        elsewhere: runs groups of walkers in processes of their own.
    """

    def __init__(
        self,
        exploration: Explorer,
        bias: Callable[[Potential], WalkerPotential],
        starts: Sequence[Atoms],
        folder: RoundFolder,
        seed: int,
        progress: RunProgress,
        reads: Collection[str] = (),
        elsewhere: Elsewhere | None = None,
    ):
        self.exploration, self.bias, self.starts, self.reads = exploration, bias, starts, reads
        self.folder, self.seed, self.progress, self.elsewhere = folder, seed, progress, elsewhere
        self.result: Exploration | None = None
        self.seconds = 0.0

    def on_predict_end(self, trainer: Trainer, pl_module: PotentialModule) -> None:  # pyright: ignore
        started = time.perf_counter()
        if not self.folder.trajectory.exists():
            write_trajectory(self.folder.trajectory, self._run(pl_module))
            self.folder.note(self.folder.trajectory)
        # what later stages see is what is in the file, also when nothing was interrupted
        self.result = read_trajectory(self.folder.trajectory)
        self.seconds = time.perf_counter() - started

    def _run(self, module: PotentialModule) -> Exploration:
        # steps of all walkers together
        most = self.exploration.n_walkers * self.exploration.stopping.max_steps
        with self.progress.stage(f"round {self.folder.index} walkers", most) as stage:

            def show(steps: int, running: int, highest: float) -> None:
                stage.update(steps, most, f"{running} running, highest uncertainty {highest:.2f} eV/Å")

            return self.exploration(
                self.bias(module.potential).to(module.device),  # pyright: ignore[reportAttributeAccessIssue]
                self.starts,
                seed=self.seed,
                round_index=self.folder.index,
                dtype=next(module.parameters()).dtype,
                device=module.device,
                checkpoint=self.folder.walkers,
                on_progress=show,
                reads=self.reads,
                elsewhere=self.elsewhere,
            )

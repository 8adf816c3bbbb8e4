"""Starts each round's fit of a finished run from the last one's weights, and afresh, on the same data.

    python scripts/benchmark_warm_start.py RUN [share ...]

RUN is the folder of a finished ``ubmd learn``; a share of 1 and none of the weights is what it did itself. Every
variant trains on the structures that the run had in each round. Prints test errors and times, means over the later
half of the rounds at the end.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ubmd.callbacks.calibrate import Calibrate
from ubmd.commands.parts import fitting
from ubmd.config import plain
from ubmd.progress import run_progress
from ubmd.rounds.fit import fit_and_predict, set_up_lightning
from ubmd.runs.store import RoundStore
from ubmd.seeding import Stage, stage_seed
from ubmd.uncertainty.checkpoint import save_potential


def run_variant(
    store: RoundStore, share: float, warm: bool, rounds: int, folder: Path
) -> list[tuple[float, float, float]]:
    """(energy RMSE in meV/atom, force RMSE in eV/Å, seconds) of each round."""
    cfg = OmegaConf.load(store.path / "config.yaml")
    data = instantiate(cfg.data)
    species = sorted({s for a in store.structures(rounds) for s in a.symbols})
    datamodule, out, previous = None, [], None
    for index in range(rounds):
        seed = stage_seed(cfg.seed, index, Stage.WEIGHTS)
        model = instantiate(cfg.model)(species=species, seed=seed)
        if datamodule is None:
            datamodule = data(cutoff=model.cutoff, species=species, seed=cfg.seed)
        datamodule.set_round(index, store.structures(index))
        module = instantiate(cfg.training)(model=model)
        if warm and previous is not None:
            module.start_from(previous, "the last round")
        uncertainty = instantiate(cfg.uncertainty)(model=model, seed=stage_seed(cfg.seed, index, Stage.SKETCH))
        previous = folder / f"{index}.ckpt"

        save = partial(
            save_potential,
            previous,
            model,
            uncertainty,
            model_config=plain(cfg.model) | {"_partial_": False, "species": species},
            uncertainty_config=plain(cfg.uncertainty),
        )
        calibration = {name: instantiate(cfg.calibration[name]) for name in ("atomic", "total")}
        with run_progress() as progress:
            fit = fit_and_predict(
                fitting(cfg, 10**6),
                module,
                datamodule,
                folder / f"fit{index}",
                acquisition=[Calibrate(uncertainty, **calibration, done=save)],
                loggers=[],
                progress=progress,
                title=f"round {index}",
                share=share if warm and index else (1.0 if warm else share),
            )
        out.append((fit.errors["energy_rmse_mev_per_atom"], fit.errors["force_rmse_ev_per_ang"], fit.seconds))
    return out


def main() -> None:
    set_up_lightning()
    torch.set_num_threads(1)
    store = RoundStore(sys.argv[1])
    rounds = len(store.records())
    shares = [float(a) for a in sys.argv[2:]] or [0.25, 0.5]
    variants = [(1.0, False), *((s, warm) for s in shares for warm in (False, True)), (1.0, True)]
    for share, warm in variants:
        with tempfile.TemporaryDirectory() as folder:
            results = np.array(run_variant(store, share, warm, rounds, Path(folder)))
        name = f"{'warm' if warm else 'scratch'}, {share:g} of the steps"
        print(name, "| force RMSE of each round:", " ".join(f"{f:.3f}" for f in results[:, 1]))
        later = results[rounds // 2 :].mean(0)
        print(
            f"    later half: {later[0]:.2f} meV/atom  {later[1]:.3f} eV/Å; fits take {results[:, 2].sum():.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""The baselines as experiments, two rounds each with everything tiny, through the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.run_folders import runs_in
from ubmd.cli import main as cli
from ubmd.data.io import read_labelled
from ubmd.dynamics.trajectory import read_trajectory
from ubmd.runs.metrics import read_metrics

TINY = [
    "logger=csv",
    "size=small",
    "model.n_basis=2",
    "model.n_gauss=4",
    "model.hidden=[8,8]",
    "uncertainty.features.n_projections=16",
    "system.n_initial=4",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=-1",
    "trainer.max_steps=50",
    "learning.max_rounds=2",
    "learning.batch_size=4",
    "labelling.max_force=50",
    "dynamics.n_walkers=4",
    "dynamics.frame_interval=5",
    "dynamics.stopping.max_steps=30",
    "dynamics.stopping.uncertainty_threshold=1000",
    "data.test=null",
]
EXPERIMENTS = {
    "ala2_metadynamics": ["bias.stride=3", "dynamics.integrator.dt=0.1"],
    "ala2_adversarial": [],
    "ala2_montecarlo": ["bias.window=5"],
    "ala2_perturbation": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.usefixtures("quiet_logging")
def test_two_rounds(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path))
    assert cli.main(["learn", f"experiment={experiment}", *TINY, *EXPERIMENTS[experiment]]) == 0
    (run,) = runs_in(tmp_path / experiment)
    rows = read_metrics(run / "metrics.csv")
    assert [row["round"] for row in rows] == [0, 1]
    found = read_trajectory(run / "rounds" / "000" / "trajectory.h5")
    assert found.n_frames == rows[0]["n_candidates"]
    assert found.md_steps == rows[0]["md_steps"]
    assert len(np.unique(found.energy)) > 4
    assert len(read_labelled(run / "dataset.extxyz")) == 4 + rows[0]["n_selected"] - rows[0]["n_rejected"]
    # only molecular dynamics has a time, and with it auto-correlation times
    in_time = any(row.get("act_position_ps") is not None for row in rows)
    assert in_time == (experiment == "ala2_metadynamics")

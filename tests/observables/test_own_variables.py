"""Variables from outside of ubmd, named by their ``_target_``: biased, covered, reported, drawn and compared."""

from __future__ import annotations

import csv
from pathlib import Path

import ase.io
import pytest
import torch
from ase.build import molecule

from tests.dynamics.walker_toys import Toy, gas
from tests.observables.own_variables import Gap, Neighbours
from tests.rounds.test_loop import TINY as MOLECULE
from tests.test_bulk import TINY as CRYSTAL
from ubmd.bias.metadynamics import Metadynamics
from ubmd.cli import main as cli
from ubmd.data.batch import collate
from ubmd.data.io import read_labelled
from ubmd.dynamics.trajectory import read_trajectory
from ubmd.runs.metrics import read_metrics

OWN = "tests.observables.own_variables"


def test_metadynamics_pushes_along_them() -> None:
    """The forces of a hill beside the present place are those of finite differences, also across a cell's faces."""
    batch = collate([gas(seed) for seed in range(2)], 3.0, dtype=torch.float64)
    variables = {"gap": Gap(1, [0, 5, 26], width=1.0), "near": Neighbours(0, 3.0, width=1.0)}
    potential = Metadynamics(Toy(cutoff=3.0, plain=True), variables=variables, height=0.1, stride=1, capacity=2)
    memory = potential(batch).memory
    shift = 0.1 * torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    memory = potential(batch.replace(positions=batch.positions + shift), memory).memory
    forces = potential(batch, memory).forces - potential.base(batch).forces
    for atom in (0, 1):
        ahead, behind = (batch.positions.clone() for _ in range(2))
        ahead[atom, 0] += 1e-5
        behind[atom, 0] -= 1e-5
        energies = [potential(batch.replace(positions=r), memory) for r in (ahead, behind)]
        plain = [potential.base(batch.replace(positions=r)) for r in (ahead, behind)]
        bias = [(with_hills.energy - without.energy)[0] for with_hills, without in zip(energies, plain, strict=True)]
        assert float(forces[atom, 0]) == pytest.approx(float(bias[1] - bias[0]) / 2e-5, abs=1e-6)
        assert abs(forces[atom, 0]) > 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_logging")
@pytest.mark.parametrize("periodic", [False, True], ids=["molecule", "crystal"])
def test_a_run_follows_and_biases_them(periodic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path / "cache"))
    ase.io.write(tmp_path / "my.xyz", molecule("CH3CH2OH"))
    command = [o for o in (CRYSTAL if periodic else MOLECULE) if not o.startswith(("bias", "experiment", "data.test"))]
    if periodic:
        command += ["experiment=bulk_demo", "system.relax=null", "data.test=null", "trainer.max_steps=10"]
    else:
        command += ["reference=ase", "reference.calculator._target_=ase.calculators.emt.EMT", "trainer.max_epochs=-1"]
        command += [f"system.structure={tmp_path / 'my.xyz'}", "data.batch_size=8", "trainer.max_steps=10"]
    gap = f"{{_target_: {OWN}.Gap, atom: 1, partners: [0, 2, 3], bounds: [0.5, 4.0], width: 0.1}}"
    near = f"{{_target_: {OWN}.Neighbours, atom: 0, distance: 2.8, width: 0.3}}"
    command += ["bias=metadynamics", "bias.stride=2", "bias.height=0.5", "learning.max_structures=8"]
    command += [f"+system.variables={{gap: {gap}, near: {near}}}", "+system.states.far.gap=[2.6, inf]"]
    command += ["dynamics.stopping.max_steps=40", f"paths.run={tmp_path / 'run'}"]
    assert cli.main(["learn", *command]) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    expected = {"gap_min_ang", "gap_max_ang", "near_min", "near_max", "phase_transitions"}
    assert expected | ({"volume_min_ang3"} if periodic else set()) <= set(rows[0])
    found = read_trajectory(tmp_path / "run" / "rounds" / "000" / "trajectory.h5")
    shortest = [
        a.get_distances(1, [0, 2, 3], mic=periodic).min() for a in read_labelled(tmp_path / "run" / "dataset.extxyz")
    ]
    assert rows[-1]["gap_min_ang"] <= min(shortest) + 1e-6
    assert rows[-1]["gap_max_ang"] >= max(shortest) - 1e-6
    assert 0 < rows[-1]["coverage"] < 1
    assert len(found.step) > 8, "walkers have run beneath the hills"
    assert {f"{name}{end}.png" for name in ("gap", "near") for end in ("", "_series")} <= {
        file.name for file in (tmp_path / "run" / "figures").iterdir()
    }
    assert cli.main(["compare", str(tmp_path / "run"), "--output", str(tmp_path / "compared")]) == 0
    (row,) = csv.DictReader((tmp_path / "compared" / "table.csv").open())
    assert float(row["gap_max_ang_at_equal_steps_mean"]) > 1
    assert (tmp_path / "compared" / "exploration.png").exists()

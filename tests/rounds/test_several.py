"""One run over molecules and a crystal: what it labels, selects and tells of each, and that it goes on once broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from ubmd.analysis.evaluation import evaluate_structures
from ubmd.cli import main as cli
from ubmd.data.io import read_labelled, write_structures
from ubmd.data.perturb import perturb
from ubmd.dynamics.explore import WalkerGroup
from ubmd.dynamics.trajectory import read_trajectories
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.labelling import with_label
from ubmd.runs.metrics import read_metrics
from ubmd.uncertainty.checkpoint import load_potential

STRUCTURES = {
    "water": molecule("H2O"),
    "ammonia": molecule("NH3"),
    "methane": molecule("CH4"),
    "copper": bulk("Cu", cubic=True),
}

TINY = [
    *("learn", "system=several", "reference.calculator._target_=ase.calculators.emt.EMT", "logger=csv", "threads=1"),
    *("size=small", "model.n_basis=2", "model.n_gauss=4", "model.hidden=[8,8]"),
    *("uncertainty.features.n_projections=16", "model.cutoff=4.0", "training.loss.stress=0.01"),
    *("trainer.accelerator=cpu", "trainer.max_epochs=-1", "trainer.max_steps=10", "trainer.check_val_every_n_epoch=2"),
    *("system.n_initial=4", "system.normal_modes=600", "system.strain=0.02", "data.validation_fraction=0.3"),
    *("learning.batch_size=6", "learning.max_structures=28", "learning.max_rounds=2", "labelling.max_force=1000"),
    *("dynamics.n_walkers=5", "+system.weights.water=3", "+dynamics@system.dynamics.copper=npt"),
    *("system.dynamics.copper.n_walkers=2", "bias=stress", "bias.window=5"),
    *(
        f"{where}{key}"
        for where in ("dynamics.", "system.dynamics.copper.")
        for key in ("frame_interval=5", "stopping.max_steps=20", "stopping.uncertainty_threshold=1000")
    ),
]


def perturbed(seed: int) -> list[Any]:
    reference, rng = ASEReference(EMT()), np.random.default_rng(seed)
    found = [a for atoms in STRUCTURES.values() for a in perturb(atoms, 3, displacement=0.05, rng=rng)]
    return [with_label(atoms, reference.compute(atoms)) for atoms in found]


def learn(root: Path, *overrides: str) -> int:
    files = {name: root / f"{name}.extxyz" for name in STRUCTURES}
    for name, file in files.items():
        write_structures(file, [STRUCTURES[name]])
    write_structures(root / "test.extxyz", perturbed(7))
    given = ",".join(str(file) for file in files.values())
    return cli.main([*TINY, f"system.structures=[{given}]", f"data.test={root}/test.extxyz", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UBMD_RUNS", str(root / "runs"))
        patch.setenv("WANDB_MODE", "offline")
        assert learn(root, "paths.run_name=whole") == 0
    return root / "runs" / "learn" / "whole"


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_logging")]


def test_one_labelled_set_and_one_selection(folder: Path) -> None:
    structures = read_labelled(folder / "dataset.extxyz")
    whose = [atoms.info["system"] for atoms in structures]
    assert whose[:16] == [name for name in STRUCTURES for _ in range(4)]
    rows = read_metrics(folder / "metrics.csv")
    for name, atoms in STRUCTURES.items():
        assert all(len(a) == len(atoms) for a, own in zip(structures, whose, strict=True) if own == name)
        assert [row[f"n_structures_{name}"] for row in rows] == [4, whose.count(name)]
        assert rows[0][f"n_selected_{name}"] == whose.count(name) - 4
    assert len(structures) == 22
    assert {name: rows[0][f"n_walkers_{name}"] for name in STRUCTURES} == {
        "water": 3,
        "ammonia": 1,
        "methane": 1,
        "copper": 2,
    }
    assert rows[0]["md_steps"] == 7 * 20
    assert ["REF_stress" in a.info for a in structures] == [own == "copper" for own in whose]


def test_errors_by_system(folder: Path) -> None:
    row = read_metrics(folder / "metrics.csv")[-1]
    trained = load_potential(folder / "rounds" / "001" / "model.ckpt")
    test = read_labelled(folder.parents[2] / "test.extxyz")
    squares = []
    for name, atoms in STRUCTURES.items():
        own = [a for a in test if sorted(a.symbols) == sorted(atoms.symbols)]
        found = evaluate_structures(trained, own, batch_size=8)
        square = np.square(found.forces[0] - found.forces[1])
        squares.append(square)
        assert row[f"force_rmse_ev_per_ang_{name}"] == pytest.approx(np.sqrt(square.mean()), rel=1e-5)
    together = np.sqrt(np.concatenate(squares).mean())
    assert row["force_rmse_ev_per_ang"] == pytest.approx(together, rel=1e-4)
    assert row["stress_rmse_mpa_copper"] == pytest.approx(row["stress_rmse_mpa"], rel=1e-4)
    assert "stress_rmse_mpa_water" not in row


def test_what_was_explored_of_each(folder: Path) -> None:
    row = read_metrics(folder / "metrics.csv")[-1]
    found = read_trajectories(folder / "rounds" / "000" / "trajectory.h5")
    volumes = [abs(float(np.linalg.det(cell))) for cell in found["copper"].cell]
    labelled = [a.get_volume() for a in read_labelled(folder / "dataset.extxyz") if a.pbc.all()]
    assert row["copper_volume_max_ang3"] == pytest.approx(max(*volumes, *labelled))
    assert row["act_position_ps_water"] is not None
    assert {f.name for f in (folder / "figures").glob("*.png")} >= {"copper_volume.png", "copper_cell_parameters.png"}


def test_broken_off_between_two_systems(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes on with the walkers of the others, and ends as the run that was not."""
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    run, calls = WalkerGroup.__call__, [0]

    def broken(self: WalkerGroup, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError("the machine was switched off")
        return run(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WalkerGroup, "__call__", broken)
        assert learn(tmp_path, "paths.run_name=broken") != 0
    again = tmp_path / "runs" / "learn" / "broken"
    assert sorted(f.name for f in (again / "rounds" / "000").glob("walkers*")) == [
        *("walkers-ammonia.pt", "walkers-water.pt")
    ]
    assert learn(tmp_path, "paths.run_name=broken") == 0

    def comparable(path: Path) -> list[dict[str, Any]]:
        rows = read_metrics(path / "metrics.csv")
        return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in rows]

    assert comparable(again) == comparable(folder)
    assert (again / "dataset.extxyz").read_bytes() == (folder / "dataset.extxyz").read_bytes()

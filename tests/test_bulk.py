"""Active learning of a crystal end to end: constant pressure, bias stress, stress in training, strained structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

from tests.run_folders import runs_in
from ubmd.analysis.numbers import read_numbers
from ubmd.cli import main as cli
from ubmd.data.io import read_labelled, read_structures, write_structures
from ubmd.data.perturb import perturb
from ubmd.dynamics.trajectory import read_trajectory
from ubmd.reference.store import LabelStore
from ubmd.runs.metrics import read_metrics

TINY = [
    "experiment=bulk_demo",
    "logger=csv",
    "model.n_basis=2",
    "model.n_gauss=4",
    "model.hidden=[8,8]",
    "uncertainty.features.n_projections=16",
    "trainer.accelerator=cpu",
    "trainer.max_steps=40",
    "learning.batch_size=4",
    "learning.max_structures=12",
    "system.n_initial=4",
    "bias.window=5",
    "dynamics.n_walkers=4",
    "dynamics.frame_interval=5",
    "dynamics.stopping.max_steps=40",
    "dynamics.stopping.uncertainty_threshold=1000",
    "dynamics.integrator.dt=1.0",
    "dynamics.integrator.barostat_time=20",
    "labelling.max_force=1000",
    "data.test.sample.n_structures=10",
]

STATES = ["+system.states.small.volume=[0,363]", "+system.states.big.volume=[364,inf]"]

COPPER = ["system=copper", "reference.calculator._target_=ase.calculators.emt.EMT"]


def volumes(cells: np.ndarray) -> np.ndarray:
    """Of cells [n, 3, 3] Å, in Å³."""
    return np.abs(np.linalg.det(cells))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run's folder and the cache."""
    root = tmp_path_factory.mktemp("bulk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UBMD_RUNS", str(root / "runs"))
        patch.setenv("UBMD_CACHE", str(root / "cache"))
        patch.setenv("WANDB_MODE", "offline")
        assert cli.main(["learn", *TINY, *STATES]) == 0
    (run,) = runs_in(root / "runs" / "bulk_demo")
    return run, root / "cache"


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_logging")]


def test_metrics_of_a_crystal(folders: tuple[Path, Path]) -> None:
    rows = read_metrics(folders[0] / "metrics.csv")
    assert [row["n_train"] + row["n_valid"] for row in rows] == [4, 8, 12]
    assert all(row["stress_rmse_mpa"] > 0 for row in rows)
    found = [read_trajectory(folders[0] / "rounds" / f"{index:03d}" / "trajectory.h5") for index in (0, 1)]
    explored = np.concatenate([volumes(e.cell) for e in found])
    labelled = np.array([a.get_volume() for a in read_labelled(folders[0] / "dataset.extxyz")])
    # what is labelled counts as explored
    assert rows[-1]["volume_min_ang3"] == pytest.approx(min(explored.min(), labelled.min()))
    assert rows[-1]["volume_max_ang3"] == pytest.approx(max(explored.max(), labelled.max()))
    assert rows[0]["volume_min_ang3"] >= rows[-1]["volume_min_ang3"]
    assert [row["phase_transitions"] >= 0 for row in rows] == [True] * 3
    assert explored.std() > 1e-4


def test_structures_are_strained_and_their_stress_is_the_references(folders: tuple[Path, Path]) -> None:
    from ase.calculators.emt import EMT

    structures = read_labelled(folders[0] / "dataset.extxyz")
    start = read_structures(next((folders[1] / "relaxed").glob("*.extxyz")))[0]
    for atoms in structures:
        atoms.calc = EMT()
        np.testing.assert_allclose(atoms.info["REF_stress"], atoms.get_stress(voigt=False), atol=1e-7)
        assert atoms.info["round"] >= 0 or np.abs(atoms.cell - start.cell).max() > 0.01
    assert np.linalg.norm(start.arrays["REF_forces"], axis=1).max() < 0.05
    assert np.abs(start.info["REF_stress"]).max() * start.get_volume() / 12 < 0.05


def test_figures_of_a_crystal(folders: tuple[Path, Path]) -> None:
    assert {f.name for f in (folders[0] / "figures").iterdir()} == {
        *("learning_curves.png", "calibration.png", "calibration_curve.png", "error_by_volume.png"),
        *("volume.png", "volume_series.png", "cell_parameters.png"),
        *("calibration.csv", "error_by_volume.csv", "worst.extxyz"),
    }
    table = read_numbers(folders[0] / "figures" / "error_by_volume.csv", ("volume",))
    last = table["round"] == table["round"].max()
    (row,) = read_metrics(folders[0] / "metrics.csv")[-1:]
    rmse = np.sqrt(table["squared_force_error_ev2_per_ang2"][last].mean())
    assert rmse == pytest.approx(row["force_rmse_ev_per_ang"], rel=1e-4)  # all have as many atoms


def test_bias_stress_acts(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the same walkers of the first round go elsewhere, but not before its window is full."""
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path))
    monkeypatch.setenv("UBMD_CACHE", str(folders[1]))
    assert cli.main(["learn", *TINY, "bias.tau_stress=0", "learning.max_rounds=2"]) == 0
    (run,) = runs_in(tmp_path / "bulk_demo")
    biased, unbiased = (read_trajectory(f / "rounds" / "000" / "trajectory.h5") for f in (folders[0], run))
    early = biased.step == 5
    np.testing.assert_array_equal(biased.cell[early], unbiased.cell[early])
    assert np.abs(biased.cell[~early] - unbiased.cell[~early]).max() > 1e-4


def test_start_from_structures_of_ones_own(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that they have are kept, others computed, too large ones left out; walkers start from them."""
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path / "cache"))
    labelled = read_labelled(folders[0] / "dataset.extxyz")[:3]
    labelled[0].info["REF_energy"] += 0.02  # the reference says another, but hardly
    violent = labelled[0].copy()
    violent.arrays["REF_forces"][3] = 1500.0  # eV/Å, above labelling.max_force
    unlabelled = perturb(bulk("Cu", cubic=True).repeat(2), 2, displacement=0.05, rng=np.random.default_rng(0))
    large = perturb(bulk("Cu", cubic=True, a=4.0).repeat(2), 1, displacement=0.05, rng=np.random.default_rng(0))
    write_structures(tmp_path / "mine.extxyz", [*labelled, *unlabelled, *large, violent])
    own = [f"system.initial={tmp_path / 'mine.extxyz'}", "system.max_volume=480", "learning.max_rounds=2"]
    own += ["system.n_initial=null"]
    assert cli.main(["learn", *TINY, *own]) == 0
    (run,) = runs_in(tmp_path / "runs" / "bulk_demo")
    first = [a for a in read_labelled(run / "dataset.extxyz") if a.info["round"] == -1]
    assert len(first) == 5
    energies = [a.info["REF_energy"] for a in first]
    assert all(np.isclose(energies, a.info["REF_energy"], atol=1e-9, rtol=0).any() for a in labelled)
    assert all(any(np.allclose(a.positions, b.positions, atol=1e-8) for a in first) for b in unlabelled)
    assert len(LabelStore(run / "labels.db")) == 1 + 2 + 4, "of those with labels, one is computed to compare"
    assert not (tmp_path / "cache" / "relaxed").exists(), "what no walker starts from need not be relaxed"
    found = read_trajectory(run / "rounds" / "000" / "trajectory.h5")
    nearest = [volumes(found.cell[(found.walker == w) & (found.step == 5)])[0] for w in range(4)]
    np.testing.assert_allclose(nearest, [a.get_volume() for a in first[:4]], rtol=0.01)


def test_labels_of_another_method_are_refused(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UBMD_CACHE", str(folders[1]))
    structures = read_labelled(folders[0] / "dataset.extxyz")[:3]
    for atoms in structures:
        atoms.info["REF_energy"] += 0.011 * len(atoms)  # as with another functional, or atoms of another energy
    write_structures(tmp_path / "mine.extxyz", structures)
    assert cli.main(["learn", *TINY, f"system.initial={tmp_path / 'mine.extxyz'}", "system.n_initial=null"]) == 2
    assert "system.initial: a label of another method" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([*COPPER, "bias=metadynamics_volume"], "bias.variables with Volume needs dynamics that move the cell"),
        ([*COPPER, "bias=stress"], "bias.tau_stress=0.5 needs dynamics that move the cell; choose dynamics=npt"),
        (["experiment=bulk_demo", "bias.every=2"], "bias.every=2 with bias.tau_stress=0.5 needs dynamics=npt_mtk"),
        (["experiment=bulk_demo", "labelling.max_force=-1"], "labelling.max_force=-1 must be a positive force"),
    ],
)
def test_refused_before_anything_is_labelled(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path / "cache"))
    assert cli.main(["learn", "logger=csv", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_cache_may_move(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(folders[0].parent.parent))
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path))
    assert cli.main(["learn", *TINY, *STATES]) == 0


def test_labels_without_stress_are_refused_beforehand(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UBMD_CACHE", str(folders[1]))
    structures = read_labelled(folders[0] / "dataset.extxyz")[:3]
    for atoms in structures:
        del atoms.info["REF_stress"]
    write_structures(tmp_path / "mine.extxyz", structures)
    assert cli.main(["learn", *TINY, f"system.initial={tmp_path / 'mine.extxyz'}"]) == 2
    assert "no label of system.initial has a REF_stress" in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("provenance.json"))


@pytest.mark.parametrize(
    ("experiment", "own"),
    [
        ("mil53_metadynamics", ["bias.stride=2"]),
        ("mil53_unbiased", ["dynamics.integrator.pressure=[250,-250]"]),
        ("mil53_low_volume", []),
    ],
)
def test_experiments_on_mil53(experiment: str, own: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds with everything tiny; EMT knows the elements, though not the framework."""
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path))
    tiny = [f"experiment={experiment}", "reference=ase", "reference.calculator._target_=ase.calculators.emt.EMT"]
    tiny += [o for o in TINY if not o.startswith(("experiment", "data.test", "bias"))]
    tiny += ["system.relax=null", "size=small", "learning.max_rounds=2", "labelling.max_force=null"]
    tiny += ["trainer.max_epochs=-1", "trainer.max_steps=5", "dynamics.stopping.max_steps=10", "data.batch_size=4"]
    assert cli.main(["learn", *tiny, *own]) == 0
    (run,) = runs_in(tmp_path / experiment)
    rows = read_metrics(run / "metrics.csv")
    assert [row["n_train"] + row["n_valid"] for row in rows] == [4, 8]
    assert 650 < rows[0]["volume_min_ang3"] < rows[0]["volume_max_ang3"] < 950
    found = read_trajectory(run / "rounds" / "000" / "trajectory.h5")
    assert len(np.unique(volumes(found.cell))) == found.n_frames

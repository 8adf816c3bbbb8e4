"""``ubmd train`` and ``ubmd evaluate`` on copper and gold, labelled by an analytic potential."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import scipy.stats
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from lightning.pytorch.utilities import rank_zero_only

from tests.run_folders import runs_in
from tests.training.test_module import alloys
from ubmd.callbacks.monitor import FitProgress
from ubmd.cli import main as cli
from ubmd.data.datamodule import GrowingDataModule
from ubmd.data.io import read_labelled, write_structures
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.rounds.fit import Fitting
from ubmd.runs.metrics import read_metrics
from ubmd.uncertainty.checkpoint import load_potential

pytestmark = pytest.mark.usefixtures("quiet_logging")

SMALL = (
    "model.cutoff=4",
    "model.n_basis=2",
    "model.n_gauss=4",
    "model.hidden=[8,8]",
    "uncertainty.features.n_projections=8",
    "logger=csv",
    "trainer.accelerator=cpu",
    "data.batch_size=5",
)
TRAIN, TEST = alloys(20), alloys(9, seed=1)
GPA = 1 / 160.21766208


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data sets; returns the folder of the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UBMD_RUNS")
    write_structures("train.extxyz", TRAIN)
    write_structures("test.extxyz", TEST)
    return tmp_path / "runs"


def train(*overrides: str, epochs: int = 4, data: str = "train.extxyz") -> int:
    return cli.main(["train", f"data.train={data}", *SMALL, f"trainer.max_epochs={epochs}", *overrides])


def evaluate(*overrides: str, potential: str | Path = "model.ckpt", structures: str = "test.extxyz") -> int:
    return cli.main(["evaluate", f"potential='{potential}'", f"structures={structures}", "device=cpu", *overrides])


def only(folder: Path) -> Path:
    (path,) = runs_in(folder)
    return path


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def expected_metrics(potential: Path, structures: Sequence[Atoms]) -> dict[str, float]:
    """Errors and coverage, structure by structure, through the ASE calculator."""
    calculator = UBMDCalculator(potential)
    energy, force, stress, atoms_covered, covered = [], [], [], [], []
    for atoms in structures:
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        uncertainty = calculator.get_property("uncertainty", bare)
        atomic = calculator.get_property("atomic_uncertainty", bare)
        bare.calc = calculator
        energy.append((bare.get_potential_energy() - atoms.info["REF_energy"]) / len(atoms))
        force.append(bare.get_forces() - atoms.arrays["REF_forces"])
        stress.append(bare.get_stress(voigt=False) - atoms.info["REF_stress"])
        atoms_covered += list(np.sqrt(np.mean(force[-1] ** 2, axis=1)) <= atomic)
        covered.append(abs(energy[-1]) <= uncertainty)
    out = {"coverage_atom": np.mean(atoms_covered), "coverage_total": np.mean(covered)}
    for name, values in {
        "energy_{}_mev_per_atom": 1e3 * np.array(energy),
        "force_{}_ev_per_ang": np.concatenate(force),
        "stress_{}_mpa": np.array(stress) / (1e-3 * GPA),
    }.items():
        out[name.format("mae")] = np.mean(np.abs(values))
        out[name.format("rmse")] = np.sqrt(np.mean(values**2))
    return out


def test_from_a_data_set_to_a_potential(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("data.test=test.extxyz", "model.n_basis=4", "model.n_gauss=6", "model.hidden=[24,24]", epochs=40) == 0
    run = only(here / "train")
    metrics = metrics_of(run)
    assert (metrics["n_train"], metrics["n_valid"], metrics["test"]["n_structures"]) == (18, 2, 9)
    found = metrics["test"]
    assert {k: found[k] for k in expected_metrics(run / "model.ckpt", TEST)} == pytest.approx(
        expected_metrics(run / "model.ckpt", TEST), rel=1e-4
    )
    # the same by the metrics of training and by those of calibration
    logged = read_last(run / "csv" / "version_0" / "metrics.csv", "test/force_rmse_ev_per_ang")
    assert logged == pytest.approx(found["force_rmse_ev_per_ang"], rel=1e-5)
    for name in ("atom", "total", "atom_50", "total_50"):
        assert metrics[f"test_coverage_{name}"] == pytest.approx(found[f"coverage_{name}"])
    assert found["coverage_atom_50"] < found["coverage_atom"]
    # of the n values that it was calibrated with, the smallest (n + 1) / 2 lie within their uncertainty; of two
    # structures, too few for alpha = 0.05, both
    n = metrics["valid"]["n_atoms"]
    assert metrics["valid"]["coverage_atom_50"] == pytest.approx(np.ceil((n + 1) / 2) / n)
    assert metrics["valid"]["coverage_total"] == 1.0
    assert (run / "figures" / "calibration.png").stat().st_size > 5000
    kept = {"config.yaml", "provenance.json", "ubmd.log", "metrics.json", "model.ckpt", "figures", "csv"}
    assert {file.name for file in run.iterdir()} - {".hydra", "run.json", "run.lock"} == kept
    shown = capsys.readouterr().out
    assert "9 structures" in shown
    assert f"{found['force_rmse_ev_per_ang']:.4f}" in shown
    assert "Au" in shown
    mean = np.mean(np.abs(np.concatenate([a.arrays["REF_forces"] for a in TEST])))
    assert found["force_mae_ev_per_ang"] < 0.6 * mean
    assert load_potential(run / "model.ckpt").model.species.tolist() == [29, 79]


@pytest.mark.parametrize("rank", ["0", "3"])
def test_a_task_of_a_cluster_job_is_a_run_of_its_own(here: Path, monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    job = {"JOB_ID": "1", "JOB_NAME": "sweep", "NTASKS": "4", "NNODES": "1", "NODELIST": "n1", "NODEID": "0"}
    for name, value in (job | {"PROCID": rank, "LOCALID": rank}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(rank_zero_only, "rank", int(rank))  # read from SLURM_PROCID when Lightning is imported
    assert train() == 0
    assert read_last(only(here / "train") / "csv" / "version_0" / "metrics.csv", "valid/force_rmse_ev_per_ang") > 0


def read_last(path: Path, name: str) -> float:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    values = [row[rows[0].index(name)] for row in rows[1:]]
    return float([value for value in values if value][-1])


def test_explicit_validation_and_species(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GrowingDataModule] = []
    original = Fitting.limits

    def look(fitting: Fitting, n_train: int, batch_size: int, share: float = 1.0) -> dict[str, int]:
        assert n_train == 20
        return original(fitting, n_train, batch_size, share)

    monkeypatch.setattr(Fitting, "limits", look)
    monkeypatch.setattr(
        GrowingDataModule, "train_dataloader", watched(GrowingDataModule.train_dataloader, seen), raising=True
    )
    assert train("data.valid=test.extxyz", "species=[Cu,Ag,Au]") == 0
    run = only(here / "train")
    metrics = metrics_of(run)
    assert (metrics["n_train"], metrics["n_valid"], metrics["valid"]["n_structures"]) == (20, 9, 9)
    assert "test" not in metrics
    valid = seen[0].split("valid").energy
    assert valid is not None
    np.testing.assert_allclose(valid, [a.info["REF_energy"] for a in TEST], rtol=1e-6)
    assert load_potential(run / "model.ckpt").model.species.tolist() == [29, 47, 79]


def watched(method: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    def call(self: GrowingDataModule) -> Any:
        seen.append(self)
        return method(self)

    return call


def test_labels_that_ase_wrote(here: Path) -> None:
    structures = []
    for atoms in TRAIN:
        copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        copy.calc = SinglePointCalculator(copy, energy=atoms.info["REF_energy"], forces=atoms.arrays["REF_forces"])
        structures.append(copy)
    ase.io.write("plain.extxyz", structures)
    assert train(data="plain.extxyz") == 0
    assert "stress_rmse_mpa" not in metrics_of(only(here / "train"))["valid"]


FOREIGN = (
    *("data.keys.energy=dft_energy", "data.keys.forces=dft_force", "data.keys.virial=dft_virial"),
    *("data.units.energy=kcal/mol", "data.units.forces=Hartree/Bohr", "data.units.virial=eV"),
)


def foreign(structures: Sequence[Atoms]) -> list[Atoms]:
    """The same data set as a peer would have it."""
    out = []
    for atoms in structures:
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        virial = -atoms.get_volume() * np.ravel(atoms.info["REF_stress"])
        bare.info = {"dft_energy": atoms.info["REF_energy"] / 0.0433641042, "dft_virial": virial}
        bare.arrays["dft_force"] = atoms.arrays["REF_forces"] / (27.21138602 / 0.52917721067)
        out.append(bare)
    return out


def test_a_data_set_in_the_words_of_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ase.io.write("foreign.extxyz", foreign(TRAIN))
    assert train(*FOREIGN, "training.loss.stress=0.01", "name=foreign", data="foreign.extxyz", epochs=1) == 0
    assert train("training.loss.stress=0.01", epochs=1) == 0
    theirs, ours = (metrics_of(only(here / name))["valid"] for name in ("foreign", "train"))
    for name in ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang", "stress_rmse_mpa"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name
    potential = only(here / "train") / "model.ckpt"
    capsys.readouterr()
    assert evaluate(*FOREIGN, potential=potential, structures="foreign.extxyz") == 0
    assert evaluate("name=own", potential=potential, structures="train.extxyz") == 0
    theirs, ours = (metrics_of(only(here / name)) for name in ("evaluate", "own"))
    for name in ("energy_rmse_mev_per_atom", "force_rmse_ev_per_ang", "stress_rmse_mpa", "coverage_atom"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-5), name
    assert evaluate(potential=potential, structures="foreign.extxyz") == 2
    assert "(but dft_energy, dft_force); label it first" in capsys.readouterr().err


def test_twice_is_once_and_other_data_is_another_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    run = only(here / "train")
    first = capsys.readouterr().out
    before = (run / "model.ckpt").stat().st_mtime_ns
    assert train() == 0
    assert capsys.readouterr().out == first
    assert (run / "model.ckpt").stat().st_mtime_ns == before
    write_structures("train.extxyz", TRAIN[1:])
    assert train() == 2
    assert "holds a run with contents.train_sha256=" in capsys.readouterr().err


def test_interrupted_and_continued(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("checkpoint_epochs=2", "callbacks=ema", "training.sam_radius=0.1", "training=huber")
    assert train(*options, epochs=8) == 0
    run = only(here / "train")
    whole = (metrics_of(run), torch.load(run / "model.ckpt", weights_only=True))
    run.rename(here / "whole")
    calls = []

    def interrupt(self: FitProgress, trainer: Any, module: Any) -> None:
        calls.append(trainer.current_epoch)
        if calls == list(range(6)):
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(FitProgress, "on_train_epoch_end", interrupt)
        assert train(*options, epochs=8) == 1
    assert not (run / "metrics.json").exists()
    assert (run / "fit" / "last.ckpt").exists()
    assert train(*options, epochs=8) == 0
    again = (metrics_of(run), torch.load(run / "model.ckpt", weights_only=True))
    for key in ("n_train", "n_valid", "valid"):
        assert again[0][key] == whole[0][key]
    for part in ("model_state", "uncertainty_state"):
        assert all(torch.equal(whole[1][part][k], again[1][part][k]) for k in whole[1][part])
    assert not (run / "fit").exists()


def test_fine_tuning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few steps from trained weights are better than a few from none, and start where those ended."""
    assert train(epochs=40) == 0
    start = only(here / "train") / "model.ckpt"
    shifted = read_labelled("train.extxyz")
    for atoms in shifted:
        atoms.info["REF_energy"] += 100.0 * len(atoms)  # another zero of energy
    write_structures("shifted.extxyz", shifted)
    still = ["training=frozen", f"training.start='{start}'"]
    for name, options in {"still": still, "scratch": []}.items():
        assert train(*options, f"paths.root={name}", epochs=1, data="shifted.extxyz") == 0
    before = metrics_of(start.parent)["valid"]
    found = {name: metrics_of(only(Path(name) / "train"))["valid"] for name in ("still", "scratch")}
    assert found["still"]["force_rmse_ev_per_ang"] == pytest.approx(before["force_rmse_ev_per_ang"], rel=1e-4)
    assert found["still"]["energy_rmse_mev_per_atom"] < 1.2 * before["energy_rmse_mev_per_atom"]
    assert found["still"]["force_rmse_ev_per_ang"] < found["scratch"]["force_rmse_ev_per_ang"]
    states = [load_potential(path).model.state_dict() for path in (start, only(Path("still") / "train") / "model.ckpt")]
    assert {key for key in states[0] if not torch.equal(states[0][key], states[1][key])} == {"shift"}
    capsys.readouterr()
    assert train(f"training.start='{start}'", "species=[Cu,Ag,Au]") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "knows the species Cu, Au, but this run has Cu, Ag, Au" in line
    assert train(f"training.start='{start}'", "model.n_basis=3") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has a model of another size" in line


def test_evaluate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(epochs=10) == 0
    potential = only(here / "train") / "model.ckpt"
    capsys.readouterr()
    volume = "+variables.volume._target_=ubmd.observables.Volume"
    assert evaluate("batch_size=4", volume, potential=potential) == 0
    run = only(here / "evaluate")
    found, expected = metrics_of(run), expected_metrics(potential, TEST)
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-4)
    calculator = UBMDCalculator(potential)
    frames = ase.io.read(run / "predictions.extxyz", ":")
    errors: dict[int, list[float]] = {29: [], 79: []}
    for atoms, frame in zip(TEST, frames, strict=True):
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        atomic = calculator.get_property("atomic_uncertainty", bare)
        np.testing.assert_allclose(frame.arrays["atomic_uncertainty"], atomic, rtol=1e-3, atol=1e-6)
        assert frame.info["max_atomic_uncertainty"] == pytest.approx(atomic.max(), rel=1e-3)
        assert frame.info["uncertainty"] == pytest.approx(calculator.get_property("uncertainty", bare), rel=1e-3)
        bare.calc = calculator
        assert frame.info["model_energy"] == pytest.approx(bare.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(frame.arrays["model_forces"], bare.get_forces(), atol=1e-5)
        np.testing.assert_allclose(frame.info["model_stress"], bare.get_stress(voigt=False).ravel(), atol=1e-5)
        assert frame.info["REF_energy"] == pytest.approx(atoms.info["REF_energy"])
        np.testing.assert_allclose(frame.arrays["REF_forces"], atoms.arrays["REF_forces"], atol=1e-7)
        for z, error in zip(atoms.numbers, bare.get_forces() - atoms.arrays["REF_forces"], strict=True):
            errors[z] += list(error)
    expected_species = {s: np.sqrt(np.mean(np.square(errors[z]))) for s, z in (("Cu", 29), ("Au", 79))}
    assert found["force_rmse_ev_per_ang_by_species"] == pytest.approx(expected_species, rel=1e-4)
    drawn = {"calibration.png", "calibration_curve.png", "error_by_volume.png"}
    assert {f.name for f in (run / "figures").iterdir()} >= drawn
    atomic = np.concatenate([frame.arrays["atomic_uncertainty"] for frame in frames])
    error = np.concatenate([f.arrays["model_forces"] - f.arrays["REF_forces"] for f in frames])
    rank = scipy.stats.spearmanr(atomic, np.sqrt(np.mean(error**2, axis=1))).statistic
    assert found["spearman_atom"] == pytest.approx(rank, abs=1e-3)
    assert found["force_max_ev_per_ang"] == pytest.approx(np.abs(error).max(), rel=1e-3)
    assert sum(found["by_variable"]["volume"]["n_structures"]) == len(TEST)
    shown = capsys.readouterr().out
    assert f"{found['energy_mae_mev_per_atom']:.2f}" in shown
    assert "miscalibration area" in shown
    assert evaluate("batch_size=4", volume, potential=potential) == 0
    assert capsys.readouterr().out == shown


def test_evaluate_molecules_without_stress(here: Path) -> None:
    assert train() == 0
    cluster = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 2.5]])
    cluster.info["REF_energy"], cluster.arrays["REF_forces"] = 1.0, np.zeros((2, 3))
    write_structures("mixed.extxyz", [*TEST[:2], cluster])
    assert evaluate(potential=only(here / "train") / "model.ckpt", structures="mixed.extxyz") == 0
    found = metrics_of(only(here / "evaluate"))
    assert (found["n_structures"], found["n_atoms"], found["n_structures_with_stress"]) == (3, 10, 2)
    assert np.isfinite(found["stress_rmse_mpa"])
    frames = read_labelled(only(here / "evaluate") / "predictions.extxyz")
    assert ["model_stress" in a.info for a in frames] == [True, True, False]


def test_evaluate_isolated_atoms(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table; there is nothing to draw."""
    assert train() == 0
    atom = Atoms("Cu")
    atom.info["REF_energy"], atom.arrays["REF_forces"] = 1.0, np.zeros((1, 3))
    write_structures("atoms.extxyz", [atom] * 3)
    assert evaluate(potential=only(here / "train") / "model.ckpt", structures="atoms.extxyz") == 0
    found = metrics_of(only(here / "evaluate"))
    assert found["force_rmse_ev_per_ang"] == 0
    assert found["energy_rmse_mev_per_atom"] > 0
    assert "calibration.png is not drawn" in capsys.readouterr().err


def test_stress_of_crystals_beside_molecules(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Zeros that stand for the stress of molecules and slabs are not trained on."""
    cluster = Atoms("CuAu", positions=[[0, 0, 0], [0, 0, 2.5]])
    cluster.info = {"REF_energy": 1.0, "REF_stress": np.zeros((3, 3))}
    cluster.arrays["REF_forces"] = np.zeros((2, 3))
    slab = TRAIN[0].copy()
    slab.pbc = (True, True, False)
    write_structures("train.extxyz", [*TRAIN, cluster, slab])
    assert train("training.loss.stress=0.01", "seed=1") == 0
    found = metrics_of(only(here / "train"))
    assert np.isfinite([found["valid"]["force_rmse_ev_per_ang"], found["valid"]["stress_rmse_mpa"]]).all()
    n = len(TRAIN)
    told = f"data.train: stress counts for {n} of {n + 2} structures; the others are 2 molecules or slabs"
    assert capsys.readouterr().err.count(told) == 1


def without(key: str, structures: list[Atoms]) -> list[Atoms]:
    out = [a.copy() for a in structures]
    (out[3].info if key in out[3].info else out[3].arrays).pop(key)
    return out


def labelled_without_stress(atoms: Atoms) -> Atoms:
    copy = atoms.copy()
    del copy.info["REF_stress"]
    return copy


REFUSED: dict[str, tuple[Callable[[], object] | None, Sequence[str], str]] = {
    "no file": (lambda: Path("train.extxyz").unlink(), (), "structure file train.extxyz does not exist"),
    "no labels": (
        lambda: write_structures("train.extxyz", without("REF_energy", TRAIN)),
        (),
        "structure 3 of train.extxyz has no REF_energy",
    ),
    "no stress": (
        lambda: write_structures("train.extxyz", [labelled_without_stress(a) for a in TRAIN]),
        ("training.loss.stress=0.1",),
        "is periodic in three directions and has a REF_stress, which training.loss.stress > 0 needs",
    ),
    "one structure": (
        lambda: write_structures("train.extxyz", TRAIN[:1]),
        (),
        "data.train=train.extxyz holds one structure, which cannot be split",
    ),
    "lacking species": (None, ("species=[Cu]",), "of data.train contains Au, which is not in species=['Cu']"),
    "wrong species": (None, ("species=[Cu,Xx]",), "species names 'Xx', which is not a chemical symbol"),
    "species as text": (None, ("species=Cu",), "species=Cu must be auto or a list of texts, written [a, b]"),
    "no valid": (None, ("data.valid=none.extxyz",), "structure file none.extxyz does not exist"),
    "no start": (None, ("training.start=none.ckpt",), "potential none.ckpt does not exist"),
    "fraction": (None, ("data.validation_fraction=1.5",), "data.validation_fraction=1.5 must lie between 0 and 1"),
    "radius": (None, ("training.sam_radius=-1",), "training.sam_radius=-1 must be a number from 0"),
    "limit": (
        None,
        ("training=huber", "training.loss.forces_delta=0"),
        "training.loss.forces_delta=0 must be positive",
    ),
    "misspelt": (None, ("training.loss.force=1",), "training.loss.force is not an option of SquaredLoss"),
    "misspelt average": (None, ("callbacks=ema", "callbacks.ema.decai=0.9"), "did you mean callbacks.ema.decay?"),
    "validation": (None, ("trainer.check_val_every_n_epoch=9",), "trainer.check_val_every_n_epoch=9 is more than"),
    "data": (None, ("data=default",), "data.train is"),
    "dtype": (None, ("dtype=float16",), "dtype=float16 must be float32 or float64"),
    "seed": (None, ("seed=-1",), "seed=-1 must be zero or a positive whole number"),
    "checkpoints": (None, ("checkpoint_epochs=0",), "checkpoint_epochs=0 must be at least 1"),
}


@pytest.mark.parametrize(("change", "overrides", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_for_train(
    here: Path,
    change: Callable[[], object] | None,
    overrides: Sequence[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change is not None:
        change()
    assert train(*overrides) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("ubmd: error: ")
    assert sentence in line
    assert all("extxyz: " in note for note in captured.out.splitlines())  # what was read, nothing else
    assert not list(here.rglob("provenance.json"))


def test_data_must_be_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 2
    assert "data.train is missing: give it as data.train=VALUE" in capsys.readouterr().err
    assert cli.main(["evaluate", "potential=x"]) == 2
    assert "structures is missing: give it as structures=VALUE" in capsys.readouterr().err
    assert not here.exists()


@pytest.mark.slow
def test_bad_input_for_evaluate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    potential = only(here / "train") / "model.ckpt"
    foreign = TEST[0].copy()
    foreign.numbers[0] = 47
    write_structures("silver.extxyz", [*TEST, foreign])
    write_structures("bare.extxyz", without("REF_forces", TEST))
    capsys.readouterr()
    for arguments, overrides, sentence in (
        ({"potential": "none.ckpt"}, (), "potential none.ckpt does not exist"),
        ({"potential": "test.extxyz"}, (), "test.extxyz is not a potential written by ubmd"),
        ({"structures": "none.extxyz"}, (), "structure file none.extxyz does not exist"),
        ({"structures": "bare.extxyz"}, (), "structure 3 of bare.extxyz has no REF_forces"),
        ({"structures": "silver.extxyz"}, (), "structure 9 of silver.extxyz contains Ag, which"),
        ({}, ("alpha=0",), "alpha=0 must be above 0 and below 1"),
        ({}, ("batch_size=0",), "batch_size=0 must be above 0"),
        ({}, ("logger=csv",), "logger: `ubmd evaluate` logs to no logger"),
        ({}, ("device=cuda:99",), "device=cuda:99 is not available"),
        ({}, ("+variables.phi={_target_: ubmd.observables.Torsion, atoms: [0, 1, 2, 9]}",), "atom"),
        ({}, ("potentail=x",), "potentail is not a key of `ubmd evaluate`; did you mean potential?"),
    ):
        assert evaluate(*overrides, **({"potential": potential} | arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert sentence in line
        assert not list((here / "evaluate").rglob("provenance.json"))


LEARN = (
    "learn",
    "system.structure=train.extxyz",
    "system.species=[Cu,Au]",
    "system.displacement=0.1",
    "system.n_initial=4",
    "reference.calculator._target_=ase.calculators.emt.EMT",
    *SMALL,
    "data.test=test.extxyz",
    "trainer.max_epochs=8",
    "learning.max_structures=8",
    "learning.batch_size=2",
    "learning.checkpoint_epochs=2",
    "dynamics.n_walkers=2",
    "dynamics.stopping.max_steps=6",
    "dynamics.frame_interval=3",
    "bias.window=2",
)


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
def test_learning_with_a_warm_start(here: Path, averaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds after the first start from the last one's weights, with a share of the steps, also when interrupted."""
    epochs: list[int] = []
    starts: list[dict[str, torch.Tensor]] = []
    original = FitProgress.on_train_epoch_end
    interrupt_at: list[int] = []

    def watch(self: FitProgress, trainer: Any, module: Any) -> None:
        original(self, trainer, module)
        epochs.append(trainer.current_epoch)
        if interrupt_at == [len(epochs)]:
            raise ZeroDivisionError

    def start(self: FitProgress, trainer: Any, module: Any) -> None:
        starts.append({k: v.detach().clone() for k, v in module.model.state_dict().items()})

    monkeypatch.setattr(FitProgress, "on_train_epoch_end", watch)
    monkeypatch.setattr(FitProgress, "on_fit_start", start, raising=False)
    command = [*LEARN, "learning.warm_start=0.5", *(["callbacks=ema"] if averaged else [])]
    assert cli.main(command) == 0
    run = only(here / "learn")
    assert epochs == [*range(8), *range(4), *range(4)]
    for index in (1, 2):
        before = torch.load(run / "rounds" / f"{index - 1:03d}" / "model.ckpt", weights_only=True)["model_state"]
        for name in ("beta", "readout.weights.0", "scale", "energy_unit"):
            assert torch.equal(starts[index][name], before[name]), (index, name)
    rows = read_metrics(run / "metrics.csv")
    run.rename(here / "whole")
    epochs.clear()
    interrupt_at.append(11)  # in the second round, between two checkpoints
    assert cli.main(command) == 1
    interrupt_at.clear()
    assert cli.main(command) == 0
    again = read_metrics(run / "metrics.csv")
    for row, other in zip(rows, again, strict=True):
        assert {k: v for k, v in row.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("learning.warm_start=1.5", "learning.warm_start=1.5 must be a share between 0 and 1, or null"),
        ("learning.warm_start=0", "learning.warm_start=0 must be a share between 0 and 1, or null"),
        ("training.start=none.ckpt", "potential none.ckpt does not exist"),
        ("trainer.check_val_every_n_epoch=9", "trainer.check_val_every_n_epoch=9 is more than the 8 epochs"),
    ],
)
def test_bad_input_for_learn(here: Path, override: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*LEARN, override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not list(here.rglob("provenance.json"))


def test_learning_from_a_data_set_in_the_words_of_others(here: Path) -> None:
    """Both what a run starts from and what it is tested with, whose labels are computed again and compared."""
    labelled = []
    for scale in (0.98, 1.0, 1.01, 1.03):
        atoms = Atoms(TRAIN[0].numbers, TRAIN[0].positions, cell=TRAIN[0].cell, pbc=True, calculator=EMT())
        atoms.set_cell(scale * atoms.cell, scale_atoms=True)
        atoms.info = {"REF_energy": atoms.get_potential_energy(), "REF_stress": atoms.get_stress(voigt=False)}
        atoms.arrays["REF_forces"] = atoms.get_forces()
        labelled.append(atoms)
    ase.io.write("foreign.extxyz", foreign(labelled))
    files = ("data.test=foreign.extxyz", "system.initial=foreign.extxyz", "system.n_initial=null")
    assert cli.main([*LEARN, *FOREIGN, *files, "learning.max_rounds=1", "trainer.max_epochs=1"]) == 0
    found = {a.info["REF_energy"]: a for a in read_labelled(only(here / "learn") / "dataset.extxyz")}
    for energy, atoms in zip(sorted(found), sorted(labelled, key=lambda a: a.info["REF_energy"]), strict=True):
        assert energy == pytest.approx(atoms.info["REF_energy"], rel=1e-6)
        np.testing.assert_allclose(found[energy].arrays["REF_forces"], atoms.arrays["REF_forces"], atol=1e-5)
        np.testing.assert_allclose(found[energy].info["REF_stress"], atoms.info["REF_stress"], rtol=1e-6, atol=1e-12)


@pytest.mark.slow
def test_a_finished_run_is_extended_by_its_folder(here: Path) -> None:
    """In other circumstances, to what it would have come to."""
    few = ("trainer.max_epochs=2", "learning.max_structures=6")
    assert cli.main([*LEARN, "name=whole", *few]) == 0
    assert cli.main([*LEARN, "name=short", *few, "learning.max_rounds=1"]) == 0
    short = only(here / "short")
    assert len(read_metrics(short / "metrics.csv")) == 1
    elsewhere = ("executor=processes", "executor.workers=1")
    assert cli.main(["learn", f"continue={short}", "learning.max_rounds=5", *elsewhere]) == 0
    found, expected = (read_metrics(run / "metrics.csv") for run in (only(here / "short"), only(here / "whole")))
    for row, other in zip(found, expected, strict=True):
        assert {k: v for k, v in row.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}

"""Active learning end to end, interrupted and not, on alanine dipeptide with everything tiny."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms

from ubmd.cli import main as cli
from ubmd.data.batch import collate
from ubmd.data.io import read_labelled
from ubmd.dynamics.trajectory import read_trajectory
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label, ReferenceError
from ubmd.reference.ff19sb import FF19SB
from ubmd.runs.metrics import COLUMNS, read_metrics, write_metrics
from ubmd.uncertainty.checkpoint import load_potential

TINY = [
    "experiment=ala2_demo",
    "logger=csv",
    "system.n_initial=4",
    "model.n_basis=2",
    "model.n_gauss=4",
    "model.hidden=[8,8]",
    "uncertainty.features.n_projections=16",
    "trainer.max_steps=60",
    "trainer.check_val_every_n_epoch=3",
    "learning.checkpoint_epochs=7",
    "learning.batch_size=4",
    "learning.max_structures=12",
    "labelling.max_force=50",
    "dynamics.n_walkers=4",
    "dynamics.frame_interval=5",
    "dynamics.checkpoint_interval=10",
    "dynamics.stopping.max_steps=60",
    "dynamics.stopping.uncertainty_threshold=1000",
    "dynamics.integrator.dt=0.1",
    "bias.window=20",
    "bias.every=1",
    "data.test.sample.n_structures=10",
    "data.test.sample.duration_ps=1",
]

KILLER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from ubmd.cli import main as cli

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name, count):
    original, calls = getattr(owner, name), [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == count:
            kill()
        return original(*args, **kwargs)
    setattr(owner, name, wrapped)

place = sys.argv[1]
if place == "fit":
    from ubmd.callbacks.monitor import FitProgress
    after(FitProgress, "on_train_epoch_end", 75)  # in the second round's fit, between two checkpoints
elif place == "explore":
    from ubmd.bias.biased import BiasedPotential
    after(BiasedPotential, "forward", 95)  # in the second round, past a checkpoint of the walkers
elif place == "label":
    from ubmd.reference.ff19sb import FF19SB
    after(FF19SB, "compute", 10)  # 4 initial ones, 4 of the first round, in the midst of the second's
elif place == "commit":
    from ubmd.runs.store import RoundStore
    after(RoundStore, "commit", 2)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(root: Path, cache: Path, place: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"UBMD_RUNS": str(root), "UBMD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, place, "learn", *TINY, *overrides]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    done = run(root, cache, "nowhere")
    assert done.returncode == 0, done.stderr
    return only_run(root)


def only_run(root: Path) -> Path:
    (folder,) = [path.parent for path in root.rglob("provenance.json")]
    return folder


def comparable(folder: Path) -> list[dict[str, float | int | None]]:
    """metrics.csv without the times."""
    return [{k: v for k, v in row.items() if not k.startswith("time_")} for row in read_metrics(folder / "metrics.csv")]


def test_run_folder_holds_what_the_contract_says(uninterrupted: Path) -> None:
    rows = read_metrics(uninterrupted / "metrics.csv")
    assert tuple(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["n_train"] + row["n_valid"] for row in rows] == [4, 8, 12]
    assert all(row["force_rmse_ev_per_ang"] > 0 and 0 < row["coverage"] < 1 for row in rows)
    assert [row["n_selected"] for row in rows] == [4, 4, None]
    assert [row["fit_steps"] for row in rows] == [60, 60, 60]
    assert rows[0]["md_steps"] == 4 * 60
    structures = read_labelled(uninterrupted / "dataset.extxyz")
    assert [a.info["round"] for a in structures] == [-1] * 4 + [0] * 4 + [1] * 4
    for index in (0, 1):
        folder = uninterrupted / "rounds" / f"{index:03d}"
        assert {f.name for f in folder.iterdir()} == {
            *("model.ckpt", "trajectory.h5", "selected.extxyz", "labelled.extxyz", "round.json")
        }
        assert read_trajectory(folder / "trajectory.h5").n_frames == 4 * 12
        assert json.loads((folder / "round.json").read_text())["metrics"]["round"] == index
    assert {f.name for f in (uninterrupted / "figures").iterdir()} >= {
        *("learning_curves.png", "phi_psi.png", "calibration.png", "calibration_curve.png")
    }
    assert load_potential(uninterrupted / "rounds" / "002" / "model.ckpt").model.cutoff == 5.0


def test_report_of_a_finished_run_and_of_one_that_was_killed(uninterrupted: Path, tmp_path: Path) -> None:
    assert "largest force errors of the test set" in (uninterrupted / "report.html").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(uninterrupted, copy)
    shutil.rmtree(copy / "figures")
    (copy / "rounds" / "002" / "round.json").unlink()
    write_metrics(copy / "metrics.csv", read_metrics(copy / "metrics.csv")[:2])
    assert cli.main(["report", str(copy)]) == 0
    text = (copy / "report.html").read_text()
    for told in ("Round 2 was begun and is not finished", "of those labelled in round 1, as predicted", "phi and psi"):
        assert told in text
    assert "could not be made" not in text
    assert not (copy / "figures").exists()


@pytest.mark.slow
def test_prequential_calibration(uninterrupted: Path, tmp_path: Path, cache: Path) -> None:
    """The factors of a round are quantiles of what the round before got wrong, before any factor of its own."""
    done = run(tmp_path, cache, "nowhere", "calibration=prequential", "learning.max_rounds=2")
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("no round has acquired labels yet") == 1
    folder = only_run(tmp_path)
    first, second = comparable(folder)
    assert first == comparable(uninterrupted)[0]
    potential = load_potential(folder / "rounds" / "000" / "model.ckpt")
    atomic, total = [], []
    for atoms in read_labelled(folder / "rounds" / "000" / "labelled.extxyz"):
        found = potential(collate([atoms], potential.cutoff))
        error = np.sqrt(np.mean((found.forces.numpy() - atoms.arrays["REF_forces"]) ** 2, axis=1))
        atomic += list(error / found.atomic_uncertainty.numpy() * first["conformal_scale_atom"])
        total.append(abs(found.energy.item() - atoms.info["REF_energy"]) / 22 / found.uncertainty.item())
    assert len(atomic) == 4 * 22
    assert second["conformal_scale_atom"] == pytest.approx(sorted(atomic)[int(np.ceil(0.95 * 89)) - 1], rel=1e-4)
    assert second["conformal_scale_total"] == pytest.approx(max(total) * first["conformal_scale_total"], rel=1e-3)


def test_labels_of_the_data_set_are_the_references(uninterrupted: Path) -> None:
    atoms = ase.io.read(uninterrupted / "dataset.extxyz", index=-1)
    label = FF19SB().compute(atoms)
    np.testing.assert_allclose(atoms.arrays["REF_forces"], label.forces, atol=1e-7)
    assert atoms.info["REF_energy"] == pytest.approx(label.energy, abs=1e-9)


def test_coverage_of_what_was_acquired(uninterrupted: Path) -> None:
    """With what the round's potential says about the labelled structures one by one."""
    rows = read_metrics(uninterrupted / "metrics.csv")
    assert rows[2]["acquired_coverage_atom"] is rows[2]["acquired_coverage_total"] is None
    for row in rows[:2]:
        folder = uninterrupted / "rounds" / f"{row['round']:03d}"
        calculator = UBMDCalculator(folder / "model.ckpt")
        atoms_covered, structures_covered = [], []
        for atoms in read_labelled(folder / "labelled.extxyz"):
            atoms.calc = calculator
            error = np.sqrt(np.mean((atoms.get_forces() - atoms.arrays["REF_forces"]) ** 2, axis=1))
            atoms_covered += list(error <= calculator.get_property("atomic_uncertainty", atoms))
            error = abs(atoms.get_potential_energy() - atoms.info["REF_energy"]) / len(atoms)
            structures_covered.append(error <= calculator.get_property("uncertainty", atoms))
        assert row["acquired_coverage_atom"] == pytest.approx(np.mean(atoms_covered), abs=1.5 / len(atoms_covered))
        assert row["acquired_coverage_total"] == np.mean(structures_covered)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["fit", "explore", "label", "commit"])
def test_killed_run_continues_to_the_same_end(place: str, tmp_path: Path, cache: Path, uninterrupted: Path) -> None:
    killed = run(tmp_path, cache, place)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = only_run(tmp_path)
    assert len(read_metrics(folder / "metrics.csv")) == 1
    done = run(tmp_path, cache, "nowhere")
    assert done.returncode == 0, done.stderr
    assert comparable(folder) == comparable(uninterrupted)
    for index in ("000", "001"):
        for name in ("selected.extxyz", "labelled.extxyz"):
            ours, theirs = (f / "rounds" / index / name for f in (folder, uninterrupted))
            assert ours.read_bytes() == theirs.read_bytes()
    assert (folder / "dataset.extxyz").read_bytes() == (uninterrupted / "dataset.extxyz").read_bytes()


def test_finished_run_is_left_as_it_is(uninterrupted: Path, cache: Path) -> None:
    before = (uninterrupted / "metrics.csv").read_bytes()
    again = run(uninterrupted.parents[1], cache, "nowhere")
    assert again.returncode == 0, again.stderr
    assert (uninterrupted / "metrics.csv").read_bytes() == before


def test_own_molecule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    start = molecule("CH3CH2OH")
    start.info.update(charge=1, solvent="thf")
    start.set_initial_charges([0.5, 0.5] + [0] * 7)
    start.set_masses([13.003, *start.get_masses()[1:]])
    start.set_constraint(FixAtoms([0, 1]))
    ase.io.write(tmp_path / "my.xyz", start, format="extxyz")
    own = [o for o in TINY if not o.startswith(("experiment", "data.test"))]
    code = cli.main(
        [
            *("learn", "system.structure=" + str(tmp_path / "my.xyz"), "reference=ase"),
            *("reference.calculator._target_=ase.calculators.emt.EMT", "+reference.reads=[solvent]", *own),
            *("trainer.max_epochs=-1", "data.batch_size=8"),
        ]
    )
    assert code == 0
    (folder,) = [p.parent for p in (tmp_path / "runs").rglob("provenance.json")]
    rows = read_metrics(folder / "metrics.csv")
    assert [row["n_train"] + row["n_valid"] for row in rows] == [4, 8, 12]
    assert rows[0]["coverage"] is None
    assert rows[0]["force_rmse_ev_per_ang"] is None
    structures = read_labelled(folder / "dataset.extxyz")
    assert [a.info["round"] for a in structures] == [-1] * 4 + [0] * 4 + [1] * 4
    for atoms in structures:  # what belongs to the molecule is there in every round
        assert (atoms.info["charge"], atoms.info["solvent"]) == (1, "thf")
        assert atoms.get_initial_charges().sum() == 1
        assert atoms.get_masses()[0] == 13.003
        assert atoms.constraints[0].index.tolist() == [0, 1]
        np.testing.assert_allclose(atoms.positions[:2], start.positions[:2], atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["rejected", "exploded"])
def test_a_round_without_structures_ends_the_run_with_code_3(
    cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything made so far is kept and reported, and the same command says the same again at once."""
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    ase.io.write(tmp_path / "my.xyz", molecule("CH3CH2OH"))
    computed: list[int] = []
    compute = ASEReference.compute

    def failing(self: ASEReference, atoms: Atoms) -> Label:
        computed.append(len(atoms))
        if cause == "rejected" and len(computed) > 4:
            raise ReferenceError("SCF not converged")
        return compute(self, atoms)

    monkeypatch.setattr(ASEReference, "compute", failing)
    own = [o for o in TINY if not o.startswith(("experiment", "data.test"))]
    command = [
        *("learn", "system.structure=" + str(tmp_path / "my.xyz"), "reference=ase"),
        *("reference.calculator._target_=ase.calculators.emt.EMT", *own, "trainer.max_epochs=-1", "data.batch_size=8"),
        f"+dynamics.stopping.min_distance={0.5 if cause == 'rejected' else 9}",
    ]
    assert cli.main(command) == 3
    (folder,) = [p.parent for p in (tmp_path / "runs").rglob("provenance.json")]
    (row,) = read_metrics(folder / "metrics.csv")
    kept = (4, 4) if cause == "rejected" else (0, 0)
    assert (row["n_selected"], row["n_rejected"]) == kept
    assert load_potential(folder / "rounds" / "000" / "model.ckpt").model.cutoff == 5.0
    assert (folder / "figures" / "learning_curves.png").exists()
    first = " ".join(capsys.readouterr().err.split())
    assert "ubmd: stopped short: round 0 acquired no structure, as" in first
    assert ("all 4 structures" if cause == "rejected" else "every walker became unphysical") in first
    assert "the run ends at 4 of learning.max_structures=12" in first
    assert "Traceback" not in first
    n_computed, before = len(computed), (folder / "metrics.csv").read_bytes()
    assert cli.main(command) == 3
    assert "the run ends at 4 of learning.max_structures=12" in " ".join(capsys.readouterr().err.split())
    assert len(computed) == n_computed
    assert (folder / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["bias.taau=1"], "bias.tau"),
        (["dynamics.stopping.uncertainty_threshold=-1"], "uncertainty_threshold"),
        (["learning.batch_size=1000"], "learning.batch_size=1000"),
        (["system.species=[C,N,O]"], "contains H"),
        (["trainer.accelerator=gpu"], "trainer.accelerator"),
        (["system.structure=nowhere.xyz"], "nowhere.xyz"),
        (["seed=-1"], "seed"),
        (["threads=0"], "threads=0"),
        (["dtype=float16"], "float16"),
        (["training.loss.stress=0.1"], "stress"),
        (
            ["training.loss.stress=0.1", "~system.variables", "system.structure=${paths.cache}/cell.xyz"],
            "needs a reference that computes stress, which FF19SB does not",
        ),
        (
            ["dynamics=npt", "~system.variables", "system.structure=${paths.cache}/cell.xyz"],
            "training.loss.stress=0.0 leaves untrained the stress",
        ),
        (["dynamics=npt"], "system.structure has pbc=[False, False, False]; choose dynamics=langevin"),
        (["data.test=nowhere.extxyz"], "nowhere.extxyz"),
    ],
)
def test_bad_input_is_one_sentence(
    overrides: list[str],
    sentence: str,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UBMD_CACHE", str(cache))
    ase.io.write(cache / "cell.xyz", bulk("C"), format="extxyz")
    assert cli.main(["learn", *TINY, *overrides]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert "Traceback" not in message
    assert not list((tmp_path / "runs").rglob("provenance.json"))

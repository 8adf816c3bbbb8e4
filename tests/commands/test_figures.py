"""The paper's figures from run folders: what is drawn of which runs, numbers by hand, and what is missing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from ubmd.analysis.numbers import read_numbers, write_numbers
from ubmd.cli import main as cli
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.stopping import StopReason
from ubmd.dynamics.trajectory import write_trajectory
from ubmd.errors import InputError
from ubmd.rounds.artifacts import log_folder
from ubmd.rounds.wandb_logger import SteadyWandbLogger
from ubmd.runs.metrics import write_metrics

TORSION = {"_target_": "ubmd.observables.Torsion"}
FRAMES = 40


def exploration(rng: np.random.Generator, crystal: bool) -> Exploration:
    """Two walkers of five atoms, the first of which crosses the threshold of 1.5 eV/Å."""
    f = 2 * FRAMES
    uncertainty = rng.uniform(0.1, 1.0, (f, 5))
    uncertainty[FRAMES - 1, 0] = 1.6
    cell = np.einsum("f,ij->fij", rng.uniform(9.5, 10.5, f), np.eye(3)) if crystal else np.zeros((f, 3, 3))
    return Exploration(
        numbers=np.array([6, 7, 6, 6, 1]), pbc=np.full(3, crystal),
        walker=np.repeat([0, 1], FRAMES), step=np.tile(20 * np.arange(1, FRAMES + 1), 2),
        positions=rng.normal(0, 1.5, (f, 5, 3)), cell=cell, energy=np.zeros(f), uncertainty=np.zeros(f),
        atomic_uncertainty=uncertainty, tau=np.zeros(f), walkers=np.array([0, 1]),
        reasons=np.array([StopReason.UNCERTAINTY, StopReason.MAX_STEPS], dtype=np.int8),
        steps=np.full(2, 20 * FRAMES), temperature=np.full(2, 300.0), max_uncertainty=np.full(2, 1.6),
    )  # fmt: skip


def write_run(folder: Path, *, seed: int = 0, tau: float = 0.0, crystal: bool = False, **integrator: Any) -> Path:
    """A finished run of three rounds, the last of which does not explore."""
    integrator = {"temperature": 300.0, "dt": 0.5} | integrator
    system = {"structure": "crystal" if crystal else "molecule", "states": {}, "variables": {}}
    if not crystal:
        system["variables"] = {"phi": TORSION | {"atoms": [0, 1, 2, 3]}, "psi": TORSION | {"atoms": [1, 2, 3, 4]}}
    config = {
        "seed": seed,
        "system": system,
        "bias": {"_target_": "ubmd.bias.biased.BiasedPotential", "tau_stress" if crystal else "tau": tau},
        "dynamics": {"integrator": integrator, "stopping": {"uncertainty_threshold": 1.5}, "frame_interval": 20},
    }
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for index in range(3):
        row = {"round": index, "n_train": 7 + 8 * index, "n_valid": 1, "energy_rmse_mev_per_atom": 30.0 / (1 + index)}
        row |= {"force_rmse_ev_per_ang": (0.6 + 0.2 * seed) / (1 + index), "act_position_ps": 0.5}
        row |= (
            {"volume_min_ang3": 850.0, "volume_max_ang3": 1160.0} if crystal else {"coverage": 0.1 * (1 + index + tau)}
        )
        row |= {"stress_rmse_mpa": 90.0} if crystal else {}
        if index < 2:
            row |= {"md_steps": 1000, "n_selected": 8, "n_rejected": 0}
            path = folder / "rounds" / f"{index:03d}" / "trajectory.h5"
            path.parent.mkdir(parents=True)
            write_trajectory(path, exploration(rng, crystal))
        rows.append(row)
    write_metrics(folder / "metrics.csv", rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def write_errors(folder: Path) -> None:
    """Test structures of two volumes, whose errors are 2 and 4 in the first and half of that in the last round."""
    names = ("energy_error_mev2_per_atom2", "force_error_ev2_per_ang2", "stress_error_mpa2")
    squared = {f"squared_{name}": [4.0, 16.0, 1.0, 4.0] for name in names}
    table = {"round": [0, 0, 2, 2], "volume": [900.0, 1100.0] * 2, **squared}
    write_numbers(folder / "figures" / "error_by_volume.csv", table)


def write_fit(folder: Path, method: str, n_train: int) -> Path:
    """A finished fit of ``ubmd train``."""
    target = {"posterior": "FeatureUncertainty", "ensemble": "EnsembleUncertainty"}[method]
    config = {"seed": 0, "uncertainty": {"_target_": f"ubmd.uncertainty.{target}"}}
    config["calibration"] = {"atomic": {"alpha": 0.05}}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.json").write_text(json.dumps({"n_train": n_train, "n_valid": 5}))
    error = np.random.default_rng(n_train).lognormal(-1, 0.5, 60)
    columns = {"error_ev_per_ang": error, "uncertainty_ev_per_ang": 1.5 * error, "uncertainty_50_ev_per_ang": error / 2}
    write_numbers(folder / "figures" / "calibration.csv", columns)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all kinds of runs."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(root / "molecule" / f"unbiased-{seed}", seed=seed)
        write_run(root / "molecule" / f"biased-{seed}", seed=seed, tau=0.25)
    for temperature in (300.0, 600.0):
        for tau in (0.0, 0.5):
            folder = root / "crystal" / f"{temperature}-{tau}"
            write_errors(write_run(folder, tau=tau, crystal=True, temperature=temperature, pressure=0.0))
    for method in ("posterior", "ensemble"):
        for n in (45, 450):
            write_fit(root / "fits" / f"{method}-{n}", method, n)
    return root


@pytest.mark.slow  # a dozen figures are laid out
def test_all_figures_and_tables_of_all_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(runs / name) for name in ("molecule", "crystal", "fits")]
    assert cli.main(["figures", "all", *folders, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "is not drawn" not in out
    assert "without: No fit with the uncertainty distance is among the runs." in out
    for number in range(2, 8):
        assert (tmp_path / f"fig{number}.pdf").read_bytes().startswith(b"%PDF")
        assert (tmp_path / f"fig{number}.png").stat().st_size > 20_000
    told = (tmp_path / "fig3.txt").read_text()
    assert f"- unbiased MD (300 K): {runs}/molecule/unbiased-1, seed 1, rounds 0 to 2, 8 to 24 structures" in told
    assert "biased MD (600 K, 0 MPa, τ = 0.5)" in (tmp_path / "fig6.txt").read_text()
    assert "600 K" not in (tmp_path / "fig7.txt").read_text().split("Made from:")[1]
    assert "One run alone has none: " in (tmp_path / "fig5.txt").read_text()


def test_tables_by_hand(runs: Path, tmp_path: Path) -> None:
    folders = [str(runs / name) for name in ("molecule", "crystal")]
    assert cli.main(["figures", "table1", "table2", *folders, "--output", str(tmp_path)]) == 0
    (unbiased, biased) = csv.DictReader((tmp_path / "table1.csv").open())
    # last rounds of both seeds: 0.6 / 3 and 0.8 / 3
    assert float(unbiased["force_rmse_ev_per_ang_mean"]) == pytest.approx(0.7 / 3)
    assert float(unbiased["force_rmse_ev_per_ang_std"]) == pytest.approx(0.1 / 3 * 2**0.5)
    assert (unbiased["runs"], biased["experiment"]) == ("2", "biased MD (300 K, τ = 0.25)")
    line = (
        "| biased MD (300 K, τ = 0.25) | 2 | **0.33 ± 0.00** | **10.00 ± 0.00** | **0.233 ± 0.047** | **0.50 ± 0.00** |"
    )
    assert line in (tmp_path / "table1.md").read_text()
    assert "No run has Unc. ACT (act_uncertainty_ps)." in (tmp_path / "table1.txt").read_text()
    latex = (tmp_path / "table2.tex").read_text()
    assert latex.index("T = 600 K") < latex.index("T = 300 K")
    assert r"biased MD (600 K, 0 MPa, $\tau$ = 0.5) & 1 & \textbf{10.00}" in latex


def test_what_runs_cannot_give_is_said(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "runs" / "crystal", crystal=True)
    assert cli.main(["figures", "fig5", "fig2", str(tmp_path / "runs")]) == 2
    captured = capsys.readouterr()
    assert "figures/error_by_volume.csv is not there" in (tmp_path / "runs" / "paper" / "fig5.txt").read_text()
    assert "fig2 is not drawn: there is no folder of `ubmd train` with figures/calibration.csv" in captured.out
    assert "not drawn: fig2" in captured.err
    # of every figure nothing is there: an error too
    (tmp_path / "empty").mkdir()
    assert cli.main(["figures", "all", str(tmp_path / "empty")]) == 2
    assert cli.main(["figures", "fig3", str(runs / "molecule"), str(runs / "nothing")]) == 2
    for file in folder.glob("rounds/*/trajectory.h5"):
        file.unlink()
    assert cli.main(["figures", "fig7", str(folder)]) == 2
    assert "has no trajectory (rounds/*/trajectory.h5)" in capsys.readouterr().out


def test_runs_of_several_systems_are_not_mixed(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["system"]["structure"] = "another molecule"
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["figures", "table1", str(other), str(runs / "molecule"), "--output", str(tmp_path)]) == 2
    assert "are of different systems; give runs of one of them" in capsys.readouterr().out


def test_variables_and_volumes_are_not_guessed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class that a configuration names is not imported; volumes of another cell than metrics.csv's are refused."""
    run = write_run(tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["system"]["variables"]["phi"]["_target_"] = "os.system"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["figures", "fig3", str(run), "--output", str(tmp_path)]) == 0
    assert "the variable phi is no class of ubmd.observables" in capsys.readouterr().out
    crystal = write_run(tmp_path / "crystal", crystal=True)
    file = crystal / "rounds" / "000" / "trajectory.h5"
    found = exploration(np.random.default_rng(0), True)
    write_trajectory(file, replace(found, cell=2 * found.cell))
    assert cli.main(["figures", "fig7", str(crystal), "--output", str(tmp_path)]) == 2
    assert "are not those of metrics.csv (850 to 1160 Å³)" in capsys.readouterr().out


def test_words_are_checked(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        ([str(runs / "molecule")], "name what to draw before the run folders"),
        (["fig3"], "give run folders or --wandb ENTITY/PROJECT, one of them"),
        (["fig3", "runs", "--wandb", "me/ubmd"], "give run folders or --wandb ENTITY/PROJECT, one of them"),
        (["fig3", "runs", "--group", "demo"], "--group goes with --wandb"),
        (["fig8", "fig3", str(runs / "molecule")], "fig8 does not exist"),
    ):
        assert cli.main(["figures", *words]) == 2
        assert message in capsys.readouterr().err


class StandInArtifact:
    """What wandb keeps of an artifact: its files, whose whole it gives back."""

    def __init__(self, kind: str, version: str, files: dict[str, bytes]):
        self.type, self.version, self.files = kind, version, files

    def download(self, root: str) -> None:
        for name, content in self.files.items():
            (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(root) / name).write_bytes(content)


def logged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of the artifact that wandb is given of a run's folder."""
    given: list[Any] = []
    logger = SteadyWandbLogger(offline=True)
    run = SimpleNamespace(id="abc", log_artifact=given.append)
    monkeypatch.setattr(SteadyWandbLogger, "experiment", run)
    log_folder([logger], folder)
    (artifact,) = given
    assert (artifact.type, artifact.name) == ("run", "run-abc")
    return {name: Path(entry.local_path).read_bytes() for name, entry in artifact.manifest.entries.items()}


def test_wandb_gives_what_the_folders_give(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [runs / "molecule" / f"{name}-{seed}" for name in ("unbiased", "biased") for seed in (0, 1)]
    stored = []
    for folder in folders:
        files = logged(folder, monkeypatch)
        assert {"config.yaml", "metrics.csv", "rounds/000/trajectory.h5"} <= set(files)
        artifacts = [StandInArtifact("model", "v0", {"model.ckpt": b""}), StandInArtifact("run", "v10", files)]
        artifacts.append(StandInArtifact("run", "v9", {"config.yaml": b"old"}))
        stored.append(SimpleNamespace(name=f"bias/{folder.name}", id="abc", logged_artifacts=lambda a=artifacts: a))
    stored.append(SimpleNamespace(name="unfinished", id="abd", logged_artifacts=list))
    asked: list[Any] = []
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(runs=lambda *a, **k: asked.append((a, k)) or stored))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    assert cli.main(["figures", "table1", "--wandb", "me/ubmd", "--group", "demo", "--output", str(theirs)]) == 0
    assert "skipped: unfinished (abd): has logged no artifact of its folder" in capsys.readouterr().out
    assert asked == [(("me/ubmd",), {"filters": {"group": "demo"}})]
    assert cli.main(["figures", "table1", *map(str, folders), "--output", str(ours)]) == 0
    assert (theirs / "table1.csv").read_text() == (ours / "table1.csv").read_text()
    (found,) = (theirs / "wandb").glob("bias-biased-1-abc/rounds/001/*")
    assert found.read_bytes() == (runs / "molecule/biased-1/rounds/001/trajectory.h5").read_bytes()


def test_numbers_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "numbers.csv"
    write_numbers(path, {"x": [1 / 3, np.nan], "y": [2, 3]})
    found = read_numbers(path, ("x",))
    np.testing.assert_array_equal(found["x"], [1 / 3, np.nan])
    with pytest.raises(InputError, match="lacks the column z"):
        read_numbers(path, ("z",))
    for broken in ("x,y\n1,2\n3\n", "x\none\n"):
        path.write_text(broken)
        with pytest.raises(InputError, match="cannot be read"):
            read_numbers(path)

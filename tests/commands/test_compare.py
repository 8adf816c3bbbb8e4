"""Runs side by side: grouping, numbers by hand, files, and the same from a stand-in for wandb's API."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from ubmd.analysis.comparison import RunResult, compare_runs, final_metrics, is_finished, mean_and_deviation
from ubmd.analysis.comparison_tables import as_csv, as_latex
from ubmd.analysis.curves import compared_curves, exploration_curves
from ubmd.cli import main as cli
from ubmd.commands import folders, wandb_runs
from ubmd.errors import InputError
from ubmd.runs.metrics import COLUMNS, write_metrics

POSTERIOR = {"_target_": "ubmd.uncertainty.FeatureUncertainty", "features": {"n_projections": 128}}
ENSEMBLE = {"_target_": "ubmd.uncertainty.EnsembleUncertainty"}
NETWORK = {"_target_": "ubmd.models.gmnn.GMNN", "cutoff": 5.0}
NETWORKS = {"_target_": "ubmd.models.ensemble.Ensemble", "member": {"cutoff": 5.0}}

ROUND = {"n_valid": 1, "act_position_ps": 0.5, "test_coverage_atom": 0.96}


def configuration(seed: int = 0, tau: float = 0.25, **parts: Any) -> dict[str, Any]:
    return {
        "name": "demo",
        "seed": seed,
        "model": NETWORK,
        "uncertainty": POSTERIOR,
        "bias": {"tau": tau},
        "data": {"test": {"path": f"/somewhere/{seed}/test.extxyz"}},
        "paths": {"run": f"/runs/{seed}-{tau}"},
        "logger": None,
        **parts,
    }


def rounds(forces: list[float], coverage: float = 0.5, finished: bool = True) -> list[dict[str, Any]]:
    """A round for each force error, 8 structures more in each."""
    out: list[dict[str, Any]] = [
        ROUND
        | {"round": i, "n_train": 7 + 8 * i, "force_rmse_ev_per_ang": f, "energy_rmse_mev_per_atom": 100 * f}
        | {"coverage": coverage, "n_selected": 8, "n_rejected": 0}
        for i, f in enumerate(forces)
    ]
    if finished:
        out[-1] |= {"n_selected": None, "n_rejected": None}
    return out


def write_run(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    write_metrics(folder / "metrics.csv", rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture
def tau_runs(tmp_path: Path) -> Path:
    """Two strengths of the bias with two and one seeds, the larger first; and what is passed over."""
    root = tmp_path / "runs" / "demo"
    write_run(root / "tau-0.5+seed-0", configuration(0, 0.5), rounds([0.4, 0.2], 0.9))
    write_run(root / "tau-0.1+seed-0", configuration(0, 0.1), rounds([0.5, 0.10], 0.6))
    write_run(root / "tau-0.1+seed-1", configuration(1, 0.1), rounds([0.7, 0.16], 0.8))
    write_run(root / "unfinished", configuration(2, 0.1), rounds([0.7], finished=False))
    write_run(root / "twice", configuration(1, 0.1), rounds([9.0, 9.0]))
    (root / "foreign").mkdir()
    (root / "trained").mkdir()
    (root / "trained" / "config.yaml").write_text("a: 1\n")
    return root


def test_tables_by_hand(tau_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tau_runs / "latest").symlink_to("tau-0.1+seed-1")  # is no run of its own
    assert cli.main(["compare", *(str(folder) for folder in sorted(tau_runs.iterdir()))]) == 0
    out = capsys.readouterr().out
    for line in (
        "skipped: foreign: is not a run's folder, it has no config.yaml",
        "skipped: trained: has no metrics.csv: not a run of `ubmd learn`, or no round of it is finished",
        "skipped: unfinished: is unfinished, with 1 rounds",
        "skipped: twice: another run has the same setting and seed",
    ):
        assert line in out.splitlines()
    (low, high) = [line.split() for line in out.splitlines() if line.startswith(("0.1 ", "0.5 "))][:2]
    # by hand: coverage of 0.6 and 0.8 is 0.7 with deviation 0.1 √2; F-RMSE of 0.10 and 0.16 is 0.13 with 0.03 √2
    assert " ".join(low) == "0.1 2 0.70 ± 0.14 13.00 ± 4.24 0.130 ± 0.042 0.50 ± 0.00 16 ± 0"
    assert " ".join(high) == "0.5 1 0.90 20.00 0.200 0.50 16"
    folder = tau_runs / "comparison"
    (first, second) = list(csv.DictReader((folder / "table.csv").open()))
    assert first["bias.tau"] == "0.1"
    assert float(first["force_rmse_ev_per_ang_mean"]) == pytest.approx(0.13, abs=1e-12)
    assert float(first["force_rmse_ev_per_ang_std"]) == pytest.approx(0.03 * 2**0.5, abs=1e-12)
    assert second["force_rmse_ev_per_ang_std"] == ""
    assert second["runs"] == "1"
    assert "stress_rmse_mpa_mean" not in first
    markdown = (folder / "table.md").read_text()
    assert "| 0.1 | 2 | 0.70 ± 0.14 | 13.00 ± 4.24 | 0.130 ± 0.042 |" in markdown
    assert "- tau=0.1: tau-0.1+seed-0, tau-0.1+seed-1" in markdown
    latex = (folder / "table.tex").read_text()
    assert r"0.1 & 2 & 0.70 $\pm$ 0.14 & 13.00 $\pm$ 4.24 & 0.130 $\pm$ 0.042 &" in latex
    assert latex.index(r"\toprule") < latex.index(r"\midrule") < latex.index(r"\bottomrule")
    assert (folder / "learning_curves.png").stat().st_size > 10_000


def untested(forces: list[float]) -> list[dict[str, Any]]:
    """Rounds without a test set and collective variables, as of one's own molecule."""
    names = ("force_rmse_ev_per_ang", "energy_rmse_mev_per_atom")
    rows = rounds(forces)
    for row in rows:
        row |= {f"valid_{name}": row[name] for name in names} | dict.fromkeys(
            (*names, "coverage", "test_coverage_atom")
        )
    return rows


def test_runs_without_a_test_set_compare_by_validation_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "two"
    write_run(root / "seed-0", configuration(0), untested([0.5, 0.10]))
    write_run(root / "seed-1", configuration(1), untested([0.7, 0.16]))
    assert cli.main(["compare", str(root)]) == 0
    out = capsys.readouterr().out
    assert out.count("validation") >= 3
    assert "2 runs have no test set (data.test)" in out
    assert "13.00 ± 4.24" in out
    (row,) = csv.DictReader((root / "comparison" / "table.csv").open())
    assert float(row["valid_force_rmse_ev_per_ang_mean"]) == pytest.approx(0.13, abs=1e-12)
    assert "force_rmse_ev_per_ang_mean" not in row
    assert "F-RMSE (eV/Å, validation)" in (root / "comparison" / "table.md").read_text()
    assert (root / "comparison" / "learning_curves.png").stat().st_size > 10_000


def test_validation_errors_are_shown_beside_those_on_test_sets_only_where_needed(tmp_path: Path) -> None:
    both = [row | {"valid_force_rmse_ev_per_ang": 7.0} for row in rounds([0.4, 0.2])]
    tested = RunResult("tested", configuration(0, 0.1), both)
    other = RunResult("untested", configuration(0, 0.5), untested([0.4, 0.3]))
    alone, mixed = compare_runs([tested]), compare_runs([tested, other])
    assert (alone.untested, mixed.untested) == (0, 1)
    assert "validation" not in as_latex(alone)
    (low, high) = csv.DictReader(as_csv(mixed).splitlines())
    assert (low["force_rmse_ev_per_ang_mean"], low["valid_force_rmse_ev_per_ang_mean"]) == ("0.2", "7.0")
    assert (high["force_rmse_ev_per_ang_mean"], high["valid_force_rmse_ev_per_ang_mean"]) == ("", "0.3")
    figure = compared_curves({s.label: [run.rounds for run in s.runs] for s in mixed.settings})
    assert figure is not None
    labels = [ax.get_ylabel() for ax in figure.axes]
    validation = ["Validation energy\nRMSE (meV/atom)", "Validation force\nRMSE (eV/Å)"]
    assert labels[:3] == [*validation, "Energy RMSE (meV/atom)"]
    assert compared_curves({"nothing": [[{"round": 0, "n_train": 1, "n_valid": 1}]]}) is None


def test_folder_of_runs_and_output(tau_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(tau_runs), "--output", str(tmp_path / "here")]) == 0
    assert "foreign" not in capsys.readouterr().out
    assert {f.name for f in (tmp_path / "here").iterdir()} == {
        *("table.csv", "table.tex", "table.md", "learning_curves.png")
    }
    assert not (tau_runs / "comparison").exists()
    assert cli.main(["compare", str(tau_runs / "tau-0.1+seed-0")]) == 0
    assert (tau_runs / "comparison" / "table.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give run folders or --wandb ENTITY/PROJECT, one of them"),
        (["nowhere"], "nowhere does not exist; give run folders"),
        (["foreign"], "there is no finished run to compare"),
        (["foreign", "--wandb", "a/b"], "give run folders or --wandb ENTITY/PROJECT, one of them"),
        (["foreign", "--group", "a"], "--group goes with --wandb"),
        (["--no"], "unrecognized arguments: --no; see ubmd compare --help"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "foreign").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"ubmd: error: {sentence}")
    assert not (tmp_path / "comparison").exists()


def test_metrics_that_cannot_be_read(tau_runs: Path) -> None:
    (tau_runs / "twice" / "metrics.csv").write_text("round\n0\n")
    (tau_runs / "tau-0.1+seed-0" / "config.yaml").write_text("a: [1\n")
    found = folders.read_folders([tau_runs])
    reasons = dict(found.skipped)
    assert "lacks the column" in reasons["twice"]
    assert reasons["tau-0.1+seed-0"].startswith("cannot be read: ")
    assert len(found.runs) == 2


def result(config: dict[str, Any]) -> RunResult:
    return RunResult(f"{config['seed']}", config, rounds([0.1]))


def test_classes_stand_for_their_options() -> None:
    method = {"model": NETWORKS, "uncertainty": ENSEMBLE}
    found = compare_runs(result(c) for s in (0, 1) for c in (configuration(s), configuration(s, **method)))
    assert found.columns == ("model",)
    assert found.along == ("uncertainty",)
    assert [s.values for s in found.settings] == [("GMNN",), ("Ensemble",)]
    assert [len(s.runs) for s in found.settings] == [2, 2]
    assert not found.repeated


def test_options_within_a_class_count() -> None:
    fewer = POSTERIOR | {"features": {"n_projections": 16}}
    configs = [configuration(), configuration(uncertainty=fewer), configuration(uncertainty=ENSEMBLE)]
    found = compare_runs(map(result, configs))
    assert found.columns == ("uncertainty", "uncertainty.features.n_projections")
    assert [s.values for s in found.settings] == [
        ("FeatureUncertainty", "128"),
        ("FeatureUncertainty", "16"),
        ("EnsembleUncertainty", "–"),
    ]


def test_nested_classes() -> None:
    kinds = [
        {"_target_": "a.Posterior", "features": {"_target_": "a.Sketch", "n": 3}},
        {"_target_": "a.Posterior", "features": {"_target_": "a.Last"}},
        {"_target_": "a.Distance", "features": {"_target_": "a.Sketch", "n": 3}},
    ]
    found = compare_runs(result(configuration(uncertainty=kind)) for kind in kinds)
    assert found.columns == ("uncertainty", "uncertainty.features")
    assert [s.values for s in found.settings] == [
        ("Posterior", "Sketch"),
        ("Posterior", "Last"),
        ("Distance", "Sketch"),
    ]


def test_where_labels_were_computed_makes_no_setting() -> None:
    cp2k = {"_target_": "ubmd.reference.cp2k.CP2KReference", "cutoff_ry": 400}
    places = [
        {"reference": cp2k | {"command": "cp2k.psmp -s"}, "executor": {"_target_": "Serial", "retries": 1}},
        {"reference": cp2k | {"command": "mpirun cp2k.psmp -s"}, "executor": {"_target_": "Slurm", "jobs": 4}},
        {"reference": cp2k | {"cutoff_ry": 1000}},
    ]
    compared = compare_runs(result(configuration(seed, **place)) for seed, place in enumerate(places))
    assert compared.columns == ("reference.cutoff_ry",)
    assert [len(setting.runs) for setting in compared.settings] == [2, 1]


def test_order_and_what_makes_no_setting() -> None:
    found = compare_runs(result(configuration(0, tau)) for tau in (10.0, 0.25, 2))
    assert [s.values for s in found.settings] == [("0.25",), ("2",), ("10",)]
    one = compare_runs([result(configuration(0)), result(configuration(1) | {"name": "other"})])
    assert [len(s.runs) for s in one.settings] == [2]
    assert one.columns == ()
    assert one.settings[0].label == "all runs"
    both = compare_runs(result(c) for c in (configuration(0, 1.0), configuration(0, uncertainty=ENSEMBLE)))
    assert [s.label for s in both.settings] == ["FeatureUncertainty", "EnsembleUncertainty"]


@pytest.mark.parametrize(
    ("last", "finished"),
    [
        ({"n_selected": None, "n_rejected": None}, True),
        ({}, True),
        ({"n_selected": 8, "n_rejected": 0}, False),
        ({"n_selected": 8, "n_rejected": 8}, True),
    ],
)
def test_finished(last: dict[str, Any], finished: bool) -> None:
    assert is_finished([{"n_selected": 8, "n_rejected": 0}, last]) is finished
    assert not is_finished([])


def test_statistics() -> None:
    assert mean_and_deviation([2.0]) == (2.0, None)
    mean, deviation = mean_and_deviation([2.0, 4.0, 9.0])
    assert mean == 5.0
    assert deviation == pytest.approx(13**0.5)  # (9 + 1 + 16) / 2


def test_latex_escapes() -> None:
    configs = [configuration(bias={"name": text}) for text in ("50 % & more", "a_b–c")]
    latex = as_latex(compare_runs(map(result, configs)))
    assert r"50 \% \& more & 1" in latex
    assert r"a\_b--c & 1" in latex
    assert r"eV/\AA{}" in latex


class StandInAPI:
    """``wandb.Api`` as far as it is used; the real one needs an account."""

    def __init__(self, runs: list[Any]):
        self.stored = runs

    def runs(self, path: str, filters: dict[str, Any]) -> list[Any]:
        assert path == "me/ubmd"
        return [run for run in self.stored if filters.get("group") in (None, run.group)]


def stand_in_run(name: str, group: str, config: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    """History as wandb gives it: curves between the rounds, floats, no key for what was not logged."""
    history: list[dict[str, Any]] = [{"train/loss": 1.0, "trainer/global_step": 3}]
    for row in rows:
        history.append({f"al/{k}": float(v) for k, v in row.items() if v is not None} | {"_step": len(history)})
    return SimpleNamespace(
        name=name,
        id=f"id-{name}",
        group=group,
        config=config | {"_wandb": {}, "provenance": {"git": name}},
        scan_history=lambda: iter(history),
    )


def test_wandb_gives_what_the_folders_give(
    tau_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repeated = rounds([0.5, 0.10], 0.6)
    stored = [
        stand_in_run("a", "demo", configuration(0, 0.5), rounds([0.4, 0.2], 0.9)),
        stand_in_run("b", "demo", configuration(0, 0.1), [rounds([0.3])[0], *repeated]),  # round 0 told twice
        stand_in_run("c", "demo", configuration(1, 0.1), rounds([0.7, 0.16], 0.8)),
        stand_in_run("d", "demo", configuration(2, 0.1), rounds([0.7], finished=False)),
        stand_in_run("e", "demo", configuration(2, 0.1), []),
        stand_in_run("f", "other", configuration(3, 0.1), rounds([0.7])),
    ]
    monkeypatch.setattr("wandb.Api", lambda: StandInAPI(stored))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--wandb", "me/ubmd", "--group", "demo"]) == 0
    out = capsys.readouterr().out
    assert "skipped: d (id-d): is unfinished, with 1 rounds" in out
    assert "skipped: e (id-e): is unfinished, with 0 rounds" in out
    assert cli.main(["compare", str(tau_runs)]) == 0
    ours, theirs = ((folder / "table.csv").read_text() for folder in (tmp_path / "comparison", tau_runs / "comparison"))
    assert ours == theirs


def test_wandb_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs(path: str, filters: dict[str, Any]) -> list[Any]:
        raise ValueError("Could not find project ubmd")

    with pytest.raises(InputError, match=r"--wandb me/ubmd cannot be read \(Could not find project ubmd\)"):
        wandb_runs.read_wandb(SimpleNamespace(runs=runs), "me/ubmd", None)


def test_columns_are_those_of_the_contract() -> None:
    from ubmd.analysis.comparison import known_metrics

    derived = ("test_coverage", "n_structures", "phase_transitions", "valid_")
    names = {metric.name for metric in known_metrics([]) if not metric.name.startswith(derived)}
    assert {name for name in names if not name.endswith("_at_equal_steps")} <= set(COLUMNS)


def test_coverages_compare_at_the_steps_that_all_runs_have_made(tmp_path: Path) -> None:
    def explored(steps: list[int], coverages: list[float]) -> list[dict[str, Any]]:
        rows = rounds([0.5, 0.4, 0.3])
        for row, n, coverage in zip(rows, [*steps, None], [*coverages, coverages[-1]], strict=True):
            row |= {"md_steps": n, "coverage": coverage}
        return rows

    write_run(tmp_path / "a", configuration(0, 0.1), explored([100, 300], [0.2, 0.6]))
    write_run(tmp_path / "b", configuration(1, 0.1), explored([100, 100], [0.3, 0.5]))
    write_run(tmp_path / "c", configuration(0, 0.5), explored([200, 200], [0.1, 0.9]))
    comparison = compare_runs(folders.read_folders([tmp_path]).runs)
    # b has made the fewest steps, 200; a had 0.2 after 100 and 0.6 after 400, hence 1/3 after 200
    assert comparison.steps == 200
    values = [final_metrics(run.rounds, 200)["coverage_at_equal_steps"] for run in comparison.settings[0].runs]
    assert values == pytest.approx([1 / 3, 0.5])
    assert final_metrics(comparison.settings[1].runs[0].rounds, 200)["coverage_at_equal_steps"] == pytest.approx(0.1)
    assert "coverage_at_equal_steps" not in final_metrics(rounds([0.5]), 200)
    assert cli.main(["compare", str(tmp_path)]) == 0
    folder = tmp_path / "comparison"
    assert "Equal steps: 200 of all walkers together" in (folder / "table.md").read_text()
    (row, _) = csv.DictReader((folder / "table.csv").open())
    assert float(row["coverage_at_equal_steps_mean"]) == pytest.approx((1 / 3 + 0.5) / 2)
    assert (folder / "exploration.png").stat().st_size > 10_000


def test_exploration_curves_show_means_over_common_steps() -> None:
    rows = [{"md_steps": 100, "coverage": 0.2}, {"md_steps": 200, "coverage": 0.4}, {"coverage": 0.4}]
    other = [{"md_steps": 200, "coverage": 0.6}]
    figure = exploration_curves({"one": [rows, other], "none": [[{"coverage": 0.1}]]})
    assert figure is not None
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.lines[0].get_data(), [[200], [(0.3 + 0.6) / 2]])
    assert exploration_curves({"none": [[{"coverage": 0.1}]]}) is None


def test_volumes_are_explored_too() -> None:
    """Lowest and highest volume of crystals beside the coverage, or alone; interpolated at equal steps."""
    rows = [
        {"md_steps": 100, "volume_min_ang3": 800.0, "volume_max_ang3": 900.0},
        {"md_steps": 300, "volume_min_ang3": 700.0, "volume_max_ang3": 1500.0},
    ]
    figure = exploration_curves({"one": [rows], "other": [rows]})
    assert figure is not None
    (ax,) = figure.axes
    drawn = [line.get_ydata().tolist() for line in ax.lines]
    assert drawn == [[800, 700]] * 2 + [[900, 1500]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    both = exploration_curves({"one": [[row | {"coverage": 0.5} for row in rows]]})
    assert both is not None
    assert [ax.get_ylabel() for ax in both.axes] == ["Coverage of CV space", "volume range (Å³)"]
    found = final_metrics(rows, 250)
    assert found["volume_min_ang3_at_equal_steps"] == pytest.approx(750)
    assert found["volume_max_ang3_at_equal_steps"] == pytest.approx(1200)


def test_ranges_of_any_variable_are_compared(tmp_path: Path) -> None:
    rows = rounds([0.5, 0.4])
    for row, low, high in zip(rows, (1.0, 0.9), (2.0, 2.5), strict=True):
        row |= {"md_steps": 100, "oh_min_ang": low, "oh_max_ang": high, "cn_min": 3.0, "cn_max": 4.0}
    write_run(tmp_path / "a", configuration(0, 0.1), rows)
    assert cli.main(["compare", str(tmp_path)]) == 0
    (row,) = csv.DictReader((tmp_path / "comparison" / "table.csv").open())
    assert float(row["oh_max_ang_at_equal_steps_mean"]) == 2.5
    assert float(row["cn_min_at_equal_steps_mean"]) == 3.0
    table = (tmp_path / "comparison" / "table.md").read_text()
    assert "oh to (Å, at equal steps)" in table
    assert "cn from (at equal steps)" in table

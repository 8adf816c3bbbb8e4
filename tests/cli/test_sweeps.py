"""Sweeps: they compose, go on where they were interrupted, and tell what has become of each job."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from ubmd import paths
from ubmd.cli import app, sweeps
from ubmd.cli import main as cli
from ubmd.cli.command import COMMANDS
from ubmd.cli.explain import explain
from ubmd.errors import InputError, StoppedShort
from ubmd.runs.continuation import config_digest
from ubmd.runs.metrics import write_metrics

pytestmark = pytest.mark.usefixtures("quiet_logging")

Job = Callable[[DictConfig], float | None]

METHODS = [f"method-{kind}+seed-{seed}" for kind in ("posterior", "distance", "ensemble") for seed in (0, 1)]
JOBS = {
    "uncertainty": METHODS,
    "tau": [f"bias.tau-{tau}" for tau in ("0.0", "0.1", "0.25", "0.5")],
    "temperature": [f"bias.tau-0.0+dynamics.integrator.temperature-{kelvin}.0" for kelvin in (300, 600, 1200)],
    "selection": [f"selection-{name}" for name in ("random", "max_diag", "max_det", "max_dist", "lcmd")],
    "calibration": [
        f"calibration-{kind}+calibration.atomic.alpha-{alpha}"
        for kind in ("conformal", "mondrian")
        for alpha in (0.05, 0.5)
    ],
    "seeds": [f"seed-{seed}" for seed in range(5)],
}
LABELS = {"temperature": "dynamics.integrator.temperature-300.0"}
"""What the summary calls the first job, where that is not all of its folder's name."""


def test_every_sweep_is_tested() -> None:
    assert {file.stem for file in (paths.config_dir() / "sweep").glob("*.yaml")} == {*JOBS, "optuna"}


@pytest.mark.parametrize("sweep", list(JOBS))
def test_sweeps_of_the_demo(sweep: str) -> None:
    overrides = ["experiment=ala2_demo", f"sweep={sweep}"]
    with app.open_hydra() as hydra:
        assert app.check(hydra, COMMANDS["learn"], overrides, multirun=False)  # even without -m
        folders = app.sweep_jobs(hydra, COMMANDS["learn"], overrides)
    assert [folder.name for folder in folders] == JOBS[sweep]
    assert len(set(folders.values())) == len(folders)
    assert folders[next(iter(folders))] == LABELS.get(sweep, JOBS[sweep][0])
    assert {folder.parent.name for folder in folders} == {"ala2_demo"}


@pytest.mark.parametrize("experiment", ["ala2", "ala2_demo"])
@pytest.mark.parametrize("kind", ["posterior", "distance", "ensemble"])
def test_methods_are_built_of_parts_that_fit(experiment: str, kind: str) -> None:
    from ubmd.config import build
    from ubmd.selection.base import check_selection

    cfg = app.compose("learn", [f"experiment={experiment}", f"method={kind}"])
    plain = app.compose("learn", [f"experiment={experiment}"])
    model = build(cfg, "model")(species=["H", "C"])
    assert (getattr(model, "n_members", 1) > 1) == (kind == "ensemble")
    network = cfg.model.member if kind == "ensemble" else cfg.model
    assert network.hidden == plain.model.hidden
    if kind != "ensemble":
        assert cfg.uncertainty.features.n_projections == plain.uncertainty.features.n_projections
    check_selection(build(cfg, "selection"), build(cfg, "uncertainty")(model=model))


def test_the_command_line_replaces_what_a_sweep_says() -> None:
    with app.open_hydra() as hydra:
        overrides = ["experiment=ala2_demo", "sweep=uncertainty", "seed=5", "method=distance"]
        app.check(hydra, COMMANDS["learn"], overrides, multirun=False)
        folders = app.sweep_jobs(hydra, COMMANDS["learn"], overrides)
    assert [folder.name for folder in folders] == ["method-distance+seed-5"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UBMD_RUNS")
    return tmp_path / "runs"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], None]:
    """Put a function in the place of ``ubmd.commands.learn.learn``."""

    def put(job: Job) -> None:
        module = types.ModuleType("ubmd.commands.learn")
        module.__dict__["learn"] = job
        monkeypatch.setitem(sys.modules, "ubmd.commands.learn", module)

    return put


def table(text: str) -> dict[str, list[str]]:
    """The lines of the summary by job."""
    lines = [line.split() for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line and line[0].startswith("seed-") and line[1] != "failed:"}


def finish_rounds(cfg: DictConfig, n: int, error: float) -> float:
    """What a run leaves behind, as far as the summary reads it."""
    write_metrics(
        Path(cfg.paths.run) / "metrics.csv",
        [{"round": index, "force_rmse_ev_per_ang": error + n - index - 1} for index in range(n)],
    )
    return error


@pytest.mark.usefixtures("toy_conf", "runs")
def test_interrupted_sweep_goes_on(stand_in: Callable[[Job], None], capsys: pytest.CaptureFixture[str]) -> None:
    called: list[int] = []

    def interrupted(cfg: DictConfig) -> float:
        called.append(cfg.seed)
        finish_rounds(cfg, 1 if cfg.seed == 2 else 4, 0.125)
        if cfg.seed == 2:
            raise KeyboardInterrupt
        return 0.125

    stand_in(interrupted)
    assert cli.main(["learn", "sweep=seeds"]) == 130
    assert table(capsys.readouterr().out) == {
        "seed-1": ["finished", "4", "0.125"],
        "seed-2": ["interrupted", "1", "0.125"],
        "seed-3": ["not", "started", "–", "–"],
    }

    def complete(cfg: DictConfig) -> float:
        called.append(cfg.seed)
        return finish_rounds(cfg, 4, 0.25)

    stand_in(complete)
    assert cli.main(["learn", "sweep=seeds"]) == 0
    assert called == [1, 2, 2, 3]
    assert table(capsys.readouterr().out) == {
        "seed-1": ["finished", "before", "4", "0.125"],
        "seed-2": ["finished", "4", "0.250"],
        "seed-3": ["finished", "4", "0.250"],
    }


@pytest.mark.usefixtures("toy_conf", "runs")
def test_jobs_without_a_test_set_and_those_that_stop_short(
    stand_in: Callable[[Job], None], capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[int] = []

    def job(cfg: DictConfig) -> None:
        called.append(cfg.seed)
        write_metrics(Path(cfg.paths.run) / "metrics.csv", [{"round": 0, "valid_force_rmse_ev_per_ang": 0.5}])
        if cfg.seed == 2:
            raise StoppedShort("round 0 acquired no structure")

    stand_in(job)
    assert cli.main(["learn", "sweep=seeds"]) == 3
    out = capsys.readouterr().out
    assert table(out)["seed-1"] == ["finished", "1", "0.500", "(validation)"]
    assert table(out)["seed-2"] == ["failed", "1", "0.500", "(validation)"]
    assert "failed: round 0 acquired no structure" in out


@pytest.mark.usefixtures("toy_conf")
def test_failed_job_leaves_the_others_running(
    stand_in: Callable[[Job], None], capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    broken, called = {1: True}, []

    def job(cfg: DictConfig) -> float:
        called.append(cfg.seed)
        if broken.get(cfg.seed):
            raise ZeroDivisionError("by [zero]")
        return 0.5

    stand_in(job)
    assert cli.main(["learn", "sweep=seeds"]) == 1
    assert called == [1, 2, 3]
    out = capsys.readouterr().out
    assert {name: line[0] for name, line in table(out).items()} == {
        "seed-1": "failed",
        "seed-2": "finished",
        "seed-3": "finished",
    }
    assert "seed-1 failed: ZeroDivisionError('by [zero]')" in out
    assert str(runs / "learn" / "seed-1" / "ubmd.log") in out
    broken.clear()
    assert cli.main(["learn", "sweep=seeds"]) == 0
    assert called == [1, 2, 3, 1]
    assert "failed" not in capsys.readouterr().out


@pytest.mark.usefixtures("toy_conf", "runs")
def test_what_counts_as_finished(stand_in: Callable[[Job], None], toy_conf: Path) -> None:
    called: list[int] = []
    stand_in(lambda cfg: called.append(cfg.seed))
    assert cli.main(["learn", "seed=1"]) == 0  # a single run counts for a sweep
    assert cli.main(["learn", "sweep=seeds"]) == 0
    assert called == [1, 2, 3]
    assert cli.main(["learn", "seed=1"]) == 0  # and is itself done again when asked for
    assert called == [1, 2, 3, 1]
    water = toy_conf / "system" / "water.yaml"
    water.write_text("_target_: types.SimpleNamespace\nsize: 30\n")  # another configuration in the same folders
    assert cli.main(["learn", "sweep=seeds"]) == 0
    assert called == [1, 2, 3, 1, 1, 2, 3]


@pytest.mark.usefixtures("toy_conf", "runs")
def test_only_some_commands_may_be_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    module = types.ModuleType("ubmd.commands.md")
    module.__dict__["run_md"] = lambda cfg: seen.append(cfg.file)
    monkeypatch.setitem(sys.modules, "ubmd.commands.md", module)
    for _ in range(2):
        assert cli.main(["md", "-m", "system=ice", "file=a,b"]) == 0
    assert seen == ["a", "b", "a", "b"]


def test_records(tmp_path: Path) -> None:
    assert sweeps.read_record(tmp_path) is None
    record = sweeps.JobRecord("finished", "x", config_digest({"a": 1, "paths": {"run": "here"}}), 0.5)
    sweeps.write_record(tmp_path, record)
    assert sweeps.read_record(tmp_path) == record
    assert sweeps.finished_before(tmp_path, config_digest({"a": 1, "paths": {"run": "there"}})) == record
    assert sweeps.finished_before(tmp_path, config_digest({"a": 2})) is None
    (tmp_path / ".hydra" / "job.json").write_text("{")
    assert sweeps.read_record(tmp_path) is None


JOB = """
import os, time
from pathlib import Path

def learn(cfg):
    import torch
    (Path(cfg.paths.run) / "seen.txt").write_text(f"{os.getpid()} {torch.get_num_threads()} {time.time()}")
    if cfg.seed == 2:
        raise RuntimeError("no luck")
    return 0.5
"""


def in_process(tmp_path: Path, toy_conf: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A sweep with the stand-in job, whose processes see neither this one's modules nor its thread limit."""
    (tmp_path / "standin_job.py").write_text(JOB)
    (tmp_path / "sitecustomize.py").write_text(
        f"import pathlib, ubmd.paths\nubmd.paths.config_dir = lambda: pathlib.Path({str(toy_conf)!r})\n"
        "import sys, standin_job\nsys.modules['ubmd.commands.learn'] = standin_job\n"
    )
    root = Path(cli.__file__).parents[2]
    env = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    env |= {"PYTHONPATH": f"{tmp_path}:{root}", "UBMD_RUNS": str(tmp_path / "runs")}
    command = [sys.executable, "-m", "ubmd", "learn", "-m", *overrides]
    return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "threads"),
    [
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], max((os.cpu_count() or 1) // 2, 1)),
        (["hydra/launcher=submitit_local"], 1),
    ],
)
def test_launchers(launcher: list[str], threads: int, tmp_path: Path, toy_conf: Path) -> None:
    done = in_process(tmp_path, toy_conf, "seed=1,2,3", *launcher)
    assert done.returncode == 1, done.stderr
    assert {name: line[0] for name, line in table(done.stdout).items()} == {
        "seed-1": "finished",
        "seed-2": "failed",
        "seed-3": "finished",
    }
    assert "seed-2 failed: RuntimeError('no luck')" in done.stdout
    folders = [tmp_path / "runs" / "learn" / f"seed-{seed}" for seed in (1, 2, 3)]
    seen = [(folder / "seen.txt").read_text().split() for folder in folders]
    assert len({pid for pid, _, _ in seen}) > 1
    assert {int(n) for _, n, _ in seen} == {threads}
    before = time.time()
    again = in_process(tmp_path, toy_conf, "seed=1,2,3", *launcher)
    assert again.returncode == 1
    when = [float((folder / "seen.txt").read_text().split()[2]) > before for folder in folders]
    assert when == [False, True, False]


def test_slurm_launcher_composes() -> None:
    overrides = ["experiment=ala2_demo", "sweep=tau", "hydra/launcher=slurm", "hydra.launcher.partition=short"]
    with app.open_hydra() as hydra:
        cfg = app.compose_unchecked(hydra, COMMANDS["learn"], overrides)
        assert app.check(hydra, COMMANDS["learn"], overrides, multirun=False)
    assert cfg.hydra.launcher._target_.endswith("SlurmLauncher")
    assert cfg.hydra.launcher.partition == "short"
    assert cfg.hydra.launcher.timeout_min == 1440


def test_launcher_that_is_not_there() -> None:
    with app.open_hydra() as hydra, pytest.raises(InputError) as caught:
        app.check(hydra, COMMANDS["learn"], ["experiment=ala2_demo", "hydra/launcher=nowhere"], multirun=True)
    assert str(caught.value).startswith("hydra/launcher=nowhere is not one of the options of hydra/launcher; ")
    assert "ubmd[sweep]" in str(caught.value)


@pytest.mark.parametrize(
    ("sweep", "number"),
    [("uncertainty=glob(*st*)", 2), ("seed=shuffle(range(3))", 3), ("bias.tau=tag(x,choice(0.1,0.2))", 2)],
)
def test_sweeps_of_other_kinds(sweep: str, number: int) -> None:
    overrides = ["experiment=ala2_demo", sweep]
    with app.open_hydra() as hydra:
        assert app.check(hydra, COMMANDS["learn"], overrides, True)
        assert len(app.sweep_jobs(hydra, COMMANDS["learn"], overrides)) == number


def test_an_interval_is_no_list() -> None:
    with app.open_hydra() as hydra, pytest.raises(InputError, match="is no list of values"):
        app.check(hydra, COMMANDS["learn"], ["experiment=ala2_demo", "bias.tau=interval(0,1)"], True)


@pytest.mark.slow
def test_a_search_by_optuna(stand_in: Callable[[Job], None], runs: Path) -> None:
    """It keeps to its ranges and says what is best; trials that are finished need not run again."""
    called: list[float] = []

    def job(cfg: DictConfig) -> float:
        called.append(cfg.training.loss.forces)
        return abs(math.log(called[-1] / 8))

    stand_in(job)
    search = ["learn", "experiment=ala2_demo", "sweep=optuna", "hydra.sweeper.n_trials=3", "logger=csv"]
    assert cli.main(search) == 0
    assert len(set(called)) == 3
    assert all(1 <= value <= 30 for value in called)
    results = OmegaConf.load(runs / "ala2_demo" / "optimization_results.yaml")
    assert results.best_value == min(abs(math.log(value / 8)) for value in called)
    assert cli.main(search) == 0
    assert len(called) == 3


def test_optuna_that_is_not_installed() -> None:
    message = "In 'hydra/config': Could not find 'hydra/sweeper/optuna'\nAvailable options in 'hydra/sweeper':\n\tbasic"
    error = MissingConfigException(message, "hydra/sweeper/optuna")
    with app.open_hydra() as hydra:
        sentence = explain(hydra, COMMANDS["train"], [], error)
    assert sentence == "hydra/sweeper=optuna is not installed; pip install 'ubmd[optuna]'"

from __future__ import annotations

import io
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.run_folders import runs_in
from ubmd import __version__
from ubmd.cli import app
from ubmd.cli import main as cli
from ubmd.cli.command import COMMANDS
from ubmd.errors import InputError

pytestmark = pytest.mark.usefixtures("quiet_logging")

Job = Callable[[DictConfig], float | None]


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


@pytest.fixture
def jobs(stand_in: Callable[[Job], None]) -> list[DictConfig]:
    seen: list[DictConfig] = []
    stand_in(lambda cfg: seen.append(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))))
    return seen


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The sentence for bad input: alone on stderr, exit code 2."""
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("ubmd: error: ")
    return lines[0].removeprefix("ubmd: error: ")


def test_a_terminal_without_greek_letters(monkeypatch: pytest.MonkeyPatch, stand_in: Callable[[Job], None]) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))

    def job(cfg: DictConfig) -> None:
        print("force RMSE 0.1 eV/Å, τ 0.25")
        sys.stdout.flush()

    stand_in(job)
    assert cli.main(["learn", "experiment=ala2_demo"]) == 0
    assert b"force RMSE 0.1 eV/?, ? 0.25" in raw.getvalue()


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out == overview
    for command in COMMANDS.values():
        assert command.name in overview
        assert command.summary in overview
    assert "compare" in overview
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ubmd {__version__}\n"


def test_the_overview_needs_neither_torch_nor_hydra() -> None:
    code = "import sys, ubmd.cli.main as c; c.main(['--help']); print(sorted({'torch', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    command = COMMANDS[name]
    assert command.summary in text
    assert len(command.examples) == 3
    for part in (*command.examples, "logger", "csv", "seed", "--multirun"):
        assert part in text
    assert max(map(len, text.splitlines())) < 400


@pytest.mark.usefixtures("toy_conf")
def test_help_marks_the_chosen_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["learn", "--help", "system=ice"]) == 0
    text = capsys.readouterr().out
    assert "posterior, walls*" in text
    assert "ice*, water" in text
    assert "budget.{rounds, structures}" in text


SENTENCES = {
    "lern": (
        "lern is not a command; did you mean learn? "
        "(valid: learn, train, evaluate, md, committee, label, serve, export, convert, compare, figures, report, init, "
        "check)"
    ),
    "learn --multi": "unrecognized arguments: --multi; see ubmd learn --help",
    "learn bias.denominatr=3": (
        "bias.denominatr is not an option of Fraction; did you mean bias.denominator? (valid: denominator, numerator)"
    ),
    "learn +bias.denominatr=3": (
        "bias.denominatr is not an option of Fraction; did you mean bias.denominator? (valid: denominator, numerator)"
    ),
    "learn bias=posterior bias.initial_indent=a": (
        "bias.initial_indent is an option of TextWrapper that this configuration leaves out; "
        "write +bias.initial_indent=a"
    ),
    "learn denominator=3": (
        "denominator is not a key of `ubmd learn`; did you mean bias.denominator? "
        "(valid: bias, budget, experiment, name, paths, seed, sweep, system)"
    ),
    "learn experiment=dmo": "experiment=dmo is not one of the options of experiment; did you mean demo? ",
    "learn bais=posterior": "bais is not a key of `ubmd learn`; did you mean bias? ",
    "learn bias=posterio": "bias=posterio is not one of the options of bias; did you mean posterior? ",
    "learn budget.round=3": "budget.round is not a key of budget; did you mean budget.rounds? ",
    "learn experiment=null": "experiment=null is not possible; write ~experiment for none of experiment",
    "learn system=5": "system=5 is not one of the options of system; valid: ice, water",
    "learn seed.x=3": "seed is a single value, so there is no seed.x",
    "learn +sed=3": "sed is not a key of `ubmd learn`; did you mean seed? ",
    "learn experiment=wrong": "sed is not a key of `ubmd learn`; did you mean seed? ",
    "learn experiment=wrong_inside": "budget.round is not a key of budget; did you mean budget.rounds? ",
    "learn seed=[1,": "cannot read the override seed=[1, (no viable alternative at input '[1,')",
    "learn seed": "seed is not an override; write seed=VALUE",
    "learn @bias.tau=0.1": "Config group override must be a string or a list. Got float",
    "learn seed=1,2": "seed=1,2 gives several values: add -m",
    "learn seed=1,2 bias=walls,posterio -m": "bias=posterio is not one of the options of bias; did you mean",
    "learn bias=walls,posterior bias.denominator=3 -m": "bias.denominator is not an option of TextWrapper",
    "learn sweep=seeds hydra.sweeper.params.sed='1,2' -m": "hydra.sweeper.params.sed is not a key of",
    "learn sweep=seeds +hydra.sweeper.params.sed='1,2'": "sed is not a key of `ubmd learn`; did you mean",
    "learn bias._target_=fractions.Fractin": (
        "bias._target_=fractions.Fractin does not exist: fractions has no Fractin; did you mean fractions.Fraction?"
    ),
    "learn --config-dir nowhere": "--config-dir nowhere is not a folder",
    "md": "system is not chosen: give it as system=OPTION (one of ice, water)",
    "learn bias=posterior bias.width=???": (
        "bias.width is missing: give it as bias.width=VALUE, or choose bias=OPTION (posterior, walls)"
    ),
    "md system=ice": "file is missing: give it as file=VALUE",
    "md system=ice file=x bias=walls": "bias is not a group of `ubmd md`; ",
}


@pytest.mark.usefixtures("toy_conf")
@pytest.mark.parametrize("line", list(SENTENCES))
def test_bad_input_is_one_sentence_and_leaves_nothing(
    line: str, capsys: pytest.CaptureFixture[str], runs: Path, jobs: list[DictConfig]
) -> None:
    assert refused(capsys, *line.split()).startswith(SENTENCES[line])
    assert not runs.exists()
    assert not jobs


@pytest.mark.usefixtures("toy_conf")
def test_run_folder_is_the_same_each_time(runs: Path, jobs: list[DictConfig]) -> None:
    for _ in range(2):
        assert cli.main(["learn", "experiment=demo", "bias.denominator=0.50", "seed=1"]) == 0
    assert cli.main(["learn", "experiment=demo", "seed=1", "bias.denominator=0.5"]) == 0
    folders = {job.paths.run for job in jobs}
    assert folders == {str(runs / "demo" / "bias.denominator-0.5+seed-1")}
    assert [f.name for f in runs_in(runs / "demo")] == ["bias.denominator-0.5+seed-1"]
    assert jobs[0].seed == 1
    folder = Path(folders.pop())
    assert (folder / "ubmd.log").is_file()


@pytest.mark.usefixtures("toy_conf")
def test_the_newest_run_has_a_link(runs: Path, stand_in: Callable[[Job], None]) -> None:
    def job(cfg: DictConfig) -> None:
        assert (runs / cfg.name / "latest").resolve() == Path(cfg.paths.run)  # while it runs
        if cfg.seed == 4:
            raise InputError("seed=4 is no good")

    stand_in(job)
    for seed in (1, 2, 4):
        assert cli.main(["learn", "experiment=demo", f"seed={seed}"]) == (2 if seed == 4 else 0)
    assert os.readlink(runs / "demo" / "latest") == "seed-2"
    assert {path.name for path in runs_in(runs / "demo")} == {"seed-1", "seed-2"}
    assert cli.main(["learn", "experiment=demo", "seed=1,3", "-m"]) == 0
    assert os.readlink(runs / "demo" / "latest") == "seed-3"
    assert cli.main(["learn", "experiment=other", "seed=4"]) == 2  # the first of its name
    assert not (runs / "other").exists()
    stand_in(lambda cfg: None)
    elsewhere = runs.parent / "elsewhere" / "run"
    assert cli.main(["learn", "experiment=demo", f"hydra.run.dir={elsewhere}"]) == 0
    assert [path.name for path in elsewhere.parent.iterdir()] == ["run"]


@pytest.mark.usefixtures("toy_conf")
def test_continued_by_its_folder(
    runs: Path, jobs: list[DictConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["learn", "experiment=demo", "bias.denominator=3", "budget.rounds=2"]) == 0
    (run,) = runs_in(runs / "demo")
    moved = run.rename(runs.parent / "it's moved")
    monkeypatch.chdir(runs)
    assert cli.main(["learn", "continue=../it's moved", "budget.rounds=5"]) == 0
    assert cli.main(["learn", f"continue={moved}"]) == 0
    assert [(job.bias.denominator, job.budget.rounds, job.seed) for job in jobs] == [(3, 2, 7), (3, 5, 7), (3, 5, 7)]
    assert [job.paths.run for job in jobs] == [str(run), *[str(moved)] * 2]
    assert not runs_in(runs / "demo")
    capsys.readouterr()
    assert "is no run folder" in refused(capsys, "learn", "continue=nowhere")
    assert "continues one run" in refused(capsys, "learn", f"continue={moved}", "seed=1,2", "-m")
    assert "is a run of `ubmd learn`, not of `ubmd md`" in refused(capsys, "md", f"continue={moved}")


@pytest.mark.usefixtures("toy_conf")
def test_sweep_jobs_share_the_folders_of_single_runs(runs: Path, jobs: list[DictConfig]) -> None:
    assert cli.main(["learn", "experiment=demo", "seed=1,2", "bias=walls", "-m"]) == 0
    assert cli.main(["learn", "experiment=demo", "seed=2", "bias=walls"]) == 0
    folders = [Path(job.paths.run) for job in jobs]
    assert [f.relative_to(runs).as_posix() for f in folders] == [
        "demo/bias-walls+seed-1",
        "demo/bias-walls+seed-2",
        "demo/bias-walls+seed-2",
    ]
    assert [job.seed for job in jobs] == [1, 2, 2]


@pytest.mark.usefixtures("toy_conf")
def test_sweep_over_experiments_and_by_group(runs: Path, jobs: list[DictConfig]) -> None:
    assert cli.main(["learn", "-m", "experiment=demo,other"]) == 0
    assert [job.paths.run for job in jobs] == [str(runs / name / "default") for name in ("demo", "other")]
    assert cli.main(["learn", "sweep=seeds"]) == 0
    assert [job.paths.run for job in jobs[2:]] == [str(runs / "learn" / f"seed-{n}") for n in (1, 2, 3)]


@pytest.mark.usefixtures("toy_conf")
def test_runs_can_live_elsewhere(runs: Path, jobs: list[DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["learn", "paths.root=results"]) == 0
    monkeypatch.setenv("UBMD_RUNS", str(runs.parent / "scratch"))
    assert cli.main(["learn"]) == 0
    assert [job.paths.run for job in jobs] == [str(runs.parent / n / "learn/default") for n in ("results", "scratch")]


@pytest.mark.usefixtures("toy_conf", "runs")
def test_bad_input_found_by_a_job(
    stand_in: Callable[[Job], None], capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    def job(cfg: DictConfig) -> None:
        if cfg.seed != 2:
            raise InputError(f"seed={cfg.seed} is odd")

    stand_in(job)
    assert refused(capsys, "learn", "seed=1") == "seed=1 is odd"
    assert not runs.exists(), "the work had not begun"
    assert cli.main(["learn", "seed=1,2,3", "-m"]) == 2
    err = capsys.readouterr().err
    assert "ubmd: error: seed=1 is odd" in err
    assert "ubmd: error: seed=3 is odd" in err
    assert "Traceback" not in err
    assert "seed=1 is odd" in (runs / "learn" / "seed-1" / "ubmd.log").read_text()
    assert cli.main(["learn", "seed=2", "-m"]) == 0


@pytest.mark.usefixtures("toy_conf")
def test_bad_input_leaves_what_was_there(stand_in: Callable[[Job], None], runs: Path) -> None:
    def job(cfg: DictConfig) -> None:
        if cfg.seed == 1:  # its work has begun
            (runs / "learn" / "seed-1" / "labels.db").write_text("paid for")
        raise InputError("no")

    stand_in(job)
    (runs / "learn" / "default").mkdir(parents=True)
    assert [cli.main(["learn", *text]) for text in ([], ["seed=1"], ["seed=2"])] == [2, 2, 2]
    assert sorted(path.name for path in runs_in(runs / "learn")) == ["default", "seed-1"]
    assert (runs / "learn" / "seed-1" / "labels.db").exists()


@pytest.mark.usefixtures("toy_conf", "runs")
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_other_errors_show_their_traceback(
    flags: list[str], stand_in: Callable[[Job], None], capsys: pytest.CaptureFixture[str], runs: Path
) -> None:
    def job(cfg: DictConfig) -> None:
        raise ZeroDivisionError("by zero")

    stand_in(job)
    assert cli.main(["learn", *flags]) == 1
    err = capsys.readouterr().err
    for text in (err, (runs / "learn" / "default" / "ubmd.log").read_text()):
        assert text.count("Traceback") == 1
        assert 'raise ZeroDivisionError("by zero")' in text
        assert "HYDRA_FULL_ERROR" not in text


@pytest.mark.usefixtures("toy_conf", "runs")
def test_interrupt(stand_in: Callable[[Job], None], capsys: pytest.CaptureFixture[str]) -> None:
    def job(cfg: DictConfig) -> None:
        raise KeyboardInterrupt

    stand_in(job)
    assert cli.main(["learn"]) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.usefixtures("toy_conf")
def test_show_the_configuration(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    assert cli.main(["learn", "--cfg", "job", "--resolve", "seed=3"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown == app.compose("learn", ["seed=3"])
    assert shown.paths.run == str(runs / "learn" / "seed-3")
    assert cli.main(["learn", "--cfg", "hydra"]) == 0
    assert "sweeper" in capsys.readouterr().out
    assert cli.main(["learn", "--info", "defaults"]) == 0
    assert not runs.exists()


@pytest.mark.usefixtures("toy_conf")
def test_own_config_dir(tmp_path: Path, jobs: list[DictConfig], runs: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\nseed: 9\n")
    assert cli.main(["learn", "--config-dir", "mine", "experiment=mine"]) == 0
    assert jobs[0].seed == 9


def test_as_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ubmd", "learn", "sede=1"]
    root = str(Path(cli.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": root})
    assert done.returncode == 2
    assert done.stderr.startswith("ubmd: error: sede is not a key of `ubmd learn`; did you mean seed")
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())

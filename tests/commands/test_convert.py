from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase.io
import pytest
import yaml

from tests.interfaces.test_convert import exploration
from tests.run_folders import runs_in
from ubmd.cli import main as cli
from ubmd.commands.convert import time_steps_of
from ubmd.dynamics.trajectory import write_trajectories, write_trajectory

pytestmark = pytest.mark.usefixtures("quiet_logging")

DYNAMICS = {"_target_": "ubmd.dynamics.explore.WalkerExploration", "integrator": {"dt": 0.25}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of `ubmd learn` with two rounds, beside one of `ubmd md`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UBMD_RUNS")
    folder = tmp_path / "learned"
    for number in range(2):
        write_trajectory(
            folder / "rounds" / f"{number:03d}" / "trajectory.h5", exploration(crystal=False, recorded=False)
        )
    (folder / "config.yaml").write_text(yaml.safe_dump({"dynamics": DYNAMICS}))
    write_trajectory(tmp_path / "moved" / "trajectory.h5", exploration(crystal=True, recorded=True))
    return folder


def test_files_of_walkers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times are those of the file, or follow from the time step in the run's configuration."""
    assert cli.main(["convert", "trajectory=moved", "to=extxyz", "file=out/md.extxyz"]) == 0
    shown = capsys.readouterr().out
    assert "out/md-walker-0.extxyz" in shown
    assert [a.info["time_fs"] for a in ase.io.read("out/md-walker-2.extxyz", ":")] == [5, 10, 15, 20, 25]
    assert cli.main(["convert", "trajectory=learned/rounds/001/trajectory.h5", "to=traj", "walker=0"]) == 0
    (made,) = [file for folder in runs_in(Path("runs/convert")) for file in folder.glob("*.traj")]
    assert [a.info["time_fs"] for a in ase.io.read(made, ":")] == [2.5, 5, 7.5]


def test_time_steps(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = {name: exploration(crystal=False, recorded=False) for name in ("mol", "slab")}
    file = run / "rounds" / "000" / "trajectory.h5"
    write_trajectories(file, parts)
    assert time_steps_of(file, parts) == {"mol": 0.25, "slab": 0.25}
    system = {"dynamics": {"slab": {"integrator": {"dt": 2}}}}
    (run / "config.yaml").write_text(yaml.safe_dump({"dynamics": DYNAMICS, "system": system}))
    assert time_steps_of(file, parts) == {"mol": 0.25, "slab": 2.0}
    (run / "config.yaml").write_text(yaml.safe_dump({"dynamics": {"integrator": {"displacement": 0.1}}}))
    assert time_steps_of(file, parts) == {}
    assert "times are left out" in caplog.text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trajectory=learned",), "has one in each of 2 rounds; give e.g. learned/rounds/001/trajectory.h5"),
        (("trajectory=nothing.h5",), "trajectory nothing.h5 does not exist"),
        (("trajectory=moved", "file=a.traj"), "file=a.traj must end in .h5md, as to=h5md; change either"),
        (("trajectory=moved", "walker=first"), "walker=first must be all or a whole number"),
        (("trajectory=moved", "to=metatomic"), "to=metatomic must be one of h5md, traj, extxyz"),
        (("trajectory=moved", "logger=csv"), "logger: `ubmd convert` logs to no logger"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Path, words: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", *words]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not Path("runs").exists()

"""Run folders of earlier versions: whole, compared, and continued by the command that began them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ubmd.cli import main as cli
from ubmd.runs.continuation import differences, read_config
from ubmd.runs.store import RoundStore
from ubmd.runs.versions import upgraded

OLD = Path(__file__).parents[1] / "data" / "version_1" / "run"
COMMAND = (
    *("learn", "experiment=ala2_demo", "dynamics.integrator.dt=0.1", "data.test.sample.duration_ps=1"),
    *("logger=csv", "system.n_initial=4", "model.n_basis=2", "model.n_gauss=4", "model.hidden=[8,8]"),
    *("uncertainty.features.n_projections=16", "trainer.max_steps=60", "trainer.check_val_every_n_epoch=3"),
    *("learning.checkpoint_epochs=7", "learning.batch_size=4", "learning.max_structures=12"),
    *("labelling.max_force=50", "dynamics.n_walkers=4", "dynamics.frame_interval=5"),
    *("dynamics.checkpoint_interval=10", "dynamics.stopping.max_steps=60"),
    *("dynamics.stopping.uncertainty_threshold=1000", "bias.window=20", "data.test.sample.n_structures=10"),
    *("executor=serial", "seed=3"),
    # what the experiment was then
    *("training=default", "data.batch_size=8", "trainer.max_epochs=-1", "bias.every=1", "learning.max_rounds=7"),
    "data.test.sample.trajectories=1",
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_logging: None) -> Path:
    shutil.copytree(OLD, tmp_path / "run")
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "run"


def test_a_folder_is_whole_and_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(run)]) == 0
    assert cli.main(["compare", str(run), "--output", str(run.parent / "compared")]) == 0
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_the_command_that_began_a_run_continues_it(run: Path) -> None:
    before = RoundStore(run).records()
    assert cli.main([*COMMAND, f"paths.run={run}"]) == 0
    assert RoundStore(run).records() == before
    assert cli.main([*COMMAND, f"paths.run={run}", "learning.max_structures=14"]) == 0
    after = RoundStore(run)
    assert [record["files"] for record in after.records()][:2] == [record["files"] for record in before][:2]
    assert len(after.records()) == len(before) + 1
    assert len(after.structures(len(after.records()))) == 14


def test_classes_have_moved() -> None:
    old = read_config(OLD / "config.yaml")
    new = upgraded(old)
    assert new["system"]["_target_"] == "ubmd.systems.system.System"
    assert new["model"] == old["model"] | {"repulsion_cutoff": 0.7}
    followed = ("system.torsions", "system.variables")
    changed = {key for key in differences(old, new) if not key.endswith("._target_") and not key.startswith(followed)}
    moved = {"training.betas", "training.eps", "optimizer.betas", "optimizer.eps"}
    added = {"bias.every", "dynamics.groups", "data.test.sample.trajectories", "model.repulsion_cutoff"}
    added |= {f"data.units.{key}" for key in ("energy", "length", "stress_positive", "virial_positive", "voigt")}
    assert changed == moved | added | {"optimizer._partial_", "scheduler._partial_"}
    assert new["calibration"]["evidence"] == {"_target_": "ubmd.uncertainty.Split"}
    assert (new["bias"]["every"], new["dynamics"]["groups"]) == (1, 1)
    assert upgraded(new) == new


def test_torsions_and_phases_are_variables_and_states() -> None:
    new = upgraded(read_config(OLD / "config.yaml"))["system"]
    assert new["variables"]["psi"] == {"_target_": "ubmd.observables.Torsion", "atoms": [6, 8, 14, 16]}
    assert not {"torsions", "phases"} & new.keys()
    system = upgraded({"system": {"torsions": {}, "phases": {"closed": [0, 950]}}})["system"]
    assert system == {"variables": {}, "states": {"closed": {"volume": [0, 950]}}}


PHI, PSI = {"_target_": "Torsion", "atoms": [4, 6, 8, 14]}, {"_target_": "Torsion", "atoms": [6, 8, 14, 16]}


@pytest.mark.parametrize("module", ["ubmd.dynamics.variables", "ubmd.observables.variables"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"_target_": "Torsions", "atoms": {"phi": PHI["atoms"], "psi": PSI["atoms"]}, "width": 0.35},
            {"phi": PHI, "psi": PSI},
        ),
        ({"_target_": "Torsions", "atoms": {"phi": PHI["atoms"]}, "width": 0.2}, {"phi": PHI | {"width": 0.2}}),
        ({"_target_": "Volume", "width": 20.0}, {"volume": {"_target_": "Volume", "width": 20.0}}),
        (
            {"_target_": "CellLengths", "axes": [0, 2], "width": 0.2},
            {
                "a": {"_target_": "CellLength", "axis": 0, "width": 0.2},
                "c": {"_target_": "CellLength", "axis": 2, "width": 0.2},
            },
        ),
    ],
)
def test_variables_of_metadynamics_have_names(module: str, old: dict, new: dict) -> None:
    def within(node: dict, package: str) -> dict:
        return node | {"_target_": f"{package}.{node['_target_']}"}

    expected = {name: within(node, "ubmd.observables") for name, node in new.items()}
    found = upgraded({"bias": {"stride": 50, "variables": [within(old, module)]}})["bias"]
    assert found == {"stride": 50, "variables": expected}
    assert upgraded({"bias": found})["bias"] == found

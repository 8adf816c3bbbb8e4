from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from ubmd.cli import app, templates
from ubmd.cli import main as cli
from ubmd.cli.command import find
from ubmd.cli.init import Counts
from ubmd.config import build
from ubmd.data.io import write_structures
from ubmd.errors import InputError

pytestmark = pytest.mark.usefixtures("quiet_logging")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def labelled() -> list[Atoms]:
    out = []
    for size in (3.5, 3.6, 3.7, 3.8):
        atoms = bulk("Cu", a=size, cubic=True)
        atoms.rattle(0.05, seed=1)
        atoms.calc = EMT()
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        out.append(atoms)
    return out


@pytest.mark.parametrize("kind", ["molecule", "crystal"])
def test_what_is_written_runs_as_it_is_and_is_what_was_counted(kind: str, here: Path) -> None:
    assert cli.main(["init", kind]) == 0
    with app.open_hydra() as hydra:
        assert not app.check(hydra, find("learn"), [f"experiment=my_{kind}"], multirun=False)
    cfg = app.compose("learn", [f"experiment=my_{kind}"])
    counts = Counts(9, **templates.COUNTS[kind])
    assert (cfg.trainer.max_steps, cfg.trainer.max_epochs) == (counts.steps, -1)
    assert (cfg.data.batch_size, cfg.data.test.sample.n_structures) == (counts.batch, counts.tested)
    assert (cfg.learning.max_structures, cfg.learning.batch_size) == (counts.structures, counts.acquired)
    assert cfg.learning.max_rounds is None
    assert (cfg.dynamics.n_walkers, cfg.dynamics.stopping.max_steps) == (counts.walkers, counts.walker_steps)
    assert cfg.system.n_initial == counts.initial
    for part in ("system", "reference", "dynamics", "data"):
        build(cfg, part)
    text = (here / "conf" / "experiment" / f"my_{kind}.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 120
    assert not any(word in text for word in ("ESTIMATE", "STRUCTURE", "CALCULATOR", "<"))


def test_counts() -> None:
    # 8 structures, then 16 more each round: 8, 24, ..., 104
    counts = Counts(22, steps=2000, batch=8, initial=8, structures=104, acquired=16, walkers=8, walker_steps=20000)
    assert counts.rounds == 7
    assert counts.told() == (
        "7 fits of 2,000 steps, about 4.1 minutes on one core; 6 times 8 walkers of up to 20,000 steps, 18 minutes if "
        "none stops early; 104 labels, which take what the reference takes."
    )
    assert Counts(10, steps=100, batch=8).told() == (
        "One fit of 100 steps, about 1 seconds on one core if structures have some 10 atoms."
    )


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = here / "new" / "conf" / "experiment" / "my_dataset.yaml"
    assert cli.main(["init", "dataset", "new"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "cd new; ubmd train experiment=my_dataset"
    file.write_text("mine")
    assert cli.main(["init", "dataset", "new"]) == 2
    assert capsys.readouterr().err.startswith("ubmd: error: new/conf/experiment/my_dataset.yaml is there already")
    assert file.read_text() == "mine"


def test_a_folder_that_is_not_looked_into(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "conf").mkdir()
    (here / "conf" / "learn.yaml").touch()
    assert cli.main(["init", "crystal"]) == 2
    assert "conf holds the configurations of another package" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "conf").touch()
    assert cli.main(["init", "crystal"]) == 2
    assert "ubmd: error: " in capsys.readouterr().err


def test_a_data_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = here / "it's: mine.extxyz"
    write_structures(file, labelled())
    assert cli.main(["init", "dataset", "--file", str(file)]) == 0
    assert "structures have some 4 atoms" in capsys.readouterr().out
    cfg = app.compose("train", ["experiment=my_dataset"])
    assert cfg.data.train == file.name
    assert cfg.name == "my_dataset"
    write_structures(here / "bare.xyz", [molecule("H2O")])
    assert cli.main(["init", "dataset", "other", "--file", "bare.xyz"]) == 2
    assert "--file bare.xyz has no labels" in capsys.readouterr().err


def test_structures_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_structures(here / "nickel.xyz", [bulk("Ni", cubic=True)])
    write_structures(here / "salt.xyz", [bulk("NaCl", "rocksalt", a=5.6)])
    write_structures(here / "water.xyz", [molecule("H2O")])
    found = {}
    for kind, name in (("crystal", "nickel"), ("crystal", "salt"), ("molecule", "water")):
        assert cli.main(["init", kind, f"in_{name}", "--file", f"{name}.xyz"]) == 0
        found[name] = yaml.safe_load((here / f"in_{name}" / "conf" / "experiment" / f"my_{kind}.yaml").read_text())
        assert found[name]["system"]["structure"] == str(here / f"{name}.xyz")
    assert found["nickel"]["reference"]["calculator"]["_target_"].endswith("EMT")
    assert "reference" not in found["salt"]
    assert {"override /reference": "tblite"} in found["salt"]["defaults"]
    capsys.readouterr()
    for kind, name, words in (
        ("crystal", "water", "--file water.xyz is not periodic along all directions; use ubmd init molecule"),
        ("molecule", "salt", "--file salt.xyz is periodic; use ubmd init crystal"),
        ("polymer", "salt", "KIND=polymer must be one of molecule, crystal, dataset"),
    ):
        assert cli.main(["init", kind, "refused", "--file", f"{name}.xyz"]) == 2
        assert words in capsys.readouterr().err
    assert not (here / "refused").exists()


def test_configurations_of_the_working_directory_take_the_place_of_none(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = here / "conf" / "bias"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text("defaults: [uncertainty, _self_]\ntau: 0.75\n")
    (group / "none.yaml").write_text("defaults: [uncertainty, _self_]\ntau: 0.5\n")
    md = ["potential=x", "system.structure=y"]
    assert app.compose("md", [*md, "bias=mine"]).bias.tau == 0.75
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert app.compose("md", [*md, "bias=none"]).bias.tau == 0.0
    assert "bias=none is ubmd's own, or that of --config-dir, and not" in caplog.text
    (here / "conf" / "learn.yaml").touch()  # the configurations of another package
    with pytest.raises(InputError, match="bias=mine is not one of the options"):
        app.compose("md", [*md, "bias=mine"])


def test_experiments_of_the_working_directory_are_offered_where_they_fit(here: Path) -> None:
    assert cli.main(["init", "molecule"]) == 0
    with pytest.raises(InputError, match=r"is not a key of `ubmd md`.*experiment=my_molecule sets it"):
        app.compose("md", ["potential=x", "experiment=my_molecule"])

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ubmd.commands.parts import take_potentials
from ubmd.data.io import read_structures
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.runs.finding import potential_file
from ubmd.runs.latest import is_latest, point_back, point_to
from ubmd.runs.records import write_record
from ubmd.uncertainty.checkpoint import load_potential

VERSION_1 = Path(__file__).parents[1] / "data" / "version_1" / "run"


def test_latest_leads_to_the_newest_run(tmp_path: Path) -> None:
    first, second = tmp_path / "name" / "first", tmp_path / "name" / "second"
    link = tmp_path / "name" / "latest"
    for folder, before in ((first, None), (second, "first"), (second, "second")):
        folder.mkdir(parents=True, exist_ok=True)
        assert point_to(folder) == before
        assert os.readlink(link) == folder.name  # relative, so that the folder may be moved
        assert is_latest(link)
    moved = (tmp_path / "name").rename(tmp_path / "moved")
    assert (moved / "latest").resolve() == moved / "second"
    assert {path.name for path in moved.iterdir()} == {"first", "second", "latest"}


def test_latest_is_taken_back(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    point_to(first)
    before = point_to(second)
    point_back(first, None)
    assert os.readlink(tmp_path / "latest") == "second"  # it has begun since
    point_back(second, before)
    assert os.readlink(tmp_path / "latest") == "first"
    point_back(first, "gone")
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}


def test_what_is_not_that_link_stays(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "run").mkdir()
    assert point_to(tmp_path / "run") is None
    assert not is_latest(tmp_path / "latest")
    assert point_to(tmp_path / "latest") is None
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "run"}


@pytest.mark.parametrize("refused", ["symlink", "replace"])
def test_where_there_are_no_links(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "not supported")

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, refused, refuse)
    assert point_to(tmp_path / "run") is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_potential_of_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert potential_file(VERSION_1) == VERSION_1 / "rounds" / "002" / "model.ckpt"
    assert caplog.messages == [f"{VERSION_1}: the potential of round 2, rounds/002/model.ckpt"]
    (tmp_path / "run").symlink_to(VERSION_1)
    point_to(tmp_path / "run")
    assert potential_file(tmp_path / "latest") == tmp_path / "run" / "rounds" / "002" / "model.ckpt"  # for good
    one = VERSION_1 / "rounds" / "001"
    assert potential_file(one) == one / "model.ckpt"
    assert potential_file(one / "model.ckpt") == one / "model.ckpt"
    assert potential_file(tmp_path / "none") == tmp_path / "none"


def test_a_run_in_place_of_a_file() -> None:
    file = VERSION_1 / "rounds" / "002" / "model.ckpt"
    wanted = load_potential(file).model.state_dict()
    assert all(value.equal(wanted[name]) for name, value in load_potential(VERSION_1).model.state_dict().items())
    atoms = read_structures(VERSION_1 / "dataset.extxyz", index="0", report=False)[0]
    energies = [UBMDCalculator(place).get_potential_energy(atoms) for place in (VERSION_1, file)]
    assert energies[0] == energies[1]
    cfg = OmegaConf.create({"potential": str(VERSION_1), "training": {"start": str(VERSION_1)}, "members": ["x"]})
    take_potentials(cfg)
    assert cfg == {"potential": str(file), "training": {"start": str(file)}, "members": ["x"]}


def test_the_key_of_a_folder_without_a_potential(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^members\[1\]={tmp_path} holds no round"):
        take_potentials(OmegaConf.create({"members": [str(VERSION_1), str(tmp_path)]}))


def test_a_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("a")
    with pytest.raises(InputError, match=r"is no run but a folder of runs; give one of them, e\.g\. .*latest$"):
        potential_file(tmp_path)


def test_folders_without_a_potential(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no round of `ubmd learn`, and no finished model.ckpt; give"):
        potential_file(tmp_path)
    (tmp_path / "rounds" / "000").mkdir(parents=True)
    (tmp_path / "rounds" / "000" / "model.ckpt").touch()  # of a round that is not finished
    with pytest.raises(InputError, match="has no finished round yet"):
        potential_file(tmp_path)
    write_record(tmp_path / "rounds" / "000" / "round.json", {"metrics": {}, "files": {}})
    assert potential_file(tmp_path).parent.name == "000"
    (tmp_path / "rounds" / "000" / "model.ckpt").unlink()
    with pytest.raises(InputError, match=r"000/model.ckpt is missing"):
        potential_file(tmp_path)
    fitted = tmp_path / "fitted"
    fitted.mkdir()
    (fitted / "model.ckpt").touch()
    with pytest.raises(InputError, match="holds no round"):  # of `ubmd train`, not finished
        potential_file(fitted)
    (fitted / "metrics.json").touch()
    assert potential_file(fitted) == fitted / "model.ckpt"

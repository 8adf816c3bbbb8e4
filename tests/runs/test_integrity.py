"""Every file of a run's folder, damaged in every way: repaired, refused in a sentence, or harmless."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms

from tests.damage import DAMAGES, damages_of, delete, drop_frame, flip, results
from ubmd.commands.check import inspect
from ubmd.data.io import write_structures
from ubmd.errors import InputError
from ubmd.reference.base import Label
from ubmd.reference.store import Failure, LabelStore
from ubmd.runs.continuation import NOT_CHECKED, config_digest
from ubmd.runs.opening import open_run
from ubmd.runs.records import read_record, write_record
from ubmd.runs.store import RoundStore

CONFIG: dict[str, Any] = {"name": "x", "seed": 1, "tau": 0.25, "learning": {"max_rounds": 2, "max_structures": 9}}


def labelled(n: int, first: int) -> list[Atoms]:
    rng, out = np.random.default_rng(first), []
    for number in range(first, first + n):
        atoms = Atoms("CO", rng.normal(size=(2, 3)).round(8))
        atoms.info |= {"walker": number, "step": 5, "REF_energy": float(rng.normal())}
        atoms.arrays["REF_forces"] = rng.normal(size=(2, 3)).round(8)
        out.append(atoms)
    return out


def without_labels(structures: list[Atoms]) -> list[Atoms]:
    out = []
    for atoms in structures:
        copy = atoms.copy()
        del copy.info["REF_energy"], copy.arrays["REF_forces"]
        out.append(copy)
    return out


def acquire(store: RoundStore, index: int) -> None:
    """What a round leaves before its record."""
    folder, found = store.folder(index), labelled(2, 10 * (index + 1))
    folder.model.write_bytes(b"model %d" % index * 100)
    folder.note(folder.model, metrics={"round": index, "n_train": 2 + 2 * index, "n_valid": 1})
    folder.trajectory.write_bytes(b"trajectory %d" % index * 100)
    folder.note(folder.trajectory)
    write_structures(folder.selected, without_labels(found))
    folder.note(folder.selected)
    write_structures(folder.labelled, found)
    folder.note(folder.labelled)


def metrics(index: int) -> dict[str, float | int | None]:
    return {"round": index, "n_train": 2 + 2 * index, "n_valid": 1, "coverage": 0.25, "n_selected": 2, "n_rejected": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished rounds and one in progress, whose structures are labelled."""
    store = RoundStore(tmp_path_factory.mktemp("runs") / "run")
    open_run(store, CONFIG)
    LabelStore(store.path / "labels.db").put(Atoms("H"), {}, Failure("none"))
    first = labelled(3, 0)
    for atoms in first:
        del atoms.info["walker"], atoms.info["step"]
    store.add_initial(first)
    for index in range(2):
        acquire(store, index)
        store.commit(index, metrics(index))
    acquire(store, 2)
    return store.path


STAGES = ("model.ckpt", "trajectory.h5", "selected.extxyz", "labelled.extxyz")
FILES = (
    *("config.yaml", "provenance.json", "run.json", "initial.extxyz", "dataset.extxyz", "metrics.csv"),
    *(f"rounds/001/{name}" for name in ("round.json", *STAGES)),
    *(f"rounds/002/{name}" for name in ("unfinished.json", *STAGES)),
)
REFUSED = ("round.json", "model.ckpt", "trajectory.h5")
"""Files of finished rounds that nothing else tells."""


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_files_are_tried(run: Path) -> None:
    assert set(everything(run)) == {*FILES, *(f.replace("001", "000") for f in FILES), "labels.db"}


def test_an_undamaged_folder_is_right_and_stays_as_it_is(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = everything(copy)
    assert all(finding.ok for finding in inspect(copy))
    open_run(RoundStore(copy), CONFIG)
    assert everything(copy) == before
    assert caplog.text == ""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(damage: str, name: str, copy: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    if damage not in damages_of(copy / name):
        return
    DAMAGES[damage](copy / name)
    if (copy / name).exists() and (copy / name).read_bytes() == (run / name).read_bytes():
        return
    harmless = name == "provenance.json" and damage in ("flip", "change_digit")
    assert harmless or not all(finding.ok for finding in inspect(copy)) or name == "rounds/002/unfinished.json"
    finished = name.startswith(("rounds/000", "rounds/001"))
    missing_last = name == "rounds/001/round.json" and damage == "delete"
    if finished and name.endswith(REFUSED) and not missing_last:
        with pytest.raises(InputError) as caught:
            open_run(RoundStore(copy), CONFIG)
        assert str(copy / name) in str(caught.value)
        assert "restore it" in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    if missing_last:  # a later round has begun, but none has a record
        open_run(RoundStore(copy), CONFIG)
        assert len(RoundStore(copy).records()) == 1
        return
    open_run(RoundStore(copy), CONFIG)
    assert harmless or name in caplog.text or "rounds/002" in name
    if not name.startswith("rounds/002"):
        assert results(copy) == results(run)
        assert read_record(copy / "run.json") == read_record(run / "run.json")
        return
    # what is not what was noted, and what was made of it, goes and is made again
    kept = STAGES.index(name.rpartition("/")[2]) if name.endswith(STAGES) else 0
    folder = RoundStore(copy).round(2)
    assert [path.name for path in folder.stages if path.exists()] == list(STAGES[:kept])
    assert list(folder.done()["files"]) == list(STAGES[:kept])
    assert bool(folder.done()["metrics"]) == (kept > 0)


def test_one_bit_of_a_stored_label(copy: Path) -> None:
    """Of its structure, which no page or index of the database tells."""
    atoms = labelled(3, 0)[0]
    LabelStore(copy / "labels.db").put(atoms, {}, Label(1.5, np.ones((2, 3)), None))
    assert all(finding.ok for finding in inspect(copy))
    content, positions = (copy / "labels.db").read_bytes(), atoms.positions.tobytes()
    assert content.count(positions) == 1
    flipped = positions[:20] + bytes([positions[20] ^ 1]) + positions[21:]
    (copy / "labels.db").write_bytes(content.replace(positions, flipped))
    (wrong,) = [finding for finding in inspect(copy) if not finding.ok]
    assert wrong.file == "labels.db"
    assert wrong.state == "damaged (1 of its rows are not what was stored)"


def test_a_gap_is_refused(copy: Path) -> None:
    delete(copy / "rounds/000/round.json")
    with pytest.raises(InputError, match=r"rounds/000/round\.json is missing, but there are later rounds; restore it"):
        open_run(RoundStore(copy), CONFIG)
    for index in (0, 1, 2):
        shutil.rmtree(copy / f"rounds/{index:03d}")
    open_run(RoundStore(copy), CONFIG)
    assert len(RoundStore(copy).structures(99)) == 3


def test_lost_labels_of_the_data_set_and_of_a_round(copy: Path) -> None:
    """What two files told each other is gone with both."""
    drop_frame(copy / "dataset.extxyz")
    drop_frame(copy / "rounds/001/labelled.extxyz")
    with pytest.raises(InputError, match=r"rounds/001/labelled\.extxyz was changed since it was written and cannot"):
        open_run(RoundStore(copy), CONFIG)


@pytest.mark.parametrize("name", ["initial.extxyz", "rounds/000/labelled.extxyz", "rounds/001/labelled.extxyz"])
def test_the_label_store_tells_what_the_data_set_does_not(name: str, copy: Path, run: Path) -> None:
    """Also where a structure was labelled and rejected, and another one could not be labelled."""
    labels = LabelStore(copy / "labels.db")
    for atoms in labelled(3, 0) + labelled(2, 10) + labelled(2, 20):
        labels.put(atoms, {}, Label(atoms.info["REF_energy"], atoms.arrays["REF_forces"], None))
    labels.put(Atoms("CO", np.ones((2, 3))), {}, Label(0.0, np.full((2, 3), 1e3), None))
    config = CONFIG | {"labelling": {"max_force": 100}}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    write_record(
        copy / "run.json",
        (read_record(copy / "run.json") or {}) | {"config": config_digest(config, leave_out=NOT_CHECKED)},
    )
    delete(copy / "dataset.extxyz")
    DAMAGES["change_digit"](copy / name)
    open_run(RoundStore(copy), config)
    assert results(copy) == results(run)


def test_a_file_that_was_not_noted_is_made_again(copy: Path) -> None:
    """A kill between a file and its note, or a file of a version without notes."""
    folder = RoundStore(copy).round(2)
    content = folder.done()
    del content["files"]["selected.extxyz"], content["files"]["labelled.extxyz"]
    write_record(folder.unfinished, content)
    open_run(RoundStore(copy), CONFIG)
    assert [path.exists() for path in folder.stages] == [True, True, False, False]


def strip(folder: Path) -> None:
    """The folder as a version without checksums would have left it."""
    (folder / "run.json").unlink()
    (folder / "initial.extxyz").unlink()
    for file in folder.glob("rounds/*/round.json"):
        file.write_text(json.dumps({"metrics": (read_record(file) or {})["metrics"]}, indent=2))
    shutil.rmtree(folder / "rounds/002")


def test_folders_without_checksums_go_on(copy: Path, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    strip(copy)
    assert all(finding.ok for finding in inspect(copy) if finding.file != "dataset.extxyz")
    open_run(RoundStore(copy), CONFIG)
    assert "of an older version" in caplog.text
    whole = everything(run)
    for name, content in everything(copy).items():
        assert content == whole[name], name
    flip(copy / "rounds/000/model.ckpt")
    with pytest.raises(InputError, match=r"model\.ckpt was changed"):
        open_run(RoundStore(copy), CONFIG)


def test_another_configuration_in_the_file(copy: Path) -> None:
    """The command and config.yaml agree, but the results are those of another configuration."""
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("seed: 1", "seed: 2"))
    with pytest.raises(InputError, match=r"config\.yaml was changed since it was written"):
        open_run(RoundStore(copy), CONFIG | {"seed": 2})


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"max_rounds": 3, "max_structures": 9}, None),
        ({"max_rounds": None, "max_structures": 7}, None),
        ({"max_rounds": 1, "max_structures": 9}, "learning.max_rounds=1 is below the 2 rounds"),
        ({"max_rounds": 2, "max_structures": 6}, "learning.max_structures=6 is below the 7 structures"),
    ],
)
def test_limits(limits: dict[str, int | None], sentence: str | None, copy: Path) -> None:
    def opened(config: dict[str, Any]) -> None:
        open_run(RoundStore(copy), config)

    before = (copy / "config.yaml").read_bytes()
    if sentence is not None:
        with pytest.raises(InputError, match=sentence):
            opened(CONFIG | {"learning": limits})
        assert (copy / "config.yaml").read_bytes() == before
        return
    opened(CONFIG | {"learning": limits})
    assert yaml.safe_load((copy / "config.yaml").read_text())["learning"] == limits
    (change,) = json.loads((copy / "provenance.json").read_text())["changes"]
    key = "max_rounds" if limits["max_rounds"] != 2 else "max_structures"
    assert change["settings"][f"learning.{key}"]["now"] == limits[key]
    assert all(finding.ok for finding in inspect(copy))


def test_a_round_that_is_taken_up_again(copy: Path) -> None:
    """Its model and its numbers stay; killed behind that, it is a round in progress."""
    shutil.rmtree(copy / "rounds/002")
    store = RoundStore(copy)
    open_run(store, CONFIG)
    store.reopen(1)
    open_run(store, CONFIG)
    assert len(store.records()) == 1
    folder = store.round(1)
    assert folder.done()["metrics"] == metrics(1)
    assert [path.exists() for path in folder.stages] == [True, False, False, False]

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule

import ubmd.runs.store
from ubmd.data.io import read_labelled, write_structures
from ubmd.errors import InputError
from ubmd.runs.metrics import COLUMNS, read_metrics
from ubmd.runs.opening import open_run
from ubmd.runs.store import INITIAL, RoundStore

CONFIG: dict[str, Any] = {
    "name": "test",
    "seed": 1,
    "bias": {"_target_": "ubmd.bias.biased.BiasedPotential", "tau": 0.25, "species_weights": {"H": 0.0}},
    "system": {"variables": {}, "species": None},
    "training": {"start": 1e-7, "weights": [0.9, 0.999]},
    "logger": {"csv": {"name": "csv"}},
}


def with_change(path: str, value: object) -> dict[str, Any]:
    config = json.loads(json.dumps(CONFIG))
    *parents, last = path.split(".")
    node = config
    for key in parents:
        node = node[key]
    node[last] = value
    return config


@pytest.fixture
def store(tmp_path: Path) -> RoundStore:
    store = RoundStore(tmp_path / "runs" / "one")
    open_run(store, CONFIG)
    return store


def labelled(n: int, first: int) -> list[Atoms]:
    """Structures whose energy is their number."""
    out = []
    for number in range(first, first + n):
        atoms = molecule("H2O")
        atoms.info["REF_energy"] = float(number)
        atoms.arrays["REF_forces"] = np.zeros((3, 3))
        out.append(atoms)
    return out


def energies(structures: list[Atoms]) -> list[float]:
    return [a.info["REF_energy"] for a in structures]


def record(index: int) -> dict[str, Any]:
    return {"metrics": {"round": index, "n_train": 7 + index, "force_rmse_ev_per_ang": 0.1 / (index + 1)}}


def finished(index: int) -> dict[str, Any]:
    return record(index) | {"files": {"model.ckpt": hashlib.sha256(b"model").hexdigest()}}


def test_open_writes_configuration_and_versions(store: RoundStore) -> None:
    assert yaml.safe_load((store.path / "config.yaml").read_text()) == CONFIG
    versions = json.loads((store.path / "provenance.json").read_text())
    assert {"ubmd", "torch", "lightning", "ase", "git"} <= versions.keys()
    assert sorted(p.name for p in store.path.iterdir()) == ["config.yaml", "provenance.json", "run.json"]


def test_the_same_configuration_continues(store: RoundStore) -> None:
    before = {p: p.read_bytes() for p in store.path.iterdir()}
    open_run(RoundStore(str(store.path)), json.loads(json.dumps(CONFIG)))
    assert {p: p.read_bytes() for p in store.path.iterdir()} == before


@pytest.mark.parametrize(
    ("key", "value", "texts"),
    [
        ("seed", 2, ["seed=1", "now it is 2"]),
        ("bias.tau", 0.5, ["bias.tau=0.25", "now it is 0.5"]),
        ("bias.species_weights.H", 0.1, ["bias.species_weights.H=0.0", "now it is 0.1"]),
        ("training.weights", [0.9, 0.99], ["training.weights=[0.9, 0.999]", "[0.9, 0.99]"]),
        ("system.species", ["C", "H"], ["system.species=None", "['C', 'H']"]),
        ("bias.rescale", True, ["bias.rescale=None", "now it is True"]),
    ],
)
def test_another_configuration_is_refused(store: RoundStore, key: str, value: object, texts: list[str]) -> None:
    changed = with_change(key, value)
    with pytest.raises(InputError) as error:
        open_run(RoundStore(store.path), changed)
    message = str(error.value)
    assert str(store.path) in message
    for text in texts:
        assert text in message
    assert "\n" not in message
    assert yaml.safe_load((store.path / "config.yaml").read_text()) == CONFIG


def test_a_key_that_has_gone_is_refused(store: RoundStore) -> None:
    with pytest.raises(InputError, match=r"bias\.tau=0\.25, now it is None"):
        open_run(RoundStore(store.path), CONFIG | {"bias": {k: v for k, v in CONFIG["bias"].items() if k != "tau"}})


def test_some_keys_may_differ(store: RoundStore) -> None:
    before = {p: p.read_bytes() for p in store.path.iterdir()}
    open_run(store, with_change("logger.csv.name", "other") | {"debug": {"fast": True}, "executor": {"workers": 4}})
    assert {p: p.read_bytes() for p in store.path.iterdir()} == before
    with pytest.raises(InputError, match=r"loggers\.csv"):
        open_run(store, CONFIG | {"loggers": {"csv": 1}})


def test_a_run_of_an_earlier_version_is_extended_again_and_again(tmp_path: Path) -> None:
    """Its configuration lacks a key that there is now; with a new limit it is written in the words of this version."""
    store, model = RoundStore(tmp_path), {"_target_": "ubmd.models.gmnn.GMNN"}
    open_run(store, CONFIG | {"model": model, "learning": {"max_rounds": 2, "max_structures": 10}})
    now = CONFIG | {"model": model | {"repulsion_cutoff": 0.7}}
    for limit in (3, 4, 4):
        open_run(store, now | {"learning": {"max_rounds": limit, "max_structures": 10}})
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["learning"]["max_rounds"] == limit


def test_a_new_store_is_empty(store: RoundStore) -> None:
    assert store.records() == []
    assert store.structures(0) == []
    assert not store.dataset.exists()


def test_names_of_the_files(store: RoundStore) -> None:
    """The contract with other programs."""
    folder = store.folder(7)
    assert folder.path == store.path / "rounds" / "007"
    assert folder.path.is_dir()
    names = ("model", "trajectory", "selected", "labelled", "record")
    found = [getattr(folder, name).relative_to(store.path).as_posix() for name in names]
    files = ["model.ckpt", "trajectory.h5", "selected.extxyz", "labelled.extxyz", "round.json"]
    assert found == [f"rounds/007/{name}" for name in files]
    assert store.dataset == store.path / "dataset.extxyz"


def add(store: RoundStore, index: int, structures: list[Atoms]) -> None:
    write_structures(store.folder(index).labelled, structures)


def test_data_set_grows_by_rounds(store: RoundStore) -> None:
    store.add_initial(labelled(3, 0))
    add(store, 0, labelled(2, 10))
    add(store, 1, labelled(2, 20))
    again = RoundStore(store.path)
    assert energies(again.structures(INITIAL)) == []
    assert energies(again.structures(0)) == [0, 1, 2]
    assert energies(again.structures(1)) == [0, 1, 2, 10, 11]
    assert energies(again.structures(2)) == energies(again.structures(99)) == [0, 1, 2, 10, 11, 20, 21]
    assert [a.info["round"] for a in read_labelled(store.dataset)] == [-1, -1, -1]
    store.write_dataset(2)
    assert [a.info["round"] for a in read_labelled(store.dataset)] == [-1, -1, -1, 0, 0, 1, 1]


def test_a_round_may_add_nothing(store: RoundStore) -> None:
    store.add_initial(labelled(3, 0))
    add(store, 0, [])
    assert energies(store.structures(1)) == [0, 1, 2]


def finish(store: RoundStore, index: int) -> None:
    folder = store.folder(index)
    folder.fit.mkdir()
    (folder.fit / "last.ckpt").write_text("x")
    folder.walkers.write_text("x")
    folder.model.write_text("model")
    store.commit(index, record(index)["metrics"])


def test_commit(store: RoundStore) -> None:
    for index in range(3):
        finish(store, index)
    assert RoundStore(store.path).records() == [finished(i) for i in range(3)]
    rows = read_metrics(store.path / "metrics.csv")
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["force_rmse_ev_per_ang"] for row in rows] == [0.1, 0.05, 0.1 / 3]
    assert list(rows[0]) == list(COLUMNS)
    for index in range(3):
        names = sorted(p.name for p in store.folder(index).path.iterdir())
        assert names == ["model.ckpt", "round.json"]


def test_record_comes_before_the_metrics_and_the_clearing(store: RoundStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it finishes, a round is either unfinished with all it needs to resume, or finished."""
    seen: list[tuple[bool, bool, bool]] = []
    real = ubmd.runs.store.write_metrics

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        folder = store.folder(0)
        seen.append((folder.record.exists(), folder.walkers.exists(), (folder.fit / "last.ckpt").exists()))
        real(path, rows)

    monkeypatch.setattr(ubmd.runs.store, "write_metrics", write)
    finish(store, 0)
    assert seen == [(True, True, True)]


def test_killed_before_the_record(store: RoundStore, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(store, 0)
    metrics = (store.path / "metrics.csv").read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ubmd.runs.store, "write_record", fail)
    with pytest.raises(KeyboardInterrupt):
        finish(store, 1)
    folder = store.folder(1)
    assert store.records() == [finished(0)]
    assert folder.walkers.exists()
    assert (folder.fit / "last.ckpt").exists()
    assert (store.path / "metrics.csv").read_bytes() == metrics


def test_half_a_record_is_none(store: RoundStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of writing leaves no round.json."""

    def half(self: Path, text: str, **_: object) -> int:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            store.commit(0, record(0)["metrics"])
    assert store.records() == []
    assert list(store.folder(0).path.iterdir()) == []


def test_killed_between_record_and_metrics(store: RoundStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are the truth: metrics.csv can be made again from them."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ubmd.runs.store, "write_metrics", fail)
        with pytest.raises(KeyboardInterrupt):
            finish(store, 0)
    again = RoundStore(store.path)
    open_run(again, CONFIG)
    assert again.records() == [finished(0)]
    assert [row["round"] for row in read_metrics(store.path / "metrics.csv")] == [0]


def test_opening_completes_a_commit(store: RoundStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a kill right behind the last round's record there is no later commit that would do it."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ubmd.runs.store, "write_metrics", fail)
        with pytest.raises(KeyboardInterrupt):
            finish(store, 0)
    open_run(RoundStore(store.path), CONFIG)
    assert (store.path / "metrics.csv").exists()
    assert sorted(p.name for p in store.folder(0).path.iterdir()) == ["model.ckpt", "round.json"]


def test_rounds_after_a_gap_do_not_count(store: RoundStore) -> None:
    for index in range(3):
        finish(store, index)
    store.folder(1).record.unlink()
    assert store.records() == [finished(0)]


def test_metrics_of_other_kinds(store: RoundStore) -> None:
    """None is empty, and columns of one's own follow the contract's."""
    store.commit(0, {"round": 0, "coverage": None, "my_number": 1.5})
    (row,) = read_metrics(store.path / "metrics.csv")
    assert row["coverage"] is None
    assert row["my_number"] == 1.5
    assert list(row) == [*COLUMNS, "my_number"]


def test_other_versions_and_threads_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = CONFIG | {"trainer": {"accelerator": "cpu"}}
    open_run(RoundStore(tmp_path), config)
    file = tmp_path / "provenance.json"
    written = json.loads(file.read_text())
    assert (written["threads"], written["device"]) == (torch.get_num_threads(), "cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    file.write_text(json.dumps(written | {"torch": "1.0", "platform": "elsewhere"}))
    for _ in range(2):
        open_run(RoundStore(tmp_path), config)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"was computed with torch 1.0 (now {torch.__version__}), threads {written['threads']} (now 77); " in line
    assert "only up to rounding" in line
    (change,) = json.loads(file.read_text())["changes"]
    assert (change["versions"]["threads"], change["settings"]) == (77, {})
    file.write_text("{")
    open_run(RoundStore(tmp_path), config)
    assert json.loads(file.read_text())["threads"] == 77

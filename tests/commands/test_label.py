"""``ubmd label`` with an analytic potential."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculatorSetupError, SCFError
from ase.calculators.emt import EMT

from tests.run_folders import runs_in
from ubmd.cli import main as cli
from ubmd.data.io import read_labelled
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import Label
from ubmd.reference.store import LabelStore

pytestmark = pytest.mark.usefixtures("quiet_logging")


def structures() -> list[Atoms]:
    """Rattled copper; the third has two atoms on each other's heels, the fifth an element that EMT does not know."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(6):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.1, size=(4, 3))
        out.append(atoms)
    out[2].positions[1] = out[2].positions[0] + [0.8, 0, 0]
    out[4].numbers[0] = 92
    return out


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with structures; returns the folder of the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UBMD_RUNS")
    ase.io.write("my.xyz", structures(), format="extxyz")
    return tmp_path / "runs" / "label"


def label(*overrides: str) -> int:
    emt = "reference.calculator._target_=ase.calculators.emt.EMT"
    return cli.main(["label", "structures=my.xyz", emt, *overrides])


def only(folder: Path) -> Path:
    (path,) = runs_in(folder)
    return path


def test_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label() == 0
    run = only(here)
    found = read_labelled(run / "labelled.extxyz")
    assert [a.info["source_index"] for a in found] == [0, 1, 3, 5]
    for atoms in found:
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True, calculator=EMT())
        assert atoms.info["REF_energy"] == pytest.approx(bare.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(atoms.arrays["REF_forces"], bare.get_forces(), atol=1e-6)
        np.testing.assert_allclose(atoms.info["REF_stress"], bare.get_stress(voigt=False), atol=1e-6)
    rejected = ase.io.read(run / "rejected.extxyz", ":")
    assert [a.info["source_index"] for a in rejected] == [2, 4]
    assert "exceeds the limit of 20 eV/Å" in rejected[0].info["reason"]
    assert "U" in rejected[1].info["reason"]
    shown = capsys.readouterr().out
    assert f"rejected: structure 2: {rejected[0].info['reason']}" in shown
    assert "4 labelled structures in" in shown
    assert "2 rejected, 6 computed now" in shown
    assert len(LabelStore(run / "labels.db")) == 5  # what EMT says of uranium may have other reasons
    kept = {"config.yaml", "provenance.json", "ubmd.log", "labels.db", "labelled.extxyz", "rejected.extxyz"}
    assert {file.name for file in run.iterdir()} - {".hydra", "run.json", "run.lock"} == kept


@pytest.mark.slow
def test_in_other_processes(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run folder, files and labels, bit by bit, and any executor goes on where another stopped."""
    assert label() == 0
    texts = [(only(here) / name).read_bytes() for name in ("labelled.extxyz", "rejected.extxyz")]
    assert label("executor=processes", "executor.workers=1") == 0
    assert "1 computed now" in capsys.readouterr().out
    for executor in ("processes", "dask"):
        monkeypatch.setenv("UBMD_RUNS", str(here / executor))
        assert label(f"executor={executor}") == 0
        assert "6 computed now" in capsys.readouterr().out
        run = here / executor / "label" / only(here / executor / "label").name
        assert [(run / name).read_bytes() for name in ("labelled.extxyz", "rejected.extxyz")] == texts


def test_without_a_limit(here: Path) -> None:
    assert label("labelling.max_force=null") == 0
    found = read_labelled(only(here) / "labelled.extxyz")
    assert [a.info["source_index"] for a in found] == [0, 1, 2, 3, 5]


def test_interrupted_and_continued(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No label is computed twice, also after more structures came."""
    original, computed = ASEReference.compute, []

    def compute(self: ASEReference, atoms: Atoms) -> Label:
        if len(computed) == 3:
            computed.append(None)
            raise KeyboardInterrupt
        computed.append(atoms)
        return original(self, atoms)

    monkeypatch.setattr(ASEReference, "compute", compute)
    assert label() == 130
    run = only(here)
    assert not (run / "labelled.extxyz").exists()
    assert len(LabelStore(run / "labels.db")) == 3
    assert label() == 0
    assert len(computed) == 3 + 1 + 4  # a calculator's refusal of an element is asked for once more
    text = (run / "labelled.extxyz").read_bytes()
    capsys.readouterr()
    assert label() == 0
    assert "1 computed now" in capsys.readouterr().out
    assert (run / "labelled.extxyz").read_bytes() == text
    more = structures()
    more.append(more[0].copy())
    more[-1].rattle(0.05, seed=1)
    ase.io.write("my.xyz", more, format="extxyz")
    assert label() == 0
    assert "5 labelled structures" in (shown := capsys.readouterr().out)
    assert "2 computed now" in shown


def test_many_rejected(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = [structures()[0] for _ in range(1)] + [structures()[2] for _ in range(25)]
    ase.io.write("my.xyz", many, format="extxyz")
    assert label() == 0
    shown = capsys.readouterr().out
    assert shown.count("rejected: structure") == 20
    assert "and 5 more, see" in shown


def test_nothing_left(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert label("labelling.max_force=1e-9") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "none of the 6 structures of my.xyz could be labelled (force of" in line


class NeedsEnvironment(EMT):
    """Is set up by the environment; does not converge for one structure, as long as that says so."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if "MYCODE_COMMAND" not in os.environ:
            raise CalculatorSetupError("set MYCODE_COMMAND")
        if os.environ["MYCODE_COMMAND"] == "bad" and atoms.positions[0, 0] > 0.1:  # pyright: ignore
            raise SCFError("not converged")


def test_what_is_remembered_and_forgotten(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setup error is not, a structure that does not converge is, until it is to be tried again."""
    given = [bulk("Cu", cubic=True) for _ in range(3)]
    given[1].positions[0, 0] = 0.2
    ase.io.write("my.xyz", given, format="extxyz")
    own = f"reference.calculator._target_={__name__}.NeedsEnvironment"
    assert label(own) == 2
    assert "set MYCODE_COMMAND" in (shown := capsys.readouterr().err)
    assert "then start the same command again" in shown
    store = LabelStore(only(here) / "labels.db")
    assert len(store) == 0
    monkeypatch.setenv("MYCODE_COMMAND", "bad")
    assert label(own) == 0
    assert "2 labelled structures" in (captured := capsys.readouterr()).out
    assert f"{store.path} remembers that 1 of 2 structures cannot be labelled (SCFError: not conv" in captured.err
    monkeypatch.setenv("MYCODE_COMMAND", "good")
    assert label(own) == 0
    assert "2 labelled structures" in (captured := capsys.readouterr()).out
    assert "retry=true tries them again" in captured.err
    assert label(own, "retry=true") == 0
    assert "3 labelled structures" in (shown := capsys.readouterr().out)
    assert "1 computed now" in shown
    assert only(here) == store.path.parent


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["structures=none.xyz"], "structure file none.xyz does not exist"),
        (["labelling.max_force=-1"], "labelling.max_force=-1 must be a positive force in eV/Å"),
        (["labelling.maxforce=1"], "labelling.maxforce is not a key of labelling; did you mean labelling.max_force?"),
        (["logger=csv"], "logger: `ubmd label` logs to no logger"),
        (["reference.calculator._target_=ase.calculators.emt.EMTT"], "ase.calculators.emt has no EMTT"),
        (["executor=dsk"], "executor=dsk"),
        (["executor.retries=-1"], "executor.retries=-1 must not be negative"),
        (["executor.workers=2"], "executor.workers is not an option of Serial"),
        (["executor=slurm"], "executor: sbatch is not on this machine"),
        (["reference.nam=x"], "reference.nam is not an option of ASEReference; did you mean reference.name?"),
    ],
)
def test_bad_input(here: Path, overrides: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert label(*overrides) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not list(here.rglob("provenance.json"))


def test_reference_and_structures_must_be_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label", "structures=my.xyz"]) == 2
    told = capsys.readouterr().err
    assert "reference.calculator._target_ is missing" in told
    assert "or choose reference=OPTION (ase, by_system, " in told
    assert cli.main(["label", "reference=ff19sb"]) == 2
    assert "structures is missing: give it as structures=VALUE" in capsys.readouterr().err
    assert not here.exists()

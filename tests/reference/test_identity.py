"""What a reference is: its configuration, files, code and versions."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator

from ubmd.errors import InputError
from ubmd.reference import identity
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import shared_fingerprint
from ubmd.reference.ff19sb import FF19SB
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore
from ubmd.systems.relaxation import Relaxation

TEACHER = """
import torch
from ase.calculators.calculator import Calculator, all_changes
from teacher_parts import SCALE

class Teacher(Calculator):
    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, model):
        super().__init__()
        torch.set_default_dtype(torch.float64)
        self.per_atom = SCALE * float(open(model).read())

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = torch.zeros(len(atoms), 3)
        assert forces.dtype == torch.float64
        self.results = {"energy": self.per_atom * len(atoms), "forces": forces, "stress": torch.zeros(6)}
"""


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a calculator of one's own, in two modules, and its parameters in a file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "teacher.py").write_text(TEACHER)
    (tmp_path / "teacher_parts.py").write_text("SCALE = 1.0\n")
    (tmp_path / "a.txt").write_text("-1.0\n")
    for name in ("teacher", "teacher_parts"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return tmp_path


def made(model: str = "a.txt", **more: object) -> ASEReference:
    return ASEReference({"_target_": "teacher.Teacher", "model": model, **more})


def key(reference: ASEReference) -> str:
    return json.dumps(shared_fingerprint(reference), sort_keys=True, allow_nan=False)


def test_files_count_by_what_is_in_them(teacher: Path) -> None:
    before = key(made())
    (teacher / "moved.txt").write_text("-1.0\n")
    assert key(made("moved.txt")) == key(made(str(teacher / "moved.txt"))) == before
    (teacher / "a.txt").write_text("-2.0\n")
    assert key(made()) != before
    assert key(pickle.loads(pickle.dumps(made("moved.txt")))) == before


@pytest.mark.parametrize("file", ["teacher.py", "teacher_parts.py"])
def test_code_of_ones_own_counts(teacher: Path, file: str) -> None:
    before = key(made())
    (teacher / file).write_text((teacher / file).read_text() + "# changed\n")
    assert key(made()) != before


def test_labels_of_one_are_not_those_of_another(teacher: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor its relaxed structures; what the calculator does to the precision stays with it."""
    (teacher / "b.txt").write_text("-2.0\n")
    store, relax, copper = LabelStore(teacher / "labels.db"), Relaxation(teacher / "relaxed"), bulk("Cu")
    for model, energy in (("a.txt", -1.0), ("b.txt", -2.0)):
        assert label_structures([copper], made(model), store).labelled[0].info["REF_energy"] == energy
        assert relax(copper, made(model)).info["REF_energy"] == energy
    assert torch.get_default_dtype() == torch.float32
    assert "holds labels of another reference (calculator differs" in caplog.text


def test_nested_arguments_and_mixtures_count() -> None:
    def mixture(*parts: dict[str, object]) -> ASEReference:
        return ASEReference({"_target_": "ase.calculators.mixing.SumCalculator", "calcs": list(parts)})

    emt = {"_target_": "ase.calculators.emt.EMT"}
    lj = [{"_target_": "ase.calculators.lj.LennardJones", "sigma": sigma} for sigma in (1.0, 2.0)]
    references = [mixture(emt, emt), mixture(emt, lj[0]), mixture(emt, lj[1]), mixture(emt)]
    assert len({key(reference) for reference in references}) == 4
    assert references[0].versions().keys() == {"ase"}
    atoms = bulk("Cu")
    atoms.calc = SumCalculator([EMT(), EMT()])
    assert references[0].compute(atoms).energy == pytest.approx(atoms.get_potential_energy())


def test_what_cannot_be_identified_is_not_shared(tmp_path: Path) -> None:
    unknown = ASEReference(SumCalculator([EMT()]))
    with pytest.raises(InputError, match=r"nothing tells the calculator .* apart .*give it a name"):
        Relaxation(tmp_path)(bulk("Cu"), unknown)
    assert not list(tmp_path.iterdir())
    assert len(label_structures([bulk("Cu")], unknown, LabelStore(tmp_path / "own.db")).labelled) == 1
    shared_fingerprint(ASEReference(SumCalculator([EMT()]), name="mine"))


def test_versions_count_where_labels_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node, copper = {"_target_": "ase.calculators.emt.EMT"}, [bulk("Cu"), bulk("Ag")]
    own, shared = LabelStore(tmp_path / "own.db"), LabelStore(tmp_path / "shared.db", shared=True)
    for store in (own, shared):
        label_structures(copper, ASEReference(node), store)
    before = ASEReference(node).versions()["ase"]
    monkeypatch.setattr(ASEReference, "versions", lambda self: {"ase": "99.0"})
    assert label_structures(copper, ASEReference(node), own).n_computed == 0
    assert caplog.text.count(f"are of ase {before} (now 99.0); they are taken as they are") == 1
    assert label_structures(copper, ASEReference(node), shared).n_computed == 2


def test_versions_of_built_in_references() -> None:
    assert FF19SB().versions().keys() == {"torchmd", "openmm", "parmed"}
    assert np.all([shared_fingerprint(FF19SB())["versions"] == FF19SB().versions()])


def test_a_module_without_file_is_not_identified() -> None:
    module = type(sys)("of_a_notebook")
    sys.modules["of_a_notebook"] = module
    try:
        assert not identity.code_of({"of_a_notebook"}).complete
    finally:
        del sys.modules["of_a_notebook"]
    assert identity.code_of({"ase.calculators.emt", "builtins"}).complete


def test_environments_over_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages of an environment beneath are installed; packages of one's own may import what cannot be imported."""
    beneath, own = tmp_path / "site-packages", tmp_path / "own"
    for folder, name, text in (
        (beneath, "of_beneath", ""),
        (own, "of_mine", "import of_beneath\nif False:\n    import for_windows.inside\n"),
        (own / "for_windows", "__init__", "assert False\n"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(beneath)
    monkeypatch.syspath_prepend(own)
    identity._installed_folders.cache_clear()
    try:
        importlib.import_module("of_mine")
        before = identity.code_of({"of_mine"})
        (beneath / "of_beneath.py").write_text("another = True\n")
        assert identity.code_of({"of_mine"}) == before
        assert before.source is not None
    finally:
        identity._installed_folders.cache_clear()
        for name in ("of_mine", "of_beneath"):
            sys.modules.pop(name, None)

"""GFN-xTB: labels against direct calls and finite differences."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from threadpoolctl import threadpool_info, threadpool_limits

from ubmd.data.perturb import perturb
from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import ReferenceError
from ubmd.reference.dask_executors import Dask
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore
from ubmd.reference.tblite_reference import TBLiteReference

TBLite = pytest.importorskip("tblite.ase").TBLite


def crystal() -> Atoms:
    """Silicon carbide, off its minimum, in a cell without symmetry."""
    atoms = bulk("SiC", "zincblende", a=4.4, cubic=True)
    atoms.rattle(0.2, seed=3)
    strained = atoms.cell.array @ [[1.02, 0.01, 0], [0, 0.99, 0.015], [0, 0, 1.03]]
    atoms.set_cell(strained, scale_atoms=True)
    return atoms


def test_a_label_is_a_direct_call(capfd: pytest.CaptureFixture[str]) -> None:
    for atoms in (molecule("CH3CH2OH"), crystal()):
        label = TBLiteReference().compute(atoms)
        assert capfd.readouterr().out == ""
        direct = atoms.copy()
        direct.calc = TBLite(method="GFN2-xTB", verbosity=0)
        assert label.energy == pytest.approx(direct.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(label.forces, direct.get_forces(), atol=1e-9)
        if atoms.pbc.all():
            assert label.stress is not None
            np.testing.assert_allclose(label.stress, direct.get_stress(voigt=False), atol=1e-10)
        else:
            assert label.stress is None


def test_forces_and_stress_are_derivatives() -> None:
    """Along a random displacement and a random strain; short steps, before atoms change to nearer images."""
    atoms, step, rng = crystal(), 3e-5, np.random.default_rng(0)
    reference = TBLiteReference(accuracy=1e-2)
    label = reference.compute(atoms)
    assert label.stress is not None
    shift, strain = rng.normal(size=(8, 3)), rng.normal(size=(3, 3))
    strain += strain.T

    def energy(shifted: float, strained: float) -> float:
        changed = atoms.copy()
        changed.positions += shifted * shift
        changed.set_cell(changed.cell.array @ (np.eye(3) + strained * strain), scale_atoms=True)
        return reference.compute(changed).energy

    slope = (energy(step, 0) - energy(-step, 0)) / (2 * step)
    assert -(label.forces * shift).sum() == pytest.approx(slope, rel=1e-5)
    slope = (energy(0, step) - energy(0, -step)) / (2 * step)
    assert (label.stress * strain).sum() * atoms.get_volume() == pytest.approx(slope, rel=1e-5)


def test_a_label_depends_on_nothing_but_the_structure() -> None:
    """Neither on what was labelled before, nor on another process, nor on the threads that others left."""
    reference = TBLiteReference()
    first = reference.compute(crystal())
    reference.compute(molecule("H2O"))
    with threadpool_limits(limits=2):
        before = threadpool_info()
        again = pickle.loads(pickle.dumps(reference)).compute(crystal())
        assert threadpool_info() == before
    assert (again.energy, again.forces.tobytes()) == (first.energy, first.forces.tobytes())
    assert again.stress is not None
    assert first.stress is not None
    assert again.stress.tobytes() == first.stress.tobytes()


def test_charge_and_method() -> None:
    water = molecule("H2O")
    labels = [TBLiteReference(), TBLiteReference(charge=-1, multiplicity=2), TBLiteReference("GFN1-xTB")]
    assert len({round(r.compute(water).energy, 3) for r in labels}) == 3
    assert len({json.dumps(r.fingerprint()) for r in labels}) == 3
    assert TBLiteReference(threads=2).fingerprint() == TBLiteReference().fingerprint()


def test_charge_and_spin_of_the_structure(tmp_path: Path) -> None:
    """In ``info`` or in initial charges, they give the label that the options give, each under a key of its own."""
    plain, store = molecule("H2O"), LabelStore(tmp_path / "labels.db")
    ions = [plain.copy() for _ in range(4)]
    ions[0].info.update(charge=1)
    ions[1].info.update(charge=1, spin=2)
    ions[2].set_initial_charges([1, 0, 0])
    ions[3].info.update(charge=1, spin=4)
    report = label_structures([plain, *ions], TBLiteReference(), store, max_force=None)
    neutral, *energies = [atoms.info["REF_energy"] for atoms in report.labelled]
    cation = TBLiteReference(charge=1, multiplicity=2).compute(plain).energy
    assert neutral == pytest.approx(-137.9678, abs=1e-4)
    assert energies[:3] == pytest.approx([cation] * 3, abs=1e-8)
    assert energies[3] > cation + 1
    assert (report.n_computed, len(store)) == (5, 5)
    assert report.labelled[2].info["spin"] == 2
    general = ASEReference(TBLite(verbosity=0)).compute(ions[0])  # knows nothing of ``info``
    assert general.energy == pytest.approx(cation, abs=1e-8)


def test_impossible_charges_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    fine, wrong = molecule("H2O"), molecule("H2O")
    wrong.info.update(charge=1, spin=1)
    store = LabelStore(tmp_path / "labels.db")
    with pytest.raises(InputError, match=r"structure 1 of 2 cannot be labelled: a multiplicity of 1 .* 9 electrons"):
        label_structures([fine, wrong], TBLiteReference(), store)
    assert len(store) == 0


def test_an_unconverged_field_is_a_failure() -> None:
    with pytest.raises(ReferenceError, match="SCF not converged in 2 cycles"):
        TBLiteReference(max_iterations=2).compute(crystal())


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"method": "GFN3"}, "reference.method=GFN3 is not a method of tblite; use one of GFN2-xTB"),
        ({"charge": 0.5}, "reference.charge=0.5 must be a whole number"),
        ({"accuracy": 0}, "reference.accuracy=0 is not positive"),
        ({"threads": -1}, "reference.threads=-1 is not positive"),
    ],
)
def test_impossible_values(keys: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TBLiteReference(**keys)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(
        InputError, match=r"needs the package tblite, which is not installed; pip install 'ubmd\[xtb\]'"
    ):
        TBLiteReference()


@pytest.mark.slow
def test_labels_of_two_workers_one_of_which_is_killed(tmp_path: Path) -> None:
    """Half way; the labels are those of direct calls, bit by bit, and each is in the store once."""
    start = bulk("SiC", "zincblende", a=4.4, cubic=True)
    start.rattle(0.05, seed=3)  # all of the following converge
    structures = perturb(start, 8, displacement=0.05, strain=0.02, rng=np.random.default_rng(0))
    store, reference = LabelStore(tmp_path / "labels.db"), TBLiteReference()
    killed = []
    with Dask(workers=2) as executor:

        def kill_one(done: int, total: int) -> None:
            if done >= total // 2 and not killed:
                killed.append(executor.submit(os.getpid).result())
                os.kill(killed[0], signal.SIGKILL)

        report = label_structures(structures, reference, store, executor=executor, max_force=None, on_label=kill_one)
    assert killed
    assert not report.failed
    assert (len(report.labelled), report.n_computed, len(store)) == (8, 8, 8)
    for labelled, atoms in zip(report.labelled, structures, strict=True):
        direct = atoms.copy()
        direct.calc = TBLite(method="GFN2-xTB", verbosity=0)
        assert labelled.info["REF_energy"] == direct.get_potential_energy()
        assert labelled.arrays["REF_forces"].tobytes() == direct.get_forces().tobytes()
        np.testing.assert_array_equal(labelled.info["REF_stress"], direct.get_stress(voigt=False))

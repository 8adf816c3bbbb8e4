"""ASE calculators as references, with EMT."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CalledProcessError

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorSetupError,
    EnvironmentError,
    FileIOCalculator,
    OldShellProfile,
    SCFError,
    all_changes,
)
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms

from ubmd.errors import InputError
from ubmd.reference.ase_reference import ASEReference
from ubmd.reference.base import ReferenceError, SetupError, UnfinishedError
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore


class KohnShamConvergenceError(RuntimeError):
    """As GPAW has one."""


class Strange(Calculator):
    """Returns what it is told to."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012  (ASE's own form)

    def __init__(self, energy: float | BaseException = 0.0, **parameters):
        super().__init__(**parameters)
        self.energy = energy
        self.runs = 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.runs += 1
        if isinstance(self.energy, BaseException):
            raise self.energy
        assert atoms is not None
        assert not atoms.constraints
        n_atoms = len(atoms)
        self.results = {"energy": self.energy, "forces": np.zeros((n_atoms, 3)), "stress": np.arange(6.0)}


def test_molecule_equals_direct_call():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    atoms.set_constraint(FixAtoms([0, 1]))
    label = ASEReference(EMT()).compute(atoms)
    direct = atoms.copy()
    direct.calc = EMT()
    assert label.energy == direct.get_potential_energy()
    np.testing.assert_array_equal(label.forces, direct.get_forces(apply_constraint=False))
    assert np.abs(label.forces[0]).max() > 0  # constraints do not reach the label
    assert label.stress is None
    assert atoms.calc is None


def test_crystal_equals_direct_call():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array * 1.05, scale_atoms=True)
    atoms.rattle(0.05, seed=2)
    label = ASEReference(EMT()).compute(atoms)
    direct = atoms.copy()
    direct.calc = EMT()
    assert label.energy == pytest.approx(direct.get_potential_energy(), rel=1e-14)
    np.testing.assert_allclose(label.forces, direct.get_forces(), rtol=0, atol=1e-13)
    assert label.stress is not None
    np.testing.assert_allclose(label.stress, direct.get_stress(voigt=False), rtol=0, atol=1e-14)


def test_stress_is_the_strain_derivative():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array * 1.05, scale_atoms=True)
    atoms.rattle(0.05, seed=2)
    reference = ASEReference(EMT())
    label = reference.compute(atoms)
    assert label.stress is not None
    step = 1e-5
    for i, j in ((0, 0), (1, 2), (2, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            energies.append(reference.compute(strained).energy)
        derivative = (energies[0] - energies[1]) / (2 * step * atoms.get_volume())
        assert label.stress[i, j] == pytest.approx(derivative, abs=1e-7)
    assert np.trace(label.stress) > 0  # stretched copper is under tension


def test_stress_only_where_it_is_defined():
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    assert ASEReference(EMT()).compute(slab).stress is None
    without = Strange()
    without.implemented_properties = ["energy", "forces"]
    assert ASEReference(without).compute(bulk("Cu")).stress is None
    with_stress = ASEReference(Strange()).compute(bulk("Cu")).stress
    np.testing.assert_array_equal(with_stress, [[0, 5, 4], [5, 1, 3], [4, 3, 2]])


@pytest.mark.parametrize("energy", [np.nan, np.inf])
def test_non_finite_results_fail(energy):
    with pytest.raises(UnfinishedError, match="non-finite energy"):
        ASEReference(Strange(energy)).compute(Atoms("H"))


def test_exceptions_fail_one_structure(tmp_path):
    with pytest.raises(UnfinishedError, match=r"ValueError: wrong .test_ase_reference.py:\d+.$") as caught:
        ASEReference(Strange(ValueError("wrong"))).compute(Atoms("H"))
    assert isinstance(caught.value.__cause__, ValueError)

    structures = [bulk("Cu"), bulk("Fe"), bulk("Ag")]  # EMT has no iron
    report = label_structures(structures, ASEReference(EMT()), LabelStore(tmp_path / "labels.db"))
    assert [a.get_chemical_formula() for a in report.labelled] == ["Cu", "Ag"]
    ((failed, reason),) = report.failed
    assert failed.get_chemical_formula() == "Fe"
    assert "Fe" in reason


def test_every_label_is_a_fresh_calculation():
    calculator = Strange(1.0)
    reference = ASEReference(calculator)
    atoms = Atoms("H", constraint=FixAtoms([0]))
    for _ in range(2):
        reference.compute(atoms)
    assert len(atoms.constraints) == 1
    assert calculator.runs == 2

    # The calculator must not answer with what a nearly equal structure gave.
    near = bulk("Cu", cubic=True)
    near.positions[0, 0] += 1e-16
    emt = ASEReference(EMT())
    emt.compute(bulk("Cu", cubic=True))
    assert emt.compute(near).energy == ASEReference(EMT()).compute(near).energy


def test_fingerprint_is_plain_and_tells_settings_apart():
    assert ASEReference(EMT()).fingerprint() == {
        "class": "ubmd.reference.ase_reference.ASEReference",
        "calculator": "ase.calculators.emt.EMT",
        "parameters": {"asap_cutoff": False},
        "energy": "free_energy",
        "name": None,
    }
    fingerprints = [
        ASEReference(LennardJones()).fingerprint(),
        ASEReference(LennardJones(sigma=2.0)).fingerprint(),
        ASEReference(LennardJones(), name="mine").fingerprint(),
        ASEReference(Strange()).fingerprint(),
    ]
    texts = [json.dumps(f, sort_keys=True, allow_nan=False) for f in fingerprints]
    assert len(set(texts)) == 4


def test_fingerprint_of_odd_parameters_is_reproducible():
    class Marker:
        pass

    def parameters():
        return {
            "array": np.arange(3),
            "scalar": np.float64(0.1),
            "marker": Marker(),
            "limit": float("inf"),
            "nested": {1: (True, None)},
        }

    first, second = (ASEReference(Strange(**parameters())).fingerprint() for _ in range(2))
    assert first == second == json.loads(json.dumps(first, allow_nan=False))
    plain = first["parameters"]
    assert isinstance(plain, dict)
    assert plain["array"] == [0, 1, 2]
    assert plain["nested"] == {"1": [True, None]}
    first["parameters"] = {}
    assert plain == second["parameters"]


def test_a_calculator_without_forces_is_an_input_error():
    calculator = Strange()
    calculator.implemented_properties = ["energy"]
    with pytest.raises(InputError, match="forces"):
        ASEReference(calculator)


def test_charge_beside_the_calculators_own(caplog: pytest.LogCaptureFixture) -> None:
    ion = Atoms("H", info={"charge": 1})
    for keys in ({"charge": 0}, {"total_charge": -1}):
        with pytest.raises(InputError, match=r"states a charge of 1 but (total_)?charge=.* of .*Strange; set"):
            ASEReference(Strange(**keys)).check_atoms(ion)
    ASEReference(Strange(charge=1)).check_atoms(ion)
    ASEReference(Strange(), reads=["charge"]).check_atoms(ion)
    ASEReference(Strange()).check_atoms(Atoms("H", info={"charge": 0, "spin": 1}))
    assert not caplog.text
    reference = ASEReference(Strange())
    reference.check_atoms(ion)
    reference.check_atoms(ion)
    assert caplog.text.count("structures state a charge of 1") == 1


def test_what_a_calculator_reads_tells_labels_apart(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels.db")
    hot, cold = bulk("Cu"), bulk("Cu")
    hot.info["electronic_temperature"], cold.info["electronic_temperature"] = 900, 300
    cold.set_tags([2])
    assert label_structures([hot, cold], ASEReference(EMT()), store).n_computed == 1
    reading = ASEReference(EMT(), reads=["electronic_temperature", "tags"])
    assert label_structures([hot, cold], reading, store).n_computed == 2
    assert label_structures([hot, cold], reading, store).n_computed == 0
    hot.set_tags([1])
    assert label_structures([hot, cold], reading, store).n_computed == 1


def test_made_by_hydra():
    instantiate = pytest.importorskip("hydra.utils").instantiate
    reference = instantiate(
        {
            "_target_": "ubmd.reference.ase_reference.ASEReference",
            "calculator": {"_target_": "ase.calculators.emt.EMT"},
        }
    )
    assert np.isfinite(reference.compute(bulk("Cu")).energy)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (OSError("No space left on device"), UnfinishedError),
        (BrokenPipeError(), UnfinishedError),
        (MemoryError(), UnfinishedError),
        (CalledProcessError(-9, "program"), UnfinishedError),
        (CalculationFailed("the program returned an error: 1"), UnfinishedError),
        (SCFError(), ReferenceError),
        (KohnShamConvergenceError("after 100 steps"), ReferenceError),
        (NotImplementedError("no parameters for U"), UnfinishedError),
        (KeyError("x"), UnfinishedError),
        (SystemExit(0), UnfinishedError),
        (ModuleNotFoundError("No module named 'program'"), SetupError),
        (EnvironmentError("no command"), SetupError),
        (CalculatorSetupError("no licence"), SetupError),
    ],
)
def test_what_errors_say_about_a_structure(error: BaseException, meaning: type[Exception]) -> None:
    with pytest.raises(meaning) as caught:
        ASEReference(Strange(error)).compute(Atoms("H"))
    assert type(caught.value) is meaning


class Program(FileIOCalculator):
    """Runs a program, as ASE's calculators of older programs do."""

    name = "program"
    implemented_properties = ["energy", "forces"]  # noqa: RUF012


def program(command: str, folder: Path) -> ASEReference:
    return ASEReference(Program(directory=str(folder), profile=OldShellProfile(command)))


def test_a_program_that_crashes_says_nothing_about_the_structure(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match="error code"):
        program("sh -c 'exit 1'", tmp_path).compute(molecule("H2O"))


@pytest.mark.parametrize("command", ["no-such-program -x", "MKL_NUM_THREADS=1 no-such-program", "OMP_NUM_THREADS=1"])
def test_a_missing_program_is_bad_input(command: str, tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels.db")
    reference = program(command, tmp_path)
    with pytest.raises(InputError, match="needs the program"):
        reference.check()
    with pytest.raises(InputError, match="needs the program"):
        label_structures([molecule("H2O")], reference, store)
    assert len(store) == 0
    for fine in ("env sh", "X=1 sh", "module load program; no-such-program"):  # shell syntax is left to the shell
        program(fine, tmp_path).check()

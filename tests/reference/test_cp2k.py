"""CP2K: with a stand-in for its shell, and for real where it is installed."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.units import Rydberg

from ubmd.config import build
from ubmd.errors import InputError
from ubmd.reference.base import ReferenceError, UnfinishedError
from ubmd.reference.cp2k import CP2KReference, check_scf
from ubmd.reference.labelling import label_structures
from ubmd.reference.store import LabelStore

SHELL = Path(__file__).parent / "programs" / "cp2k_shell.py"
TEMPLATE = """
&FORCE_EVAL
  &DFT
    &SCF
      &MIXING
        METHOD BROYDEN_MIXING
      &END MIXING
      &PRINT
        &RESTART OFF
        &END RESTART
      &END PRINT
    &END SCF
  &END DFT
&END FORCE_EVAL
"""
installed = pytest.mark.skipif(
    shutil.which("cp2k_shell.psmp") is None, reason="CP2K is not installed (apt-get install cp2k cp2k-data)"
)


def stand_in(does: str, folder: Path, **keys) -> CP2KReference:
    command = f"OMP_NUM_THREADS=1 {sys.executable} {SHELL} {does}"
    return CP2KReference(**{"template": TEMPLATE, "command": command, "scratch": str(folder / "scratch")} | keys)


def silicon() -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.set_cell(atoms.cell.array * 1.02, scale_atoms=True)
    return atoms


def test_labels_of_a_shell(tmp_path: Path) -> None:
    atoms = silicon()
    label = stand_in("converged", tmp_path).compute(atoms)
    assert label.energy == pytest.approx(0.5 * (atoms.positions**2).sum(), rel=1e-14)
    np.testing.assert_array_equal(label.forces, -atoms.positions)
    np.testing.assert_array_equal(label.stress, [[0, -4, -8], [-4, -8, -12], [-8, -12, -16]])
    assert not list((tmp_path / "scratch").iterdir())
    box = molecule("H2O", vacuum=4)
    assert stand_in("converged", tmp_path).compute(box).stress is None


def test_what_does_not_converge_is_a_failure_and_what_breaks_off_is_none(tmp_path: Path) -> None:
    """CP2K returns numbers for the first, and so does the stand-in."""
    store, atoms = LabelStore(tmp_path / "labels.db"), silicon()
    with pytest.raises(InputError, match=r"none of 1 labels came to an end .*basis set <XX> for element <Si> was not"):
        label_structures([atoms], stand_in("abort", tmp_path), store)
    with pytest.raises(InputError, match=r"none of 1 labels came to an end .*does not say that the SCF converged"):
        label_structures([atoms], stand_in("silent", tmp_path), store)
    assert len(store) == 0
    ((_, reason),) = label_structures([atoms], stand_in("unconverged", tmp_path), store).failed
    assert reason.startswith("the SCF did not converge; see ")
    assert "BASIS_SET DZVP-MOLOPT-SR-GTH" in (Path(reason.partition("; see ")[2]) / "cp2k.inp").read_text()
    assert len(store) == 1


@pytest.mark.parametrize(
    ("output", "problem", "error"),
    [
        (" *** SCF run converged in 9 steps ***\n outer SCF loop converged in 2 iterations or 20 steps", None, None),
        # the inner loop of a later outer iteration converged, the outer one did not
        ("*** SCF run converged in 9 steps ***\n outer SCF loop FAILED to converge", None, ReferenceError),
        ("*** WARNING in qs_scf.F:601 :: SCF run NOT converged ***", None, ReferenceError),
        # from 2024.2 on CP2K aborts
        ("SCF run NOT converged. To continue the calculation [ABORT]", AssertionError(), ReferenceError),
        ("Leaving inner SCF loop after reaching 50 steps.", None, UnfinishedError),
        ("", AssertionError(), UnfinishedError),
        ("*** SCF run converged in 9 steps ***", AssertionError(), UnfinishedError),
    ],
)
def test_only_a_converged_scf_is_accepted(output: str, problem: Exception | None, error: type | None) -> None:
    if error is None:
        check_scf(output, problem)
    else:
        with pytest.raises(error):
            check_scf(output, problem)


def test_options_are_in_the_input(tmp_path: Path) -> None:
    keys = {"dispersion": None, "cutoff_ry": 300, "rel_cutoff_ry": 50, "max_scf": 7, "eps_scf": 1e-5, "charge": 1}
    basis = {"basis_set": {"Si": "SZV-MOLOPT-PBE-GTH-q4"}, "basis_set_file": "BASIS_MOLOPT_UZH"}
    with pytest.raises(ReferenceError) as caught:
        stand_in("unconverged", tmp_path, functional="BLYP", **keys, **basis).compute(silicon())
    lines = (Path(str(caught.value).partition("; see ")[2]) / "cp2k.inp").read_text().split("\n")
    found = [line.strip() for line in lines]
    for line in (
        *("REL_CUTOFF 50", "MAX_SCF 7", "EPS_SCF 1e-05", "CHARGE 1", "METHOD BROYDEN_MIXING", "&BLYP", "&KIND Si"),
        *("BASIS_SET SZV-MOLOPT-PBE-GTH-q4", "POTENTIAL GTH-PBE", f"CUTOFF [eV] {300 * Rydberg:.18e}"),
    ):
        assert line in found
    assert not any("VDW" in line for line in found)
    assert found.count("&KIND Si") == 1


def test_charge_and_spin_of_the_structure_are_in_the_input(tmp_path: Path) -> None:
    atoms = silicon()
    atoms.info.update(charge=-1, spin=2)
    with pytest.raises(ReferenceError) as caught:
        stand_in("unconverged", tmp_path).compute(atoms)
    text = (Path(str(caught.value).partition("; see ")[2]) / "cp2k.inp").read_text()
    for line in ("CHARGE -1", "MULTIPLICITY 2", "UNRESTRICTED_KOHN_SHAM"):
        assert line in text
    atoms.info["spin"] = 1
    with pytest.raises(InputError, match=r"multiplicity of 1 .* impossible for 113 electrons"):
        stand_in("unconverged", tmp_path).check_atoms(atoms)


def test_the_papers_input(tmp_path: Path) -> None:
    from ubmd.cli.app import compose

    overrides = ["reference=cp2k", "structures=x.xyz", "reference.eps_scf=1e-7"]
    cfg = compose("label", overrides)
    cfg.reference.command = f"{sys.executable} {SHELL} unconverged"
    cfg.reference.scratch = str(tmp_path)
    reference = build(cfg, "reference")
    assert reference.has_stress
    with pytest.raises(ReferenceError) as caught:
        reference.compute(Atoms("AlOCH", np.diag([0.0, 2, 4, 6])[:, :3], cell=[9, 9, 9], pbc=True))
    text = (Path(str(caught.value).partition("; see ")[2]) / "cp2k.inp").read_text()
    for part in ("&PBE", "TYPE DFTD3(BJ)", "REFERENCE_FUNCTIONAL PBE", "BASIS_SET TZVP-MOLOPT-PBE-GTH-q3"):
        assert part in text
    assert f"CUTOFF [eV] {1000 * Rydberg:.18e}" in text
    assert "EPS_SCF 1e-07" in text


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"cutoff_ry": 0}, "reference.cutoff_ry=0 is not positive"),
        ({"template": "&FORCE_EVAL\n&DFT\n&SCF\nEPS_SCF 1\n&END\n&END\n&END"}, "reference.template: Keyword EPS_SCF"),
        ({"template": "&FORCE_EVAL\n&END\n&FORCE_EVAL\n&END"}, "Multiple FORCE_EVAL sections found"),
    ],
)
def test_impossible_values(keys: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        CP2KReference(**{"template": TEMPLATE} | keys)


def test_structures_and_machines_that_cannot_be(tmp_path: Path) -> None:
    for atoms in (bulk("Si") * (1, 1, 1), molecule("H2O")):
        atoms.pbc = (True, True, False)
        with pytest.raises(InputError, match=r"CP2K labels structures that are periodic in three directions"):
            stand_in("converged", tmp_path).compute(atoms)
    with pytest.raises(InputError, match=r"reference.basis_set has no name for Si"):
        stand_in("converged", tmp_path, basis_set={"C": "x"}).compute(silicon())
    with pytest.raises(InputError, match=r"CP2K needs the program no-such-shell, which is not found; on Debian"):
        CP2KReference(template=TEMPLATE, command="no-such-shell -s").check()


@installed
@pytest.mark.slow
def test_stress_is_the_strain_derivative(tmp_path: Path) -> None:
    """Sign and unit; minimal basis and a coarse grid, hence not to more than three digits."""
    reference = CP2KReference(
        template=TEMPLATE, basis_set="SZV-MOLOPT-SR-GTH", cutoff_ry=100, eps_scf=1e-7, scratch=str(tmp_path)
    )
    atoms, step = silicon(), 2e-3
    label = reference.compute(atoms)
    assert label.stress is not None
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ np.diag([1 + sign * step, 1, 1]), scale_atoms=True)
        energies.append(reference.compute(strained).energy)
    slope = (energies[0] - energies[1]) / (2 * step * atoms.get_volume())
    assert label.stress[0, 0] == pytest.approx(slope, rel=1e-3)
    assert np.abs(label.forces.sum(axis=0)).max() < 0.01
    assert not list(tmp_path.iterdir())


@installed
@pytest.mark.slow
def test_an_unconverged_scf_is_rejected(tmp_path: Path) -> None:
    reference = CP2KReference(
        template=TEMPLATE, basis_set="SZV-MOLOPT-SR-GTH", cutoff_ry=100, max_scf=2, scratch=str(tmp_path)
    )
    store = LabelStore(tmp_path / "labels.db")
    report = label_structures([silicon()], reference, store)
    assert not report.labelled
    ((_, reason),) = report.failed
    assert reason.startswith("the SCF did not converge; see ")
    assert len(store) == 1


@pytest.mark.parametrize("rest", ["; touch FILE", "$(touch FILE)", "`touch FILE`", "& touch FILE", "| tee FILE"])
def test_no_shell_runs_the_command(tmp_path: Path, rest: str) -> None:
    file = tmp_path / "made"
    reference = stand_in(f"converged {rest.replace('FILE', str(file))}", tmp_path)
    with pytest.raises(InputError, match="run without a shell"):
        reference.compute(silicon())
    with contextlib.suppress(UnfinishedError):
        reference._run(silicon(), reference._parameters_for(silicon()), tmp_path)  # also without the check
    assert not file.exists()


def test_a_command_that_is_none() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        CP2KReference(template=TEMPLATE, command="'cp2k").check()

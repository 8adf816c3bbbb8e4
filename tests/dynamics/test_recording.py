"""The log of molecular dynamics, frames in full, and runs that go on beyond their limit."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.emt import EMT

from tests.dynamics.npt_toys import AseWalkers
from tests.dynamics.test_slots import assert_close
from tests.dynamics.test_walker_resume import (
    CHAINED,
    LANGEVIN,
    Interrupted,
    burst,
    explore,
    molecules,
    pressed,
    slowly_biased,
)
from tests.dynamics.walker_toys import SlowToy, Toy, assert_same, cluster, walkers
from ubmd.data.batch import collate
from ubmd.dynamics.checkpoint import change_checkpoint
from ubmd.dynamics.integrators.langevin import Langevin
from ubmd.dynamics.integrators.mtk import MTK
from ubmd.dynamics.recording import COLUMNS, Recording, last_line
from ubmd.dynamics.state import initial_state
from ubmd.dynamics.stopping import StoppingRules, StopReason
from ubmd.dynamics.walker_run import with_frames, without_frames
from ubmd.dynamics.walkers import run_walkers
from ubmd.errors import InputError


class Pushed(AseWalkers):
    """EMT under a bias of a constant force along x."""

    @property
    def unbiased(self) -> AseWalkers:
        return AseWalkers()

    def __call__(self, batch, memory=None, *, stress=False):
        found = super().__call__(batch, memory, stress=stress)
        bias = -0.3 * batch.sum_atoms(batch.positions[:, 0]).double()
        forces = found.forces + torch.tensor([0.3, 0, 0]).to(found.forces)
        return replace(found, energy=found.energy + bias, bias_energy=bias, forces=forces)


def copper(n: int) -> list[Atoms]:
    rng = np.random.default_rng(3)
    cell = 3.7 * np.array([[1.0, 0, 0], [0.1, 1, 0], [0, -0.1, 1.05]])
    grid = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) @ cell
    return [Atoms("Cu4", grid + 0.05 * rng.normal(size=(4, 3)), cell=cell, pbc=True) for _ in range(n)]


def rows(log: Path) -> list[dict[str, float]]:
    with log.open(newline="") as file:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("integrator", [Langevin(dt=2.0), MTK(2.0)], ids=["langevin", "npt"])
def test_numbers_are_those_of_ase(tmp_path, integrator):
    """Frames and log against ASE's EMT, kinetic energies, temperatures and pressures, in ASE's units."""
    batch = collate(copper(2), 1.0, dtype=torch.float64)
    state = initial_state(batch, temperature=[300.0, 900.0], seeds=[1, 2])
    found = run_walkers(
        state,
        Pushed(),
        integrator,
        StoppingRules(None, max_steps=20),
        frame_interval=10,
        recording=Recording(tmp_path / "log.csv", 10, 2.0),
    )
    written = rows(tmp_path / "log.csv")
    assert tuple(written[0]) == COLUMNS
    assert [(row["walker"], row["step"]) for row in written] == [(0, 0), (1, 0), (0, 10), (1, 10), (0, 20), (1, 20)]
    assert found.time is not None
    assert found.momenta is not None
    assert found.forces is not None
    assert found.stress is not None
    assert found.bias_energy is not None
    for i in range(found.n_frames):
        atoms = Atoms(found.numbers, found.positions[i], cell=found.cell[i], pbc=found.pbc)
        atoms.calc = EMT()
        np.testing.assert_allclose(found.forces[i], atoms.get_forces(), atol=1e-10)
        np.testing.assert_allclose(found.stress[i], atoms.get_stress(voigt=False), atol=1e-10)
        np.testing.assert_allclose(found.bias_energy[i], -0.3 * atoms.positions[:, 0].sum(), rtol=1e-10)
        atoms.set_momenta(found.momenta[i] / units.fs)
        row = next(r for r in written if (r["walker"], r["step"]) == (found.walker[i], found.step[i]))
        assert found.time[i] == 1000 * row["time_ps"] == 2.0 * found.step[i]
        stress = atoms.get_stress(voigt=False, include_ideal_gas=True)
        for name, expected in {
            "potential_energy_ev": atoms.get_potential_energy(),
            "bias_energy_ev": found.bias_energy[i],
            "kinetic_energy_ev": atoms.get_kinetic_energy(),
            "total_energy_ev": atoms.get_total_energy(),
            "temperature_k": atoms.get_temperature(),
            "volume_ang3": atoms.get_volume(),
            "pressure_mpa": -np.trace(stress) / 3 / units.GPa * 1000,
        }.items():
            np.testing.assert_allclose(row[name], expected, rtol=1e-8, err_msg=name)
    knows = isinstance(integrator, MTK)
    assert all(np.isfinite(row["conserved_energy_ev"]) == knows for row in written)
    assert np.isnan(written[0]["tau"]), "EMT has no uncertainty"


def test_molecules_have_no_pressure(tmp_path):
    found = run_walkers(
        walkers([cluster(5)]),
        Toy(),
        Langevin(),
        StoppingRules(None, max_steps=4),
        frame_interval=2,
        recording=Recording(tmp_path / "log.csv", 3, 0.5),
    )
    written = rows(tmp_path / "log.csv")
    assert [row["step"] for row in written] == [0, 3]
    assert all(np.isnan(row[name]) for row in written for name in ("pressure_mpa", "volume_ang3"))
    assert [row["tau"] for row in written] == [0.25, 0.25]
    assert all(row["max_atomic_uncertainty_ev_per_ang"] > 0 for row in written)
    assert found.stress is None


@pytest.mark.parametrize(
    ("case", "integrator"),
    [
        (molecules(torch.float32), LANGEVIN),
        (slowly_biased(torch.float32), LANGEVIN),
        (pressed(torch.float32), CHAINED),
    ],
)
def test_a_run_that_goes_on_twice_equals_a_long_one(tmp_path, case, integrator):
    """Bit by bit, the log as well: also where the last part is interrupted, and the limit no multiple of anything."""
    state, toy, rules = case
    whole = explore(case, integrator, recording=Recording(tmp_path / "whole.csv", 10, 1.0))
    file, recording = tmp_path / "walkers.pt", Recording(tmp_path / "log.csv", 10, 1.0)
    calls = 0

    def interrupt(*_) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Interrupted

    part = None
    for limit in (53, 77, rules.max_steps):
        if part is not None:
            without_frames(file)
            with pytest.raises(InputError, match="its frames are missing"):
                explore((state, toy, replace(rules, max_steps=limit)), integrator, checkpoint=file, recording=recording)
            assert with_frames(file, part, part.walkers)
            assert with_frames(file, part, part.walkers), "twice is once"
        options = {"checkpoint": file, "checkpoint_interval": 11, "progress_interval": 7, "recording": recording}
        shorter = state, toy, replace(rules, max_steps=limit)
        try:
            part = explore(shorter, integrator, on_progress=interrupt if limit == rules.max_steps else None, **options)
        except Interrupted:
            part = explore(shorter, integrator, **options)
    assert part is not None
    assert calls == 4
    assert_same(part, whole)
    assert part.momenta is not None
    assert len(set(part.reasons)) > 1
    assert recording.log.read_text() == (tmp_path / "whole.csv").read_text()


def test_another_run_or_a_lower_limit_is_refused(tmp_path):
    state, toy, rules = molecules()
    options = {"checkpoint": tmp_path / "walkers.pt", "recording": Recording(tmp_path / "log.csv", 10, 1.0)}
    explore((state, toy, replace(rules, max_steps=60)), **options)
    with pytest.raises(InputError, match="max_steps=59 is below the 60 steps that were done"):
        explore((state, toy, replace(rules, max_steps=59)), **options)
    with pytest.raises(InputError, match="another run"):
        explore((state, toy, replace(rules, max_steps=90)), Langevin(dt=2.0), **options)
    with pytest.raises(InputError, match="another run"):
        explore((state, toy, replace(rules, max_steps=90, min_distance=None)), **options)


def test_only_the_limit_is_lifted(tmp_path):
    """Walkers that had another reason to stop have it still."""
    state, toy, rules = molecules()
    options = {"checkpoint": tmp_path / "walkers.pt", "recording": Recording(tmp_path / "log.csv", 10, 1.0)}
    before = explore((state, toy, replace(rules, max_steps=100)), **options)
    after = explore((state, toy, rules), **options)
    stopped = before.reasons != StopReason.MAX_STEPS
    assert 0 < stopped.sum() < len(stopped)
    np.testing.assert_array_equal(after.reasons[stopped], before.reasons[stopped])
    np.testing.assert_array_equal(after.steps[stopped], before.steps[stopped])
    assert (after.steps[~stopped] > 100).all()


def test_a_log_that_is_gone_is_begun_anew(tmp_path, caplog):
    state, toy, rules = molecules()
    options = {"checkpoint": tmp_path / "walkers.pt", "recording": Recording(tmp_path / "log.csv", 10, 1.0)}
    explore((state, toy, replace(rules, max_steps=60)), **options)
    (tmp_path / "log.csv").unlink()
    explore((state, toy, replace(rules, max_steps=80)), **options)
    assert "rows are missing" in caplog.text
    assert min(row["step"] for row in rows(tmp_path / "log.csv")) == 70


def test_a_bias_that_has_not_begun_is_zero(tmp_path):
    """Its energy is -tau u, hence -0."""
    state, toy, rules = molecules()

    def unbiased(*given, **options):
        found = toy(*given, **options)
        return replace(found, bias_energy=-torch.zeros_like(found.energy))

    unbiased.cutoff = toy.cutoff
    explore((state, unbiased, replace(rules, max_steps=10)), recording=Recording(tmp_path / "log.csv", 5, 1.0))
    with (tmp_path / "log.csv").open(newline="") as file:
        assert {row["bias_energy_ev"] for row in csv.DictReader(file)} == {"0"}


def test_half_a_row_is_cut_off(tmp_path, caplog):
    """What a machine without power has left of the log."""
    state, toy, rules = molecules()
    log = tmp_path / "log.csv"
    options = {"checkpoint": tmp_path / "walkers.pt", "recording": Recording(log, 10, 1.0)}
    explore((state, toy, replace(rules, max_steps=30)), **options)
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:-1], lines[-1][:9]]))
    explore((state, toy, replace(rules, max_steps=40)), **options)
    assert "rows are missing" in caplog.text
    assert [len(row.split(",")) for row in log.read_text().splitlines()] == [len(COLUMNS)] * (len(lines) - 1 + 3)


def test_a_bias_that_is_not_evaluated_is_not_zero(tmp_path):
    """Between its evaluations neither its energy nor the conserved one is known."""
    state, toy, rules = slowly_biased()
    explore((state, toy, replace(rules, max_steps=20)), recording=Recording(tmp_path / "log.csv", 2, 1.0))
    written = rows(tmp_path / "log.csv")
    assert {row["step"] for row in written if np.isfinite(row["bias_energy_ev"])} == {0, 10, 20}
    assert all(np.isfinite(row["potential_energy_ev"]) for row in written)
    state, toy, rules = pressed()
    toy = SlowToy(cutoff=3.2, epsilon=0.1, sigma=2.4, tether=0.0, fault=burst)
    explore((state, toy, replace(rules, max_steps=20)), CHAINED, recording=Recording(tmp_path / "npt.csv", 2, 1.0))
    written = rows(tmp_path / "npt.csv")
    assert {row["step"] for row in written if np.isfinite(row["conserved_energy_ev"])} == {0, 10, 20}


def test_walkers_that_went_on_in_turn_go_on_together(tmp_path, caplog):
    """More of them than slots, each as it would have alone."""
    state, toy, rules = molecules()
    rules = replace(rules, max_steps=50)
    whole = explore((state, toy, rules), slots=2)
    options = {"checkpoint": tmp_path / "walkers.pt", "recording": Recording(tmp_path / "log.csv", 10, 1.0), "slots": 2}
    explore((state, toy, replace(rules, max_steps=30)), **options)
    found = explore((state, toy, rules), **options)
    assert_close(found, whole)
    assert "slots=2: the 3 walkers" in caplog.text


def test_states_that_were_not_kept_are_missed(tmp_path):
    """As by an earlier version that was interrupted after some walkers had ended."""
    state, toy, rules = molecules()
    options = {"checkpoint": tmp_path / "walkers.pt", "recording": Recording(tmp_path / "log.csv", 10, 1.0)}
    explore((state, toy, replace(rules, max_steps=60)), **options)
    assert change_checkpoint(options["checkpoint"], lambda values: {"parked": []})
    with pytest.raises(InputError, match="has not kept all of their states"):
        explore((state, toy, rules), **options)


def test_a_line_that_is_being_written_is_not_shown(tmp_path):
    log, row = tmp_path / "log.csv", ",".join(["0", "20", *["1.5"] * (len(COLUMNS) - 2)])
    log.write_text(",".join(COLUMNS) + f"\n{row}\n")
    shown = last_line([log])
    assert shown.startswith("step 20, 1.5 ps")
    with log.open("a") as file:
        file.write("0,40,0.0")
    assert last_line([log]) == shown

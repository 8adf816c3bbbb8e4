"""What a run must fulfil, of plain functions alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ubmd.cli import main as cli
from ubmd.errors import InputError
from ubmd.rounds.checks import check_test
from ubmd.systems.several import Systems
from ubmd.systems.system import System


def stating(**info: float) -> Atoms:
    atoms = molecule("OH")
    atoms.set_initial_magnetic_moments(None)
    atoms.info = info
    return atoms


def checked(system: Atoms, *test: Atoms, **reference: int | None) -> None:
    check_test(reference, Systems.of(System(system)), test)


@pytest.mark.parametrize(
    ("system", "test", "reference"),
    [
        ({}, {}, {}),
        ({}, {"charge": 0, "spin": 4}, {}),  # nothing says which multiplicity the system has
        ({"charge": -1}, {"charge": -1.0}, {"charge": None}),
        ({}, {"charge": -1}, {"charge": -1}),
        ({"spin": 2}, {"spin": 2}, {}),
    ],
)
def test_structures_of_the_same_state(system, test, reference) -> None:
    checked(stating(**system), stating(**test), **reference)


@pytest.mark.parametrize(
    ("system", "test", "reference", "message"),
    [
        ({}, {"charge": 1}, {}, "structure 1 of data.test has the charge 1, the system 0"),
        ({"charge": -1}, {"charge": 0}, {}, "has the charge 0, the system -1"),
        ({}, {"charge": 0}, {"charge": 1}, "has the charge 0, the system 1"),
        ({"spin": 2}, {"spin": 4}, {}, "has the multiplicity 4, the system 2"),
        ({}, {"spin": 4}, {"multiplicity": 2}, "has the multiplicity 4, the system 2"),
    ],
)
def test_structures_of_another_state_are_refused(system, test, reference, message) -> None:
    with pytest.raises(InputError, match=message):
        checked(stating(**system), stating(**system), stating(**test), **reference)


def test_a_charge_that_is_not_stated_is_said(caplog) -> None:
    checked(stating(charge=-1), stating(), stating(charge=-1))
    assert "1 structures state no charge; it is taken for that of the system, -1" in caplog.text


def test_moments_of_crystals_say_no_multiplicity() -> None:
    iron = [bulk("Fe", cubic=True) for _ in range(2)]
    for atoms, moment in zip(iron, (2.2, 2.3), strict=True):
        atoms.set_initial_magnetic_moments([moment, moment])
    checked(*iron)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("dynamics.integrator.dt=-1", "dynamics.integrator.dt must be a positive time step"),
        ("dynamics.integrator.dt=1e9", "dynamics.integrator.dt must be a positive time step in fs, at most 100"),
        (
            "dynamics.integrator.temperature=[300,1e12]",
            "dynamics.integrator.temperature=[300, 1000000000000.0] must be",
        ),
        ("model.cutoff=1e9", "at most 20 Å"),
        ("model.hidden=[]", "model.hidden=[] must be one width or more"),
        ("model.hidden=[1000000000]", "each from 1 to 16384"),
        ("model.hidden.a=3", "model.hidden is a list, whose items have numbers"),
        ("uncertainty.features.n_projections=0", "uncertainty.features.n_projections=0 must be from 1"),
        ("calibration.atomic.alpha=2", "calibration.atomic.alpha must lie between 0 and 1"),
        ("system.displacement=1e9", "system.displacement=1000000000.0 must be from 0 to 10 Å"),
        ("dynamics.n_walkers=1000000000", "dynamics.n_walkers=1000000000 must be at most"),
        ("+trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must be at least 0"),
        ("+callbacks.ema={_target_: ubmd.callbacks.ema.ExponentialMovingAverage, decay: 2}", "callbacks.ema.decay=2"),
        ("hydra.sweeper._target_=abc", "hydra.sweeper._target_ is no sweeper: abc"),
        ("name=''", "name is empty"),
    ],
)
def test_numbers_out_of_range_name_their_key_and_leave_nothing(
    override: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UBMD_CACHE", str(tmp_path / "cache"))
    options = ["experiment=bulk_demo", "logger=csv", "data.test=null", "system.relax=null", "model.hidden=[4]"]
    assert cli.main(["learn", *options, override]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("override", ["+reference.calculator.api_key=abcdefgh,ijklmnop", "executor=serial,processes"])
def test_jobs_of_a_sweep_that_would_share_a_folder(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UBMD_RUNS", str(tmp_path / "runs"))
    assert cli.main(["learn", "experiment=bulk_demo", override, "-m"]) == 2
    err = capsys.readouterr().err
    assert f"two values of {override.partition('=')[0]} would share the folder" in err
    assert "abcdefgh" not in err

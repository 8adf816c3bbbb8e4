from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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

"""The plan of the package: who may import whom, and where a configuration goes."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ubmd"
ROOMS = (
    *("cli", "commands", "rounds", "analysis", "interfaces", "callbacks", "training", "dynamics", "bias", "selection"),
    *("uncertainty", "models", "systems", "runs", "reference", "observables", "data"),
)
"""From top to bottom; a room may use what stands below it. All stand on the modules of ``ubmd/`` itself."""
DOORS = ("ubmd", "ubmd.__main__")
"""What stands outside and uses everything."""
ABOVE_ALL = ("testing",)
"""Rooms for others, which nothing else uses."""


def modules() -> dict[str, Path]:
    names = {".".join(("ubmd", *f.relative_to(ROOT).with_suffix("").parts)): f for f in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imported(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    """Modules of ubmd that a module imports anywhere, also for its annotations alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "ubmd":
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "ubmd"}
    return found


MODULES = modules()
IMPORTS = {name: imported(ast.parse(file.read_text()), MODULES) for name, file in MODULES.items()}


def floor(module: str) -> int:
    """Height of a module's room above the ground."""
    room = module.split(".")[1] if module.count(".") else ""
    if module in DOORS or room in ABOVE_ALL:
        return len(ROOMS) + 1
    return len(ROOMS) - ROOMS.index(room) if room in ROOMS else 0


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_imported_from_above(module: str) -> None:
    assert not {other for other in IMPORTS[module] if floor(other) > floor(module)}


def test_every_package_is_a_room() -> None:
    assert {f.name for f in ROOT.iterdir() if (f / "__init__.py").exists()} - {*ABOVE_ALL} == {*ROOMS}


def test_there_is_no_circle() -> None:
    tuple(graphlib.TopologicalSorter(IMPORTS).static_order())


def test_a_circle_would_be_found() -> None:
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(IMPORTS | {"ubmd.errors": {"ubmd.cli.main"}}).static_order())


def test_only_the_command_line_and_the_commands_see_configurations() -> None:
    sees = {name for name, file in MODULES.items() if "DictConfig" in file.read_text()}
    # config.py is what both use: it compares composed configurations with signatures, and builds of them
    assert {name.split(".")[1] for name in sees} == {"cli", "commands", "config"}, sees

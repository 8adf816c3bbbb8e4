"""The notebooks run from beginning to end, with everything small, and are kept without outputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

BACKEND = "module://matplotlib_inline.backend_inline"
AFRESH = "%reset -f\nimport os\nimport torch\ntorch.set_default_dtype(torch.float32)\n"
"""What a notebook finds in a kernel that ran another one."""

TINY = [
    "model.n_basis=2",
    "model.n_gauss=4",
    "model.hidden=[8,8]",
    "uncertainty.features.n_projections=16",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=-1",
    "trainer.max_steps=20",
    "learning.max_rounds=2",
    "bias.window=5",
    "dynamics.stopping.max_steps=20",
    "dynamics.stopping.uncertainty_threshold=1000",
    "labelling.max_force=1000",
]
TEST_SET = "{n_structures: 8, duration_ps: 0.8, trajectories: 2}"
SMALL: dict[str, dict[str, Any]] = {
    "1_from_a_molecule_to_a_potential": {"SIZE": [*TINY, "learning.batch_size=4", "learning.max_structures=12"]},
    "2_uncertainty_in_two_dimensions": {"ROUNDS": 2, "FIT_STEPS": 20, "MD_STEPS": 60, "GRID": 12},
    "3_comparing_runs": {"SEEDS": (0,), "SIZE": [*TINY, f"data.test.sample={TEST_SET}"]},
    "4_a_crystal_and_the_bias_stress": {"SIZE": [*TINY, "data.test.sample.n_structures=4"]},
}
"""By the name of a notebook, what the test replaces of its cell of parameters."""

FIGURES = {
    "1_from_a_molecule_to_a_potential": 3,
    "2_uncertainty_in_two_dimensions": 6,
    "3_comparing_runs": 2,
    "4_a_crystal_and_the_bias_stress": 2,
}


def named(path: Path) -> str:
    return path.stem


def test_there_is_a_size_for_each() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(SMALL) == sorted(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_without_outputs(path: Path) -> None:
    book = json.loads(path.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert set(book["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_pages_lead_to_them(path: Path) -> None:
    for page in ("README.md", "docs/notebooks.md"):
        assert f"notebooks/{path.name}" in (ROOT / page).read_text()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """One for all of them, which saves importing everything four times."""
    folder = tmp_path_factory.mktemp("kernel")
    outside = {"WANDB_MODE": "offline", "UBMD_CACHE": str(folder / "cache"), "UBMD_RUNS": str(folder / "runs")}
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env=os.environ | outside | {"MPLBACKEND": BACKEND}, cwd=str(folder))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_runs(path: Path, kernel: KernelManager, tmp_path: Path) -> None:
    """In an empty folder, as its reader does; it draws its figures there."""
    book = nbformat.read(path, as_version=4)
    (place,) = [i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", [])]
    smaller = "\n".join(f"{name} = {value!r}" for name, value in SMALL[path.stem].items())
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(smaller))
    book.cells.insert(0, nbformat.v4.new_code_cell(AFRESH + f"os.chdir({str(tmp_path)!r})"))
    NotebookClient(book, km=kernel, timeout=250).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[path.stem]
    assert "ipywidgets" not in str(outputs)
    assert {file.name for file in tmp_path.iterdir()} <= {"runs"}

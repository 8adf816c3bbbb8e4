"""Figures of a run of active learning that need its potentials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ubmd.analysis.evaluation import evaluate_structures, half_confidence, scatter_of_worst_atoms
from ubmd.analysis.figures import save_figure
from ubmd.analysis.held_out import draw_errors_by_volume
from ubmd.config import build
from ubmd.interfaces.ase import torch_device
from ubmd.uncertainty.checkpoint import load_potential

if TYPE_CHECKING:
    from ubmd.rounds.run import Run

__all__ = ["draw_calibration", "draw_volume_errors"]


def draw_calibration(run: Run, index: int) -> None:
    """A round's largest atomic errors on the test set against their uncertainties, drawn once."""
    file = run.store.figures / "calibration.png"
    structures = run.datamodule.test_structures
    if not structures or file.exists():
        return
    device = torch_device("cpu" if run.cfg.trainer.accelerator == "cpu" else "auto")
    trained = load_potential(run.store.folder(index).model, device=device)
    size = run.datamodule.evaluation_batch_size
    run.datamodule.set_round(index, run.store.structures(index))
    calibrated = [run.datamodule.structures[i] for i in run.datamodule.valid_indices]
    found, valid = (
        evaluate_structures(trained.model, trained.uncertainty, part, batch_size=size)
        for part in (structures, calibrated)
    )
    methods = {name: build(run.cfg, f"calibration.{name}") for name in ("atomic", "total")}
    half = half_confidence(found, valid, **methods)
    figure = scatter_of_worst_atoms(found, methods["atomic"].alpha, half)
    if figure is not None:
        save_figure(figure, file)


def draw_volume_errors(run: Run, index: int) -> None:
    """Errors on the test set against the volume, of the first and of a later round, drawn once."""
    draw_errors_by_volume(
        run.store,
        sorted({0, index}),
        run.datamodule.test_structures,
        run.system,
        batch_size=run.datamodule.evaluation_batch_size,
        device=torch_device("cpu" if run.cfg.trainer.accelerator == "cpu" else "auto"),
    )

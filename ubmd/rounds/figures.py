"""Figures of a run of active learning that need its potentials."""

from __future__ import annotations

import logging

import torch

from ubmd.analysis.evaluation import evaluate_structures, half_confidence, scatter_of_worst_atoms, worst_atoms
from ubmd.analysis.figures import save_figure
from ubmd.analysis.held_out import draw_errors
from ubmd.analysis.numbers import write_numbers
from ubmd.analysis.page.document import write_page
from ubmd.analysis.page.worst import WORST, worst_structures
from ubmd.analysis.reliability import calibration_curves
from ubmd.data.io import write_structures
from ubmd.interfaces.ase import torch_device
from ubmd.rounds.run import Run
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.evidence import Split

__all__ = ["draw_calibration", "draw_variable_errors", "write_report"]

log = logging.getLogger(__name__)


def draw_calibration(run: Run, index: int) -> None:
    """A round's largest atomic errors on the test set against their uncertainties, drawn once, with their numbers.

    The calibration curve is drawn as well, and the structures with the largest errors are kept for the report.
    """
    file = run.store.figures / "calibration.png"
    structures = run.datamodule.test_structures
    made = (file, file.with_suffix(".csv"), run.store.figures / WORST)
    if not structures or all(path.exists() for path in made):
        return
    device = _device(run)
    trained = load_potential(run.store.folder(index).model, device=device, allow=run.potentials.allow)
    size = run.datamodule.evaluation_batch_size
    run.datamodule.set_round(index, run.store.structures(index))
    calibrated = [run.datamodule.structures[i] for i in run.datamodule.valid_indices]
    found, valid = (evaluate_structures(trained, part, batch_size=size) for part in (structures, calibrated))
    methods = run.potentials.calibration
    half = None
    if isinstance(methods.evidence, Split):
        half = half_confidence(found, valid, atomic=methods.atomic, total=methods.total)
    figure = scatter_of_worst_atoms(found, methods.atomic.alpha, half)
    if figure is not None:
        write_numbers(file.with_suffix(".csv"), worst_atoms(found, half))
        save_figure(figure, file)
        save_figure(calibration_curves(found, methods.atomic.alpha), file.with_name("calibration_curve.png"))
    write_structures(run.store.figures / WORST, worst_structures(structures, found))


def draw_variable_errors(run: Run, index: int) -> None:
    """Errors on the test set against the system's variables, from the first round to ``index``, drawn once."""
    draw_errors(
        run.store,
        sorted({round(index * share) for share in (0.0, 1 / 3, 2 / 3, 1.0)}),
        run.datamodule.test_structures,
        run.systems,
        batch_size=run.datamodule.evaluation_batch_size,
        device=_device(run),
        allow=run.potentials.allow,
    )


def write_report(run: Run) -> None:
    """Writes ``report.html``; whatever goes wrong with that does not concern the run."""
    try:
        written = write_page(run.store.path, allow=run.potentials.allow)
    except Exception as error:
        log.warning("no report.html: %r; `ubmd report %s` tries again", error, run.store.path)
    else:
        run.progress.console.print(f"report:     {written}", soft_wrap=True, highlight=False, markup=False)


def _device(run: Run) -> torch.device:
    """Where the run's potentials are fitted."""
    return torch_device("cpu" if run.fitting.options.get("accelerator") == "cpu" else "auto")

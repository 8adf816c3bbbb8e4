"""``ubmd evaluate``: the errors of a potential on labelled structures."""

from __future__ import annotations

import hashlib
from pathlib import Path

from omegaconf import DictConfig

from ubmd.analysis.by_variable import draw_by_variable, errors_by_variable
from ubmd.analysis.evaluation import error_metrics, errors_by_system, evaluate_structures, predicted_structures
from ubmd.analysis.figures import save_figure
from ubmd.analysis.reliability import calibration_curves, uncertainty_metrics
from ubmd.commands.parts import label_options, take_potentials
from ubmd.commands.results import content_digests, draw_calibration, report_errors, write_json
from ubmd.config import build, plain
from ubmd.data.io import read_labelled, write_structures
from ubmd.errors import InputError
from ubmd.interfaces.ase import check_elements, torch_device
from ubmd.observables.base import values_of
from ubmd.progress import run_progress
from ubmd.runs.opening import open_run
from ubmd.runs.store import RoundStore
from ubmd.uncertainty.checkpoint import load_potential

__all__ = ["evaluate"]


def evaluate(cfg: DictConfig) -> float:
    """Compares the potential in ``cfg.potential`` with the labels in ``cfg.structures``.

    Writes into the run folder ``metrics.json``, ``predictions.extxyz`` and, in ``figures``, ``calibration.png``,
    ``calibration_curve.png`` and ``error_by_<variable>.png`` of the variables in ``cfg.variables``.

    Returns:
        the force RMSE, eV/Å (for sweepers).

    Raises:
        InputError: for anything wrong in the configuration, the potential or the structures, before any work.
    """
    if cfg.get("logger"):
        raise InputError("logger: `ubmd evaluate` logs to no logger, its results are in metrics.json; leave it out")
    for name, low, high in (("alpha", 0, 1), ("batch_size", 0, float("inf"))):
        if isinstance(cfg[name], bool | str) or not low < cfg[name] < high:
            raise InputError(f"{name}={cfg[name]} must be above {low}" + (" and below 1" if high == 1 else ""))
    take_potentials(cfg)
    device = torch_device(cfg.device)
    trained = load_potential(str(cfg.potential), device=device, allow=plain(cfg)["allow"])
    structures = read_labelled(str(cfg.structures), **label_options(cfg))
    for number, atoms in enumerate(structures):
        known = trained.species
        check_elements(atoms, known, f"structure {number} of {cfg.structures}", cfg.potential)
    variables = build(cfg, "variables") if cfg.variables else {}
    values_of(variables, structures)  # refuses those that a structure does not have
    folder = Path(cfg.paths.run)
    open_run(
        RoundStore(folder),
        plain(cfg)
        | {
            "contents": content_digests({"structures": structures})
            | {"potential_sha256": hashlib.sha256(Path(cfg.potential).read_bytes()).hexdigest()}
        },
    )
    with run_progress() as progress:
        with progress.stage("structures", len(structures)) as stage:
            found = evaluate_structures(
                trained,
                structures,
                batch_size=int(cfg.batch_size),
                on_batch=lambda done: stage.update(done, len(structures)),
            )
        write_structures(folder / "predictions.extxyz", predicted_structures(structures, found))
        draw_calibration(found, cfg.alpha, folder)
        save_figure(calibration_curves(found, cfg.alpha), folder / "figures" / "calibration_curve.png")
        draw_by_variable(found, structures, variables, folder / "figures")
        metrics = error_metrics(found) | uncertainty_metrics(found, cfg.alpha)
        metrics["by_variable"] = errors_by_variable(found, structures, variables)
        columns = {Path(cfg.structures).name: metrics}
        if by_system := errors_by_system(structures, found):
            metrics["by_system"] = by_system
            columns |= by_system
        write_json(folder / "metrics.json", metrics)
        written = f"{folder}: metrics.json, predictions.extxyz, figures/"
        report_errors(columns, written, progress.console)
    return metrics["force_rmse_ev_per_ang"]

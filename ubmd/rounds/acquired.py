"""What a round's potential had said about the structures that it acquired, against the labels that came back."""

from __future__ import annotations

import torch
from ase import Atoms

from ubmd.analysis.evaluation import Evaluation, error_metrics, evaluate_structures
from ubmd.rounds.run import Run
from ubmd.uncertainty.calibration import CalibrationData
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.evidence import Prequential, weighted

__all__ = ["acquired_coverage", "earlier_data", "said_beforehand"]


def said_beforehand(run: Run, index: int, device: torch.device, *, calibrated: bool = True) -> Evaluation | None:
    """Predictions, labels and uncertainties of what a round has acquired, by the potential that chose it.

    The potential is that of the round's file, which has learnt none of these labels, so that a continued run says
    the same as one that was never interrupted. Structures that were rejected have no label to compare with.

    Args:
        run: of the rounds.
        index: of a round that has acquired structures.
        device: where to predict.
        calibrated: whether uncertainties have the round's conformal factors, or none.

    Returns:
        None if the round has no new label.
    """
    structures: list[Atoms] = [a for a in run.store.structures(index + 1) if a.info["round"] == index]
    if not structures:
        return None
    potential = load_potential(run.store.folder(index).model, device=device, allow=run.potentials.allow)
    if not calibrated:
        potential.uncertainty.atomic_scale.fill_(1)
        potential.uncertainty.total_scale.fill_(1)
    return evaluate_structures(potential, structures, batch_size=run.datamodule.evaluation_batch_size)


def acquired_coverage(run: Run, index: int, device: torch.device) -> dict[str, float]:
    """``acquired_coverage_atom`` and ``acquired_coverage_total``, empty without a new label.

    Of the structures that a round has acquired, the shares of atoms and of structures whose error does not exceed the
    uncertainty that the round's potential gave them. Conformal prediction promises 1 - alpha for structures like those
    that calibrate; these were sought out for their uncertainty, and it is for them that walkers were stopped.
    """
    found = said_beforehand(run, index, device)
    if found is None:
        return {}
    metrics = error_metrics(found)
    return {f"acquired_{name}": metrics[name] for name in ("coverage_atom", "coverage_total")}


def earlier_data(run: Run, index: int, evidence: Prequential, device: torch.device) -> CalibrationData | None:
    """What the rounds before one have acquired, with errors and uncertainties of the potentials that chose it.

    None while they have acquired nothing.
    """
    parts = []
    for k, weight in evidence.weights(index).items():
        found = said_beforehand(run, k, device, calibrated=False)
        if found is not None:
            parts.append(weighted(found.calibration_data, weight))
    return CalibrationData.cat(parts) if parts else None

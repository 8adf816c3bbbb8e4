"""Starting a fit from the weights of an earlier one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.gmnn import regress_atomic_energies
from ubmd.models.potential import Potential
from ubmd.uncertainty.checkpoint import load_potential

__all__ = ["correct_shift", "load_weights"]


def load_weights(model: nn.Module, path: str | Path, name: str = "training.start") -> None:
    """Gives a model the weights of a potential that ubmd wrote, in the model's precision.

    Args:
        model: takes the weights.
        path: a ``model.ckpt``.
        name: what the message calls the potential.

    Raises:
        InputError: if the file is no potential, or its model has other species, another cutoff or another shape.
    """
    start = load_potential(path).model
    species, known = _symbols(model), _symbols(start)
    if species != known:
        raise InputError(
            f"{name}={path} knows the species {', '.join(known)}, but this run has {', '.join(species)}; "
            "start from a potential of the same species or list its species here"
        )
    if type(start) is not type(model):
        raise InputError(
            f"{name}={path} holds a {type(start).__name__}, but model is a {type(model).__name__}; "
            "choose the model that it was trained with"
        )
    if start.cutoff != model.cutoff:
        raise InputError(f"{name}={path} has model.cutoff={start.cutoff}, but this run {model.cutoff}; use the same")
    state = start.state_dict()
    for key, value in model.state_dict().items():
        shape = tuple(state[key].shape) if key in state else "none"
        if shape != tuple(value.shape):
            raise InputError(
                f"{name}={path} has a model of another size ({key}: {shape} there, {tuple(value.shape)} here); "
                "choose the options of model that it was trained with"
            )
    tables = dict(start.named_buffers())
    for key, value in model.named_buffers():
        if key not in state and not torch.allclose(tables[key].to(value), value):
            raise InputError(f"{name}={path} has another {key}; choose the options of model that it was trained with")
    model.load_state_dict(state)


def _symbols(model: nn.Module) -> list[str]:
    species = model.species
    assert isinstance(species, Tensor)
    return [chemical_symbols[z] for z in species.tolist()]


def correct_shift(potential: Potential, batches: Iterable[AtomicBatch]) -> None:
    """Adds to the atomic shifts what the energies lack, by least squares over the compositions.

    Weights from a fit to another reference (or another zero of energy) then start right; on data of the same
    kind hardly anything changes. Unlike the regression of Eq. 10 it leaves the energy unit alone, in which
    the loaded weights express themselves.

    Args:
        potential: whose model was given weights.
        batches: labelled training structures.
    """
    model = potential.model
    missing, compositions = [], []
    for batch in batches:
        assert batch.energy is not None
        missing.append(batch.energy.double() - potential(batch).energy)
        compositions.append(model.composition(batch))  # pyright: ignore[reportCallIssue]
    energies, _ = regress_atomic_energies(torch.cat(missing), torch.cat(compositions))
    shift, unit = model.shift, model.energy_unit
    assert isinstance(shift, Tensor)
    assert isinstance(unit, Tensor)
    with torch.no_grad():
        shift.add_((energies / unit.double().cpu()).to(shift))

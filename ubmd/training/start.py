"""Starting a fit from the weights of an earlier one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.potential import Potential
from ubmd.models.scale_shift import worn
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
    # what the model is made of is here already; of PyTorch no part is named in a file, though all models are made of it
    packages = {type(module).__module__.split(".")[0] for module in model.modules()} - {"ubmd", "torch"}
    start = load_potential(path, allow=sorted(packages)).model
    species, known = _symbols(model), _symbols(start)
    if species != known:
        raise InputError(
            f"{name}={path} knows the species {', '.join(known)}, but this run has {', '.join(species)}; "
            "start from a potential of the same species or list its species here"
        )
    kinds = type(worn(start)), type(worn(model))
    if kinds[0] is not kinds[1]:
        raise InputError(
            f"{name}={path} holds a {kinds[0].__name__}, but model is a {kinds[1].__name__}; "
            "choose the model that it was trained with"
        )
    if start.cutoff != model.cutoff:
        raise InputError(f"{name}={path} has model.cutoff={start.cutoff}, but this run {model.cutoff}; use the same")
    repulsions = [getattr(part, "repulsion", None) for part in (start, model)]
    if str(repulsions[0]) != str(repulsions[1]):
        raise InputError(
            f"{name}={path} was fitted with the repulsion {repulsions[0]}, but this run has {repulsions[1]}; use the "
            "same model.repulsion and model.repulsion_cutoff"
        )
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
    kind hardly anything changes.

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
    model.correct_shift(torch.cat(missing), torch.cat(compositions))  # pyright: ignore[reportCallIssue]

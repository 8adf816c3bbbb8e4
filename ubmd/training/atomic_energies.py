"""Atomic energies that are given, such as those of free atoms, instead of those of a regression."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn

from ubmd.errors import InputError
from ubmd.models.scale_shift import worn

__all__ = ["held_atomic_energies"]


def held_atomic_energies(model: nn.Module, given: Mapping[str, float]) -> Tensor:
    """Atomic energies in the order of a model's species; its shifts are not trained from here on.

    Args:
        model: as :func:`~ubmd.models.scale_shift.make_model` makes it.
        given: eV by chemical symbol; elements that the model does not know are left out.

    Returns:
        [n_species] eV, float64.

    Raises:
        InputError: an element of the model is missing, what is named is no element, an energy is no number, or the
            model has no shifts that could be given.
    """
    for symbol, value in given.items():
        if not atomic_numbers.get(symbol):
            # a YAML key may be anything: No (nobelium) unquoted is a boolean
            raise InputError(
                f"training.atomic_energies names {str(symbol)!r}, which is no element; write e.g. {{H: -13.6}}"
            )
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"training.atomic_energies.{symbol}={value} must be a number, in eV")
    if getattr(model, "pretrained", False) or not hasattr(model, "give_shift"):
        raise InputError(
            f"training.atomic_energies is for models whose energies begin with those of atoms, and a "
            f"{type(worn(model)).__name__} has its own; leave it out (null)"
        )
    species = [chemical_symbols[z] for z in model.species.tolist()]  # pyright: ignore
    if lacking := [symbol for symbol in species if symbol not in given]:
        raise InputError(
            f"training.atomic_energies lacks {', '.join(lacking)}; give the energies of {', '.join(species)} in eV, or "
            "none (null)"
        )
    model.shift.requires_grad_(False)  # pyright: ignore
    return torch.tensor([float(given[symbol]) for symbol in species], dtype=torch.float64)

"""The contract for models: what ubmd asks of one, and what it does for a model that gives no more.

A model is any ``nn.Module`` with a ``cutoff`` that is called with a batch and returns an :class:`AtomicOutput`::

    class MyModel(nn.Module):
        def __init__(self, species, cutoff=5.0): ...

        def forward(self, batch: AtomicBatch) -> AtomicOutput:
            vectors = batch.vectors()  # or edge vectors of its own, from positions, shifts and cell
            return AtomicOutput(energies)

Forces and stress are derivatives by ``batch.positions`` and by a strain of positions and cell
(:mod:`ubmd.models.potential`), so that everything geometric must come from ``batch.positions`` and ``batch.cell``.
Messages may pass from neighbour to neighbour: a batch holds all atoms of its structures, each with all its neighbours.
What lies beyond ``cutoff`` must have no effect, as neighbour lists reach further (a skin): the cutoff must be smooth.

The rest is optional:

=================================  ======================================================================
``species=``, ``seed=``            of the constructor: chemical symbols and the seed of the initial weights;
                                   without ``seed`` they are drawn from torch's generator, which is seeded
``by_pair_vectors = True``         ``forward(vectors, batch)``: everything geometric enters through the pair
                                   vectors ``batch.vectors()``, which are then all that is differentiated by
``n_features``                     width of ``AtomicOutput.features``
``layer_sizes``                    [(d_l, d_(l+1)), ...] of ``AtomicOutput.layers``
``parameter_groups()``             names of groups of parameters with learning rates of their own
``pretrained = True``              its energies are those of atoms, eV, from weights of elsewhere: a fit begins with
                                   them, and atomic energies are what they lack
``portable``                       arguments of the constructor that a potential's file has in place of those given,
                                   such as the sizes of a network in place of the file that it came from
``sizeless = False``               it cannot be made on torch's ``meta`` device
``trainable = False``              no fit changes it
``fit_scale_shift(...)``           atomic energies of its own, see :mod:`ubmd.models.scale_shift`, which other
                                   models are given from outside
``repulsion``                      a module such as :class:`~ubmd.models.zbl.ZBL`, called with a batch for energies of
                                   atoms with derivatives (:class:`Known`), which are added to the model's own
``explicit(batch)``                output with derivatives that the model computes itself (:class:`Explicit`), or None
                                   where it cannot, such as on another device
``stack(members)``                 a class method, for ensembles: a module that evaluates several such models
                                   faster than :class:`~ubmd.models.ensemble.ModuleStack`
=================================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch

__all__ = [
    "AtomicModel",
    "AtomicOutput",
    "EnsembleOutput",
    "Explicit",
    "Known",
    "Layers",
    "atomic_output",
    "by_pair_vectors",
    "explicit_output",
    "layer_sizes",
    "n_members",
    "parameter_groups",
    "repulsion_of",
]


class Layers(Protocol):
    """The linear layers of a readout as one pass left them: enough for gradients by their parameters (Eq. 17).

    Layer l computes z^(l+1) = W x^(l) + c b, with factors of the parameterisation in x^(l) and c; the last one
    gives the atomic output z^(L).
    """

    @property
    def inputs(self) -> Sequence[Tensor]:
        """Per layer x^(l) [n_atoms, d_l], the derivative of z^(l+1) by a row of W."""
        ...

    @property
    def biases(self) -> Sequence[float]:
        """Per layer c, the derivative of z^(l+1) by b; 0 for a layer without biases."""
        ...

    def output_gradients(self) -> Sequence[Tensor]:
        """Per layer dz^(L)/dz^(l+1) [n_atoms, d_(l+1)], differentiable while gradients are enabled (Eq. 18)."""
        ...


@dataclass(frozen=True)
class Known:
    """Energies of atoms without parameters, with their derivatives: constants to autograd."""

    energies: Tensor
    """[n_atoms] eV, float64."""
    gradient: Tensor
    """[n_atoms, 3] eV/Å, derivatives of a structure's energy by its positions."""
    strain: Tensor
    """[n_systems, 3, 3] eV, those by strain, symmetric."""


@dataclass(frozen=True)
class AtomicOutput:
    """What a model says about each atom."""

    energies: Tensor
    """[n_atoms] eV; best float64: a shift of 10^5 eV would leave nothing of what depends on positions in float32."""
    features: Tensor | None = None
    """[n_atoms, n_features] the input of the model's last layer, or whatever else describes an atom."""
    layers: Layers | None = None
    """The pass of the readout, from which gradient features are made."""
    known: Known | None = None
    """A part of ``energies`` whose derivatives need no graph, added by :class:`~ubmd.models.potential.Potential`."""


class Explicit(Protocol):
    """Features of the atoms through which everything geometric enters a model's output, with their derivatives."""

    @property
    def features(self) -> Tensor:
        """[n_atoms, n] of which the output is a function; differentiable by the parameters that they depend on."""
        ...

    def slopes(self) -> Tensor:
        """[n_atoms, n] derivatives of the atomic energies, each by the features of its own atom, eV; differentiable."""
        ...

    def pull(self, by_features: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives by positions and strain of scalars of which those by the features are given; differentiable.

        Args:
            by_features: [n_atoms, n], or of several scalars [c, n_atoms, n].

        Returns:
            [n_atoms, 3] and [n_systems, 3, 3], or of each scalar [c, ...].
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EnsembleOutput(AtomicOutput):
    """What all members say about each atom; ``energies`` is their mean."""

    offset: Tensor
    """[n_atoms] eV, float64, the part of the atomic energy that the members share. Kept apart because the members
    differ by meV where it may be a thousand eV."""
    members: Tensor
    """[n_members, n_atoms] eV, the members' atomic energies without ``offset``."""
    geometry: tuple[Tensor, ...]
    """What the members were computed from: the pair vectors, or positions and cell."""
    copies: tuple[Tensor, ...]
    """A copy of each of ``geometry`` for every member, [n_members, ...]: one reverse pass from the sum of
    ``members`` gives the derivatives of every member apart."""


class AtomicModel(Protocol):
    """What every model has; the module's text says how it is called and what it may have besides."""

    cutoff: float
    """Å; what lies further away does not act on an atom directly."""

    def __call__(self, *geometry: Tensor | AtomicBatch) -> AtomicOutput:
        """``model(batch)`` or, with ``by_pair_vectors``, ``model(vectors, batch)``."""
        ...


def by_pair_vectors(model: nn.Module) -> bool:
    """Whether the model is called with pair vectors [n_atoms, k, 3] Å besides the batch."""
    return getattr(model, "by_pair_vectors", False)


def atomic_output(model: nn.Module, batch: AtomicBatch) -> AtomicOutput:
    """The model's output where nothing is differentiated by positions, its repulsion included."""
    found = explicit_output(model, batch)
    if found is not None:
        output = found[0]
    else:
        output = model(batch.vectors(), batch) if by_pair_vectors(model) else model(batch)
    known = repulsion_of(model, batch)
    return output if known is None else replace(output, energies=output.energies + known.energies)


def explicit_output(model: nn.Module, batch: AtomicBatch) -> tuple[AtomicOutput, Explicit] | None:
    """The model's output with derivatives of its own, if it has them for such a batch."""
    explicit = getattr(model, "explicit", None)
    return None if explicit is None else explicit(batch)


def repulsion_of(model: nn.Module, batch: AtomicBatch) -> Known | None:
    """The repulsion of atoms that is added to the model's energies, if it has one."""
    repulsion = getattr(model, "repulsion", None)
    return None if repulsion is None else repulsion(batch)


def layer_sizes(model: nn.Module) -> list[tuple[int, int]]:
    """(d_l, d_(l+1)) of the layers in the model's outputs; none if it shows none."""
    return list(getattr(model, "layer_sizes", ()))


def n_members(model: nn.Module) -> int:
    """Number of members of an ensemble; 1 for any other model."""
    return getattr(model, "n_members", 1)


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters by the names of their groups; one group, ``model``, if it makes no difference."""
    groups = getattr(model, "parameter_groups", None)
    return {"model": list(model.parameters())} if groups is None else groups()

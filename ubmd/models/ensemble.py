"""An ensemble of any model as one module (Eqs. 22 and 23 start from it)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput, EnsembleOutput, by_pair_vectors, parameter_groups
from ubmd.models.scale_shift import ShiftedModel, make_model, worn

__all__ = ["Ensemble", "ModuleStack", "member_seed"]

log = logging.getLogger(__name__)

MOST_MEMBERS = 100


def member_seed(seed: int, member: int) -> int:
    """Seed of a member's initial weights: independent streams for the members of all ensembles."""
    return int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> 1)


class Ensemble(nn.Module):
    """Several models that differ in their initial weights and the order of their training data.

    A batch without ``member`` is predicted by all of them: atomic energies, hence forces and stress, are the
    means, and the output is an :class:`~ubmd.models.base.EnsembleOutput`. In a batch with ``member`` each structure
    is predicted by that member alone. That is how the ensemble is trained: the mini-batches of the members, each in
    its own order, come as one batch, and since no parameter is shared, the loss summed over it has for each member
    the gradient of the member's own loss. Adam treats every number by itself, so a step equals a step of each
    member alone.

    Parameters are in ``stack``, named as in the member, with the member as their first axis.

    Args:
        species: chemical symbols that the model knows.
        member: makes a model, e.g. a partial of :class:`~ubmd.models.gmnn.GMNN`.
        n_members: number of models.
        seed: of the initial weights.

    Raises:
        InputError: for fewer than two members, or very many.
    """

    def __init__(self, species: Sequence[str], member: Callable[..., nn.Module], n_members: int = 3, seed: int = 0):
        super().__init__()
        if n_members < 2:
            raise InputError(f"model.n_members={n_members} must be at least 2; use model=gmnn for one network")
        if n_members > MOST_MEMBERS:
            raise InputError(f"model.n_members={n_members} must be at most {MOST_MEMBERS}")
        _check_members(member)
        members = [make_model(member, species=species, seed=member_seed(seed, j)) for j in range(n_members)]
        self.n_members = n_members
        self.cutoff: float = members[0].cutoff  # pyright: ignore[reportAttributeAccessIssue]
        self.by_pair_vectors = by_pair_vectors(members[0])
        self.stack = getattr(members[0], "stack", ModuleStack)(members)

    def forward(self, *geometry: Tensor | AtomicBatch) -> AtomicOutput:
        """Atomic energies of all members or of the one of each structure; called as a member is."""
        return self.stack(*geometry)

    @property
    def _shifted(self) -> ShiftedModel:
        """What has the atomic energies, those of all members."""
        return getattr(self.stack, "network", self.stack)  # pyright: ignore[reportReturnType]

    @property
    def species(self) -> Tensor:
        """[n_species] atomic numbers that the members know."""
        return self._shifted.species

    @property
    def repulsion(self) -> nn.Module | None:
        """That of a member, which all of them share."""
        return getattr(self._shifted, "repulsion", None)

    def fit_scale_shift(self, energy: Tensor, composition: Tensor, given: Tensor | None = None) -> None:
        """Sets the atomic energies of all members, see :class:`~ubmd.models.scale_shift.ShiftedModel`."""
        self._shifted.fit_scale_shift(energy, composition, given)

    def give_shift(self, atomic: Tensor) -> None:
        """Sets the atomic energies of all members, see :class:`~ubmd.models.scale_shift.ShiftedModel`."""
        self._shifted.give_shift(atomic)

    @property
    def shift(self) -> Tensor:
        """[n_members, n_species] shifts mu."""
        return self._shifted.shift

    def correct_shift(self, missing: Tensor, composition: Tensor) -> None:
        """Adds to the atomic energies of all members, see :class:`~ubmd.models.scale_shift.ShiftedModel`."""
        self._shifted.correct_shift(missing, composition)

    def composition(self, batch: AtomicBatch) -> Tensor:
        """[n_systems, n_species] number of atoms of each species."""
        return self._shifted.composition(batch)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The groups of a member, of all members together."""
        return parameter_groups(self._shifted)


class ModuleStack(nn.Module):
    """Several models of one class, each parameter stacked along a first axis [n_members, ...].

    All members at once are evaluated by ``torch.func.vmap``, or one after another if the model does something that
    cannot be.

    Args:
        members: the models; the first becomes the stack. What they hold besides parameters must be the same.

    Raises:
        InputError: if buffers differ.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.n_members = len(members)
        self.network = members[0]
        self._stacks = True
        _check_buffers(members)
        columns = [dict(m.named_parameters()) for m in members]
        for name, first in columns[0].items():
            values = torch.stack([column[name].detach() for column in columns])
            owner, _, last = name.rpartition(".")
            setattr(self.network.get_submodule(owner), last, nn.Parameter(values, requires_grad=first.requires_grad))

    def forward(self, *geometry: Tensor | AtomicBatch) -> AtomicOutput:
        """Atomic energies of all members or of the one of each structure."""
        batch = geometry[-1]
        assert isinstance(batch, AtomicBatch)
        vectors = geometry[0] if len(geometry) == 2 else None
        assert vectors is None or isinstance(vectors, Tensor)
        if batch.member is not None:
            return AtomicOutput(self._each(vectors, batch, batch.member))
        leaves = (batch.positions, batch.cell) if vectors is None else (vectors,)
        copies = tuple(leaf.expand(self.n_members, *leaf.shape) for leaf in leaves)

        def energies(state: dict[str, Tensor], *own: Tensor) -> Tensor:
            if vectors is None:
                return self._energies(state, batch.replace(positions=own[0], cell=own[1]))
            return self._energies(state, *own, batch)

        members = self._apart(energies, copies)
        offset = members.new_zeros(members.shape[1])
        return EnsembleOutput(members.mean(0), offset=offset, members=members, geometry=leaves, copies=copies)

    def _apart(self, energies: Callable[..., Tensor], copies: Sequence[Tensor]) -> Tensor:
        """[n_members, n_atoms] ``energies`` of the members, each of its own copies."""
        if self._stacks:
            try:
                return vmap(energies)(self._state(), *copies)
            except (RuntimeError, ValueError, NotImplementedError) as error:
                # what is really wrong is found once more below
                self._stacks = False
                reason = next(iter(str(error).splitlines()), "")
                name = type(worn(self.network)).__name__
                log.info("the members of an ensemble of %s are evaluated one after another (%s)", name, reason)
        return torch.stack([energies(self._state(j), *(c[j] for c in copies)) for j in range(self.n_members)])

    def _each(self, vectors: Tensor | None, batch: AtomicBatch, member: Tensor) -> Tensor:
        """[n_atoms] energies of atoms, those of a structure by the one member [n_systems] that it is for."""
        found = batch.positions.new_zeros(len(batch.positions), dtype=torch.float64)
        for j in range(self.n_members):
            systems = (member == j).nonzero().squeeze(1)
            if len(systems):
                atoms = (member[batch.system_idx] == j).nonzero().squeeze(1)
                # as select() lays them out: structure by structure in ascending order
                part = batch.select(systems)
                own = (part,) if vectors is None else (vectors[atoms], part)
                found = found.index_copy(0, atoms, self._energies(self._state(j), *own).double())
        return found

    def _state(self, member: int | None = None) -> dict[str, Tensor]:
        """The parameters of all members or of one."""
        return {name: p if member is None else p[member] for name, p in self.network.named_parameters()}

    def _energies(self, state: dict[str, Tensor], *geometry: Tensor | AtomicBatch) -> Tensor:
        output: AtomicOutput = functional_call(self.network, state, geometry)
        return output.energies


def _check_members(member: Callable[..., nn.Module]) -> None:
    kind = getattr(member, "func", member)
    if getattr(kind, "pretrained", False):
        raise InputError(
            f"model.member={kind.__name__} starts from the same weights in each member, which would stay the same; use "
            "it alone, with uncertainty=posterior or distance"
        )


def _check_buffers(members: Sequence[nn.Module]) -> None:
    first = dict(members[0].named_buffers())
    for member in members[1:]:
        for name, value in member.named_buffers():
            # without values nothing can be compared, and nothing is
            if not value.is_meta and not torch.equal(value, first[name]):
                raise InputError(
                    f"model.member={type(worn(member)).__name__} has other values of {name} in each member; only "
                    "parameters may differ, so make it one (requires_grad=False)"
                )

"""Potentials that are there already, of any models, as one whose members disagree where they know little."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.errors import InputError
from ubmd.models.base import AtomicOutput, EnsembleOutput, by_pair_vectors, n_members
from ubmd.models.ensemble import MOST_MEMBERS
from ubmd.models.scale_shift import make_model

__all__ = ["Committee"]


class Committee(nn.Module):
    """Trained models, each as it is; energies, hence forces and stress, are their means.

    Unlike those of an :class:`~ubmd.models.ensemble.Ensemble`, its members may be of different kinds and sizes, and
    no fit changes them: ``ubmd committee`` makes one of potentials' files. They are evaluated one after another.

    Args:
        species: chemical symbols that all members know.
        members: make the models.

    Raises:
        InputError: for fewer than two members or very many, for a member that is an ensemble itself, and for members
            with different repulsions.
    """

    trainable = False

    def __init__(self, species: Sequence[str], members: Sequence[Callable[..., nn.Module]]):
        super().__init__()
        self._take([make_model(member, species=species) for member in members])

    @classmethod
    def of(cls, members: Sequence[nn.Module]) -> Committee:
        """A committee of models that are there, which become part of it."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._take(members)
        return made

    def _take(self, members: Sequence[nn.Module]) -> None:
        if not 2 <= len(members) <= MOST_MEMBERS:
            raise InputError(f"a committee has from 2 to {MOST_MEMBERS} members, not {len(members)}")
        self.members = nn.ModuleList(members)
        for place, member in enumerate(self.members):
            if n_members(member) > 1:
                raise InputError(
                    f"member {place} of a committee is a {type(member).__name__}; give its members instead"
                )
        if not all(_same(self.repulsion, getattr(member, "repulsion", None)) for member in self.members):
            raise InputError(
                "members of a committee must all have the same repulsion or none; train them with the same"
            )
        self.n_members = len(self.members)
        self.cutoff = max(float(member.cutoff) for member in self.members)  # pyright: ignore[reportArgumentType]
        self.by_pair_vectors = all(by_pair_vectors(member) for member in self.members)

    @property
    def repulsion(self) -> nn.Module | None:
        """That of all members, see :class:`~ubmd.models.zbl.ZBL`."""
        return getattr(self.members[0], "repulsion", None)

    @property
    def species(self) -> Tensor:
        """[n_species] atomic numbers that the members know."""
        return self.members[0].species  # pyright: ignore[reportReturnType]

    def forward(self, *geometry: Tensor | AtomicBatch) -> AtomicOutput:
        """Atomic energies of all members; called with pair vectors and a batch, or with the batch alone."""
        batch = geometry[-1]
        assert isinstance(batch, AtomicBatch)
        leaves = (batch.positions, batch.cell) if len(geometry) == 1 else (geometry[0],)
        copies = tuple(leaf.expand(self.n_members, *leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
        energies = []
        for place, member in enumerate(self.members):
            own = [copy[place] for copy in copies]
            moved = batch.replace(positions=own[0], cell=own[1]) if len(own) == 2 else batch
            if by_pair_vectors(member):
                output: AtomicOutput = member(moved.vectors() if len(own) == 2 else own[0], moved)
            else:
                output = member(moved)
            energies.append(output.energies.double())
        members = torch.stack(energies)
        offset = members.new_zeros(members.shape[1])
        return EnsembleOutput(members.mean(0), offset=offset, members=members, geometry=leaves, copies=copies)  # pyright: ignore

    def fit_scale_shift(self, energy: Tensor, composition: Tensor) -> None:
        """The members have atomic energies of their own.

        Raises:
            InputError: always.
        """
        raise InputError("the members of a committee are trained already; fit each of them by itself")


def _same(first: nn.Module | None, other: nn.Module | None) -> bool:
    """Whether two repulsions are the same; without values nothing can be compared."""
    if first is None or other is None:
        return first is other
    ours, theirs = (dict([*part.named_parameters(), *part.named_buffers()]) for part in (first, other))
    return type(first) is type(other) and all(
        name in theirs and (value.is_meta or torch.equal(value, theirs[name])) for name, value in ours.items()
    )

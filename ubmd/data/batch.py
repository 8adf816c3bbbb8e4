"""A batch of atomic structures as one flat, immutable set of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ubmd.data.labels import has_stress
from ubmd.data.neighbours import neighbour_matrix

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["AtomicBatch", "collate", "joined"]

_PER_ATOM = ("positions", "numbers", "shifts", "mask", "forces", "fixed")
_PER_SYSTEM = ("cell", "pbc", "n_atoms", "energy", "stress", "member")


@dataclass(frozen=True)
class AtomicBatch:
    """Structures laid end to end; atoms of one structure are contiguous and ``system_idx`` is sorted.

    Neighbours are a padded matrix, one row an atom, which turns every sum over neighbours into a small
    matrix product. Rows hold all atoms within the list's cutoff (possibly more: a skin), periodic images
    included; padding entries point at the atom itself and are False in ``mask``.
    """

    positions: Tensor
    """[n_atoms, 3] Å."""
    numbers: Tensor
    """[n_atoms] atomic numbers, int64."""
    cell: Tensor
    """[n_systems, 3, 3] Å, rows are the lattice vectors; zeros for a molecule."""
    pbc: Tensor
    """[n_systems, 3] bool."""
    system_idx: Tensor
    """[n_atoms] index of the structure that an atom belongs to, int64, sorted."""
    n_atoms: Tensor
    """[n_systems] number of atoms, int64."""
    neighbours: Tensor
    """[n_atoms, k] index of the neighbour within this batch, int64."""
    mask: Tensor
    """[n_atoms, k] True where an entry is a neighbour, False where it is padding."""
    shifts: Tensor | None = None
    """[n_atoms, k, 3] lattice translations of the neighbour, in whole cells; None if nothing is periodic."""
    energy: Tensor | None = None
    """[n_systems] eV, reference; always float64, because total energies are large."""
    forces: Tensor | None = None
    """[n_atoms, 3] eV/Å, reference."""
    stress: Tensor | None = None
    """[n_systems, 3, 3] eV/Å³, reference, positive under tension; NaN for a structure that has none."""
    member: Tensor | None = None
    """[n_systems] the one member of an ensemble that is to predict a structure, int64; None: all of them."""
    fixed: Tensor | None = None
    """[n_atoms] bool, atoms of walkers that stay where they are; None: all atoms move."""

    @property
    def n_systems(self) -> int:
        return self.cell.shape[0]

    @property
    def volume(self) -> Tensor:
        """[n_systems] Å³; zero for a molecule."""
        return torch.linalg.det(self.cell).abs()

    @property
    def has_stress(self) -> Tensor:
        """[n_systems] True where there is a reference stress."""
        if self.stress is None:
            return torch.zeros_like(self.pbc[:, 0])
        return ~self.stress.isnan().any(dim=2).any(dim=1)

    def per_volume(self, virial: Tensor) -> Tensor:
        """Stress [n_systems, 3, 3] from derivatives by strain, eV; NaN unless periodic in three directions."""
        crystal = self.pbc.all(dim=1)[:, None, None]
        # not simply divided: where the volume is zero, the derivative would be NaN for all parameters
        volume = torch.where(crystal, self.volume[:, None, None], 1.0)
        return torch.where(crystal, virial / volume, torch.nan)

    def vectors(self) -> Tensor:
        """Pair vectors r_ij = r_i - r_j (the paper's sign), [n_atoms, k, 3] Å.

        Padding entries get a constant vector far beyond any cutoff, so that they drop out of every
        smooth sum and have finite derivatives.
        """
        others = self.positions.index_select(0, self.neighbours.flatten()).view(*self.neighbours.shape, 3)
        vectors = self.positions[:, None] - others
        if self.shifts is not None:
            vectors = vectors - torch.einsum("nks,nsx->nkx", self.shifts, self.cell[self.system_idx])
        return vectors.masked_fill(~self.mask[..., None], 1.0e3)

    def of_free_atoms(self, values: Tensor) -> Tensor:
        """Per-atom ``values`` [n_atoms, ...] with zeros on fixed atoms."""
        if self.fixed is None:
            return values
        return values.masked_fill(self.fixed.view(-1, *[1] * (values.dim() - 1)), 0.0)

    def sum_atoms(self, values: Tensor) -> Tensor:
        """Sum of per-atom ``values`` [n_atoms, ...] over each structure, [n_systems, ...]."""
        out = values.new_zeros((self.n_systems, *values.shape[1:]))
        return out.index_add(0, self.system_idx, values)

    def max_atoms(self, values: Tensor) -> Tensor:
        """Maximum of per-atom ``values`` [n_atoms] over each structure, [n_systems]; NaN wins."""
        out = values.new_full((self.n_systems,), -torch.inf)
        return out.scatter_reduce(0, self.system_idx, values, "amax")

    def select(self, systems: Tensor) -> AtomicBatch:
        """The structures with the given indices [m] (any order, repeats allowed) as a new batch."""
        counts = self.n_atoms[systems]
        starts = self.n_atoms.cumsum(0) - self.n_atoms
        system_idx = torch.repeat_interleave(torch.arange(len(systems), device=counts.device), counts)
        # an atom's old index is its new index plus its structure's displacement in the flat layout
        offset = (starts[systems] - (counts.cumsum(0) - counts))[system_idx]
        atoms = torch.arange(len(system_idx), device=counts.device) + offset
        new: dict[str, Tensor | None] = {
            "system_idx": system_idx,
            "neighbours": self.neighbours[atoms] - offset[:, None],
        }
        for name in _PER_ATOM:
            value = getattr(self, name)
            new[name] = None if value is None else value[atoms]
        for name in _PER_SYSTEM:
            value = getattr(self, name)
            new[name] = None if value is None else value[systems]
        return AtomicBatch(**new)  # pyright: ignore[reportArgumentType]

    @classmethod
    def joined(cls, batches: Sequence[AtomicBatch]) -> AtomicBatch:
        """The structures of several batches, in order, as one batch; all must have the same fields."""
        width = max(batch.neighbours.shape[1] for batch in batches)
        parts = [batch.widened(width) for batch in batches]
        sizes = [len(part.numbers) for part in parts]
        counts = [part.n_systems for part in parts]
        new: dict[str, Tensor | None] = {
            name: joined([getattr(part, name) for part in parts], name) for name in (*_PER_ATOM, *_PER_SYSTEM)
        }
        for name, shifts in (("neighbours", sizes), ("system_idx", counts)):
            before = [sum(shifts[:i]) for i in range(len(parts))]
            new[name] = torch.cat([getattr(part, name) + n for part, n in zip(parts, before, strict=True)])
        return cls(**new)  # pyright: ignore[reportArgumentType]

    def widened(self, width: int) -> AtomicBatch:
        """The same neighbours with padding up to ``width`` entries for each atom."""
        n_atoms, more = self.neighbours.shape[0], width - self.neighbours.shape[1]
        if not more:
            return self
        own = torch.arange(n_atoms, device=self.neighbours.device)[:, None].expand(-1, more)
        shifts = None if self.shifts is None else torch.cat([self.shifts, self.shifts.new_zeros(n_atoms, more, 3)], 1)
        return self.replace(
            neighbours=torch.cat([self.neighbours, own], 1),
            mask=torch.cat([self.mask, self.mask.new_zeros(n_atoms, more)], 1),
            shifts=shifts,
        )

    def replace(self, **changes: Tensor | None) -> AtomicBatch:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def with_neighbours(self, cutoff: float) -> AtomicBatch:
        """A copy whose neighbour matrix is computed afresh from its positions, ``cutoff`` in Å."""
        neighbours, mask, shifts = neighbour_matrix(
            self.positions.detach().cpu().double().numpy(),
            self.cell.detach().cpu().double().numpy(),
            self.pbc.cpu().numpy(),
            self.n_atoms.cpu().numpy(),
            cutoff,
        )
        return self.replace(
            neighbours=torch.as_tensor(neighbours, device=self.positions.device),
            mask=torch.as_tensor(mask, device=self.positions.device),
            shifts=None if shifts is None else torch.as_tensor(shifts).to(self.positions),
        )

    def to(self, *args: torch.device | str | torch.dtype, non_blocking: bool = False) -> AtomicBatch:
        """Moves all fields to a device; a dtype converts the floating-point fields but the energy."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            for arg in args:
                real = value is not None and value.is_floating_point() and field.name != "energy"
                if value is None or (isinstance(arg, torch.dtype) and not real):
                    continue
                value = value.to(arg, non_blocking=non_blocking)
            moved[field.name] = value
        return AtomicBatch(**moved)


def joined(parts: Sequence[Tensor | None], name: str) -> Tensor | None:
    """A field of several batches, end to end; None where none of them has it.

    Raises:
        ValueError: if some have it and others do not.
    """
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if len(there) < len(parts):
        raise ValueError(f"{name} is known of some and not of others, which cannot be one batch")
    return torch.cat(there)


def collate(
    structures: Sequence[Atoms],
    cutoff: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> AtomicBatch:
    """Builds a batch from ASE structures, with neighbours within ``cutoff`` (Å).

    Labels are taken from ``REF_energy`` (``atoms.info``, eV), ``REF_forces`` (``atoms.arrays``, eV/Å) and
    ``REF_stress`` (``atoms.info``, 3x3 in eV/Å³). Energies and forces enter the batch if every structure has them, a
    stress if any structure has one and is periodic in three directions.

    Raises:
        ValueError: if ``structures`` is empty.
    """
    if not structures:
        raise ValueError("collate needs at least one structure, got none")
    n_atoms = np.array([len(a) for a in structures])
    positions = np.concatenate([a.positions for a in structures])
    pbc = np.array([a.pbc for a in structures])
    cell = np.array([np.asarray(a.cell) if a.pbc.any() else np.zeros((3, 3)) for a in structures])
    neighbours, mask, shifts = neighbour_matrix(positions, cell, pbc, n_atoms, cutoff)

    def label(key: str, *, per_atom: bool, dtype: torch.dtype = dtype) -> Tensor | None:
        found = [(a.arrays if per_atom else a.info).get(key) for a in structures]
        if any(v is None for v in found):
            return None
        arrays = [np.asarray(v, dtype=float) for v in found]
        values = np.concatenate(arrays) if per_atom else np.array(arrays)
        return torch.as_tensor(values, dtype=dtype, device=device)

    def stress() -> Tensor | None:
        known = [has_stress(a) for a in structures]
        if not any(known):
            return None
        none = np.full((3, 3), np.nan)
        values = [a.info["REF_stress"] if k else none for a, k in zip(structures, known, strict=True)]
        return torch.as_tensor(np.array(values, dtype=float), dtype=dtype, device=device)

    def integer(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64, device=device)

    return AtomicBatch(
        positions=torch.as_tensor(positions, dtype=dtype, device=device),
        numbers=integer(np.concatenate([a.numbers for a in structures])),
        cell=torch.as_tensor(cell, dtype=dtype, device=device),
        pbc=torch.as_tensor(pbc, device=device),
        system_idx=integer(np.repeat(np.arange(len(structures)), n_atoms)),
        n_atoms=integer(n_atoms),
        neighbours=integer(neighbours),
        mask=torch.as_tensor(mask, device=device),
        shifts=None if shifts is None else torch.as_tensor(shifts, dtype=dtype, device=device),
        energy=label("REF_energy", per_atom=False, dtype=torch.float64),
        forces=label("REF_forces", per_atom=True),
        stress=stress(),
    )

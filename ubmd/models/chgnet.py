"""CHGNet (Deng et al., Nat. Mach. Intell. 2023, 5, 1031) as a model, with weights of its makers.

The network is that of the package ``chgnet``, which is imported when one is made. Its graphs of bonds and angles are
made of ubmd's neighbour lists, for all walkers of a batch at once, and derivatives are left to
:mod:`ubmd.models.potential`. Magnetic moments are not computed.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ubmd.data.batch import AtomicBatch
from ubmd.data.elements import species_numbers
from ubmd.errors import InputError
from ubmd.imports import extra_with
from ubmd.models.base import AtomicOutput
from ubmd.models.head import linear_sizes, trace_head
from ubmd.torch_files import DamagedFileError, read_torch_file

__all__ = ["CHGNet"]

IN_THE_WHEEL = ("0.3.0", "0.2.0", "r2scan")
WIDEST = 4096
"""Of a file from elsewhere: a size that no network has."""


class CHGNet(nn.Module):
    """Atomic energies of CHGNet.

    Args:
        species: chemical symbols of the run, all of which it has to know.
        checkpoint: version of the weights that come with ``chgnet`` (0.3.0, 0.2.0, r2scan), or a file of its trainer.
            Of a file, only tensors and plain values are read; no code in it is run.
        trained: what a fit changes, the whole network or its readout alone.
        architecture: sizes of a network without weights, as a potential's file has them, in place of ``checkpoint``.

    Raises:
        InputError: without ``chgnet``, for a file that is none of its checkpoints, or for species that the network
            does not know.
    """

    by_pair_vectors = True
    pretrained = True
    sizeless = False
    element_shift: Tensor
    """[n_elements] eV, from hydrogen on."""

    def __init__(
        self,
        species: Sequence[str],
        checkpoint: str | None = "0.3.0",
        trained: Literal["all", "readout"] = "all",
        architecture: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        if trained not in ("all", "readout"):
            raise InputError(f"model.trained={trained} must be all or readout")
        sizes, state = _read(checkpoint) if architecture is None else (dict(architecture), None)
        network = _built(sizes)
        n_elements = network.atom_embedding.embedding.num_embeddings
        self.register_buffer("element_shift", torch.zeros(n_elements))
        if state is not None:
            self.element_shift.copy_(state.pop("composition_model.fc.weight").flatten())
            network.load_state_dict(state)
        network.site_wise.requires_grad_(False)  # of magnetic moments
        unknown = [chemical_symbols[z] for z in species_numbers(species) if z > n_elements]
        if unknown:
            raise InputError(f"model.checkpoint={checkpoint} does not know the element {unknown[0]}; use another model")
        if trained == "readout":
            network.requires_grad_(False)
            network.mlp.requires_grad_(True)
        self.network = network
        self.cutoff, self.angle_cutoff = float(sizes["atom_graph_cutoff"]), float(sizes["bond_graph_cutoff"])
        self.layer_sizes = linear_sizes(network.mlp)
        self.n_features = self.layer_sizes[0][0]
        self.portable = {"checkpoint": None, "architecture": sizes}

    def forward(self, vectors: Tensor, batch: AtomicBatch) -> AtomicOutput:
        """Atomic energies from pair vectors r_i - r_j [n_atoms, k, 3] Å."""
        given: list[Tensor] = []
        handle = self.network.mlp.register_forward_pre_hook(lambda _, x: given.append(x[0]))
        try:
            self.network._compute(self._graph(vectors, batch))
        finally:
            handle.remove()
        trace = trace_head(self.network.mlp, given[0])
        return AtomicOutput(trace.output.double() + self.element_shift[batch.numbers - 1], given[0], trace)

    def _graph(self, vectors: Tensor, batch: AtomicBatch) -> Any:
        """What ``chgnet`` makes of its structures one by one, in tensors of all of them."""
        # cutoff functions are zero beyond the cutoff, but NaN, of a structure that has blown up, has to go on
        lengths = vectors.detach().square().sum(2)
        i, k = (batch.mask & ~(lengths >= self.cutoff**2)).nonzero(as_tuple=True)
        j = batch.neighbours[i, k]
        shifts = None if batch.shifts is None else batch.shifts[i, k].round().long()
        bond, first = _bonds(i, j, shifts)
        edges = vectors[i, k]
        nowhere = torch.zeros_like(edges)
        far, near, directions = self.network.bond_basis_expansion(
            center=edges, neighbor=nowhere, undirected2directed=first, image=nowhere, lattice=edges.new_zeros(3, 3)
        )
        short = (~(lengths[i, k] >= self.angle_cutoff**2)).nonzero().squeeze(1)
        left, right = _pairs(i[short], len(vectors))
        left, right = short[left], short[right]
        angles = self.network.angle_basis_expansion(directions[left], directions[right]) if len(left) else edges[:0]
        return _chgnet("model.model").BatchedGraph(
            atomic_numbers=batch.numbers,
            bond_bases_ag=far,
            bond_bases_bg=near,
            angle_bases=angles,
            batched_atom_graph=torch.stack([i, j], 1),
            batched_bond_graph=torch.stack([i[left], bond[left], bond[right]], 1),
            atom_owners=batch.system_idx,
            directed2undirected=bond,
            atom_positions=(),
            strains=(),
            volumes=(),
        )


def _bonds(i: Tensor, j: Tensor, shifts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The bond that each edge i -> j is one direction of, and an edge of each bond.

    Args:
        i: [e] atoms.
        j: [e] their neighbours.
        shifts: [e, 3] lattice translations of the neighbours.
    """
    shift = i.new_zeros(len(i), 3) if shifts is None else shifts
    there = torch.cat([i[:, None], j[:, None], shift], 1)
    back = torch.cat([j[:, None], i[:, None], -shift], 1)
    different = (there != back).long()
    at = different.argmax(1, keepdim=True)  # the first place where they differ says which one is in front
    behind = there.gather(1, at) > back.gather(1, at)
    _, bond = torch.where(behind, back, there).unique(dim=0, return_inverse=True)
    n_bonds = int(bond.max()) + 1 if len(bond) else 0
    edges = torch.arange(len(i), device=i.device)
    first = edges.new_full((n_bonds,), len(i)).scatter_reduce(0, bond, edges, "amin")
    return bond, first


def _pairs(atoms: Tensor, n_atoms: int) -> tuple[Tensor, Tensor]:
    """All ordered pairs of different entries that belong to one atom; ``atoms`` [e] ascends."""
    counts = torch.bincount(atoms, minlength=n_atoms)
    starts = counts.cumsum(0) - counts
    repeats = counts[atoms]
    left = torch.repeat_interleave(repeats)
    place = torch.arange(len(left), device=atoms.device) - (repeats.cumsum(0) - repeats)[left]
    right = starts[atoms[left]] + place
    apart = left != right
    return left[apart], right[apart]


def _read(checkpoint: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and weights of a checkpoint."""
    path = Path(checkpoint or "")
    if not path.is_file():
        if checkpoint not in IN_THE_WHEEL:
            raise InputError(
                f"model.checkpoint={checkpoint} is no file, and none of {', '.join(IN_THE_WHEEL)}, which come with "
                "chgnet"
            )
        (path,) = (Path(_chgnet("model.model").__file__).parents[1] / "pretrained" / checkpoint).glob("*.pth.tar")
    try:
        content = read_torch_file(path)["model"]
        sizes = dict(content["model_args"]) | {"composition_model": None}
        # as chgnet does: the older weights have biases that make energies jump
        return sizes | {"mlp_out_bias": checkpoint == "0.2.0"}, dict(content["state_dict"])
    except (DamagedFileError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"model.checkpoint={checkpoint} is no checkpoint of CHGNet ({error!r})") from error


def _built(sizes: Mapping[str, Any]) -> Any:
    """The network, with any weights."""
    kind = _chgnet("model.model").CHGNet
    known = {*inspect.signature(kind.__init__).parameters, "mlp_out_bias", "conv_norm"} - {"self", "kwargs", "version"}
    given = {key: value for key, value in sizes.items() if key in known}
    for key, value in given.items():
        widths = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(w, str | bool | None) or (isinstance(w, int | float) and w <= WIDEST) for w in widths):
            raise InputError(f"model.architecture.{key}={value} is no size of a network")
    if not given.get("mlp_first", True) or given.get("composition_model") is not None:
        raise InputError("model.checkpoint is of a CHGNet without energies of atoms, which a model here needs")
    with contextlib.redirect_stdout(io.StringIO()):  # it tells how large it is
        return kind(**given)


def _chgnet(module: str) -> Any:
    """A module of the package ``chgnet``."""
    import importlib

    try:
        return importlib.import_module(f"chgnet.{module}")
    except ModuleNotFoundError as error:
        raise InputError(f"model=chgnet needs the package {error.name}, which is missing{extra_with(error)}") from error

"""A trained potential as a metatomic model: one TorchScript file that ASE, i-PI, LAMMPS and others run without ubmd."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional  # noqa: UP035

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor, nn

from ubmd.errors import InputError
from ubmd.files import replaced
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.interfaces.scripted import ScriptedPotential
from ubmd.models.potential import Potential
from ubmd.uncertainty.potential import UncertainPotential

try:
    from metatensor.torch import Labels, TensorBlock, TensorMap  # pyright: ignore[reportMissingImports]
    from metatomic.torch import (  # pyright: ignore[reportMissingImports]
        AtomisticModel,
        ModelCapabilities,
        ModelMetadata,
        ModelOutput,
        NeighborListOptions,
        System,
    )
except ImportError as error:
    raise ImportError("metatomic is not installed: pip install 'metatomic-torch>=0.1.19' metatomic-ase") from error

__all__ = ["MetatomicModel", "compare", "export_metatomic", "probes"]

FORCE_UNCERTAINTY = "ubmd::force_uncertainty"
TOLERANCES = {"float32": 1e-3, "float64": 1e-8}
"""Largest difference of an exported model, relative to the largest number of its kind."""


class MetatomicModel(nn.Module):
    """A :class:`~ubmd.interfaces.scripted.ScriptedPotential` as metatomic calls it."""

    def __init__(self, potential: UncertainPotential):
        super().__init__()
        self.scripted = ScriptedPotential(potential)
        self.cutoff = float(potential.cutoff)

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        """Each pair within the cutoff in both directions."""
        return [NeighborListOptions(cutoff=self.cutoff, full_list=True, strict=True)]

    def forward(
        self,
        systems: List[System],  # noqa: UP006 - metatomic compares the annotations with these
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels] = None,  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        """Of ``selected_atoms`` the atomic outputs, and their part of those of a system."""
        vectors: list[Tensor] = []
        first: list[Tensor] = []
        second: list[Tensor] = []
        numbers: list[Tensor] = []
        samples: list[Tensor] = []
        start = 0
        for number, system in enumerate(systems):
            pairs = system.get_neighbor_list(self.requested_neighbor_lists()[0])
            vectors.append(-pairs.values.reshape(-1, 3))  # metatomic's go from the first atom to the second
            first.append(pairs.samples.column("first_atom").to(torch.int64) + start)
            second.append(pairs.samples.column("second_atom").to(torch.int64) + start)
            numbers.append(system.types.to(torch.int64))
            atom = torch.arange(len(system), device=system.types.device)
            samples.append(torch.stack([torch.full_like(atom, number), atom], dim=1))
            start += len(system)
        found = self.scripted(torch.cat(vectors), torch.cat(first), torch.cat(second), torch.cat(numbers))
        atoms = Labels(["system", "atom"], torch.cat(samples).to(torch.int32), assume_unique=True)
        kept = torch.arange(start, device=atoms.device)
        if selected_atoms is not None:
            kept = atoms.select(selected_atoms)
            atoms = Labels(["system", "atom"], atoms.values[kept], assume_unique=True)
        owner = atoms.values[:, 0].to(torch.int64)
        n = len(systems)
        index = Labels("system", torch.arange(n, device=kept.device).reshape(-1, 1).to(torch.int32))
        members = found["energies"][:, kept].T  # [n_atoms, n_members], float64
        dtype = vectors[0].dtype
        sums = torch.zeros(n, members.shape[1], dtype=members.dtype, device=kept.device).index_add(0, owner, members)
        out: dict[str, TensorMap] = {}
        for name, wanted in outputs.items():
            if name == "energy":
                if wanted.sample_kind == "atom":
                    out[name] = self.block(members.mean(1, keepdim=True).to(dtype), atoms, "energy")
                else:
                    out[name] = self.block(sums.mean(1, keepdim=True).to(dtype), index, "energy")
            elif name == "energy_ensemble":
                out[name] = self.block(sums.to(dtype), index, "energy")
            elif name == "energy_uncertainty":
                counts = torch.zeros(n, dtype=dtype, device=kept.device)
                counts = counts.index_add(0, owner, torch.ones(owner.shape[0], dtype=dtype, device=kept.device))
                if "features" in found:
                    part = found["features"][kept]
                    sums = torch.zeros(n, part.shape[1], dtype=dtype, device=kept.device).index_add(0, owner, part)
                total = self.scripted.total_uncertainty(sums, counts)
                out[name] = self.block(total.reshape(-1, 1).to(dtype), index, "energy")
            elif name == "feature":
                out[name] = self.block(found["last_layer"][kept], atoms, "feature")
            elif name == "ubmd::force_uncertainty":
                out[name] = self.block(found["uncertainty"][kept].reshape(-1, 1), atoms, "uncertainty")
        return out

    def block(self, values: Tensor, samples: Labels, what: str) -> TensorMap:
        """Values [n, p] of samples [n] in metatensor's form."""
        columns = torch.arange(values.shape[1], device=values.device).reshape(-1, 1).to(torch.int32)
        empty: list[Labels] = []
        block = TensorBlock(values, samples, empty, Labels(what, columns))
        return TensorMap(Labels("_", torch.zeros(1, 1, dtype=torch.int32, device=values.device)), [block])


def export_metatomic(potential: UncertainPotential, file: str | Path, *, dtype: str = "float64") -> dict[str, float]:
    """Writes a potential as a metatomic model, after it was compared with ubmd's own.

    Outputs are ``energy`` (of a system, or of its atoms) and ``energy_uncertainty`` (calibrated, of a system), eV; of a
    single network ``feature``, the input of its last layer, and with uncertainties from features
    ``ubmd::force_uncertainty``, calibrated, eV/Å, both of atoms; of an ensemble ``energy_ensemble``, eV. Forces and
    stress are their derivatives, which engines take.

    Args:
        potential: of GM-NN or an ensemble of it; a bias is left out.
        file: its name ends in ``.pt``.
        dtype: precision of the exported model, float32 or float64. In float32 a large total energy is rounded.

    Returns:
        the largest differences between the exported model and ubmd in the same precision, see :func:`compare`.

    Raises:
        InputError: for a model or an uncertainty that has no TorchScript, another precision, or another kind of file.
        RuntimeError: if the exported model differs; nothing is left.
    """
    file = Path(file)
    if file.suffix != ".pt":
        raise InputError(f"file={file} must end in .pt, by which programs know such a model")
    if dtype not in TOLERANCES:
        raise InputError(f"dtype={dtype} must be float32 or float64")
    own = UncertainPotential(Potential(potential.model), potential.uncertainty)
    own = copy.deepcopy(own).to("cpu", getattr(torch, dtype)).eval()
    model = AtomisticModel(MetatomicModel(own).eval(), _metadata(), _capabilities(own, dtype))
    with replaced(file) as temporary:
        model.save(str(temporary))
        return compare(temporary, own)


def _metadata() -> ModelMetadata:
    return ModelMetadata(name="ubmd", description="GM-NN with calibrated uncertainties, trained and exported by ubmd")


def _capabilities(potential: UncertainPotential, dtype: str) -> ModelCapabilities:
    outputs = {
        "energy": ModelOutput(unit="eV", sample_kind="atom"),
        "energy_uncertainty": ModelOutput(unit="eV", sample_kind="system"),
    }
    if getattr(potential.model, "n_members", 1) > 1:
        outputs["energy_ensemble"] = ModelOutput(unit="eV", sample_kind="system")
    else:
        outputs["feature"] = ModelOutput(sample_kind="atom")
        outputs[FORCE_UNCERTAINTY] = ModelOutput(unit="eV/Angstrom", sample_kind="atom")
    return ModelCapabilities(
        outputs=outputs,
        atomic_types=potential.species,
        interaction_range=potential.cutoff,
        length_unit="angstrom",
        supported_devices=["cuda", "cpu"],
        dtype=dtype,
    )


def probes(species: Sequence[int], cutoff: float) -> list[Atoms]:
    """A molecule and a crystal of some species, with neighbours at all distances up to the cutoff (Å)."""
    rng = np.random.default_rng(0)
    spacing = float(np.clip(0.45 * cutoff, 1.2, 2.2))
    grid = np.array(list(np.ndindex(2, 2, 2 + len(species) // 4)), dtype=float)
    numbers = [species[i % len(species)] for i in range(len(grid))]
    points = spacing * (grid + rng.uniform(-0.15, 0.15, grid.shape))
    cell = spacing * np.diag(grid.max(0) + 1.0)
    cell[1, 0] = cell[2, 1] = 0.2 * spacing
    return [Atoms(numbers, points), Atoms(numbers, points, cell=cell, pbc=True)]


def compare(file: str | Path, potential: UncertainPotential) -> dict[str, float]:
    """The largest differences between an exported model and a potential, on :func:`probes`.

    Returns:
        of ``energy`` (eV), ``forces`` (eV/Å), ``stress`` (eV/Å³), ``energy_uncertainty`` (eV), and where there are
        these, ``force_uncertainty`` (eV/Å) and ``feature``.

    Raises:
        RuntimeError: for a difference that rounding does not explain.
    """
    from metatomic_ase import MetatomicCalculator  # pyright: ignore[reportMissingImports]

    theirs = MetatomicCalculator(str(file), device="cpu", uncertainty_threshold=None)
    ours = UBMDCalculator(potential)
    precision = str(next(potential.model.parameters()).dtype).removeprefix("torch.")
    found: dict[str, float] = {}
    for atoms in probes(potential.species, potential.cutoff):
        for name, (a, b) in _both(theirs, ours, potential, atoms).items():
            difference = float(np.abs(a - b).max())
            if not difference <= TOLERANCES[precision] * max(1.0, float(np.abs(b).max())):
                raise RuntimeError(f"the exported model differs in {name} by {difference:g}: please report this")
            found[name] = max(found.get(name, 0.0), difference)
    return found


def _both(
    theirs: Any, ours: UBMDCalculator, potential: UncertainPotential, atoms: Atoms
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Numbers of one structure, of the exported model and of ubmd."""
    uncertainty = ours.get_property("uncertainty", atoms) * len(atoms)
    names = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
    both = {name: (theirs.get_property(name, atoms), ours.get_property(name, atoms)) for name in names}
    known = theirs.run_model(atoms, dict(_capabilities(potential, "float64").outputs))

    def values(name: str) -> NDArray[np.float64]:
        return known[name].block().values.detach().double().numpy()

    both["energy_uncertainty"] = (values("energy_uncertainty"), uncertainty)
    if FORCE_UNCERTAINTY in known:
        both["force_uncertainty"] = (values(FORCE_UNCERTAINTY)[:, 0], ours.atomic_uncertainty)
        batch = ours._batch(atoms)
        output, _ = potential.potential.atoms(batch)
        both["feature"] = (values("feature"), output.features.detach().double().numpy())  # pyright: ignore
    energies = values("energy").sum()
    both["atomic energies"] = (energies, both["energy"][1])
    return {name: (np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for name, (a, b) in both.items()}

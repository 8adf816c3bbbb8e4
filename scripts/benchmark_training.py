"""Time of a training step, relative to one whose derivatives are left to autograd.

    python scripts/benchmark_training.py [--file FILE.extxyz] [--cutoff 5] [--batch 8] [--threads 1] [--device cpu]

Energies and forces, with stress where structures have it. Structures are alanine dipeptide or the first ones of an
extended XYZ file. "plain" makes the moments by operations that autograd differentiates twice; their gradients are
compared, too. Both are timed in turn in one process; the table shows medians. "step" is prediction, loss and gradient
without the optimiser, "predict" the prediction alone.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from ase import Atoms
from rich.console import Console
from rich.table import Table
from timing import medians
from torch import Tensor

from ubmd.data.batch import AtomicBatch, collate
from ubmd.data.io import read_labelled
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.reference.alanine_dipeptide import initial_structure
from ubmd.training.loss import SquaredLoss

SIZES: dict[str, dict[str, Any]] = {"paper": {}, "demo": {"n_basis": 5, "n_gauss": 7, "hidden": (64, 64)}}


class PlainGMNN(GMNN):
    """The same network without explicit derivatives."""

    def representation(self, vectors: Tensor, batch: AtomicBatch) -> Tensor:
        species = self.index[batch.numbers]
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        bells = self.moments.gaussians(distance)[0].transpose(1, 2)
        slots = torch.nn.functional.one_hot(species[batch.neighbours], len(self.species)).to(bells.dtype)
        basis = (slots[..., :, None] * bells[..., None, :]).flatten(-2)
        radial = basis @ (self.beta[species] * bells.shape[-1] ** -0.5)
        unit = vectors / distance[..., None]
        powers = [torch.ones_like(unit[..., :1])]
        for _ in range(self.moments.l_max):
            powers.append((powers[-1][..., :, None] * unit[..., None, :]).flatten(-2))
        moments = torch.cat(powers, dim=-1).transpose(1, 2) @ radial
        return self.contractions(list(moments.split([p.shape[-1] for p in powers], dim=1)))


def molecules(n: int) -> list[Atoms]:
    out = []
    for seed in range(n):
        atoms = initial_structure()
        atoms.rattle(0.15, seed=seed)
        atoms.info["REF_energy"] = float(seed)
        atoms.arrays["REF_forces"] = torch.randn(len(atoms), 3, generator=torch.Generator().manual_seed(seed)).numpy()
        out.append(atoms)
    return out


def gradients(potential: Potential, batch: AtomicBatch) -> list[Tensor]:
    """Of the loss by the parameters, as a training step computes them."""
    loss = SquaredLoss(stress=0.0 if batch.stress is None else 0.01)
    prediction = potential(batch, stress=batch.stress is not None, training=True)
    return list(torch.autograd.grad(loss(prediction, batch), list(potential.parameters())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file")
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    structures = read_labelled(options.file)[: options.batch] if options.file else molecules(options.batch)
    species = sorted({s for a in structures for s in a.symbols})
    batch = collate(structures, options.cutoff, device=options.device)
    title = f"{len(structures)} structures, {len(batch.numbers)} atoms, {options.device}, {options.threads} thread(s)"
    table = Table(title=title)
    for column in ("network", "computed", "plain, ms", "explicit, ms", "ratio", "gradients differ by"):
        table.add_column(column, justify="left" if column in ("network", "computed") else "right")
    for size, sizes in SIZES.items():
        potentials = {
            kind: Potential(network(species, cutoff=options.cutoff, **sizes)).to(options.device)
            for kind, network in (("plain", PlainGMNN), ("explicit", GMNN))
        }
        found = {kind: gradients(potential, batch) for kind, potential in potentials.items()}
        pairs = zip(found["plain"], found["explicit"], strict=True)
        difference = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        jobs = {(kind, "step"): partial(gradients, potential, batch) for kind, potential in potentials.items()}
        jobs |= {(kind, "predict"): partial(potential, batch) for kind, potential in potentials.items()}
        times = medians(jobs, options.repeats)
        for what in ("step", "predict"):
            plain, explicit = times["plain", what], times["explicit", what]
            row = [f"{plain:.1f}", f"{explicit:.1f}", f"{plain / explicit:.2f}"]
            table.add_row(size, what, *row, f"{difference:.0e}" if what == "step" else "")
    Console().print(table)


if __name__ == "__main__":
    main()

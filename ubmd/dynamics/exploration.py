"""What walkers found: the frames they kept and why each of them stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ubmd.data.inherit import Inherited, free_atoms
from ubmd.dynamics.stopping import StopReason

__all__ = ["Exploration", "frames_to_atoms"]


@dataclass(frozen=True, eq=False)
class Exploration:
    """Frames of walkers of the same composition, sorted by walker and step; f frames, n atoms, w walkers.

    What the potential does not predict is NaN. Walkers are listed by ascending identity.
    """

    numbers: NDArray[np.int64]
    """[n] atomic numbers."""
    pbc: NDArray[np.bool_]
    """[3]."""
    walker: NDArray[np.int64]
    """[f] identity of the frame's walker."""
    step: NDArray[np.int64]
    """[f]."""
    positions: NDArray[np.float64]
    """[f, n, 3] Å, unwrapped."""
    cell: NDArray[np.float64]
    """[f, 3, 3] Å; zeros for a molecule."""
    energy: NDArray[np.float64]
    """[f] eV, without the bias."""
    uncertainty: NDArray[np.float64]
    """[f] eV/atom."""
    atomic_uncertainty: NDArray[np.float64]
    """[f, n] eV/Å."""
    tau: NDArray[np.float64]
    """[f] biasing strength."""
    walkers: NDArray[np.int64]
    """[w] identities, ascending."""
    reasons: NDArray[np.int8]
    """[w] values of :class:`~ubmd.dynamics.stopping.StopReason`."""
    steps: NDArray[np.int64]
    """[w] step at which the walker stopped."""
    temperature: NDArray[np.float64]
    """[w] K, the thermostat's target or the Monte Carlo's; NaN if there is neither."""
    max_uncertainty: NDArray[np.float64]
    """[w] highest atomic uncertainty met at any step of this exploration at which it was evaluated, eV/Å."""
    inherited: tuple[Inherited, ...] = ()
    """[w] what frames have of their walker's start, such as charges and fixed atoms; empty if nothing is known."""

    @classmethod
    def joined(cls, parts: Sequence[Exploration]) -> Exploration:
        """What groups of walkers found, as if they had been one."""
        values = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name not in ("numbers", "pbc", "inherited")
        }
        frames, fates = np.lexsort((values["step"], values["walker"])), np.argsort(values["walkers"])
        of_walkers = ("walkers", "reasons", "steps", "temperature", "max_uncertainty")
        ordered = {name: value[fates if name in of_walkers else frames] for name, value in values.items()}
        return replace(parts[0], **ordered)

    @property
    def n_frames(self) -> int:
        """Number of frames of all walkers together."""
        return len(self.walker)

    @property
    def md_steps(self) -> int:
        """Steps of all walkers together."""
        return int(self.steps.sum())

    def stopped_by(self, reason: StopReason) -> int:
        """Number of walkers that stopped for ``reason``."""
        return int((self.reasons == reason).sum())


def frames_to_atoms(exploration: Exploration) -> list[Atoms]:
    """The frames as ASE structures, in order.

    ``info`` holds walker, step, model_energy (eV), uncertainty (eV/atom), max_atomic_uncertainty (eV/Å, of free
    atoms) and tau; ``arrays`` holds atomic_uncertainty (eV/Å). They are the model's words, not labels, hence not
    attached as a calculator's results. What a walker's start hands on is there besides.
    """
    frames = []
    inherited = dict(zip(exploration.walkers.tolist(), exploration.inherited, strict=False))
    for i in range(exploration.n_frames):
        atoms = Atoms(
            numbers=exploration.numbers,
            positions=exploration.positions[i],
            cell=exploration.cell[i],
            pbc=exploration.pbc,
        )
        if exploration.walker[i] in inherited:
            inherited[int(exploration.walker[i])].onto(atoms)
        atoms.info.update(
            walker=int(exploration.walker[i]),
            step=int(exploration.step[i]),
            model_energy=float(exploration.energy[i]),
            uncertainty=float(exploration.uncertainty[i]),
            max_atomic_uncertainty=float(exploration.atomic_uncertainty[i][free_atoms(atoms)].max(initial=-np.inf)),
            tau=float(exploration.tau[i]),
        )
        atoms.arrays["atomic_uncertainty"] = exploration.atomic_uncertainty[i].copy()
        frames.append(atoms)
    return frames

"""What walkers found: the frames they kept and why each of them stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from ubmd.data.inherit import Inherited, free_atoms
from ubmd.dynamics.stopping import StopReason
from ubmd.units import ACCELERATION, ASE_TIME_PER_FS, KB

__all__ = ["Exploration", "Motion", "frames_to_atoms", "frames_with_results", "kinetic_of_frames"]


OF_WALKERS = ("walkers", "reasons", "steps", "temperature", "max_uncertainty")
"""Fields of :class:`Exploration` that are of walkers; others are of frames."""


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
    time: NDArray[np.float64] | None = None
    """[f] fs. This and what follows is recorded by ``ubmd md`` alone (:mod:`ubmd.dynamics.recording`), and None if it
    was not."""
    momenta: NDArray[np.float64] | None = None
    """[f, n, 3] amu Å/fs."""
    forces: NDArray[np.float64] | None = None
    """[f, n, 3] eV/Å, without the bias."""
    stress: NDArray[np.float64] | None = None
    """[f, 3, 3] eV/Å³, positive under tension, without the bias and without the atoms' motion."""
    bias_energy: NDArray[np.float64] | None = None
    """[f] eV, what the bias adds to ``energy``."""

    @classmethod
    def joined(cls, parts: Sequence[Exploration]) -> Exploration:
        """What groups of walkers found, as if they had been one; what some have not recorded is left out."""
        given = {
            field.name: [getattr(part, field.name) for part in parts]
            for field in fields(cls)
            if field.name not in ("numbers", "pbc", "inherited")
        }
        values = {name: np.concatenate(own) for name, own in given.items() if not any(part is None for part in own)}
        frames, fates = np.lexsort((values["step"], values["walker"])), np.argsort(values["walkers"])
        ordered = {name: value[fates if name in OF_WALKERS else frames] for name, value in values.items()}
        return replace(parts[0], **(dict.fromkeys(given) | ordered))

    def of_walker(self, walker: int) -> Exploration:
        """What one walker found."""
        frames, fates = self.walker == walker, self.walkers == walker
        changes = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in OF_WALKERS:
                changes[field.name] = value[fates]
            elif field.name not in ("numbers", "pbc", "inherited") and value is not None:
                changes[field.name] = value[frames]
        inherited = tuple(part for part, own in zip(self.inherited, fates, strict=False) if own)
        return replace(self, **changes, inherited=inherited)

    @property
    def masses(self) -> NDArray[np.float64]:
        """[w, n] amu: those that a walker's start had, else standard atomic weights."""
        standard = atomic_masses[self.numbers]
        own = [part.arrays.get("masses", standard) for part in self.inherited]
        return np.array(own or [standard] * len(self.walkers)).reshape(-1, len(self.numbers))

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


@dataclass(frozen=True)
class Motion:
    """What the momenta of frames say."""

    velocities: NDArray[np.float64]
    """[f, n, 3] Å/fs."""
    energy: NDArray[np.float64]
    """[f] eV."""
    temperature: NDArray[np.float64]
    """[f] K, of three degrees of freedom for each free atom."""


def kinetic_of_frames(exploration: Exploration) -> Motion | None:
    """Velocities, kinetic energies and temperatures of the frames; None if momenta were not recorded."""
    momenta = exploration.momenta
    if momenta is None:
        return None
    place = np.searchsorted(exploration.walkers, exploration.walker)
    velocities = momenta / exploration.masses[place][:, :, None]
    energy = 0.5 * (momenta * velocities).sum((1, 2)) / ACCELERATION
    n = len(exploration.numbers)
    free = np.array([n - part.fixed.sum() for part in exploration.inherited] or [n] * len(exploration.walkers))
    return Motion(velocities, energy, 2 * energy / (3 * KB * free[place]))


def frames_with_results(exploration: Exploration) -> list[Atoms]:
    """The frames as ASE structures with momenta, and with energy, forces and stress as the results of a calculator.

    These are without the bias. Besides, ``info`` and ``arrays`` hold what :func:`frames_to_atoms` gives, ``time_fs``,
    ``temperature_K`` and ``bias_energy``, as far as each is known.
    """
    motion, frames = kinetic_of_frames(exploration), frames_to_atoms(exploration)
    for i, atoms in enumerate(frames):
        results: dict[str, Any] = {"energy": atoms.info.pop("model_energy")}
        for name in ("forces", "stress"):
            if (values := getattr(exploration, name)) is not None:
                results[name] = values[i] if name == "forces" else full_3x3_to_voigt_6_stress(values[i])
        for name, values in (("time_fs", exploration.time), ("bias_energy", exploration.bias_energy)):
            if values is not None:
                atoms.info[name] = float(values[i])
        if motion is not None and exploration.momenta is not None:
            atoms.set_momenta(exploration.momenta[i] / ASE_TIME_PER_FS, apply_constraint=False)
            atoms.info["temperature_K"] = float(motion.temperature[i])
        for name in [name for name, value in atoms.info.items() if isinstance(value, float) and not np.isfinite(value)]:
            del atoms.info[name]
        if np.isnan(atoms.arrays["atomic_uncertainty"]).all():
            del atoms.arrays["atomic_uncertainty"]
        known = {name: value for name, value in results.items() if np.isfinite(value).all()}
        atoms.calc = SinglePointCalculator(atoms, **known)
    return frames


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

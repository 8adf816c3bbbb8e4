"""The whole state of a batch of walkers, and how it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from ase.data import atomic_masses
from torch import Tensor

from ubmd.data.batch import AtomicBatch, joined
from ubmd.dynamics.noise import MOMENTA_STREAM, checked_seeds, stream
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Prediction, WalkerPotential
from ubmd.units import ACCELERATION, KB

__all__ = [
    "WalkerState",
    "degrees_of_freedom",
    "evaluate",
    "initial_state",
    "kinetic_temperature",
    "resting_state",
    "shared_composition",
]


@dataclass(frozen=True, eq=False)
class WalkerState:
    """Everything that the future of a batch of walkers depends on, apart from potential and integrator.

    The fields below ``extended`` are what the potential said about these positions; they are None before the
    first evaluation, and later None if the potential does not predict them.
    """

    batch: AtomicBatch
    """One structure a walker; its neighbour matrix reaches beyond the cutoff by a skin."""
    momenta: Tensor
    """[n_atoms, 3] amu Å/fs."""
    masses: Tensor
    """[n_atoms] amu."""
    forces: Tensor
    """[n_atoms, 3] eV/Å of the last prediction (biased if the potential is); zeros before the first one, and always
    on fixed atoms."""
    temperature: Tensor
    """[n_walkers] K, what the thermostat aims at."""
    seed: Tensor
    """[n_walkers] int64, names each walker's stream of random numbers."""
    step: Tensor
    """[n_walkers] int64, completed steps."""
    walker: Tensor
    """[n_walkers] int64, identity: stays with a walker when others leave the batch."""
    listed_positions: Tensor
    """[n_atoms, 3] Å, where the atoms were when the neighbour matrix was computed."""
    listed_cell: Tensor
    """[n_walkers, 3, 3] Å, the cell at that time."""
    start_cell: Tensor
    """[n_walkers, 3, 3] Å, the cell that the walker started with."""
    memory: Memory
    """What the potential remembers; the first axis of each tensor counts walkers."""
    extended: dict[str, Tensor]
    """Variables of thermostat and barostat, if the integrator has any; the first axis counts walkers."""
    energy: Tensor | None = None
    """[n_walkers] eV, float64, without the bias."""
    uncertainty: Tensor | None = None
    """[n_walkers] eV/atom."""
    atomic_uncertainty: Tensor | None = None
    """[n_atoms] eV/Å."""
    tau: Tensor | None = None
    """[n_walkers] biasing strength."""
    bias_energy: Tensor | None = None
    """[n_walkers] eV, float64; what the bias adds to ``energy``."""
    stress: Tensor | None = None
    """[n_walkers, 3, 3] eV/Å³ of the last prediction (biased if the potential is), without the kinetic part."""

    @property
    def n_walkers(self) -> int:
        """Number of walkers in the batch."""
        return self.batch.n_systems

    @property
    def fixed(self) -> Tensor | None:
        """[n_atoms] bool, atoms that stay where they are, without momentum and force; None: all atoms move."""
        return self.batch.fixed

    @property
    def evaluated(self) -> bool:
        """Whether forces and energy are those of the present positions' prediction."""
        return self.energy is not None

    def max_uncertainty(self) -> Tensor | None:
        """[n_walkers] highest uncertainty of a free atom of each walker, eV/Å; NaN wins; None if not predicted."""
        atomic = self.atomic_uncertainty
        return None if atomic is None else self.batch.max_atoms(self.batch.of_free_atoms(atomic))

    def moving_forces(self, prediction: Prediction) -> Tensor:
        """[n_atoms, 3] eV/Å that move the atoms: those predicted, none on fixed atoms."""
        # a float64 force must not silently promote a float32 run
        return self.batch.of_free_atoms(prediction.forces.to(self.momenta.dtype))

    def replace(self, **changes: object) -> WalkerState:
        """A copy with some fields replaced."""
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def observed(self, prediction: Prediction, **changes: object) -> WalkerState:
        """A copy with the forces, stress, observables and memory of ``prediction``, and ``changes`` besides."""
        energy, bias = prediction.energy, prediction.bias_energy
        return self.replace(
            forces=self.moving_forces(prediction),
            energy=energy if bias is None else energy - bias,
            uncertainty=prediction.uncertainty,
            atomic_uncertainty=prediction.atomic_uncertainty,
            tau=prediction.tau,
            bias_energy=bias,
            stress=prediction.stress,
            memory=prediction.memory or {},
            **changes,
        )

    def select(self, walkers: Tensor) -> WalkerState:
        """The walkers at the given places [m] of the batch (int64, any order) as a new state."""
        counts = self.batch.n_atoms[walkers]
        starts = self.batch.n_atoms.cumsum(0) - self.batch.n_atoms
        offset = torch.repeat_interleave(starts[walkers] - (counts.cumsum(0) - counts), counts)
        atoms = torch.arange(len(offset), device=offset.device) + offset
        new: dict[str, object] = {"batch": self.batch.select(walkers)}
        for name in _NESTED:
            new[name] = {key: value[walkers] for key, value in getattr(self, name).items()}
        for names, index in ((_PER_ATOM, atoms), (_PER_WALKER, walkers)):
            for name in names:
                value = getattr(self, name)
                new[name] = None if value is None else value[index]
        return _sharing_cells([self], self.replace(**new))

    @classmethod
    def joined(cls, states: Sequence[WalkerState]) -> WalkerState:
        """The walkers of several states, in order, as one state.

        Raises:
            InputError: if some remember what others do not.
        """
        if len(states) == 1:
            return states[0]
        new: dict[str, object] = {"batch": AtomicBatch.joined([state.batch for state in states])}
        try:
            for name in (*_PER_ATOM, *_PER_WALKER):
                new[name] = joined([getattr(state, name) for state in states], name)
            for name in _NESTED:
                values = [getattr(state, name) for state in states]
                keys = dict.fromkeys(key for value in values for key in value)
                new[name] = {key: joined([value.get(key) for value in values], f"{name}[{key!r}]") for key in keys}
        except ValueError as error:
            raise InputError(
                f"walkers cannot begin beside others that run: {error}; set dynamics.slots=null"
            ) from error
        return _sharing_cells(states, states[0].replace(**new))

    def state_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries of CPU tensors, for ``torch.save``; a field that is None is left out.

        :meth:`from_state_dict` gives the same bits back, neighbours and listed positions included, so that a
        resumed run cannot differ from an uninterrupted one.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("batch", *_NESTED)}
        batch = {f.name: getattr(self.batch, f.name) for f in fields(self.batch)}
        nested = {name: _plain(getattr(self, name)) for name in _NESTED}
        return {"batch": _plain(batch), **nested, **_plain(own)}

    @classmethod
    def from_state_dict(cls, values: Mapping[str, Any], *, device: torch.device | str | None = None) -> WalkerState:
        """The inverse of :meth:`state_dict`, on ``device``.

        Raises:
            InputError: if a field is missing or unknown.
        """
        nested = {name: _moved(values.get(name, {}), device) for name in ("batch", *_NESTED)}
        own = {key: value for key, value in values.items() if key not in nested}
        if "fixed" in own:  # as earlier versions wrote it
            nested["batch"]["fixed"] = _moved({"fixed": own.pop("fixed")}, device)["fixed"]
        try:
            nested["batch"] = AtomicBatch(**nested["batch"])  # pyright: ignore[reportArgumentType]
            return cls(**nested, **_moved(own, device))
        except TypeError as error:
            raise InputError(f"saved walkers do not fit this version's WalkerState: {error}") from error


_PER_ATOM = ("momenta", "masses", "forces", "listed_positions", "atomic_uncertainty")
_PER_WALKER = (
    *("temperature", "seed", "step", "walker", "listed_cell", "start_cell"),
    *("energy", "uncertainty", "tau", "bias_energy", "stress"),
)
_NESTED = ("memory", "extended")


def _sharing_cells(before: Sequence[WalkerState], state: WalkerState) -> WalkerState:
    """The state whose cells are one tensor where they were before: walkers that keep their cell are told by that."""
    same = [name for name in ("listed_cell", "start_cell") if all(getattr(b, name) is b.batch.cell for b in before)]
    return state.replace(**dict.fromkeys(same, state.batch.cell))


def _plain(values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    # clone, because torch.save writes the whole storage behind a view
    return {key: value.detach().cpu().clone() for key, value in values.items() if value is not None}


def _moved(values: Mapping[str, Tensor], device: torch.device | str | None) -> dict[str, Any]:
    return {key: value.to(device) for key, value in values.items()}


def initial_state(
    batch: AtomicBatch,
    *,
    temperature: float | Sequence[float] | Tensor,
    seeds: Sequence[int] | np.ndarray | Tensor,
    masses: Tensor | None = None,
    fixed: Tensor | None = None,
    walkers: Sequence[int] | None = None,
) -> WalkerState:
    """Walkers at the structures of ``batch`` with momenta from the Maxwell-Boltzmann distribution.

    Each walker's momenta come from its own stream, so they do not depend on the other walkers. The total
    momentum of each walker is removed by subtracting its centre-of-mass velocity, as ASE's ``Stationary``
    does with ``preserve_temperature=False``; the kinetic temperature is not rescaled, and rotation is kept.
    A walker of one atom, or with fixed atoms, keeps its momentum.

    Args:
        batch: one structure a walker; labels are dropped.
        temperature: K, one for all or one a walker; must be positive.
        seeds: [n_walkers] non-negative integers; give each walker its own.
        masses: [n_atoms] amu; by default the standard atomic weights.
        fixed: [n_atoms] bool, atoms that stay where they are; by default none.
        walkers: [n_walkers] identities, by default 0, 1, ...

    Raises:
        InputError: for a temperature, seed, mass or identity that makes no sense, or a walker without a free atom.
    """
    device, dtype, n_walkers = batch.positions.device, batch.positions.dtype, batch.n_systems
    target = torch.as_tensor(temperature, dtype=torch.float64).cpu()
    if target.shape not in ((), (n_walkers,)):
        raise InputError(f"temperature must be one number or {n_walkers}, got {len(target)}; give kelvins")
    target = target.expand(n_walkers).clone()
    if not bool(((target > 0) & target.isfinite()).all()):
        raise InputError(f"temperature must be positive, got {target.min():g} K; give kelvins, e.g. 300")
    seed = checked_seeds(seeds, n_walkers)
    identity = torch.arange(n_walkers) if walkers is None else torch.as_tensor(walkers, dtype=torch.int64)
    if len(identity) != n_walkers or len(identity.unique()) != n_walkers:
        raise InputError(f"walkers must hold {n_walkers} different identities, got {identity.tolist()}")
    if masses is None:
        masses = torch.as_tensor(atomic_masses)[batch.numbers.cpu()]
    mass = masses.detach().cpu().double()
    if mass.shape != batch.numbers.shape or not bool(((mass > 0) & mass.isfinite()).all()):
        raise InputError(f"masses must be {len(batch.numbers)} positive numbers in amu, one an atom")
    fixed = _checked_fixed(batch, fixed)
    return WalkerState(
        batch=batch.replace(energy=None, forces=None, stress=None, fixed=None if fixed is None else fixed.to(device)),
        momenta=_thermal_momenta(batch.n_atoms.cpu(), mass, fixed, target, seed).to(device, dtype),
        masses=mass.to(device, dtype),
        forces=torch.zeros_like(batch.positions),
        temperature=target.to(device, dtype),
        seed=torch.as_tensor(seed, device=device),
        step=torch.zeros(n_walkers, dtype=torch.int64, device=device),
        walker=identity.to(device),
        listed_positions=batch.positions,
        listed_cell=batch.cell,
        start_cell=batch.cell,
        memory={},
        extended={},
    )


def _checked_fixed(batch: AtomicBatch, fixed: Tensor | None) -> Tensor | None:
    """[n_atoms] bool on the CPU; None if no atom is fixed."""
    if fixed is None or not bool(fixed.any()):
        return None
    free = batch.sum_atoms(1 - fixed.to(batch.n_atoms))
    if not bool((free > 0).all()):
        raise InputError(f"all atoms of walker {int(free.argmin())} are fixed; free some, or there is nothing to move")
    return fixed.detach().cpu()


def resting_state(
    batch: AtomicBatch,
    *,
    seeds: Sequence[int] | np.ndarray | Tensor,
    temperature: float | Sequence[float] | Tensor = float("nan"),
    masses: Tensor | None = None,
    fixed: Tensor | None = None,
) -> WalkerState:
    """Walkers without momenta at the structures of ``batch``, for steps that are not steps in time.

    Args:
        batch: one structure a walker; labels are dropped.
        seeds: [n_walkers] non-negative integers; give each walker its own.
        temperature: K, what the walkers' states are weighted by, one for all or one a walker; NaN if there is none.
        masses: [n_atoms] amu; by default the standard atomic weights.
        fixed: [n_atoms] bool, atoms that stay where they are; by default none.

    Raises:
        InputError: for a seed or mass that makes no sense, or a walker without a free atom.
    """
    state = initial_state(batch, temperature=1.0, seeds=seeds, masses=masses, fixed=fixed)
    kelvin = torch.as_tensor(temperature).to(state.temperature).expand_as(state.temperature)
    return state.replace(momenta=torch.zeros_like(state.momenta), temperature=kelvin.clone())


def _thermal_momenta(
    n_atoms: Tensor, masses: Tensor, fixed: Tensor | None, temperature: Tensor, seeds: np.ndarray
) -> Tensor:
    """[n_atoms, 3] amu Å/fs, float64: without total momentum, unless some atoms are fixed and take it up."""
    still = torch.zeros(len(masses), dtype=torch.bool) if fixed is None else fixed
    sizes = n_atoms.tolist()
    parts = zip(masses.split(sizes), still.split(sizes), temperature.tolist(), seeds.tolist(), strict=True)
    momenta = []
    for mass, held, kelvin, seed in parts:
        normals = torch.as_tensor(stream(seed, MOMENTA_STREAM).standard_normal((len(mass), 3)))
        momentum = (mass[:, None] * (KB * kelvin * ACCELERATION)).sqrt() * normals
        if held.any():
            momentum = momentum.masked_fill(held[:, None], 0.0)
        elif len(mass) > 1:
            momentum = momentum - mass[:, None] * (momentum.sum(0) / mass.sum())
        momenta.append(momentum)
    return torch.cat(momenta)


def evaluate(state: WalkerState, potential: WalkerPotential, *, stress: bool = False) -> WalkerState:
    """The state with the potential's forces, observables and memory at its present positions.

    Args:
        state: walkers whose neighbour matrix is valid for the potential's cutoff.
        potential: biased or not.
        stress: also predict the stress.
    """
    return state.observed(potential(state.batch, state.memory, stress=stress))


def degrees_of_freedom(state: WalkerState) -> Tensor:
    """[n_walkers] number of thermalised degrees of freedom: three for each free atom, the centre of mass included."""
    if state.fixed is None:
        return 3 * state.batch.n_atoms
    return 3 * state.batch.sum_atoms((~state.fixed).to(state.batch.n_atoms))


def kinetic_temperature(state: WalkerState) -> Tensor:
    """[n_walkers] K: twice the kinetic energy per thermalised degree of freedom and Boltzmann constant."""
    twice_kinetic = state.batch.sum_atoms(state.momenta.square().sum(1) / state.masses)
    # divided one by one: integers times a number would be float32, whatever the walkers are
    return twice_kinetic / (KB * ACCELERATION) / degrees_of_freedom(state)


def shared_composition(state: WalkerState) -> tuple[np.ndarray, np.ndarray]:
    """The atomic numbers [n] and periodicity [3] that all walkers share.

    Raises:
        InputError: if they differ in that or in what is fixed, or there is no walker.
    """
    batch = state.batch
    if not batch.n_systems:
        raise InputError("run_walkers needs at least one walker, got none")
    counts = batch.n_atoms.tolist()
    numbers, pbc = batch.numbers.cpu(), batch.pbc.cpu()
    if len(set(counts)) > 1 or not bool((numbers.view(len(counts), -1) == numbers[: counts[0]]).all()):
        raise InputError("walkers must all have the same atoms in the same order; run other systems separately")
    if not bool((pbc == pbc[0]).all()):
        raise InputError("walkers must all be periodic along the same lattice vectors; run others separately")
    fixed = None if state.fixed is None else state.fixed.view(len(counts), -1)
    if fixed is not None and not bool((fixed == fixed[0]).all()):
        raise InputError("walkers must all have the same fixed atoms; run others separately")
    return numbers[: counts[0]].numpy(), pbc[0].numpy()

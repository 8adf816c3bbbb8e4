"""A longer step for what is slow and expensive: the bias and the uncertainty, by the reversible scheme r-RESPA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ubmd.data.batch import AtomicBatch
from ubmd.dynamics.state import WalkerState
from ubmd.errors import InputError
from ubmd.models.potential import Memory, Prediction, WalkerPotential

__all__ = ["Evaluations", "SlowPotential", "check_every", "evaluation_interval"]


@runtime_checkable
class SlowPotential(Protocol):
    """A :class:`~ubmd.models.potential.WalkerPotential` that need not be evaluated in full at every step.

    Called as such it predicts everything, its bias force and bias stress ``every`` times as large as they are, but
    neither the energy nor tau. Integrated by half a step of momentum before and after each change of positions, that
    is an impulse over ``every`` steps around the molecular dynamics of the rest: the scheme r-RESPA (Tuckerman, Berne
    and Martyna, J. Chem. Phys. 97, 1990 (1992)), time-reversible and of second order as the integrator itself.
    """

    every: int
    """Steps from one full evaluation to the next."""

    def between(self, batch: AtomicBatch, memory: Memory | None = None, /, *, stress: bool = False) -> Prediction:
        """What the other steps need: energy, forces and stress without the slow part, and no uncertainty."""
        ...


def evaluation_interval(potential: object) -> int:
    """Steps between full evaluations of a potential; 1 for one that knows no other."""
    return potential.every if isinstance(potential, SlowPotential) else 1


class Evaluations:
    """Says at each step of a set of walkers which evaluation is due, by the number of steps that they have done.

    A walker's trajectory is that of r-RESPA whatever its company. So those that share a batch must be at the same
    point between two full evaluations.

    Args:
        potential: of the walkers.
        state: the walkers as they are, their present step evaluated.

    Raises:
        ValueError: if the steps of two walkers differ by other than a multiple of ``every``.
    """

    def __init__(self, potential: WalkerPotential, state: WalkerState):
        self.potential, self.every, self.done = potential, evaluation_interval(potential), 0
        if self.every > 1:
            points = (state.step % self.every).unique().tolist()
            if len(points) > 1:
                raise ValueError(f"walkers of one batch are {points} steps past their last evaluation of the bias")
            self.done = points[0]

    def next(self) -> Callable[..., Prediction]:
        """The evaluation of the next step."""
        self.done += 1
        if self.done % self.every == 0:
            return self.potential
        assert isinstance(self.potential, SlowPotential)
        return self.potential.between


def check_every(potential: object, integrator: object, frame_interval: int) -> None:
    """Raises InputError where a bias at a longer step would be wrong, or leave frames without an uncertainty.

    Args:
        potential: a bias, perhaps.
        integrator: names in ``takes_impulses`` what may be n times as large every n-th step: ``forces``, and ``stress``
            if its steps depend on that.
        frame_interval: steps between frames.
    """
    every = evaluation_interval(potential)
    if every == 1:
        return
    takes, name = getattr(integrator, "takes_impulses", ()), type(integrator).__name__
    if "forces" not in takes:
        raise InputError(f"bias.every={every} is for molecular dynamics, not for {name}; set bias.every=1")
    acting = getattr(potential, "acts_on_cell", None)
    if acting is not None and getattr(integrator, "needs_stress", False) and "stress" not in takes:
        raise InputError(
            f"bias.every={every} with {acting} needs dynamics=npt_mtk: the cell of {name} takes no impulses; choose "
            "that or set bias.every=1"
        )
    if frame_interval % every:
        raise InputError(
            f"dynamics.frame_interval={frame_interval} must be a multiple of bias.every={every}, as only then a frame "
            "has an uncertainty"
        )

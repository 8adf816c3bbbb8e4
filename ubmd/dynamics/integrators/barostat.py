"""What integrators at constant pressure share: which strains a cell may take, and how walkers are set up for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ubmd.dynamics.settings import check_time_step, in_turn
from ubmd.dynamics.state import WalkerState
from ubmd.errors import InputError
from ubmd.units import ACCELERATION, KB, MPA

__all__ = [
    "CELLS",
    "allowed",
    "check_settings",
    "kinetic_tensor",
    "lattice_frame",
    "target_pressure",
    "thermal_energy",
    "unless_torn",
    "without_drift",
]

CELLS = ("isotropic", "orthorhombic", "full")
"""How a cell may change: its size alone; the lengths along three axes at right angles; everything."""

_LARGEST_STRAIN = 0.5


def check_settings(dt: float, cell: str, **times: float) -> None:
    """Raises InputError for a time step (fs), a kind of cell or another positive number that makes no sense."""
    check_time_step(dt)
    for name, value in times.items():
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} must be positive, got {value}")
    if cell not in CELLS:
        raise InputError(f"cell={cell} must be one of {', '.join(CELLS)}")


def target_pressure(pressure: float | Sequence[float], state: WalkerState) -> Tensor:
    """[n_walkers] eV/Å³ from MPa; walkers take the values of a list in turn.

    Raises:
        InputError: if walkers are too small to have a temperature, differ in size, or have fixed atoms.
    """
    if state.fixed is not None:
        raise InputError("constant pressure would move fixed atoms with the cell; use constant volume, or free them")
    counts = state.batch.n_atoms
    if len(counts) and (int(counts.min()) < 2 or int(counts.min()) != int(counts.max())):
        raise InputError(
            f"constant pressure needs walkers of one size and of at least two atoms, got {counts.tolist()} atoms; "
            "use a supercell"
        )
    return MPA * in_turn(pressure, state.walker)


def thermal_energy(state: WalkerState) -> tuple[Tensor, int]:
    """k_B T [n_walkers] in eV, float64, and the degrees of freedom 3N - 3: the centre of mass rests."""
    n_atoms = len(state.batch.numbers) // max(state.n_walkers, 1)
    return KB * state.temperature.double(), 3 * n_atoms - 3


def lattice_frame(cell: Tensor) -> Tensor:
    """Orthonormal axes Q [n, 3, 3] (rows) in which cells [n, 3, 3] are upper triangular: cell Q^T.

    For a cell that is upper triangular already these are the Cartesian axes, up to signs. For a lower triangular
    one they are these in reverse order, in which a lower triangular strain is an upper triangular one.
    """
    cell = cell.double()
    _, second, third = cell.unbind(1)
    last = torch.nn.functional.normalize(third, dim=1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(second, third), dim=1)
    frame = torch.stack([normal, torch.linalg.cross(last, normal), last], dim=1)
    upper, lower = ((part == 0).all(2).all(1) for part in (cell.tril(-1), cell.triu(1)))
    reverse = torch.eye(3, dtype=frame.dtype, device=frame.device).flip(0)
    return torch.where((lower & ~upper)[:, None, None], reverse, frame)


def allowed(matrix: Tensor, kind: str, frame: Tensor, *, triangular: bool) -> Tensor:
    """The part of symmetric matrices that cells may follow.

    Args:
        matrix: [n, 3, 3].
        kind: one of :data:`CELLS`.
        frame: [n, 3, 3] axes of :func:`lattice_frame`.
        triangular: take the upper triangle, in the frame, of a matrix that is allowed altogether: it changes
            the shape without turning the cell.
    """
    if kind == "isotropic":
        trace = matrix.diagonal(dim1=1, dim2=2).mean(1)
        return trace[:, None, None] * torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    if kind == "full" and not triangular:
        return matrix
    inside = frame @ matrix @ frame.mT
    inside = inside.triu() if kind == "full" else torch.diag_embed(inside.diagonal(dim1=1, dim2=2))
    return frame.mT @ inside @ frame


def kinetic_tensor(momenta: Tensor, masses: Tensor) -> Tensor:
    """Sum of p (x) p / m of momenta [n_walkers, n, 3] (amu Å/fs), [n_walkers, 3, 3] eV, float64; its trace is 2 K."""
    return torch.einsum("wna,wnb->wab", momenta, momenta / masses).double() / ACCELERATION


def without_drift(values: Tensor, masses: Tensor) -> Tensor:
    """Momenta or forces [n_walkers, n, 3] less those of the centre of mass.

    The pressure has no hold on the centre of mass. Its force vanishes but for rounding and biases with weights of
    species, which would accelerate a system without friction for ever.
    """
    return values - masses * (values.sum(1, keepdim=True) / masses.sum(1, keepdim=True))


def unless_torn(positions: Tensor, strain: Tensor) -> Tensor:
    """Positions [n_walkers, n, 3], NaN in a walker whose cell was strained by half or more in one step.

    No time step fits such a motion; neighbours in a cell that has collapsed would fill the memory.
    """
    torn = ~(strain.norm(dim=(1, 2)) < _LARGEST_STRAIN)
    return torch.where(torn[:, None, None], torch.nan, positions)

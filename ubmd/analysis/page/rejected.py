"""What a run chose to have labelled and did not learn from, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from ubmd.data.io import read_structures
from ubmd.data.labels import SYSTEM
from ubmd.reference.base import Label
from ubmd.reference.labelling import with_label, within_limit
from ubmd.reference.store import LabelStore
from ubmd.runs.store import INITIAL

__all__ = ["Rejected", "rejected_structures"]

_UNKNOWN = "no label was stored: its computation broke off, or its label was lost; see ubmd.log"


@dataclass(frozen=True)
class Rejected:
    """A structure without a usable label."""

    round: int
    """``INITIAL`` for one that the run was to start from."""
    origin: str
    """The walker and its step."""
    reason: str


def rejected_structures(path: Path, config: Mapping[str, Any]) -> list[Rejected]:
    """Everything that a run had to reject, from ``selected.extxyz``, ``labelled.extxyz`` and ``labels.db``.

    Args:
        path: of the run's folder.
        config: its configuration, of which ``labelling.max_force`` counts.

    Raises:
        InputError: one of the files is damaged.
    """
    selected: dict[bytes, tuple[int, Atoms]] = {}
    learnt: set[bytes] = set()
    waiting: set[int] = set()
    for file in sorted(path.glob("rounds/*/selected.extxyz")):
        index, labelled = int(file.parent.name), file.with_name("labelled.extxyz")
        selected |= {_key(atoms): (index, atoms) for atoms in _structures(file)}
        if labelled.is_file():
            learnt |= {_key(atoms) for atoms in _structures(labelled)}
        else:
            waiting.add(index)  # labels are still to come
    store = LabelStore(path / "labels.db")
    failures = {_key(atoms): failure.message for atoms, failure in store.failures()}
    out = [Rejected(INITIAL, "", reason) for key, reason in failures.items() if key not in selected]
    lost = {k: v for k, v in selected.items() if k not in learnt and (k in failures or v[0] not in waiting)}
    labels = {_key(atoms): label for atoms, label in store.labelled()} if lost.keys() - failures.keys() else {}
    for key, (index, atoms) in lost.items():
        reason = failures.get(key) or _beyond(atoms, labels.get(key), _limit(config)) or _UNKNOWN
        out.append(Rejected(index, _origin(atoms), reason))
    return out


def _structures(file: Path) -> list[Atoms]:
    return read_structures(file, report=False) if file.stat().st_size else []


def _key(atoms: Atoms) -> bytes:
    return atoms.numbers.tobytes() + atoms.positions.tobytes() + atoms.cell.array.tobytes()


def _origin(atoms: Atoms) -> str:
    walker, step = atoms.info.get("walker"), atoms.info.get("step")
    system = f"{atoms.info[SYSTEM]}, " if SYSTEM in atoms.info else ""
    return "" if walker is None else f"{system}walker {walker}, step {step}"


def _limit(config: Mapping[str, Any]) -> float | None:
    labelling = config.get("labelling")
    limit = labelling.get("max_force") if isinstance(labelling, Mapping) else None
    return float(limit) if isinstance(limit, int | float) else None


def _beyond(atoms: Atoms, label: Label | None, limit: float | None) -> str | None:
    """Why a label is beyond the limit on forces; None if it is not."""
    if label is None:
        return None
    _, rejected = within_limit([with_label(atoms, label)], limit)
    return rejected[0][1] if rejected else None

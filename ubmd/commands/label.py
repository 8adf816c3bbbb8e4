"""``ubmd label``: labels for the structures in a file."""

from __future__ import annotations

import logging
from pathlib import Path

from ase import Atoms
from omegaconf import DictConfig
from rich.console import Console

from ubmd.callbacks.acquire import label_with_progress
from ubmd.config import build, plain
from ubmd.data.io import read_structures, write_structures
from ubmd.errors import InputError
from ubmd.progress import run_progress
from ubmd.reference.base import Reference
from ubmd.reference.executors import LabelExecutor
from ubmd.reference.labelling import LabelReport, check_max_force
from ubmd.reference.store import LabelStore
from ubmd.runs.opening import open_run
from ubmd.runs.store import RoundStore

__all__ = ["label"]

log = logging.getLogger(__name__)

SHOWN = 20
"""Rejected structures that are named one by one."""


def label(cfg: DictConfig) -> None:
    """Labels the structures in ``cfg.structures``, or those of them that have no label yet.

    Writes into the run folder ``labels.db``, label by label, then ``labelled.extxyz`` and, if any were
    rejected, ``rejected.extxyz`` with a ``reason``. Both have the number of the structure in the input, from
    0, as ``source_index``.

    Raises:
        InputError: for anything wrong in the configuration or the structures, before any work; at the end, if
            no structure could be labelled.
    """
    if cfg.get("logger"):
        raise InputError("logger: `ubmd label` logs to no logger, its results are in labelled.extxyz; leave it out")
    limit = cfg.labelling.max_force
    check_max_force(limit)
    reference: Reference = build(cfg, "reference")
    executor: LabelExecutor = build(cfg, "executor")
    executor.check(reference)
    structures = read_structures(str(cfg.structures))
    for number, atoms in enumerate(structures):
        atoms.info["source_index"] = number
    folder = Path(cfg.paths.run)
    # the structures need not be the same: the store tells them apart
    open_run(RoundStore(folder), plain(cfg))
    store = LabelStore(folder / "labels.db")
    if cfg.retry:
        log.info("%d structures that could not be labelled are tried again", store.forget_failures())
    with executor, run_progress() as progress:
        report = label_with_progress(
            structures,
            reference,
            store,
            executor=executor,
            max_force=limit,
            progress=progress,
            title="labels",
        )
        rejected = _with_reasons(report)
        if not report.labelled:
            raise InputError(
                f"none of the {len(structures)} structures of {cfg.structures} could be labelled "
                f"({rejected[0].info['reason']}); check reference and labelling.max_force"
            )
        write_structures(folder / "labelled.extxyz", report.labelled)
        (folder / "rejected.extxyz").unlink(missing_ok=True)
        if rejected:
            write_structures(folder / "rejected.extxyz", rejected)
        _report(report, rejected, folder, progress.console)


def _with_reasons(report: LabelReport) -> list[Atoms]:
    """The structures without a usable label in the order of the input, each with its reason."""
    out = []
    for atoms, reason in [*report.rejected, *report.failed]:
        atoms.info["reason"] = " ".join(reason.split())
        out.append(atoms)
    return sorted(out, key=lambda atoms: atoms.info["source_index"])


def _report(report: LabelReport, rejected: list[Atoms], folder: Path, console: Console) -> None:
    for atoms in rejected[:SHOWN]:
        console.print(
            f"rejected: structure {atoms.info['source_index']}: {atoms.info['reason']}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if len(rejected) > SHOWN:
        console.print(f"and {len(rejected) - SHOWN} more, see {folder / 'rejected.extxyz'}", soft_wrap=True)
    n = len(report.labelled)
    console.print(
        f"{n} labelled structures in {folder / 'labelled.extxyz'}; {len(rejected)} rejected, "
        f"{report.n_computed} computed now",
        highlight=False,
        soft_wrap=True,
    )

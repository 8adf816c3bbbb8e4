"""What else a round does: neighbour lists, calibration, selection, labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from ase import Atoms

from benchmarks.crystals import CELLS, smallest
from benchmarks.rows import Found, Row, Setting, median_ms, peak_memory, settled_memory
from benchmarks.subjects import configuration, fitted, framework, molecules
from ubmd.callbacks.calibrate import calibration_data
from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.reference.ff19sb import FF19SB
from ubmd.reference.tblite_reference import TBLiteReference
from ubmd.selection import LCMD, MaxDet, MaxDiag, MaxDist, Pool
from ubmd.uncertainty.calibration import CalibrationData, ConformalCalibration, calibrate

POOLS = (1_000, 10_000, 100_000)
SELECTIONS = {"max_det": MaxDet(), "max_dist": MaxDist(), "lcmd": LCMD(), "max_diag": MaxDiag()}
N_LABELLED, N_SELECT, N_PROJECTIONS = 512, 32, 512
LISTS = ("ala2_8", "copper_500", "mil53_76", "mil53_9120")
SKIN = 1.0
"""Å."""
CALIBRATION, LABEL_FF19SB, LABEL_TBLITE = "calibration_256", "label_ff19sb", "label_tblite"


def names(*, quick: bool) -> list[str]:
    """Of the rows of this group."""
    pools = POOLS[:-1] if quick else POOLS
    lists = [f"neighbours_{name}" for name in LISTS]
    selections = [f"select_{method}_{n}" for method in SELECTIONS for n in pools]
    return [*lists, CALIBRATION, *selections, LABEL_FF19SB, LABEL_TBLITE]


def measure(setting: Setting, found: Found) -> None:
    """Adds the rows."""
    neighbours(setting, found)
    selections(setting, found)
    labels(setting, found)
    if CALIBRATION in setting.names:
        calibration(setting, found)


def neighbours(setting: Setting, found: Found) -> None:
    """Lists of the walkers of alanine dipeptide, and of crystals."""
    for name in LISTS:
        if f"neighbours_{name}" not in setting.names:
            continue
        material, n = name.split("_")
        if material == "ala2":
            structures, cutoff = molecules(int(n)), 5.0
        else:
            structures = [smallest(material).repeat(CELLS[material][int(n)])]
            cutoff = 5.0 if material == "copper" else 6.0
        batch = collate(structures, cutoff + SKIN)
        ms = median_ms(lambda batch=batch, cutoff=cutoff: batch.with_neighbours(cutoff + SKIN), repeats=5)
        details = {"structures": len(structures), "atoms": len(structures[0]), "width": batch.neighbours.shape[1]}
        found.rows.append(Row(f"neighbours_{name}", ms, "list of the batch", None, setting.threads, details))


def selections(setting: Setting, found: Found) -> None:
    """Selections from pools of random features."""
    for n in POOLS:
        wanted = [method for method in SELECTIONS if f"select_{method}_{n}" in setting.names]
        if not wanted:
            continue
        generator = torch.Generator().manual_seed(0)
        features, labelled = (torch.randn(rows, N_PROJECTIONS, generator=generator) for rows in (n, N_LABELLED))
        pool = Pool(torch.rand(n, generator=generator), features, labelled)
        for method in wanted:
            before = settled_memory()
            selection = SELECTIONS[method]
            once = n == POOLS[-1] or (setting.quick and n > POOLS[0])
            job = partial(selection, pool, N_SELECT, seed=0)
            ms = median_ms(job, repeats=1 if once else 3, warm=0 if once else 1)
            details = {"candidates": n, "selected": N_SELECT, "memory_mib": round(peak_memory() - before, 1)}
            found.rows.append(Row(f"select_{method}_{n}", ms, "selection", None, setting.threads, details))


def calibration(setting: Setting, found: Found) -> None:
    """The posterior of 256 structures and the conformal factors of another 32."""
    subject = fitted(configuration(), molecules(288), 2, device=setting.device)
    uncertainty, datamodule, module = subject.uncertainty, subject.datamodule, subject.module

    def job() -> None:
        uncertainty.fit(module.model, datamodule.chunks("train", module.device))
        parts = [
            calibration_data(module, uncertainty, module.predict_step(batch), batch)
            for batch in datamodule.chunks("valid", module.device)
        ]
        method = ConformalCalibration()
        calibrate(uncertainty, CalibrationData.cat(parts), atomic=method, total=method)

    ms = median_ms(job, repeats=1 if setting.quick else 3, device=setting.device)
    details = {"structures": len(datamodule.structures), "atoms": len(datamodule.structures[0])}
    found.rows.append(Row(CALIBRATION, ms, "calibration", None, setting.threads, details))


def labels(setting: Setting, found: Found) -> None:
    """Reference labels, one by one."""
    if LABEL_FF19SB in setting.names:
        _label(LABEL_FF19SB, FF19SB().compute, molecules(1)[0], 20, found)
    if LABEL_TBLITE in setting.names:
        try:
            reference = TBLiteReference()
        except InputError as error:
            found.skipped[LABEL_TBLITE] = str(error)
            return
        _label(LABEL_TBLITE, reference.compute, framework(), 1, found)


def _label(name: str, compute: Callable[[Atoms], Any], atoms: Atoms, repeats: int, found: Found) -> None:
    ms = median_ms(lambda: compute(atoms), repeats=repeats, warm=min(repeats - 1, 1))
    found.rows.append(Row(name, ms, "label", None, 1, {"atoms": len(atoms)}))

"""``ubmd committee``: potentials that are there already as one with the uncertainty of an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from omegaconf import DictConfig

from ubmd.analysis.evaluation import Evaluation, error_metrics, evaluate_structures
from ubmd.commands.parts import label_options, take_potentials
from ubmd.commands.results import content_digests, report_errors, write_json
from ubmd.config import build, plain
from ubmd.data.batch import collate
from ubmd.data.io import read_labelled
from ubmd.errors import InputError
from ubmd.files import sha256_of
from ubmd.interfaces.ase import check_elements, torch_device
from ubmd.models.base import n_members
from ubmd.models.committee import Committee
from ubmd.models.potential import Potential
from ubmd.progress import run_progress
from ubmd.runs.opening import open_run
from ubmd.runs.store import RoundStore
from ubmd.training.start import correct_shift
from ubmd.uncertainty import EnsembleUncertainty
from ubmd.uncertainty.calibration import calibrate
from ubmd.uncertainty.checkpoint import load_potential, read_configs, save_potential
from ubmd.uncertainty.potential import UncertainPotential

__all__ = ["committee", "joined"]

log = logging.getLogger(__name__)

FAR_APART = 0.05
"""eV/atom; members whose energies differ by more than this on average are of other zeros of energy."""


def committee(cfg: DictConfig) -> None:
    """Writes the potentials in ``cfg.members`` as one, ``model.ckpt`` in the run folder, and their errors.

    With ``cfg.labelled`` its uncertainties are calibrated, and ``metrics.json`` has the errors of members and committee
    on these structures. Without, uncertainties are deviations as they are.

    Raises:
        InputError: for anything wrong in the configuration, the potentials or the structures, before any work.
    """
    if cfg.get("logger"):
        raise InputError("logger: `ubmd committee` logs to no logger; leave it out")
    if not isinstance(cfg.batch_size, int) or cfg.batch_size < 1:
        raise InputError(f"batch_size={cfg.batch_size} must be a whole number, at least 1")
    take_potentials(cfg)
    paths: list[str] = plain(cfg)["members"]
    device = torch_device(cfg.device)
    members, config = joined(paths, allow=plain(cfg)["allow"])
    structures = _structures(cfg, members[0])
    made = committee_of([member.to(device) for member in members])
    folder = Path(cfg.paths.run)
    digests = {f"member_{n}_sha256": sha256_of(Path(path)) for n, path in enumerate(paths)}
    open_run(RoundStore(folder), plain(cfg) | {"contents": digests | content_digests({"structures": structures})})
    if cfg.shift:
        _shift(made, structures, cfg.batch_size)
    columns: dict[str, dict[str, Any]] = {}
    with run_progress() as progress:
        if structures:
            together = {f"member {n}": member for n, member in enumerate(members)} | {"committee": made}
            found = {k: evaluate_structures(v, structures, batch_size=cfg.batch_size) for k, v in together.items()}
            methods = {part: build(cfg, f"calibration.{part}") for part in ("atomic", "total")}
            factors = calibrate(made.uncertainty, found["committee"].calibration_data, **methods)
            found["committee"] = found["committee"].scaled(factors)
            columns = {name: error_metrics(each) for name, each in found.items()}
            _compare_zeros([found[f"member {n}"] for n in range(len(members))])
        save_potential(folder / "model.ckpt", made.model, made.uncertainty, **config)  # pyright: ignore
        write_json(folder / "metrics.json", columns)
        written = f"{folder}: model.ckpt, metrics.json"
        if columns:
            report_errors(columns, written, progress.console)
            told = "the errors covered are those of the structures that calibrate; ubmd evaluate tells of others"
            progress.console.print(told, highlight=False, soft_wrap=True)
        else:
            log.warning("labelled: none are given, so that uncertainties are the members' deviations, not calibrated")
            progress.console.print(written, highlight=False, soft_wrap=True)


def committee_of(members: Sequence[UncertainPotential]) -> UncertainPotential:
    """Potentials as one, its uncertainty that of an ensemble, not calibrated; the members' models become part of it."""
    model = Committee.of([member.model for member in members])
    return UncertainPotential(Potential(model), EnsembleUncertainty(model))


def joined(
    paths: Sequence[str], allow: str | Sequence[str] = ()
) -> tuple[list[UncertainPotential], dict[str, dict[str, Any]]]:
    """Potentials of files that can be a committee, and the configurations that build it.

    Args:
        paths: of two or more potentials that ubmd wrote.
        allow: packages whose models they may name, see :func:`~ubmd.uncertainty.checkpoint.load_potential`.

    Raises:
        InputError: for files that are no potentials or cannot be together.
    """
    if len(paths) < 2:
        raise InputError(f"members={list(paths)} must name two potentials or more: one alone disagrees with nobody")
    loaded = [load_potential(path, allow=allow) for path in paths]
    if len({sha256_of(Path(path)) for path in paths}) < len(paths):
        raise InputError("members names a potential twice, and none disagrees with itself; name each once")
    for path, each in zip(paths, loaded, strict=True):
        if n_members(each.model) > 1:
            raise InputError(f"members: {path} is a committee itself or an ensemble; name its members")
    first, *others = [(_symbols(each.model), next(each.model.parameters()).dtype) for each in loaded]
    for path, (symbols, dtype) in zip(paths[1:], others, strict=True):
        if symbols != first[0]:
            raise InputError(
                f"members: {path} knows the species {', '.join(symbols)}, but {paths[0]} {', '.join(first[0])}; train "
                "them with the same species=[...]"
            )
        if dtype != first[1]:
            raise InputError(
                f"members: {path} is of {dtype}, but {paths[0]} of {first[1]}; train them with the same dtype"
            )
    parts = [read_configs(path)[0] for path in paths]
    members = [{k: v for k, v in part.items() if k != "species"} | {"_partial_": True} for part in parts]
    model = {"_target_": "ubmd.models.committee.Committee", "_partial_": False, "species": first[0], "members": members}
    uncertainty = {"_target_": "ubmd.uncertainty.EnsembleUncertainty", "_partial_": True}
    return loaded, {"model_config": model, "uncertainty_config": uncertainty}


def _symbols(model: torch.nn.Module) -> list[str]:
    return [chemical_symbols[z] for z in model.species.tolist()]  # pyright: ignore


def _structures(cfg: DictConfig, member: UncertainPotential) -> list[Atoms]:
    if cfg.labelled is None:
        if cfg.shift:
            raise InputError("shift=true needs labels: give labelled=FILE")
        return []
    found = read_labelled(str(cfg.labelled), **label_options(cfg))
    for number, atoms in enumerate(found):
        check_elements(atoms, member.species, f"structure {number} of {cfg.labelled}", "the committee")
    return found


def _shift(made: UncertainPotential, structures: Sequence[Atoms], batch_size: int) -> None:
    """Adds to the atomic energies of each member what the labels lack."""
    weights = next(made.model.parameters())
    chunks = [structures[start : start + batch_size] for start in range(0, len(structures), batch_size)]
    batches = [collate(chunk, made.cutoff, dtype=weights.dtype, device=weights.device) for chunk in chunks]
    for member in made.model.members:  # pyright: ignore[reportGeneralTypeIssues]
        correct_shift(Potential(member), batches)


def _compare_zeros(found: Sequence[Evaluation]) -> None:
    """Says so if the members' energies have other zeros, which the uncertainty of the energy would take for doubt."""
    means = [float(np.mean(each.energy[0] / each.n_atoms)) for each in found]
    if max(means) - min(means) > FAR_APART:
        log.warning(
            "the members' mean energies differ by up to %.3f eV/atom: they seem to have other zeros of energy, which "
            "the uncertainty of the energy takes for disagreement; shift=true removes it",
            max(means) - min(means),
        )

"""A trained potential as one file: weights, uncertainty and the configuration to build both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import torch
from ase import Atoms
from torch import Tensor, nn

from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.files import save_tensors
from ubmd.imports import options_of
from ubmd.models.ensemble import MOST_MEMBERS
from ubmd.models.potential import Potential
from ubmd.models.readout import with_silu_scale
from ubmd.models.scale_shift import make_model, worn
from ubmd.runs.finding import potential_file
from ubmd.schema import hints_of, mismatch, shown
from ubmd.secrecy import hidden
from ubmd.torch_files import DamagedFileError, read_torch_file
from ubmd.uncertainty.parts import allowed_names, check_allowed, find_part, foreign_parts, nodes
from ubmd.uncertainty.potential import UncertainPotential

__all__ = ["load_potential", "read_configs", "save_potential"]

FORMAT = 1

_PLACES = ("", "stack.", "stack.network.", *(f"members.{place}." for place in range(MOST_MEMBERS)))
"""Where in a model the species, atomic energies and their unit are: of one model, of an ensemble or of a committee."""

Find = Callable[[Any], type[nn.Module]]


def save_potential(
    path: str | Path,
    model: nn.Module,
    uncertainty: nn.Module,
    *,
    model_config: Mapping[str, Any],
    uncertainty_config: Mapping[str, Any],
) -> None:
    """Writes a potential atomically; the file holds tensors and plain types only.

    Args:
        path: the file.
        model: the model of atomic energies.
        uncertainty: its uncertainty, fitted.
        model_config: what builds ``model`` (``_target_`` and arguments); what a model has as ``portable`` goes before.
        uncertainty_config: what builds ``uncertainty`` once completed with ``model``.
    """
    content = {
        "format": FORMAT,
        "model": hidden({**model_config, **getattr(worn(model), "portable", {})}),
        "uncertainty": hidden(dict(uncertainty_config)),
        "model_state": {k: v.cpu().contiguous() for k, v in model.state_dict().items()},
        "uncertainty_state": {k: v.cpu().contiguous() for k, v in uncertainty.state_dict().items()},
    }
    content["digest"] = _digest(content)
    save_tensors(Path(path), content)


def load_potential(
    path: str | Path, *, device: torch.device | str = "cpu", allow: str | Sequence[str] = ()
) -> UncertainPotential:
    """Reads a potential written by :func:`save_potential`; safe for files from elsewhere.

    Whatever is wrong with a file is found here and not at the first use: the potential is tried out.

    Args:
        path: the file, or the folder of a run (:func:`~ubmd.runs.finding.potential_file`).
        device: to which the potential goes.
        allow: packages, modules or classes that the file may name besides ubmd's parts and installed plug-ins
            (:mod:`ubmd.uncertainty.parts`).

    Raises:
        InputError: if the file is missing, is no such potential, or names what is not allowed.
    """
    path, names = potential_file(path), allowed_names(allow)
    content = _read(path)
    for part in ("model", "uncertainty"):
        _check_config(content.get(part), path, names)
    find = partial(find_part, names=names, what=str(path))
    foreign = foreign_parts(content["model"], content["uncertainty"])
    for target in foreign:
        find(target)
    try:
        states = tuple(_plain_state(content.get(f"{name}_state")) for name in ("model", "uncertainty"))
        if content.get("digest", _digest(content)) != _digest(content):  # earlier versions wrote none
            raise InputError("it was changed after it was written")
        states = (_of_earlier_versions(content["model"], states[0]), states[1])
        # what others do when they are built may need numbers
        kinds = [find(node["_target_"]) for node in nodes(content["model"]) if _is_part(node)]
        if not foreign and all(getattr(kind, "sizeless", True) for kind in kinds):
            with torch.device("meta"):  # sizes without memory
                _check_states(_made(content, find), states)
        made = _made(content, find)
        _check_states(made, states)
        _load(made, states)
        trained = UncertainPotential(Potential(made[0]), made[1])
        _try_out(trained)
    except Exception as error:  # parts that do not fit each other fail wherever they meet
        reason = shown(str(error), 200)
        raise InputError(f"{path} holds parts that do not fit together ({reason}); write it anew") from error
    return trained.to(device)


def read_configs(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What builds the model and the uncertainty of a potential that :func:`load_potential` reads; not checked.

    Raises:
        InputError: if the file is missing or is no potential.
    """
    content = _read(Path(path))
    return content["model"], content["uncertainty"]


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise InputError(f"potential {path} does not exist; give e.g. RUN/rounds/000/model.ckpt")
        content = read_torch_file(path)
    except (DamagedFileError, OSError) as error:
        raise InputError(f"{path} is not a potential written by ubmd, or it is damaged ({error})") from error
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise InputError(f"{path} is not a potential written by ubmd; give e.g. RUN/rounds/000/model.ckpt")
    if content["format"] != FORMAT:
        found = content["format"] if 0 <= content["format"] < 10**6 else "unknown"
        raise InputError(f"{path} has format {found}, this version of ubmd reads {FORMAT}; use a matching version")
    return content


def _of_earlier_versions(model: Mapping[str, Any], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by their present names: those of an ensemble were once not in a stack, and SiLU had one scale."""
    kind = model["_target_"].rpartition(".")[2]
    if kind == "Ensemble" and "beta" in state:
        state = {f"stack.{name}": value for name, value in state.items()}
    state = dict(state)
    for place in {"GMNN": ["readout."], "Ensemble": ["stack.readout."]}.get(kind, []):
        with_silu_scale(state, place)
    return state


def _digest(content: Mapping[str, Any]) -> str:
    """Of configuration and weights: another cutoff, say, fits the same weights and makes another potential."""
    digest = hashlib.sha256()
    for name in ("model", "uncertainty"):
        digest.update(json.dumps(content[name], sort_keys=True).encode())
        for key, value in sorted(content[f"{name}_state"].items()):
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_config(config: object, path: Path, names: Sequence[str]) -> None:
    """Refuses to build anything but modules that are listed: a file must not choose what is called."""
    if not isinstance(config, dict) or "_target_" not in config:
        raise InputError(f"{path} is not a potential written by ubmd: it does not say what builds it; write it anew")
    try:
        found = list(nodes(config))
    except InputError as error:
        raise InputError(f"{path} holds a potential of which {error}; do not trust it") from error
    for node in found:
        if _is_part(node):
            check_allowed(node["_target_"], names, str(path))
        elif isinstance(node, str) and "${" in node:
            # whoever resolves it could make a target of a text
            raise InputError(f"{path} holds the interpolation {shown(node)}, which no potential has; do not trust it")
        elif node is not None and type(node) not in (dict, list, tuple, str, int, float, bool):
            raise InputError(f"{path} holds a {type(node).__name__} where a potential has plain values; write it anew")


def _made(content: Mapping[str, Any], find: Find) -> tuple[Any, Any]:
    config = dict(content["model"])
    species = config.pop("species", None)
    wrong = mismatch(species, list[str], "model.species")
    if wrong is not None:
        raise InputError(wrong)
    if config.get("_partial_"):
        raise InputError("a partial is no model")
    model = make_model(_build(config | {"_partial_": True}, "model", find), species=species)
    uncertainty = _build(content["uncertainty"], "uncertainty", find, model=model)
    if not hasattr(uncertainty, "total_scale"):
        raise InputError(f"a {type(uncertainty).__name__} is no uncertainty")
    return model, uncertainty


def _build(config: Any, where: str, find: Find, **given: Any) -> Any:
    """What a configuration describes; ``_partial_`` of the outermost part is completed by ``given``."""
    part = find(config["_target_"])
    hints, options = hints_of(part), options_of(part)
    arguments = {}
    for key, value in config.items():
        if key in ("_target_", "_partial_"):
            continue
        if (options is not None and key not in options) or key.startswith("_") or key in given:
            raise InputError(f"{where}.{key} is not an option of {part.__name__}")
        ours = part.__module__.startswith("ubmd.")
        wrong = mismatch(value, hints[key], f"{where}.{key}", ours=ours) if key in hints else None
        if wrong is not None:
            raise InputError(wrong)
        arguments[key] = _parts(value, f"{where}.{key}", find)
    if config.get("_partial_") and not given:
        return partial(part, **arguments)
    return part(**arguments, **given)


def _parts(value: Any, where: str, find: Find) -> Any:
    """What a value, or those in a list, describe; what describes nothing stays as it is."""
    if isinstance(value, list):
        return [_parts(item, f"{where}[{place}]", find) for place, item in enumerate(value)]
    return _build(value, where, find) if _is_part(value) else value


def _is_part(node: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(node, Mapping) and "_target_" in node


def _plain_state(state: Any) -> dict[str, Tensor]:
    """A state of plain tensors with finite values; no tensor is larger than what is in the file."""
    if not isinstance(state, dict):
        raise InputError("there are no weights")
    for name, value in state.items():
        if (
            type(name) is not str
            or type(value) is not Tensor
            or value.layout != torch.strided
            or value.device.type != "cpu"
        ):
            raise InputError("the weights are no plain tensors with names")
        if not value.is_contiguous() or value.is_quantized or value.is_complex():
            raise InputError(f"{shown(name)} is no plain tensor")
        if not torch.isfinite(value).all():
            raise InputError(f"{shown(name)} has values that are not finite")
    return state


def _precisions(states: tuple[dict[str, Tensor], ...]) -> set[torch.dtype]:
    """Types of all numbers but the shifts and the scale of SiLU, which are float64 beside weights of any precision."""
    wide = {f"{place}{name}" for place in _PLACES for name in ("shift", "readout._extra_state")}
    return {v.dtype for state in states for k, v in state.items() if v.is_floating_point() and k not in wide}


def _check_states(made: tuple[nn.Module, nn.Module], states: tuple[dict[str, Tensor], ...]) -> None:
    """Compares names, shapes and types of tensors with what the parts have."""
    # shifts are float64 beside weights of any precision, but not in files of earlier versions
    shifts = {f"{place}shift" for place in _PLACES}
    floating = _precisions(states)
    if floating not in ({torch.float32}, {torch.float64}) or any(
        states[0][name].dtype not in (torch.float32, torch.float64) for name in shifts & states[0].keys()
    ):
        raise InputError(f"weights must be all float32 or all float64, not {shown(sorted(map(str, floating)))}")
    for module, state in zip(made, states, strict=True):
        expected = module.state_dict()
        different = sorted(map(str, state.keys() ^ expected.keys()))
        if different:
            raise InputError(f"{shown(different[0])} is {'missing' if different[0] in expected else 'unknown'}")
        for name, value in expected.items():
            found, first = state[name], 0
            if name.endswith("_extra_state"):  # its length depends on the training set
                first = 1
            if found.ndim != value.ndim or found.shape[first:] != value.shape[first:]:
                raise InputError(f"{name} has the shape {tuple(found.shape)}, not {tuple(value.shape)}")
            if found.is_floating_point() != value.is_floating_point() or (
                not value.is_floating_point() and found.dtype != value.dtype
            ):
                raise InputError(f"{name} has the type {found.dtype}, not {value.dtype}")


def _load(made: tuple[nn.Module, nn.Module], states: tuple[dict[str, Tensor], ...]) -> None:
    model = made[0]
    model_state, uncertainty_state = states
    for place in _PLACES:
        species, unit = (model_state.get(f"{place}{name}") for name in ("species", "energy_unit"))
        if species is not None and not torch.equal(model.species, species):  # pyright: ignore
            raise InputError("the species of the weights are not those of the model")
        if unit is not None and not (unit > 0).all():
            raise InputError("energy_unit must be positive")
    for name in ("atomic_scale", "total_scale"):
        if (uncertainty_state[name] < 0).any():
            raise InputError(f"{name} has negative values, which no conformal factor is")
    (precision,) = _precisions(states)
    for module, state in zip(made, states, strict=True):
        module.to(precision).load_state_dict(state)
        module.eval().requires_grad_(False)


def _try_out(trained: UncertainPotential) -> None:
    """Evaluates a chain of one atom of each species."""
    numbers = trained.species
    # two of each, so that there is a neighbour also of a single species
    atoms = Atoms(numbers=numbers * 2, positions=[[0.6 * trained.cutoff * k, 0, 0] for k in range(2 * len(numbers))])
    batch = collate([atoms], trained.cutoff, dtype=next(trained.model.parameters()).dtype)
    found = trained(batch)
    features = trained.uncertainty.total_features(trained.model, batch)
    for name, value in (
        *(("energy", found.energy), ("forces", found.forces), ("uncertainty of the energy", found.uncertainty)),
        *(("uncertainty of the forces", found.atomic_uncertainty), ("features", features)),
    ):
        if not torch.isfinite(value).all():
            raise InputError(f"the {name} of a few atoms is not finite")

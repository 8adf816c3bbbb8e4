"""A trained potential as one file: weights, uncertainty and the configuration to build both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from ase import Atoms
from torch import Tensor, nn

from ubmd.data.batch import collate
from ubmd.errors import InputError
from ubmd.files import save_tensors
from ubmd.models.ensemble import Ensemble
from ubmd.models.gmnn import GMNN
from ubmd.models.potential import Potential
from ubmd.schema import hints_of, mismatch, shown
from ubmd.secrecy import hidden
from ubmd.torch_files import DamagedFileError, read_torch_file
from ubmd.uncertainty import (
    DistanceUncertainty,
    EnsembleUncertainty,
    FeatureUncertainty,
    FullGradients,
    LastLayer,
    SketchedGradients,
)
from ubmd.uncertainty.base import Uncertainty

__all__ = ["PARTS", "TrainedPotential", "check_parts", "load_potential", "save_potential"]

FORMAT = 1

_OF_UNCERTAINTY = (
    FeatureUncertainty,
    DistanceUncertainty,
    EnsembleUncertainty,
    SketchedGradients,
    LastLayer,
    FullGradients,
)
PARTS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {f"{part.__module__}.{part.__name__}": part for part in (GMNN, Ensemble, *_OF_UNCERTAINTY)}
    | {f"ubmd.uncertainty.{part.__name__}": part for part in _OF_UNCERTAINTY}
)
"""What a file may ask for, by the names that ``_target_`` knows it by. Nothing else is imported or called."""

_MOST_VALUES = 1000
"""Most values in the configuration of a part: a file could hold a list that contains itself."""


@dataclass(frozen=True)
class TrainedPotential:
    """A model with its fitted and calibrated uncertainty."""

    model: GMNN
    uncertainty: Uncertainty


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
        model_config: what builds ``model`` (``_target_`` and arguments).
        uncertainty_config: what builds ``uncertainty`` once completed with ``model``.
    """
    content = {
        "format": FORMAT,
        "model": hidden(dict(model_config)),
        "uncertainty": hidden(dict(uncertainty_config)),
        "model_state": {k: v.cpu().contiguous() for k, v in model.state_dict().items()},
        "uncertainty_state": {k: v.cpu().contiguous() for k, v in uncertainty.state_dict().items()},
    }
    content["digest"] = _digest(content)
    save_tensors(Path(path), content)


def load_potential(
    path: str | Path, *, device: torch.device | str = "cpu", parts: Mapping[str, type[nn.Module]] = PARTS
) -> TrainedPotential:
    """Reads a potential written by :func:`save_potential`; safe for files from elsewhere.

    Whatever is wrong with a file is found here and not at the first use: the potential is tried out.

    Args:
        path: the file.
        device: to which the potential goes.
        parts: what the file may ask for, by name.

    Raises:
        InputError: if the file is missing or is no such potential.
    """
    path = Path(path)
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
    for name in ("model", "uncertainty"):
        _check_config(content.get(name), path, parts)
    try:
        states = tuple(_plain_state(content.get(f"{name}_state")) for name in ("model", "uncertainty"))
        if content.get("digest", _digest(content)) != _digest(content):  # earlier versions wrote none
            raise InputError("it was changed after it was written")
        with torch.device("meta"):  # sizes without memory
            _check_states(_made(content, parts), states)
        made = _made(content, parts)
        _load(made, states)
        trained = TrainedPotential(*made)
        _try_out(trained)
    except Exception as error:  # parts that do not fit each other fail wherever they meet
        reason = shown(str(error), 200)
        raise InputError(f"{path} holds parts that do not fit together ({reason}); write it anew") from error
    for module in made:
        module.to(device)
    return trained


def _digest(content: Mapping[str, Any]) -> str:
    """Of configuration and weights: another cutoff, say, fits the same weights and makes another potential."""
    digest = hashlib.sha256()
    for name in ("model", "uncertainty"):
        digest.update(json.dumps(content[name], sort_keys=True).encode())
        for key, value in sorted(content[f"{name}_state"].items()):
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_parts(config: Mapping[str, Any], name: str, parts: Mapping[str, type[nn.Module]] = PARTS) -> None:
    """Refuses a part that could be saved, but not be read back.

    Args:
        config: its resolved configuration.
        name: its key.
        parts: what a file may ask for.

    Raises:
        InputError: naming the part.
    """
    for node in _nodes(config):
        if isinstance(node, Mapping) and "_target_" in node and node["_target_"] not in parts:
            raise InputError(
                f"{name} asks for {node['_target_']}, which a potential's file must not name; "
                f"choose among {', '.join(sorted({part.__name__ for part in parts.values()}))}"
            )


def _nodes(config: object) -> Iterator[object]:
    """A configuration and all that is in it."""
    waiting = [config]
    for _ in range(_MOST_VALUES):
        if not waiting:
            return
        node = waiting.pop()
        yield node
        if isinstance(node, Mapping):
            waiting.extend(chain(node.keys(), node.values()))
        elif isinstance(node, list | tuple):
            waiting.extend(node)
    raise InputError(f"a part has more than {_MOST_VALUES} values")


def _check_config(config: object, path: Path, parts: Mapping[str, type[nn.Module]]) -> None:
    """Refuses to build anything but modules that are listed: a file must not choose what is called."""
    if not isinstance(config, dict) or "_target_" not in config:
        raise InputError(f"{path} is not a potential written by ubmd: it does not say what builds it; write it anew")
    try:
        nodes = list(_nodes(config))
    except InputError as error:
        raise InputError(f"{path} holds a potential of which {error}; do not trust it") from error
    for node in nodes:
        if isinstance(node, Mapping) and "_target_" in node:
            target = node["_target_"]
            if not isinstance(target, str) or target not in parts:
                raise InputError(
                    f"{path} asks for {shown(target)}, which is not a part of a potential; do not trust it"
                )
        elif isinstance(node, str) and "${" in node:
            # whoever resolves it could make a target of a text
            raise InputError(f"{path} holds the interpolation {shown(node)}, which no potential has; do not trust it")
        elif node is not None and type(node) not in (dict, list, tuple, str, int, float, bool):
            raise InputError(f"{path} holds a {type(node).__name__} where a potential has plain values; write it anew")


def _made(content: Mapping[str, Any], parts: Mapping[str, type[nn.Module]]) -> tuple[Any, Any]:
    model = _build(content["model"], "model", parts)
    if not hasattr(model, "species"):
        raise InputError(f"a {type(model).__name__} is no model")
    uncertainty = _build(content["uncertainty"], "uncertainty", parts, model=model)
    if not hasattr(uncertainty, "total_scale"):
        raise InputError(f"a {type(uncertainty).__name__} is no uncertainty")
    return model, uncertainty


def _build(
    config: Any, where: str, parts: Mapping[str, type[nn.Module]], **given: Any
) -> nn.Module | Callable[..., nn.Module]:
    """What a configuration describes; ``_partial_`` of the outermost part is completed by ``given``."""
    part = parts[config["_target_"]]
    hints = hints_of(part)
    arguments = {}
    for key, value in config.items():
        if key in ("_target_", "_partial_"):
            continue
        if key not in hints or key in given:
            raise InputError(f"{where}.{key} is not an option of {part.__name__}")
        wrong = mismatch(value, hints[key], f"{where}.{key}")
        if wrong is not None:
            raise InputError(wrong)
        nested = isinstance(value, Mapping) and "_target_" in value
        arguments[key] = _build(value, f"{where}.{key}", parts) if nested else value
    if config.get("_partial_") and not given:
        return partial(part, **arguments)
    return part(**arguments, **given)


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


def _check_states(made: tuple[nn.Module, nn.Module], states: tuple[dict[str, Tensor], ...]) -> None:
    """Compares names, shapes and types of tensors with what the parts have."""
    # shifts are float64 beside weights of any precision, but not in files of earlier versions
    floating = {v.dtype for state in states for k, v in state.items() if v.is_floating_point() and k != "shift"}
    shift = states[0].get("shift")
    if floating not in ({torch.float32}, {torch.float64}) or (
        shift is not None and shift.dtype not in (torch.float32, torch.float64)
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
    assert isinstance(model.species, Tensor)
    if not torch.equal(model.species, model_state["species"]):
        raise InputError("the species of the weights are not those of the model")
    if not model_state["energy_unit"] > 0:
        raise InputError("energy_unit must be positive")
    for name in ("atomic_scale", "total_scale"):
        if (uncertainty_state[name] < 0).any():
            raise InputError(f"{name} has negative values, which no conformal factor is")
    for module, state in zip(made, states, strict=True):
        module.to(model_state["energy_unit"].dtype).load_state_dict(state)
        module.eval().requires_grad_(False)


def _try_out(trained: TrainedPotential) -> None:
    """Evaluates a chain of one atom of each species."""
    model, uncertainty = trained.model, trained.uncertainty
    numbers = model.species.tolist()
    # two of each, so that there is a neighbour also of a single species
    atoms = Atoms(numbers=numbers * 2, positions=[[0.6 * model.cutoff * k, 0, 0] for k in range(2 * len(numbers))])
    batch = collate([atoms], model.cutoff, dtype=model.energy_unit.dtype)
    prediction = Potential(model)(batch)
    output, vectors = Potential(model).atoms(batch)
    with torch.enable_grad():
        total, atomic = uncertainty(model, output, vectors, batch)
    features = uncertainty.total_features(model, batch)
    for name, value in (
        *(("energy", prediction.energy), ("forces", prediction.forces)),
        *(("uncertainty of the energy", total), ("uncertainty of the forces", atomic), ("features", features)),
    ):
        if not torch.isfinite(value).all():
            raise InputError(f"the {name} of a few atoms is not finite")

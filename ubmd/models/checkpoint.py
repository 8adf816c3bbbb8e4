"""A trained potential as one file: weights, uncertainty and the configuration to build both."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from ubmd.errors import InputError
from ubmd.files import replaced
from ubmd.models.gmnn import GMNN
from ubmd.uncertainty.base import Uncertainty

__all__ = ["TrainedPotential", "load_potential", "save_potential"]

FORMAT = 1


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
        "model": dict(model_config),
        "uncertainty": dict(uncertainty_config),
        "model_state": {k: v.cpu() for k, v in model.state_dict().items()},
        "uncertainty_state": {k: v.cpu() for k, v in uncertainty.state_dict().items()},
    }
    with replaced(Path(path)) as temporary:
        torch.save(content, temporary)


def load_potential(path: str | Path, *, device: torch.device | str = "cpu") -> TrainedPotential:
    """Reads a potential written by :func:`save_potential`; safe for files from elsewhere.

    Raises:
        InputError: if the file is missing or is no such potential.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"potential {path} does not exist; give e.g. RUN/rounds/000/model.ckpt")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        found = content["format"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is not a potential written by ubmd ({type(error).__name__})") from error
    if found != FORMAT:
        raise InputError(f"{path} has format {found}, this version of ubmd reads {FORMAT}; use a matching version")
    for part in ("model", "uncertainty"):
        _check_targets(content[part], path)
    model = instantiate(content["model"])
    uncertainty = instantiate(content["uncertainty"])(model=model)
    dtype = next(v.dtype for v in content["model_state"].values() if v.is_floating_point())
    for module, name in ((model, "model_state"), (uncertainty, "uncertainty_state")):
        module.to(device=device, dtype=dtype).load_state_dict(content[name])
        module.eval().requires_grad_(False)
    return TrainedPotential(model, uncertainty)


def _check_targets(config: object, path: Path) -> None:
    """Refuses to build anything but modules of this package: a file must not choose what is called."""
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if target is not None:
            from ubmd.config import locate

            allowed = isinstance(target, str) and target.startswith("ubmd.")
            found = locate(target) if allowed else None
            if not (isinstance(found, type) and issubclass(found, nn.Module)):
                raise InputError(f"{path} asks for {target}, which is not a part of a potential; do not trust it")
        for value in config.values():
            _check_targets(value, path)
    elif isinstance(config, list | tuple):
        for value in config:
            _check_targets(value, path)

"""A trained potential as one file: weights, uncertainty and the configuration to build both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from ubmd.config import locate
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
    except Exception as error:  # damaged bytes raise anything from OSError to UnicodeDecodeError
        raise InputError(f"{path} is not a potential written by ubmd ({type(error).__name__})") from error
    if found != FORMAT:
        raise InputError(f"{path} has format {found}, this version of ubmd reads {FORMAT}; use a matching version")
    for part in ("model", "uncertainty"):
        _check_config(content.get(part), path)
    try:
        return _built(content, device)
    except Exception as error:  # parts that do not fit each other fail wherever they meet
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds parts that do not fit together ({reason}); write it anew") from error


def _built(content: Mapping[str, Any], device: torch.device | str) -> TrainedPotential:
    model = instantiate(content["model"])
    uncertainty = instantiate(content["uncertainty"])(model=model)
    dtype = next(v.dtype for v in content["model_state"].values() if v.is_floating_point())
    for module, name in ((model, "model_state"), (uncertainty, "uncertainty_state")):
        module.to(device=device, dtype=dtype).load_state_dict(content[name])
        module.eval().requires_grad_(False)
    return TrainedPotential(model, uncertainty)


def _check_config(config: object, path: Path) -> None:
    """Refuses to build anything but modules of this package: a file must not choose what is called."""
    if isinstance(config, Mapping):
        target = config.get("_target_")
        if target is not None and not _is_part(target):
            raise InputError(f"{path} asks for {target}, which is not a part of a potential; do not trust it")
        for value in config.values():
            _check_config(value, path)
    elif isinstance(config, list | tuple):
        for value in config:
            _check_config(value, path)
    elif isinstance(config, str) and "${" in config:
        # an interpolation could make a target of a text
        raise InputError(f"{path} holds the interpolation {config}, which no potential has; do not trust it")


def _is_part(target: object) -> bool:
    """True for the name of a module that this package defines (not merely imports)."""
    if not isinstance(target, str) or not target.startswith("ubmd."):
        return False
    try:
        found = locate(target)
    except InputError:
        return False
    return isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("ubmd.")

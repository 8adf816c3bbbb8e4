"""With what a run was computed: versions, commit, machine."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ubmd.version import __version__

__all__ = ["circumstances", "provenance"]

_PACKAGES = ("torch", "lightning", "ase", "numpy", "numba", "hydra-core")


def provenance() -> dict[str, str | None]:
    """Versions that produced a result, and the git commit of the checkout (None outside one)."""
    versions: dict[str, str | None] = {"ubmd": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_hash(),
    }


def circumstances(cfg: Mapping[str, Any]) -> dict[str, str | int | None]:
    """:func:`provenance`, and for a configuration that says where torch computes: CPU threads and the device."""
    wanted = cfg["device"] if "device" in cfg else (cfg.get("trainer") or {}).get("accelerator")
    if wanted is None:
        return {**provenance()}
    import torch

    if "cpu" in str(wanted):
        device = "cpu"
    elif torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
    return {**provenance(), "threads": torch.get_num_threads(), "device": device}


def _git_hash() -> str | None:
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # never the commit of some other repository around an installed package
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None

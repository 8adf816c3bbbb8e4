"""Where the package finds its own files."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def config_dir() -> Path:
    """The Hydra configurations: ``ubmd/conf`` when installed, ``conf`` beside ``ubmd`` in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "learn.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configurations at {package / 'conf'}; reinstall ubmd")


def own_config_dir() -> Path | None:
    """``conf`` of the working directory, whose configurations can be chosen but take the place of no others.

    None if it is not there, or holds the main configurations of a package as this one is.
    """
    folder = Path("conf").absolute()
    return folder if folder.is_dir() and not (folder / "learn.yaml").exists() else None


def import_from_here() -> None:
    """Modules in the working directory can be imported, as with ``python -m``, but take the place of no others."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # somebody has removed it
        return
    if not (sys.flags.safe_path or here in sys.path or "" in sys.path):
        sys.path.append(here)

"""Where the package finds its own files."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The Hydra configurations: ``ubmd/conf`` when installed, ``conf`` beside ``ubmd`` in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "learn.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configurations at {package / 'conf'}; reinstall ubmd")

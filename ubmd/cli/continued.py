"""``continue=RUN``: the command that began a run again, in its folder, with what is to be different now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from ubmd.cli.command import Command
from ubmd.errors import InputError
from ubmd.runs.continuation import read_config
from ubmd.secrecy import PLACEHOLDER

__all__ = ["CONTINUE", "continued"]

CONTINUE = "continue"
_OF_THE_FOLDER = ("sweep", "paths.run", "paths.run_name")
"""What said where the run is, or which runs there are."""


def continued(command: Command, overrides: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Overrides in which ``continue=RUN`` is replaced by those that the run was begun with and by its folder.

    What else is given replaces what was given then.

    Raises:
        InputError: the folder is no run of this command that the command line began, or this is a sweep.
    """
    runs = [text.partition("=")[2] for text in overrides if _key(text) == CONTINUE]
    if not runs:
        return list(overrides)
    if len(runs) > 1 or multirun:
        raise InputError(f"{CONTINUE}=RUN continues one run; give it once, without -m")
    folder = Path(runs[0].strip("'\"")).expanduser()
    before = _begun_with(folder, command)
    now = [text for text in overrides if _key(text) != CONTINUE]
    given = {_key(text) for text in now}
    kept = [text for text in before if _key(text) not in {*given, *_OF_THE_FOLDER}]
    hidden = next((text for text in kept if PLACEHOLDER in text), None)
    if hidden is not None:
        raise InputError(f"{hidden} was a secret, which {folder} does not keep; give {_key(hidden)}=VALUE again")
    text = str(folder.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return [*kept, *now, f"hydra.run.dir='{text}'"]


def _begun_with(folder: Path, command: Command) -> list[str]:
    """The overrides that a run was begun with."""
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        begun = (folder / "config.yaml").is_file()
        what = "does not say by which command it was begun; give that again" if begun else "is no run folder"
        raise InputError(f"{CONTINUE}={folder} {what} (it has no .hydra/overrides.yaml)")
    job = read_config(file.with_name("hydra.yaml")).get("hydra", {}).get("job", {})
    name = job.get("config_name") if isinstance(job, dict) else None
    if name not in (None, command.config_name):
        raise InputError(f"{CONTINUE}={folder} is a run of `ubmd {name}`, not of `ubmd {command.name}`")
    try:
        lines = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise InputError(f"{file} is damaged (it holds no list of overrides)")
    return lines


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")

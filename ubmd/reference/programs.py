"""Programs that references run, and the folders that they run in."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ubmd.errors import InputError
from ubmd.reference.base import ReferenceError, UnfinishedError


def check_program(command: str, what: str, remedy: str) -> None:
    """Refuse a command whose program is not on this machine.

    Args:
        command: as for a shell. The first word that sets no variable is the program; commands with shell
            syntax in them are taken as they are.
        what: needs the program.
        remedy: what to do.

    Raises:
        InputError: there is no such program.
    """
    if re.search(r"[;&|$`(]", command):
        return
    program = next((word for word in shlex.split(command) if "=" not in word), "")
    if shutil.which(program) is None:
        raise InputError(
            f"reference: {what} needs the program {program or repr(command)}, which is not found; {remedy}"
        )


@contextmanager
def scratch_folder(parent: str | None, name: str) -> Iterator[Path]:
    """A folder for one run of a program; it stays if the run fails, which the error then says.

    Args:
        parent: where to make it; made if missing. None: where the system has such things.
        name: of the program.
    """
    if parent is not None:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"ubmd-{name}-", dir=parent))
    try:
        yield folder
    except (ReferenceError, UnfinishedError) as error:
        raise type(error)(f"{error}; see {folder}") from error.__cause__
    shutil.rmtree(folder)

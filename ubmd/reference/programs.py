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


def check_program(command: str, what: str, remedy: str, *, shell: bool = False) -> None:
    """Refuse a command whose program is not on this machine.

    Args:
        command: words, quoted as for a shell. The first that sets no variable is the program.
        what: needs the program.
        remedy: what to do.
        shell: whether the command is for a shell after all; if it has a shell's syntax, it is taken as it is.

    Raises:
        InputError: there is no such program, or the command is one for a shell.
    """
    found = re.search(r"[;&|$`<>(\n]", command)
    if found and shell:
        return
    if found:
        raise InputError(
            f"reference: the command of {what} holds {found[0]!r}, but it is run without a shell; give a program "
            "with its arguments, such as a script that does the rest"
        )
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"reference: the command of {what} cannot be read ({error}): {command}") from error
    program = next((word for word in words if "=" not in word), "")
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

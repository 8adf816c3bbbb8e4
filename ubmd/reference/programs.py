"""Programs that references run."""

from __future__ import annotations

import re
import shlex
import shutil

from ubmd.errors import InputError


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

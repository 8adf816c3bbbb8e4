"""Completion of commands, groups, options and keys by the Tab key, of bash; what there is to choose Hydra itself tells.

``eval "$(ubmd -sc install=bash)"`` has the shell call ``ubmd -sc query=bash`` with the line that is being typed.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ubmd.cli.command import COMMANDS, INIT, SUMMARIES, Command
from ubmd.cli.init import KINDS
from ubmd.errors import InputError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

__all__ = ["choices", "shell_completion"]

SCRIPT = """\
_ubmd() {
    local line=${COMP_LINE:0:COMP_POINT} typed before= choice
    typed=${line##*[[:space:]]}
    # bash begins a word behind = and :, so that what is before them is not to be inserted again
    [[ $COMP_WORDBREAKS == *=* && $typed == *[=:]* ]] && before=${typed%"${typed##*[=:]}"}
    COMPREPLY=()
    while IFS= read -r choice; do
        COMPREPLY+=("${choice#"$before"}")
    done < <(COMP_LINE=$line "${1/#\\~/$HOME}" -sc query=bash 2> /dev/null)
}
complete -o nospace -o default -F _ubmd ubmd
"""
REMOVAL = "complete -r ubmd\nunset -f _ubmd\n"
_FLAGS = ("--help", "--multirun", "--cfg", "--resolve", "--info", "--config-dir")
_OPEN = ("=", ".", "/")
"""Behind these more is to be typed, behind all else a space."""


def shell_completion(what: str, environment: Mapping[str, str]) -> str:
    """What ``ubmd -sc WHAT`` prints: the script that installs completion or removes it, or choices, one a line.

    Args:
        what: ``install=bash``, ``uninstall=bash`` or ``query=bash``.
        environment: with the line up to the cursor, ``COMP_LINE``, of a query.

    Raises:
        InputError: for anything else.
    """
    if what == "install=bash":
        return SCRIPT
    if what == "uninstall=bash":
        return REMOVAL
    if what == "query=bash":
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                found = choices(environment.get("COMP_LINE", ""))
        except (Exception, SystemExit):  # a line that is not finished may be wrong in any way; nobody asked for it yet
            found = []
        return "".join(f"{choice}\n" if choice.endswith(_OPEN) else f"{choice} \n" for choice in found)
    raise InputError(f"-sc {what} is none of install=bash, uninstall=bash, query=bash")


def choices(line: str) -> list[str]:
    """What the last word of a line may become; nothing where it is a file, which the shell completes itself.

    Args:
        line: from the program's name to the cursor.
    """
    _, *words = line.split()
    word = words.pop() if words and not line[-1:].isspace() else ""
    if not words:
        return [name for name in (*SUMMARIES, "--help", "--version") if name.startswith(word)]
    if words == [INIT]:
        return [kind for kind in KINDS if kind.startswith(word)]
    if words[0] not in COMMANDS:
        return []
    if word.startswith("-"):
        return [flag for flag in _FLAGS if flag.startswith(word)]
    return _of_command(COMMANDS[words[0]], words[1:], word)


def _of_command(command: Command, words: Sequence[str], word: str) -> list[str]:
    """What Hydra completes a word of a command to, and files where a value may be one."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion

    from ubmd.cli import app

    folder = next((after for flag, after in pairwise(words) if flag == "--config-dir"), None)
    with app.open_hydra(folder) as hydra:
        found = BashCompletion(hydra.config_loader)._query(command.config_name, " ".join([*words, word]))
        found = [choice for choice in found if _fits(hydra, command, choice, word)]
        key, equals, value = word.rpartition("=")
        is_group = bool(hydra.config_loader.get_group_options(key.lstrip("+~")))
    if equals and not is_group and all(choice in (word, f"{key}=???") for choice in found):  # there is no value yet
        return [f"{key}={path}" for path in _files(value)]
    return found


def _fits(hydra: Hydra, command: Command, choice: str, word: str) -> bool:
    """Whether a choice is one of the command's, as Hydra has those of all commands, and nothing internal."""
    from ubmd.cli.explain import offered
    from ubmd.config import base_keys

    key, equals, option = choice.lstrip("+~").partition("=")
    first = key.replace("/", ".").split(".")[0]
    if first not in {*base_keys(command.config_name), "hydra"}:
        return False
    if key.rpartition(".")[2].startswith("_") and "._" not in word:
        return False
    options = hydra.config_loader.get_group_options(key) if equals and option else []
    return option not in options or option in offered(hydra, command, key)


def _files(begin: str) -> list[str]:
    """Files and folders whose path begins with a text."""
    where, _, name = begin.rpartition("/")
    folder = Path(where + "/" if begin.startswith("/") else where or ".").expanduser()
    if not folder.is_dir():
        return []
    hidden = name.startswith(".")
    with os.scandir(folder) as entries:
        inside = sorted((e.name, e.is_dir()) for e in entries if hidden or not e.name.startswith("."))
    above = begin[: len(begin) - len(name)]
    found = [f"{above}{entry}{'/' if is_folder else ''}" for entry, is_folder in inside if entry.startswith(name)]
    return [re.sub(r"[^\w@%+=:,./~-]", r"\\\g<0>", path) for path in found]  # for the shell

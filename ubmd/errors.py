"""The exceptions that users are meant to read."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

__all__ = ["InputError", "StoppedShort", "system_refusal"]


class InputError(ValueError):
    """Bad input: one sentence that names the field, its value and the remedy.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """


class StoppedShort(RuntimeError):  # noqa: N818
    """A run ended before it had the data that it was to have: one sentence with how many of how many, and a remedy.

    Everything it made is kept. The command line prints the sentence alone and exits with code 3.
    """


_SPACE = "free some space, then the same command continues"
_PLACE = "choose a folder that can be written, e.g. with UBMD_RUNS and UBMD_CACHE"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit on the size of files, then the same command continues",
    errno.EIO: "see to the disk, then the same command continues",
    errno.EROFS: _PLACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.ENOTDIR: _PLACE,
    errno.EISDIR: "give a file, or move the folder away",
    errno.EEXIST: _PLACE,
    errno.ELOOP: "replace the link by what it stands for",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ESTALE: "see to the file system, then the same command continues",
    errno.EMFILE: "raise the limit on open files (ulimit -n), then the same command continues",
}
_SQLITE = {
    sqlite3.SQLITE_FULL: _SPACE,
    sqlite3.SQLITE_READONLY: _PLACE,
    sqlite3.SQLITE_CANTOPEN: _PLACE,
    sqlite3.SQLITE_IOERR: "see to the disk, then the same command continues",
}


def system_refusal(error: BaseException, where: Path | str | None = None) -> InputError | None:
    """The sentence for a file or disk that the operating system refuses to read or write; None for other errors.

    Args:
        error: what was raised, perhaps because of such a refusal.
        where: the folder to name if the error does not tell the file.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _REMEDIES:
            path = seen.filename if seen.filename is not None else where
            place = "" if path is None else f"{path}: "
            return InputError(f"{place}{(seen.strerror or 'refused').lower()}; {_REMEDIES[seen.errno]}")
        if isinstance(seen, sqlite3.OperationalError):
            code = getattr(seen, "sqlite_errorcode", 0) & 0xFF  # the rest of the code tells details
            if code in _SQLITE:
                place = "" if where is None else f"{where}: "
                reason = "no space left on device" if code == sqlite3.SQLITE_FULL else seen
                return InputError(f"{place}labels cannot be stored ({reason}); {_SQLITE[code]}")
        seen = seen.__cause__
    return None

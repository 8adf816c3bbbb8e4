"""The log in a run's folder, which must not end a run."""

from __future__ import annotations

import logging
import sys

__all__ = ["LogFile"]


class LogFile(logging.FileHandler):
    """A log that says once that it can no longer be written, instead of a traceback a line."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not self._told:
            self._told = True
            reason = " ".join(str(sys.exception()).split())
            print(f"ubmd: {self.baseFilename} cannot be written ({reason}); the log ends here", file=sys.stderr)

"""The one exception that users are meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one sentence that names the field, its value and the remedy.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """

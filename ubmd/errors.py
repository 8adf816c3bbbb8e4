"""The exceptions that users are meant to read."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one sentence that names the field, its value and the remedy.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """


class StoppedShort(RuntimeError):  # noqa: N818
    """A run ended before it had the data that it was to have: one sentence with how many of how many, and a remedy.

    Everything it made is kept. The command line prints the sentence alone and exits with code 3.
    """

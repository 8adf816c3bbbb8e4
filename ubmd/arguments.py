"""Arguments of commands as users type them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from ubmd.errors import InputError

__all__ = ["Parser", "quoted"]

SMILES = "system.smiles="
"""Values of this key have brackets and equality signs of their own, which Hydra would read as its own."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports bad flags the way every other bad input is reported."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def quoted(overrides: Sequence[str]) -> list[str]:
    """Overrides with the quotes that Hydra wants around SMILES; a comma separates several of them."""
    return [_quoted(text) if text.startswith(SMILES) else text for text in overrides]


def _quoted(text: str) -> str:
    values = text.removeprefix(SMILES).split(",")
    if any(value[:1] in ("", "'", '"', "$") or value == "null" for value in values):
        return text
    return SMILES + ",".join(f"'{value}'" for value in values)

"""Arguments of commands that take no configuration."""

from __future__ import annotations

import argparse
from typing import NoReturn

from ubmd.errors import InputError

__all__ = ["Parser"]


class Parser(argparse.ArgumentParser):
    """An argument parser that reports bad flags the way every other bad input is reported."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

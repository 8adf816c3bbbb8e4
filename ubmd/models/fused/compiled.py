"""Compilation of the kernels, once for a machine and a version of their source."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import config

__all__ = ["call", "kernel"]

log = logging.getLogger(__name__)


@cache
def _folder() -> str:
    """Where compiled kernels are kept, or nothing where no file can be written.

    Numba looks whether the file of a function has changed, but not those of the functions that it calls: so that no
    kernel is ever made of old parts, its folder is that of their common digest.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    base = (
        os.environ.get("NUMBA_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ubmd"
    )
    folder = Path(base) / f"kernels-{digest}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = any(folder.rglob("*.nbi"))
    except (OSError, RuntimeError):  # read-only, or a user without a home
        log.info("compiled kernels cannot be kept in %s: every process compiles them, which takes some seconds", folder)
        return ""
    if not known:
        log.info("the descriptor's kernels are compiled, which takes some seconds, once on this machine")
    return str(folder)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function when it is first called; it lets go of Python's lock while it runs."""
    before = config.CACHE_DIR  # pyright: ignore[reportAttributeAccessIssue]
    config.CACHE_DIR = _folder()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        compiled = numba.njit(nogil=True, cache=bool(_folder()), error_model="numpy")(function)
    finally:
        config.CACHE_DIR = before  # pyright: ignore[reportAttributeAccessIssue]
    return compiled


def call(compiled: Callable[..., Any], *arguments: Any) -> None:
    """Runs a kernel, also where a full disk cannot take what was compiled."""
    try:
        compiled(*arguments)
    except OSError as error:  # nothing has run yet, and in this process the kernel is compiled now
        log.info("a compiled kernel cannot be kept: %s", error)
        compiled(*arguments)

"""What a calculator may change in a process, put back when its label is done.

Labels are computed in the middle of everything else: gradients may be switched off, and what a calculator sets for its
own use (precision, random state, working directory, handlers) is the state of the whole process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

__all__ = ["default_dtype", "isolated"]


@contextmanager
def isolated(seed: int | None = None) -> Iterator[None]:
    """Runs the block with gradients switched on and puts the state of the process back behind it.

    That is, of PyTorch, if it is loaded: gradient and inference mode, precision and device of new tensors, threads,
    determinism, random state; of NumPy: error handling and random state; of Python: random state, warnings, logging,
    standard output, environment, working directory and signal handlers.

    Args:
        seed: of the random states inside, so that what the block draws depends on nothing else; None leaves them.
    """
    with ExitStack() as stack:
        for part in (_streams, _logging, _place, _signals, _random, _torch):
            stack.enter_context(part())
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(np.errstate())
        if seed is not None:
            _seed(seed)
        yield


def default_dtype() -> Any:
    """PyTorch's type of new tensors; None if PyTorch is not loaded."""
    return sys.modules["torch"].get_default_dtype() if "torch" in sys.modules else None


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the state that calculators use)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@contextmanager
def _torch() -> Iterator[None]:
    torch: Any = sys.modules.get("torch")
    if torch is None:  # a program's worker has no use for it
        yield
        return
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = torch.get_float32_matmul_precision()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=gpus), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _random() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _streams() -> Iterator[None]:
    out, err, hook = sys.stdout, sys.stderr, sys.excepthook
    try:
        yield
    finally:
        sys.stdout, sys.stderr, sys.excepthook = out, err, hook


@contextmanager
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        root.manager.disable = disabled


@contextmanager
def _place() -> Iterator[None]:
    environment = dict(os.environ)
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # somebody has removed it
        folder = None
    try:
        yield
    finally:
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        if folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(folder)


@contextmanager
def _signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python sets no handlers
        yield
        return
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:  # None: not set from Python
                signal.signal(number, handler)

"""Tensors of two devices are found without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ubmd.testing.fake_device import on_accelerator

ROOT = Path(__file__).parents[2]


def test_on_a_pretended_accelerator(tmp_path: Path) -> None:
    """In a process that has taken no derivative before, which the pretended device asks for."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'other'}"]
    command.append("tests/testing/on_fake_device.py")
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "15 passed" in done.stdout


def test_a_process_that_has_taken_derivatives() -> None:
    values = torch.ones(2, requires_grad=True)
    torch.autograd.grad(values.sum(), values)
    with pytest.raises(RuntimeError, match="process of their own"):
        on_accelerator(lambda x: torch.autograd.grad(x.requires_grad_().sum(), x), torch.ones(2))

"""Mixed devices found without a GPU: PyTorch's fake tensors on a pretended accelerator.

Fake tensors have a shape, a type and a device, but no values. An operation on tensors of two devices fails as it would
on an accelerator::

    from ubmd.testing.fake_device import on_accelerator

    on_accelerator(lambda potential, batch: potential(batch), potential, batch)

The checks need a process of their own: PyTorch prepares for the devices there are when it takes the first derivative.
Where a value is asked for, it is true, 1.0 or, of whole numbers, what is given as ``number``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "fake", "on_accelerator", "pretended_accelerator", "strays"]

DEVICE = "npy"
"""Name of the pretended accelerator."""


@cache
def _register() -> None:
    _setup_privateuseone_for_python_backend(DEVICE)


class _Answers(TorchDispatchMode):
    """Answers for fake tensors where a value is asked for."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else self.number
        return func(*args, **(kwargs or {}))


@contextmanager
def pretended_accelerator(number: int = 0) -> Iterator[None]:
    """Tensors that are made while the block runs are fake; their devices are checked, nothing is computed.

    Args:
        number: what the value of a fake tensor of whole numbers is, where it is asked for.
    """
    _register()
    with FakeTensorMode(allow_non_fake_inputs=True), _Answers(number):
        yield


def fake(value: Any) -> Any:
    """The same with every tensor on the pretended accelerator; inside :func:`pretended_accelerator`.

    Args:
        value: a tensor, a dataclass or a mapping of those, of which a copy is made; or a module, which is changed
            itself. Anything else stays what it is.
    """
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
    if isinstance(value, nn.Module):
        return _fake_module(value)
    if isinstance(value, Mapping):
        return {key: fake(part) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: fake(getattr(value, f.name)) for f in fields(value) if f.init}
        return replace(value, **parts)
    return value


def _fake_module(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = fake(buffer)
    return module


def strays(value: Any, where: str = "result") -> list[str]:
    """Names of the tensors in a value that are not on the pretended accelerator."""
    if isinstance(value, Tensor):
        return [] if value.device.type == DEVICE else [where]
    if isinstance(value, Mapping):
        return [name for key, part in value.items() for name in strays(part, f"{where}[{key!r}]")]
    if isinstance(value, list | tuple):
        return [name for index, part in enumerate(value) for name in strays(part, f"{where}[{index}]")]
    if is_dataclass(value):
        return [name for f in fields(value) for name in strays(getattr(value, f.name), f"{where}.{f.name}")]
    return []


def on_accelerator(function: Callable[..., Any], *arguments: Any, number: int = 0) -> None:
    """Calls a function with its arguments on the pretended accelerator.

    Args:
        function: works on tensors alone.
        arguments: see :func:`fake`.
        number: what the value of a tensor of whole numbers is, where it is asked for.

    Raises:
        AssertionError: a part of what it returns is somewhere else, or what it computes mixes devices.
        RuntimeError: derivatives were taken in this process before.
    """
    # fake tensors cannot be copied from real ones
    arguments = tuple(copy.deepcopy(value) if isinstance(value, nn.Module) else value for value in arguments)
    with pretended_accelerator(number):
        try:
            found = function(*map(fake, arguments))
        except RuntimeError as error:
            if "device_ready_queues_" in str(error):
                raise RuntimeError(
                    "derivatives were taken before; run these checks in a process of their own"
                ) from error
            raise AssertionError(f"mixed devices: {str(error).splitlines()[0]}") from error
        left = strays(found)
    assert not left, f"not on the accelerator: {', '.join(left)}"

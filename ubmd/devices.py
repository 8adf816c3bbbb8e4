"""What a trainer is to compute on, as Lightning's options say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ubmd.errors import InputError

__all__ = ["check_device", "first_device", "n_processes"]

ONE = ("auto", "none", "single_device")
SEVERAL = ("ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
"""Strategies for several devices; more than these would start processes, or divide weights, in ways of their own."""
DDP = "lightning.pytorch.strategies.DDPStrategy"


def check_device(trainer: Mapping[str, Any]) -> None:
    """Refuses trainer settings that ubmd cannot honour.

    Raises:
        InputError: a GPU where none is, a strategy that is none of those for one device or DDP, or several nodes.
    """
    accelerator = str(trainer.get("accelerator", "auto")).lower()
    _check_strategy(trainer.get("strategy", "auto"))
    if trainer.get("num_nodes", 1) not in (None, 1):
        raise InputError(
            f"trainer.num_nodes={trainer['num_nodes']} is not possible: ubmd trains on the devices of one machine; "
            "several seeds or settings are jobs of a sweep (-m), one a machine"
        )
    devices = _devices(trainer.get("devices", "auto"))
    if isinstance(devices, int) and devices < 1:
        raise InputError(f"trainer.devices={devices} must be at least 1")
    count = _n_gpus() if accelerator != "cpu" else 0
    if accelerator in ("gpu", "cuda", "mps") and count == 0:
        raise InputError(f"trainer.accelerator={accelerator} but no GPU is available; use trainer.accelerator=cpu")
    on_gpus = accelerator in ("gpu", "cuda", "mps") or (accelerator == "auto" and count > 0)
    if isinstance(devices, list) and not on_gpus:
        raise InputError(f"trainer.devices={devices} names GPUs, of which there are none; give a number of processes")
    most = max(devices) + 1 if isinstance(devices, list) else devices or 1
    if on_gpus and most > count:
        counted = ", counted from 0" if isinstance(devices, list) else ""
        raise InputError(f"trainer.devices={devices} but there {_counted(count)}{counted}")
    if n_processes(trainer) > 1 and str(trainer.get("strategy", "auto")).lower() == "single_device":
        raise InputError(f"trainer.devices={devices} needs trainer.strategy=ddp; single_device is for one")


def n_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes train together: one for each device."""
    devices = _devices(trainer.get("devices", "auto"))
    if devices is None:  # all GPUs, or the CPU
        accelerator = str(trainer.get("accelerator", "auto")).lower()
        return max(_n_gpus(), 1) if accelerator in ("gpu", "cuda", "auto") else 1
    return len(devices) if isinstance(devices, list) else devices


def first_device(trainer: Mapping[str, Any]) -> list[int] | int:
    """``devices`` of a trainer for what one process does by itself, on the first of all devices."""
    devices = _devices(trainer.get("devices", "auto"))
    return devices[:1] if isinstance(devices, list) else 1


def _check_strategy(strategy: Any) -> None:
    if isinstance(strategy, Mapping):
        target = strategy.get("_target_")
        if target != DDP or strategy.get("start_method", "popen") != "popen":
            raise InputError(f"trainer.strategy._target_={target} is not possible; use trainer.strategy=ddp")
        return
    if str(strategy).lower() not in (*ONE, *SEVERAL):
        remedy = "processes are started by trainer.strategy=ddp" if "ddp" in str(strategy) else "use ddp or auto"
        raise InputError(f"trainer.strategy={strategy} is not possible: {remedy}")


def _n_gpus() -> int:
    """GPUs of CUDA, or the one of Apple."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return int(torch.backends.mps.is_available())


def _counted(count: int) -> str:
    return "is 1 GPU" if count == 1 else f"are {count} GPUs"


def _devices(devices: Any) -> list[int] | int | None:
    """Lightning's ways to name devices: a number of them, a list of indices, or None for all there are."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return [int(index) for index in devices] or None
    text = str(devices).strip("[] ")
    try:
        if text in ("auto", "-1", "None"):
            return None
        return [int(part) for part in text.split(",") if part.strip()] if "," in text else int(text)
    except ValueError:
        raise InputError(f"trainer.devices={devices} is not a number of devices; use trainer.devices=1") from None

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from ubmd.devices import check_device, first_device, n_processes
from ubmd.errors import InputError


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("gpus", "trainer", "processes", "first"),
    [
        (0, {}, 1, 1),
        (0, {"accelerator": "cpu", "devices": 1}, 1, 1),
        (0, {"accelerator": "auto", "devices": "1"}, 1, 1),
        (0, {"accelerator": "cpu", "devices": "auto", "strategy": "single_device"}, 1, 1),
        (0, {"accelerator": "cpu", "devices": 3, "strategy": "ddp"}, 3, 1),
        (0, {"devices": "2"}, 2, 1),
        (0, {"strategy": {"_target_": "lightning.pytorch.strategies.DDPStrategy", "static_graph": True}}, 1, 1),
        (4, {"accelerator": "cpu"}, 1, 1),
        (4, {}, 4, 1),
        (4, {"accelerator": "gpu", "devices": -1, "strategy": "ddp"}, 4, 1),
        (4, {"devices": [3]}, 1, [3]),
        (4, {"devices": "2,3", "strategy": "ddp_find_unused_parameters_true"}, 2, [2]),
    ],
)
def test_possible_devices(
    gpus: int, trainer: dict[str, Any], processes: int, first: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus)
    cfg = OmegaConf.create(trainer)
    check_device(cfg)
    assert n_processes(cfg) == processes
    assert first_device(cfg) == first


@pytest.mark.parametrize(
    ("gpus", "trainer", "sentence"),
    [
        (0, {"accelerator": "gpu", "devices": 1}, "no GPU is available; use trainer.accelerator=cpu"),
        (0, {"accelerator": "cuda"}, "no GPU is available; use trainer.accelerator=cpu"),
        (0, {"devices": [0, 1]}, "names GPUs, of which there are none"),
        (0, {"devices": 0}, "trainer.devices=0 must be at least 1"),
        (4, {"accelerator": "gpu", "devices": [4]}, "there are 4 GPUs, counted from 0"),
        (4, {"devices": 5}, "trainer.devices=5 but there are 4 GPUs"),
        (1, {"devices": 2}, "there is 1 GPU"),
        (0, {"devices": 2, "strategy": "single_device"}, "needs trainer.strategy=ddp"),
        (0, {"accelerator": "cpu", "strategy": "ddp_spawn"}, "trainer.strategy=ddp_spawn is not possible: "),
        (0, {"strategy": "fsdp"}, "trainer.strategy=fsdp is not possible: use ddp or auto"),
        (0, {"strategy": {"_target_": "lightning.pytorch.strategies.FSDPStrategy"}}, "use trainer.strategy=ddp"),
        (0, {"accelerator": "cpu", "num_nodes": 2}, "trainer.num_nodes=2 is not possible"),
        (0, {"accelerator": "cpu", "devices": "one"}, "trainer.devices=one is not a number"),
    ],
)
def test_impossible_devices(gpus: int, trainer: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpus)
    with pytest.raises(InputError) as caught:
        check_device(OmegaConf.create(trainer))
    assert sentence in str(caught.value)

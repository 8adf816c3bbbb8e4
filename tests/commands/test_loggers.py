from __future__ import annotations

from pathlib import Path

import pytest

from ubmd.commands.loggers import wandb_id


def test_the_id_of_a_run_in_wandb_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = wandb_id(tmp_path / "id")
    assert wandb_id(tmp_path / "id") == new
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe1", b"a/b", b"0" * 65])
def test_a_damaged_id_is_replaced(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "id").write_bytes(content)
    assert len(wandb_id(tmp_path / "id")) == 8
    assert "is damaged" in caplog.text

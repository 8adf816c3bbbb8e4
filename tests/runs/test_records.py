from __future__ import annotations

import json
from pathlib import Path

import pytest

from ubmd.errors import InputError
from ubmd.runs.records import checksums, faults, is_sealed, read_record, write_record

CONTENT = {"metrics": {"round": 0, "x": 0.1 + 0.2, "y": None}, "files": {}}


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "a" / "record.json"
    assert read_record(file) is None
    write_record(file, CONTENT)
    assert read_record(file) == CONTENT
    assert list(json.loads(file.read_text())) == ["metrics", "files", "sha256"]
    file.write_text(json.dumps(json.loads(file.read_text())))  # another layout says the same
    assert read_record(file) == CONTENT


def test_every_byte_counts(tmp_path: Path) -> None:
    """A flipped bit anywhere in what is said is found."""
    file = tmp_path / "record.json"
    write_record(file, CONTENT)
    whole = file.read_bytes()
    for place, byte in enumerate(whole):
        if chr(byte).isspace() or whole[place : place + 2] == b"4,":  # the last digit of 0.30000000000000004
            continue
        file.write_bytes(whole[:place] + bytes([byte ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="is damaged"):
            read_record(file)
        file.write_bytes(whole[:place])
        with pytest.raises(InputError, match="is damaged"):
            read_record(file)


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"\xff", b"[" * 10**5, b'{"a": NaN', b'{"sha256": 1}'])
def test_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_record(tmp_path / "record.json")
    assert "\n" not in str(caught.value)


def test_records_of_old_versions(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"metrics": {"round": 0}}')
    record = read_record(tmp_path / "record.json")
    assert record == {"metrics": {"round": 0}}
    assert not is_sealed(record)
    with pytest.raises(InputError, match="is damaged"):
        read_record(tmp_path / "record.json", sealed=True)


def test_faults(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    files = checksums(tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "d")
    assert list(files) == ["a", "b", "c"]
    assert faults(tmp_path, files) == {}
    (tmp_path / "a").write_text("")
    (tmp_path / "b").unlink()
    assert faults(tmp_path, files) == {"a": "changed", "b": "missing"}

"""Reading what ``torch.save`` wrote, wherever the file comes from."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["DamagedFileError", "read_torch_file"]


class DamagedFileError(Exception):
    """The bytes are not what ``torch.save`` wrote."""


def read_torch_file(path: Path, also: Sequence[Any] = ()) -> Any:
    """Tensors (on the CPU) and plain types of a file; no code of it is run.

    torch itself would take any bytes of a tensor for its numbers, and memory for whatever size a compressed file
    claims; so the archive is looked at first: stored as it is, no larger than the file, every checksum right.

    Args:
        path: the file.
        also: further classes and functions that the file may name, as ``torch.serialization.safe_globals`` takes them.

    Raises:
        DamagedFileError: for anything else.
        OSError: if the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise DamagedFileError("compressed")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise DamagedFileError("larger inside than outside")
            wrong = archive.testzip()
        if wrong is not None:
            raise DamagedFileError(f"checksum of {wrong}")
        with torch.serialization.safe_globals(list(also)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, DamagedFileError):
        raise
    except Exception as error:  # damaged bytes raise anything from EOFError to UnicodeDecodeError
        raise DamagedFileError(type(error).__name__) from error

"""The version of the package, which everything may read: the front door, ``ubmd/__init__.py``, stands above it all."""

from __future__ import annotations

__version__ = "0.1.0"

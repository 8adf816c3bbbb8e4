"""``python -m ubmd``."""

from __future__ import annotations

import sys

from ubmd.cli.main import main

sys.exit(main())

from __future__ import annotations

import pytest

from ubmd.cli.command import COMMANDS
from ubmd.cli.explain import unknown_key

TREE = {"seed": 0, "callbacks": {}, "learning": {"batch_size": 16}}


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("callbacks.say.word", "callbacks has no say so far; to add it write +callbacks.say.word=hi"),
        ("learning.batchsize", "learning.batchsize is not a key of learning; did you mean learning.batch_size? "),
        ("seed.x", "seed is a single value, so there is no seed.x"),
    ],
)
def test_unknown_keys_come_with_a_remedy(key: str, sentence: str) -> None:
    told = unknown_key(TREE, key, COMMANDS["learn"], f"{key}=hi")
    assert told is not None
    assert told.startswith(sentence)

"""Which values a key takes: annotations against plain values, and whole configurations."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ubmd import config
from ubmd.cli.app import check, compose, open_hydra
from ubmd.cli.command import COMMANDS
from ubmd.data.elements import species_numbers
from ubmd.errors import InputError
from ubmd.models.gmnn import GMNN
from ubmd.schema import KEYS, MAY_BE_INFINITE, Node, hints_of, mismatch
from ubmd.training.module import PotentialModule

NAN, INF = float("nan"), float("inf")
NODE = {"_target_": "a.B"}


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3], [1.0, True, "1", None, [], {}, NODE]),
        (float, [0, 1.5], [True, "1", None, NAN, INF, [1.0], NODE]),
        (Annotated[float, MAY_BE_INFINITE], [0, 1.5, INF, -INF], [True, ".inf", None, NAN]),
        (bool, [True], [0, "true", None]),
        (str, ["", "é"], [1, None, ["a"], True]),
        (Path, ["a"], [1, None]),
        (int | None, [1, None], [1.5, "x"]),
        (Literal["a", 1], ["a", 1], ["b", True, None]),
        (Sequence[str], [[], ["a"]], ["ab", [1], None, {}]),
        (tuple[float, float], [[1, 2.5]], [[1], [1, 2, 3], ["a", 1]]),
        (tuple[int, ...], [[], [1, 2, 3]], [[1.5], 1]),
        (Mapping[str, float], [{}, {"a": INF}], [[], {"a": "b"}, {"a": NAN}]),
        (Mapping[str, Sequence[int]], [{"a": [1]}], [{"a": [1.5]}, {"a": 1}]),
        (Node, [NODE], [1, None, {}, {"a": 1}]),
        (Callable[..., int], [NODE], [1, "a", None, [], {}]),
        (Path | None, [None, "a"], [1]),
        (InputError, [NODE], [1, "a", None, [], {}]),
        (Any, [1, None, [], {}, "a"], [NAN]),
    ],
)
def test_values(hint: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert mismatch(value, hint, "key") is None, value
    for value in bad:
        sentence = mismatch(value, hint, "key")
        assert sentence is not None, value
        assert sentence.startswith("key")


def test_annotations_of_others_are_taken_widely() -> None:
    assert mismatch(5, str, "key", ours=False) is None
    assert mismatch("auto", int | InputError, "key", ours=False) is None
    assert mismatch("abc", int, "key", ours=False) == "key=abc must be a whole number"


def test_the_item_that_is_wrong_is_named() -> None:
    assert mismatch([1, 2.5], Sequence[int], "a.b") == "a.b[1]=2.5 must be a whole number"
    assert mismatch({"x": [1, "y"]}, Mapping[str, Sequence[int]], "a") == "a.x[1]=y must be a whole number"
    assert mismatch("x" * 500, int, "a") == f"a={'x' * 57}... must be a whole number"


def test_annotations_that_cannot_be_looked_up() -> None:
    def function(a: int, b: Unknown) -> None: ...  # noqa: F821 # pyright: ignore

    assert hints_of(function)["a"] is int
    assert "b" not in hints_of(function)


@pytest.mark.parametrize("command", ["learn", "train", "evaluate", "md", "label"])
def test_every_key_of_a_configuration_has_a_type(command: str) -> None:
    base = config.base_keys(command)
    written = [f"{key}.{name}" for key, value in base.items() if isinstance(value, dict) for name in value]
    chosen = {"hydra", "experiment", "method", "sweep", "debug"}
    assert {*base, *written} - chosen <= set(KEYS)


BASES: dict[str, list[str]] = {
    "learn": ["experiment=ala2_demo"],
    "train": ["data.train=a.xyz"],
    "evaluate": ["potential=a.ckpt", "structures=a.xyz"],
    "md": ["potential=a.ckpt", "system.structure=a.xyz"],
    "label": ["structures=a.xyz", "reference=ff19sb"],
}


@functools.cache
def composed(command: str) -> DictConfig:
    return compose(command, BASES[command])


def checked(command: str, key: str, value: Any) -> None:
    """Check a configuration with another value, without composing it again."""
    cfg = composed(command).copy()
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, key, value, merge=False)
    config.validate(cfg, command)
    config.check_values(config.plain(cfg), command)


@pytest.mark.parametrize(
    ("command", "key", "value", "sentence"),
    [
        ("learn", "learning.batch_size", 2.5, "learning.batch_size=2.5 must be a whole number"),
        ("learn", "learning", None, "learning=null must be a mapping"),
        ("learn", "learning", {}, "learning.max_structures is missing"),
        ("learn", "system", None, "system=null must be a part of its own"),
        ("learn", "calibration", None, "calibration=null must be a mapping"),
        ("learn", "trainer.max_steps", "abc", "trainer.max_steps=abc must be a whole number"),
        ("learn", "threads", "abc", "threads=abc must be a whole number or auto"),
        ("learn", "dtype", "float16", "dtype=float16 must be float32 or float64"),
        ("learn", "dynamics.n_walkers", True, "dynamics.n_walkers=true must be a whole number"),
        ("learn", "dynamics.integrator", 5, "dynamics.integrator=5 must be a part of its own (Molecul"),
        ("learn", "seed", 1.5, "seed=1.5 must be a whole number"),
        ("learn", "bias.tau", [1], "bias.tau=[1] must be a number"),
        ("learn", "bias.tau", NAN, "bias.tau=nan is no number"),
        ("learn", "bias.tau", INF, "bias.tau=inf must be finite"),
        ("learn", "bias.tau", ".inf", "bias.tau=.inf must be a number; on the command line infinity is inf"),
        ("learn", "bias.tau", "${oops}", "bias.tau: Interpolation key 'oops' not found"),
        ("learn", "model.hidden", 8, "model.hidden=8 must be a list of whole numbers"),
        ("learn", "model.hidden", ["a"], "model.hidden[0]=a must be a whole number"),
        ("learn", "model._target_", 5, "model._target_=5 must be the dotted name"),
        ("learn", "model._target_", "a..b", "model._target_=a..b must be a dotted name"),
        ("learn", "model._partial_", "abc", "model._partial_=abc must be true or false"),
        ("train", "data.train", None, "data.train=null must be a text"),
        ("train", "data.train", ["a", "b"], 'data.train=["a", "b"] must be a text'),
        ("evaluate", "batch_size", 2.5, "batch_size=2.5 must be a whole number"),
        ("evaluate", "alpha", "abc", "alpha=abc must be a number"),
        ("evaluate", "potential", 3, "potential=3 must be a text"),
        ("evaluate", "structures", None, "structures=null must be a text"),
        ("md", "device", 5, "device=5 must be a text"),
        ("label", "labelling.max_force", "abc", "labelling.max_force=abc must be a number or null"),
    ],
)
def test_values_of_configurations(command: str, key: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        checked(command, key, value)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_an_override_of_the_wrong_kind_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batch_size=2\.5 must be a whole number"):
        compose("evaluate", [*BASES["evaluate"], "batch_size=2.5", f"paths.root={tmp_path}/runs"])
    assert not list(tmp_path.iterdir())


def test_loggers_and_callbacks_may_be_deleted() -> None:
    assert "logger" not in compose("train", [*BASES["train"], "~logger", "~callbacks"])


WRONG: list[Any] = [None, "abc", "", 1.5, -1, 0, True, [], {}, [1, 2], NAN, INF, 10**30, "x" * 3000, "${oops}", "é"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["learn", "md"])
def test_any_value_of_any_key(command: str) -> None:
    """Whatever a key is set to, the answer is a sentence or yes."""

    def names(node: DictConfig, prefix: str = "") -> list[str]:
        found = []
        for key in node:
            value = node._get_node(key)
            name = f"{prefix}{key}"
            found += [name, *(names(value, f"{name}.") if isinstance(value, DictConfig) else ())]
        return found

    for number, key in enumerate(names(composed(command))):
        for value in WRONG[number % 5 :: 5]:
            try:
                checked(command, key, value)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017


def test_every_job_of_a_sweep_is_checked() -> None:
    with open_hydra() as hydra, pytest.raises(InputError, match=r"seed=2\.5 must be a whole number"):
        check(hydra, COMMANDS["train"], [*BASES["train"], "seed=1,2.5"], True)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("hydra.sweeper.params={seed:1}", "hydra.sweeper.params={seed:1} needs a sweep=OPTION"),
        ("+hydra.sweeper.params.seed=1", "write KEY=VALUE,VALUE -m"),
        ("paths=null", "paths=null is not possible; choose one of default"),
        ("hydra.sweeper=null", "hydra.sweeper=None must be a part"),
        ("hydra.launcher=abc", "hydra.launcher=abc must be a part"),
    ],
)
def test_settings_of_hydra_that_cannot_be(override: str, sentence: str) -> None:
    with open_hydra() as hydra, pytest.raises(InputError, match=re.escape(sentence)):
        check(hydra, COMMANDS["evaluate"], [*BASES["evaluate"], override], True)


def test_a_ghost_is_no_element() -> None:
    with pytest.raises(InputError, match="species names 'X'"):
        species_numbers(["H", "X"])


@pytest.mark.parametrize("option", [{"eps": -1.0}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}])
def test_settings_of_adam(option: dict[str, Any]) -> None:
    model = GMNN(species=["H"], hidden=[2], n_basis=1, n_gauss=2, l_max=0)
    with pytest.raises(InputError, match=r"^optimizer: Invalid"):
        PotentialModule(model, optimizer=functools.partial(torch.optim.Adam, **option))
    with pytest.raises(InputError, match=r"^training.sam_radius=nan"):
        PotentialModule(model, sam_radius=NAN)


def test_options_that_may_be_infinite() -> None:
    cfg = compose("learn", ["experiment=ala2_metadynamics", "training=huber", "bias.bias_factor=inf"])
    assert cfg.bias.bias_factor == INF
    cfg = compose("learn", ["experiment=ala2_demo", "training=huber", "training.loss.forces_delta=inf"])
    assert config.build(cfg, "training.loss").forces_delta == INF

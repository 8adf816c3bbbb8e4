"""The text of ``ubmd COMMAND --help``."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf

from ubmd import config
from ubmd.cli.explain import loaded, offered

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from ubmd.cli.command import Command

__all__ = ["help_text"]


def help_text(hydra: Hydra, command: Command, overrides: Sequence[Override], *, flags: str) -> str:
    """The text of ``ubmd COMMAND --help``: groups with their options, examples, keys, flags."""
    base = config.base_keys(command.config_name)
    cfg = loaded(hydra, command, overrides)
    tree = OmegaConf.to_container(cfg, resolve=False)
    choices = cfg.hydra.runtime.choices
    assert isinstance(tree, dict)
    inner = [group for group in choices if "/" in group and "@" not in group and group.split("/")[0] in base]
    names = sorted([*base, *inner], key=lambda group: list(base).index(group.split("/")[0]))
    options = {group: offered(hydra, command, group) for group in names if group.split("/")[0] != "hydra"}
    groups = {group: names for group, names in options.items() if names and group in choices}
    wide = max(map(len, [*base, *groups]), default=0)
    lines = [
        f"ubmd {command.name}",
        f"  {command.summary}",
        "",
        f"usage: ubmd {command.name} [key=value ...] [flags]",
    ]
    lines += ["", "groups, group=option (* is chosen):"]
    for group, names in groups.items():
        marked = [f"{name}*" if name == choices.get(group) else name for name in names]
        lines.append(f"  {group:<{wide}}  {', '.join(marked)}")
    lines += ["", "examples:", *(f"  {example}" for example in command.examples)]
    lines += ["", f"keys, key=value (ubmd {command.name} --help KEY explains one):"]
    for key, value in tree.items():
        if key != "hydra":
            lines += textwrap.wrap(
                f"{key:<{wide}}  {_describe(str(key), value)}",
                width=100,
                initial_indent="  ",
                subsequent_indent=" " * (wide + 6),
                break_on_hyphens=False,
            )
    described = flags[flags.index("-h, --help") :].rstrip() if "-h, --help" in flags else flags
    lines += ["", "flags:", f"  {described}"]
    return "\n".join(lines)


def _describe(key: str, value: Any) -> str:
    if isinstance(value, dict):
        names = [str(name) for name in value if not str(name).startswith("_")]
        return f"{key}." + "{" + ", ".join(names) + "}" if names else "(nothing)"
    return f"{value}" if value is not None else "null"

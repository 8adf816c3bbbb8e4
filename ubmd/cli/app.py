"""Commands as Hydra applications: compose a configuration, check it before anything is written, start its jobs.

Hydra's own entry point prints its errors in its own way and only after it has made the run folder; here the
same parts are called one by one, so that bad input costs one sentence and leaves nothing behind.
"""

from __future__ import annotations

import copy
import functools
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ubmd import config, earlier, paths, secrecy
from ubmd.arguments import quoted
from ubmd.cli import hydra_files, sweeps
from ubmd.cli.command import Command, find
from ubmd.cli.explain import check_groups, explain, explain_value
from ubmd.cli.job import JobFailed, Reported, check_device, missing, perform
from ubmd.errors import InputError


@contextmanager
def open_hydra(config_dir: Path | str | None = None) -> Iterator[Hydra]:
    """Hydra over ubmd's configurations, those of `config_dir` before and those of the working directory behind them."""
    version.setbase("1.3")
    paths.import_from_here()
    search_path = create_config_search_path(str(paths.config_dir()))
    if config_dir is not None:
        folder = Path(config_dir).resolve()
        if not folder.is_dir():
            raise InputError(f"--config-dir {config_dir} is not a folder")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="main"))
    if (here := paths.own_config_dir()) is not None:
        search_path.prepend("here", f"file://{here}", SearchPathQuery(provider="schema"))  # which has to be the last
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("ubmd", search_path)
    finally:
        GlobalHydra.instance().clear()


def parse(hydra: Hydra, overrides: Sequence[str]) -> list[Override]:
    """Parse overrides; InputError for one that is none."""
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    parsed: list[Override] = []
    for text in overrides:
        secrecy.remember_override(text)
        try:
            parsed += parser.parse_overrides([text])  # unlike parse_override, hands them what glob(*) needs
        except HydraException as error:
            if "=" not in text:
                raise InputError(f"{text} is not an override; write {text}=VALUE") from error
            reason = config.first_line(error)
            hint = "values with =, ^, commas, spaces, brackets or letters such as Å or ü need quotes: key='\"value\"'"
            raise InputError(f"cannot read the override {text} ({reason}); {hint}") from error
    return parsed


def sweep_points(overrides: Sequence[Override]) -> list[list[str]]:
    """Plain overrides that between them visit every value of a sweep, one dimension at a time."""
    values: list[list[str]] = []
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            values.append([f"{key}={getattr(override.value(), 'start', 0)}"])
        if not values[-1]:
            raise InputError(f"{override.input_line} sweeps over nothing")
    first = [column[0] for column in values]
    others = [[*first[:i], v, *first[i + 1 :]] for i, column in enumerate(values) for v in column[1:]]
    return [first, *others]


def compose_unchecked(hydra: Hydra, command: Command, overrides: Sequence[str]) -> DictConfig:
    """Compose one configuration (with its hydra node); InputError if Hydra cannot."""
    parsed = parse(hydra, overrides)
    try:
        check_groups(hydra, command, parsed)
        cfg = hydra.compose_config(command.config_name, list(overrides), RunMode.RUN)
        secrecy.remember(OmegaConf.to_container(cfg, resolve=False))
        return cfg
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(hydra, command, parsed, error)) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a group that is given a number, a list's item by name
        raise InputError(explain_value(hydra, command, parsed, error)) from error
    except (AttributeError, AssertionError) as error:  # Hydra's, for a parameter of a sweep that has none yet
        text = next((o.input_line for o in parsed if o.key_or_group.startswith("hydra.sweeper.params")), None)
        if text is None:
            raise
        raise InputError(f"{text} needs a sweep=OPTION; without one write KEY=VALUE,VALUE -m") from error


def compose_checked(hydra: Hydra, command: Command, overrides: Sequence[str]) -> DictConfig:
    """Compose one configuration and compare it with the classes that it names; InputError if they differ."""
    cfg = compose_unchecked(hydra, command, overrides)
    config.validate(cfg, command.config_name)
    for part, kind in (("sweeper", Sweeper), ("launcher", Launcher)):
        node = cfg.hydra[part]
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise InputError(f"hydra.{part}={node} must be a part, with a _target_; choose hydra/{part}=OPTION")
        if node["_target_"] not in {f"{c.__module__}.{c.__name__}" for c in Plugins.instance().discover(kind)}:
            raise InputError(f"hydra.{part}._target_ is no {part}: {node['_target_']}; choose hydra/{part}=OPTION")
    config.check_values(config.plain(job_config(copy.deepcopy(cfg))), command.config_name)
    return cfg


def check(hydra: Hydra, command: Command, overrides: Sequence[str], multirun: bool) -> bool:
    """Check the configuration of every job; returns whether this is a sweep."""
    parsed = parse(hydra, overrides)
    points = sweep_points(parsed)
    cfg = compose_checked(hydra, command, points[0])
    sweep = multirun or cfg.hydra.mode == RunMode.MULTIRUN
    several = [str(override.input_line) for override in parsed if override.is_sweep_override()]
    if several and not sweep:
        raise InputError(f"{several[0]} gives several values: add -m to run them all, or write them in [] for a list")
    if sweep and _expands_beforehand(cfg):
        dimensions = _with_params(hydra, cfg, parsed)
        for override in dimensions:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                text = override.input_line
                raise InputError(f"{text} is no list of values; write range(...), or choose another hydra/sweeper")
        points = sweep_points(dimensions)
    folders: dict[Path, list[str]] = {}
    for number, point in enumerate(points):
        cfg = compose_checked(hydra, command, point)
        if sweep and _expands_beforehand(cfg):
            _check_apart(point, folders, _sweep_folder(cfg, number))
        if str(cfg.hydra.launcher.get("_target_", "")).endswith(".BasicLauncher"):  # the job runs on this machine
            check_device(cfg)
    return sweep


def _check_apart(point: list[str], folders: dict[Path, list[str]], folder: Path) -> None:
    """Adds the folder of a sweep's job to those of others; refuses one that another job has."""
    other = folders.setdefault(folder, point)
    if other is not point:
        key = next((text.partition("=")[0] for text, before in zip(point, other, strict=True) if text != before), None)
        which = f"two values of {key}" if key else "two jobs that are the same"
        raise InputError(
            f"{which} would share the folder {folder}, as secrets and what has no say in the results are not in its "
            "name; run them one by one, each with a name=... of its own"
        )


def _expands_beforehand(cfg: DictConfig) -> bool:
    """Whether the sweeper's jobs are known before the first one runs."""
    return str(cfg.hydra.sweeper.get("_target_", "")).endswith(".BasicSweeper")


def _with_params(hydra: Hydra, cfg: DictConfig, parsed: Sequence[Override]) -> list[Override]:
    """The overrides of a sweep: those in its configuration, replaced and followed by those of the command line."""
    params = cfg.hydra.sweeper.get("params") or {}
    given = [*parse(hydra, [f"{k}={v}" for k, v in params.items()]), *parsed]
    return list({override.get_key_element(): override for override in given}.values())


def sweep_jobs(hydra: Hydra, command: Command, overrides: Sequence[str]) -> dict[Path, str]:
    """The run folders of a sweep's jobs in their order, each with the overrides that not all jobs share.

    Empty if the sweeper decides as it goes.
    """
    parsed = parse(hydra, overrides)
    cfg = compose_unchecked(hydra, command, sweep_points(parsed)[0])
    if not _expands_beforehand(cfg):
        return {}
    jobs = [job for batch in BasicSweeper.split_arguments(_with_params(hydra, cfg, parsed), None) for job in batch]
    shared = set(jobs[0]).intersection(*jobs)
    found = {}
    for number, job in enumerate(jobs):
        folder = _sweep_folder(compose_unchecked(hydra, command, job), number)
        own = [override for override in job if override not in shared]
        found[folder] = config.run_name(own) if own else folder.name
    return found


def _sweep_folder(cfg: DictConfig, number: int) -> Path:
    """The folder of a sweep's job."""
    before = HydraConfig.instance().cfg
    try:
        with read_write(cfg.hydra.job):
            cfg.hydra.job.num = number
        HydraConfig.instance().set_config(cfg)
        return Path(os.path.abspath(cfg.hydra.sweep.dir)) / cfg.hydra.sweep.subdir
    finally:
        HydraConfig.instance().cfg = before


def run(hydra: Hydra, command: Command, overrides: Sequence[str], *, multirun: bool = False) -> int:
    """Check, then run a command as a single job or a sweep; returns the exit code."""
    sweep = check(hydra, command, overrides, multirun)
    mode = RunMode.MULTIRUN if sweep else RunMode.RUN
    start = hydra.multirun if sweep else hydra.run
    attempt = secrets.token_hex(4)
    made = [] if sweep else missing(_run_folder(compose_unchecked(hydra, command, overrides)))
    hydra_files.prepare_sweeps()
    try:
        job = functools.partial(perform, command, attempt, made)
        start(command.config_name, job, [*overrides, f"hydra.mode={mode.name}", hydra_files.NOT_BY_HYDRA])
    except JobFailed as error:
        return error.code
    except Reported as error:
        return error.code
    except (OSError, ValueError) as error:  # a job reports its own: this one is about its folder
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        place, reason = cause.filename or "the run folder", (cause.strerror or str(cause)).lower()
        raise InputError(f"{place}: {reason}; choose another folder with UBMD_RUNS, or see to this one") from error
    finally:  # also of an interrupted sweep
        if sweep:
            sweeps.print_summary(sweep_jobs(hydra, command, overrides), attempt)
    return 0


def compose(config_name: str, overrides: Sequence[str] = (), *, folder: Path | str | None = None) -> DictConfig:
    """The checked configuration of a command, for notebooks and tests; nothing is written.

    Args:
        config_name: the command: ``learn``, ``train``, ``evaluate``, ``md`` or another one that takes overrides.
        overrides: what would follow it on the command line, one string each: ``["experiment=ala2_demo", "seed=1"]``.
        folder: the run's, ``paths.run``; by default the one that the command line would use.

    Raises:
        InputError: for an unknown command, group, option or key, and for values that do not fit.
    """
    with open_hydra() as hydra:
        cfg = compose_checked(hydra, find(config_name), quoted(earlier.translated(overrides)))
        return job_config(cfg, folder)


def _run_folder(cfg: DictConfig) -> Path:
    """The folder of a single job."""
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)
        with config.readable():
            return Path(os.path.abspath(cfg.hydra.run.dir))
    finally:
        HydraConfig.instance().cfg = before


def job_config(cfg: DictConfig, folder: Path | str | None = None) -> DictConfig:
    """What a job receives: no hydra node, and `paths` written out, because they refer to that node."""
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(cfg)
        run_folder = Path(os.path.abspath(folder)) if folder else _run_folder(cfg)
        with open_dict(cfg), read_write(cfg.hydra.runtime):
            cfg.hydra.runtime.output_dir = str(run_folder)
            HydraConfig.instance().set_config(cfg)
            if "paths" in cfg:
                cfg.paths = config.plain(cfg.paths)
            del cfg["hydra"]
    finally:
        HydraConfig.instance().cfg = before
    return cfg


def configuration_text(hydra: Hydra, command: Command, overrides: Sequence[str], part: str, resolve: bool) -> str:
    """The text of ``--cfg``: the configuration as YAML, only Hydra's own settings, or both."""
    cfg = compose_unchecked(hydra, command, overrides)
    if part == "job":
        job = job_config(cfg) if resolve else OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
        return hydra_files.as_yaml(job, resolve=resolve)
    return hydra_files.as_yaml(OmegaConf.masked_copy(cfg, ["hydra"]) if part == "hydra" else cfg)

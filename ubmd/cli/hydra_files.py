"""The files in which Hydra keeps what a job or a sweep was given, as Hydra itself writes them but without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from ubmd.files import write_text
from ubmd.secrecy import hidden, hide_override

__all__ = ["NOT_BY_HYDRA", "as_yaml", "prepare_sweeps", "put_back", "write_job"]

NOT_BY_HYDRA = "hydra.output_subdir=null"
"""The override by which Hydra leaves the files of a job to :func:`write_job`."""


def write_job(folder: Path, cfg: DictConfig) -> dict[Path, str]:
    """Writes ``config.yaml``, ``hydra.yaml`` and ``overrides.yaml`` into ``.hydra`` of a job's folder.

    Args:
        folder: of the job.
        cfg: its configuration, not resolved; that of Hydra is the one of the present job.

    Returns:
        what was in those of the files that were there, for :func:`put_back`.
    """
    hydra: Any = HydraConfig.instance().cfg
    texts = {"config": as_yaml(cfg), "hydra": as_yaml(OmegaConf.masked_copy(hydra, "hydra"))}
    texts["overrides"] = as_yaml(hydra.hydra.overrides.task)
    new = {folder / ".hydra" / f"{name}.yaml": text for name, text in texts.items()}
    run = folder / "config.yaml"
    before = {path: path.read_text(encoding="utf-8") for path in (*new, run) if path.is_file()}
    for path, text in new.items():
        write_text(path, text)
    return before


def put_back(folder: Path, before: Mapping[Path, str]) -> None:
    """Undoes :func:`write_job` for a job that the run has refused: ``continue=RUN`` goes by the words in its files."""
    run = folder / "config.yaml"
    if run in before and run.read_text(encoding="utf-8") == before[run]:
        for path, text in before.items():
            if path != run:
                write_text(path, text)


def as_yaml(cfg: DictConfig | ListConfig, *, resolve: bool = False) -> str:
    """A configuration as YAML, its overrides included, without secrets."""
    tree: Any = hidden(OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True))
    if isinstance(tree, list):
        tree = _without_assigned(tree)
    elif "hydra" in tree:
        tree["hydra"] = _without_assigned(tree["hydra"])
    return OmegaConf.to_yaml(OmegaConf.create(tree))


def _without_assigned(node: Any) -> Any:
    """The node whose texts, overrides among them, assign no secret."""
    if isinstance(node, dict):
        return {key: _without_assigned(part) for key, part in node.items()}
    if isinstance(node, list):
        return [_without_assigned(part) for part in node]
    return hide_override(node) if isinstance(node, str) else node


class _Hidden(OmegaConf):
    """What Hydra's sweeper, which cannot be told to leave out its ``multirun.yaml``, saves it with."""

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        write_text(Path(f), as_yaml(config, resolve=resolve))


def prepare_sweeps() -> None:
    """Has Hydra's sweeper write no secrets; once its plugins, this sweeper among them, are loaded."""
    import_module("hydra._internal.core_plugins.basic_sweeper").__dict__["OmegaConf"] = _Hidden

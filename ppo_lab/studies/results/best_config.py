"""A trial's config as a file that Hydra runs: ``--config-dir FOLDER --config-name best``.

It holds the run's choice of each group and the values that differ from them, so that it is short
and does not need the sweep that found it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from ppo_lab.config.compose import load
from ppo_lab.config.run import Config
from ppo_lab.studies.definition.parameter import Choice
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.utils.json_files import atomic_write
from ppo_lab.utils.paths import CONF_DIR

__all__ = ["BEST_FILE", "run_command", "write_best"]

BEST_FILE = "best.yaml"
_GROUPS = ("env", "network", "memory", "tracking")


def run_command(folder: Path) -> str:
    """Return the command that runs the best config in ``folder``."""
    return f"python -m ppo_lab --config-dir {shlex.quote(str(folder))} --config-name best"


def write_best(plan: Plan, params: Mapping[str, Choice], title: str) -> Path:
    """Write the config of ``params`` as ``best.yaml`` under the comment ``title``.

    Hydra must be initialised.
    """
    overrides = plan.space.overrides(params)
    config = plan.base.config(overrides)
    choices = plan.base.choices_with(overrides)
    groups = {group: choices[group] for group in _GROUPS if group in choices}
    plain = load(_compose([f"{group}={name}" for group, name in groups.items()]))
    content: dict[str, Any] = {
        "defaults": [
            "config",
            "_self_",
            *({f"override {group}": name} for group, name in groups.items()),
        ]
    }
    content |= _differences(_values(config), _values(plain))
    text = f"# {title}\n# {run_command(plan.folder)}\n{OmegaConf.to_yaml(content)}"
    _keep_own_options(groups, plan.folder)
    path = plan.folder / BEST_FILE
    atomic_write(path, text.encode())
    return path


def _compose(overrides: Sequence[str]) -> DictConfig:
    cfg = compose("config", overrides=list(overrides))
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def _keep_own_options(groups: Mapping[str, str], folder: Path) -> None:
    """Copy options of ``groups`` that came from ``--config-dir`` beside ``best.yaml``."""
    search_path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    for group, name in groups.items():
        option = Path(group) / f"{name}.yaml"
        own = [
            Path(entry.path) / option
            for entry in search_path
            if entry.provider == "command-line" and entry.path is not None
        ]
        found = next((path for path in own if path.is_file()), None)
        if found is not None and not (CONF_DIR / option).is_file():
            (folder / group).mkdir(exist_ok=True)
            atomic_write(folder / option, found.read_bytes())


def _values(config: Config) -> dict[str, Any]:
    """Return the config as plain YAML values."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _differences(ours: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``ours`` that ``plain`` lacks or that differ from it."""
    found: dict[str, Any] = {}
    for key, value in ours.items():
        other = plain.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if below := _differences(value, other):
                found[key] = below
        elif value != other or key not in plain:
            found[key] = value
    return found

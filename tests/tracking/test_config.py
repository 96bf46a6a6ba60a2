"""Options of tracking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ppo_lab.tracking import Terminal, TrackingConfig, TrackingMode
from ppo_lab.utils.errors import ConfigError

_CONF = Path(__file__).resolve().parents[2] / "conf" / "tracking"


def test_the_defaults_bound_a_broken_server_to_ten_seconds() -> None:
    config = TrackingConfig()
    config.check()
    assert config.init_timeout_s + config.finish_timeout_s < 10


@pytest.mark.parametrize("path", sorted(_CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_fits_the_schema_and_dumps_as_json(path: Path) -> None:
    merged = OmegaConf.merge(OmegaConf.structured(TrackingConfig), OmegaConf.load(path))
    config = OmegaConf.to_object(merged)
    assert isinstance(config, TrackingConfig)
    config.check()
    assert json.loads(json.dumps(OmegaConf.to_container(merged)))["mode"] == config.mode.value


def test_typed_words_become_choices() -> None:
    words = OmegaConf.from_dotlist(["mode=offline", "terminal=none"])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrackingConfig), words))
    assert isinstance(config, TrackingConfig)
    assert config.mode is TrackingMode.offline
    assert config.terminal is Terminal.none


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (TrackingConfig(tags=["x" * 65]), "tracking.tags"),
        (TrackingConfig(tags=[""]), "tracking.tags"),
        (TrackingConfig(project="a/b"), "tracking.project"),
        (TrackingConfig(project=""), "tracking.project"),
        (TrackingConfig(log_every=0), "tracking.log_every"),
        (TrackingConfig(init_timeout_s=0.0), "tracking.init_timeout_s"),
        (TrackingConfig(finish_timeout_s=float("inf")), "tracking.finish_timeout_s"),
    ],
)
def test_a_value_that_wandb_would_refuse_names_its_key(config: TrackingConfig, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        config.check()


@pytest.mark.parametrize(
    ("config", "variables", "expected"),
    [
        (TrackingConfig(), {}, ("ppo_lab", "online")),
        (TrackingConfig(), {"WANDB_PROJECT": "p", "WANDB_MODE": "dryrun"}, ("p", "offline")),
        (TrackingConfig(project="mine"), {"WANDB_PROJECT": "p"}, ("mine", "online")),
        (TrackingConfig(), {"WANDB_PROJECT": "", "WANDB_MODE": ""}, ("ppo_lab", "online")),
        (TrackingConfig(), {"WANDB_DISABLED": "true"}, ("ppo_lab", "disabled")),
        (TrackingConfig(), {"WANDB_DISABLED": "false"}, ("ppo_lab", "online")),
        (
            TrackingConfig(mode=TrackingMode.offline),
            {"WANDB_DISABLED": "1"},
            ("ppo_lab", "offline"),
        ),
    ],
)
def test_what_was_typed_precedes_wandbs_variables_and_these_our_defaults(
    monkeypatch: pytest.MonkeyPatch,
    config: TrackingConfig,
    variables: dict[str, str],
    expected: tuple[str, str],
) -> None:
    for name in ("WANDB_PROJECT", "WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config.check()
    assert (config.resolved_project, config.resolved_mode()) == expected


@pytest.mark.parametrize(("name", "value"), [("WANDB_PROJECT", "a/b"), ("WANDB_MODE", "sometimes")])
def test_a_variable_that_wandb_would_refuse_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        TrackingConfig().check()

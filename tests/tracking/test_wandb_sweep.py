"""W&B sweeps: what an agent sets is used, or refused, never shown and not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.lib.config_util import save_config_file_from_dict

from ppo_lab.config.compose import SWEEP_FILES, check_jobs, register
from ppo_lab.tracking.wandb_sweep import agent_overrides, check_used
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import SWEEPS_DIR
from tests.helpers.commands import ppo_lab
from tests.helpers.wandb_processes import Outcome, clean_environment, inspect, of_kind

Agent = Callable[..., str]
register()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Write parameters as ``wandb agent`` does and return the path of the file."""

    def write(**parameters: object) -> str:
        path = tmp_path / "sweep" / "config.yaml"
        content = {key.replace("__", "."): {"value": v} for key, v in parameters.items()}
        save_config_file_from_dict(str(path), content)
        monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
        return str(path)

    return write


def test_the_shipped_sweep_gives_an_agent_a_command_that_ppo_lab_accepts() -> None:
    sweep = yaml.safe_load((SWEEPS_DIR / "wandb.yaml").read_text())
    command = create_sweep_command(sweep["command"])
    assert command == ["${env}", "${interpreter}", "-m", "ppo_lab", "${args_no_hyphens}"]
    names, corners = sweep["parameters"], {}
    for name, parameter in names.items():
        corners[name] = parameter.get("values", [parameter.get("min"), parameter.get("max")])
    for end in (0, -1):
        values = {name: {"value": corner[end]} for name, corner in corners.items()}
        words = create_sweep_command_args({"args": values})["args_no_hyphens"]
        (job,) = check_jobs(words)
        assert job.config.epsilon == corners["epsilon"][end]
        assert job.config.seed == corners["seed"][end]


def test_it_is_no_sweep_of_hydras() -> None:
    assert "epsilon" in SWEEP_FILES
    assert "wandb" not in SWEEP_FILES


def test_parameters_that_come_by_the_file_alone_become_overrides(agent: Agent) -> None:
    assert agent_overrides(["epsilon=0.1"]) == []  # no agent
    agent(epsilon=1e-1, network="tiny", memory__num_micro_batches=2, clipped=True, name="a b")
    expected = ["network=tiny", "memory.num_micro_batches=2", "clipped=true", "name='a b'"]
    assert agent_overrides(["epsilon=1e-1"]) == expected
    assert agent_overrides(["epsilon=0.1", "+network=tiny"]) == expected[1:]


def test_a_parameter_that_was_typed_otherwise_and_a_damaged_file_are_refused(
    agent: Agent, tmp_path: Path
) -> None:
    path = agent(epsilon=0.1)
    with pytest.raises(ConfigError, match=r"epsilon=0\.2: the W&B sweep sets epsilon to 0\.1"):
        agent_overrides(["epsilon=0.2"])
    for content in ("- 1", "epsilon: 0.1", "a: ["):
        Path(path).write_text(content)
        with pytest.raises(ConfigError, match="WANDB_SWEEP_PARAM_PATH"):
            agent_overrides([])


CONFIG = {
    "lr": 0.1,
    "memory": {"strategy": "parked"},
    "network": {"hidden": [64, 64]},
    "overrides": ["network=tiny", "memory.num_micro_batches=2"],
}


def test_a_run_that_uses_what_the_sweep_sets_is_accepted(agent: Agent) -> None:
    check_used(CONFIG)  # no agent
    agent(lr=0.1, memory__strategy="parked", network="tiny", memory__num_micro_batches=2)
    check_used(CONFIG)


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.2), ("learning_rate", 0.1), ("network", "small")]
)
def test_a_run_that_does_not_is_refused(agent: Agent, key: str, value: object) -> None:
    agent(**{key: value})
    with pytest.raises(ConfigError, match=f"{key}={value}: the W&B sweep sets it"):
        check_used(CONFIG)


def test_a_run_of_an_agent_is_trained_with_its_parameters_under_its_id(
    agent: Agent, tmp_path: Path
) -> None:
    path = agent(epsilon=0.125, network="tiny")
    variables = {"WANDB_SWEEP_PARAM_PATH": path, "WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r-1"}
    environment = clean_environment(tmp_path / "home", **variables)
    words = ("total_steps=1024", "num_epochs=1", "tracking.mode=offline")
    done = ppo_lab(tmp_path, *words, **environment)
    assert done.returncode == 0, done.stderr
    (summary,) = (tmp_path / "outputs" / "runs").glob("*/summary.json")
    trained = json.loads(summary.read_text())
    assert trained["epsilon"] == 0.125
    assert trained["num_parameters"]["actor"] == 4610  # of a tiny network
    (folder,) = (tmp_path / "outputs" / "wandb").glob("offline-run-*-r-1")
    (started, *_) = of_kind(inspect(folder), "run")
    (manifest,) = summary.parent.glob("checkpoints/*/manifest.json")
    assert json.loads(manifest.read_text())["run_id"] == "r-1"  # so that it resumes as that
    assert (started["sweep_id"], started["config"]["update"]["epsilon"]) == ("s", 0.125)

    grid = ppo_lab(tmp_path, "lr=0.1,0.2", "-m", **environment)
    assert grid.returncode == 2
    assert "starts one run at a time" in grid.stderr


def test_wandb_records_no_run_that_would_show_what_it_did_not_use(
    run_program: Callable[..., Outcome], agent: Agent, tmp_path: Path
) -> None:
    outputs, path = tmp_path / "outputs", agent(lr=0.5)
    outcome = run_program(outputs, 1, 1, WANDB_SWEEP_PARAM_PATH=path, WANDB_MODE="offline")
    assert "lr=0.5: the W&B sweep sets it" in outcome.runs[0]["reason"]
    assert not outputs.exists()

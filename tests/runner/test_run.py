"""A stack of lanes leaves in each lane's folder what that lane alone would have left."""

import dataclasses

import pytest

from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.run import RunOutput, run_group, run_in_folder
from ppo_lab.tracking import read_metrics, read_summary
from tests.helpers.trainers import config as config_of


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return config_of("total_steps=4096", "tracking.terminal=none")


def folder(path):
    path.mkdir()
    return path


def test_each_lane_has_its_own_files_and_the_numbers_of_its_seed_alone(config, tmp_path):
    configs = [dataclasses.replace(config, seed=seed) for seed in (1, 2)]
    to = [RunOutput(folder(tmp_path / f"seed_{c.seed}"), [], notes={"trial": 7}) for c in configs]
    summaries = run_group(RunGroup(configs, to))
    alone = run_in_folder(configs[1], folder(tmp_path / "alone"), overrides=[])
    assert [summary["seed"] for summary in summaries] == [1, 2]
    assert [summary["status"] for summary in summaries] == ["finished", "finished"]
    stacked = read_metrics(tmp_path / "seed_2" / "metrics.jsonl")
    single = read_metrics(tmp_path / "alone" / "metrics.jsonl")
    # Free running, the first iteration is the same to rounding; later ones drift apart.
    name = "losses/value_loss"
    assert stacked[0][name] == pytest.approx(single[0][name], rel=1e-4)
    assert len(stacked) == len(single) == 4
    assert read_summary(tmp_path / "seed_1" / "summary.json")["trial"] == 7
    assert (tmp_path / "seed_1" / "checkpoint" / "policy.json").is_file()
    assert alone["env_steps"] == summaries[1]["env_steps"] == 4096


def test_a_reason_to_stop_ends_the_run_as_pruned(config, tmp_path):
    def at_half(trainer, lanes):
        return "behind the others" if trainer.iteration == 2 else None

    to = [RunOutput(folder(tmp_path / "a"), [])]
    (summary,) = run_group(RunGroup([config], to, should_stop=at_half))
    assert (summary["status"], summary["reason"]) == ("pruned", "behind the others")
    assert summary["env_steps"] == 2048
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == 2


def test_an_error_is_told_in_every_lanes_summary(config, tmp_path):
    def breaks(trainer, lanes):
        raise RuntimeError("no more")

    configs = [dataclasses.replace(config, seed=seed) for seed in (1, 2)]
    to = [RunOutput(folder(tmp_path / f"{c.seed}"), []) for c in configs]
    for summary in run_group(RunGroup(configs, to, should_stop=breaks)):
        assert (summary["status"], summary["reason"]) == ("failed", "RuntimeError: no more")
        assert summary["env_steps"] == 1024

"""A stack that stays full: what its lanes leave, how full it is, and what a failure costs."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from ppo_lab.config.run import Config
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.run import RunOutput, run_in_folder
from ppo_lab.runner.stack import LaneUtilization, Stack
from ppo_lab.tracking import read_metrics, read_summary
from ppo_lab.training.checkpoint import load_checkpoint
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config as config_of

QUICK = (
    *("network=tiny", "num_envs=2", "num_steps=32", "num_epochs=1", "total_steps=256"),
    *("tracking=local", "tracking.terminal=none", "device=cpu"),
)


@pytest.fixture
def base(tmp_path, monkeypatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return config_of(*QUICK)


def group_of(folder, *configs, **options):
    """Return a group whose runs are named after their seeds."""
    to = []
    for config in configs:
        path = folder / f"seed_{config.seed}"
        path.mkdir(exist_ok=True)
        to.append(RunOutput(path, [f"seed={config.seed}"], group="grid"))
    return RunGroup(configs, to, **options)


def train(stack, groups):
    for group in groups:
        stack.queue.put(group)
    while stack.has_work:
        stack.step()
    stack.close()
    return [group.summaries[0] for group in groups]


def test_every_run_of_a_queue_leaves_what_it_would_leave_alone(base, tmp_path):
    (tmp_path / "alone").mkdir()
    budgets = {seed: 64 * (2 + seed % 3) for seed in range(1, 6)}  # 3, 4, 2, 3, 4 iterations
    configs = [
        dataclasses.replace(base, seed=seed, total_steps=total, lr=1e-4 * seed)
        for seed, total in budgets.items()
    ]
    train(Stack(2), [group_of(tmp_path, config) for config in configs])
    for config in configs:
        folder = tmp_path / f"seed_{config.seed}"
        summary, records = (
            read_summary(folder / "summary.json"),
            read_metrics(folder / "metrics.jsonl"),
        )
        alone_folder = tmp_path / "alone" / str(config.seed)
        alone_folder.mkdir()
        alone = run_in_folder(config, alone_folder, overrides=[])
        own = read_metrics(alone_folder / "metrics.jsonl")
        assert summary["status"] == "finished"
        assert summary["env_steps"] == alone["env_steps"] == config.total_steps
        assert [row["iteration"] for row in records] == [row["iteration"] for row in own]
        assert records[0]["losses/value_loss"] == pytest.approx(
            own[0]["losses/value_loss"], rel=1e-4
        )
        assert summary.keys() == alone.keys() | {"stack"}
        assert summary["stack"]["num_lanes"] == 2
        assert {p.relative_to(folder) for p in folder.rglob("*")} == {
            p.relative_to(alone_folder) for p in alone_folder.rglob("*")
        }


WHOLE_EPISODES = {
    "critic-free": (
        *("memory=critic_free", "env.normalize_observations=true", "env.max_episode_steps=20"),
        *("total_steps=150", "lr=1e-3"),
    ),
    "text": (
        *("env=text", "network=gpt_tiny", "network.width=16", "network.num_heads=2", "num_envs=4"),
        *("env.pretrain_steps=0", "network.depth=1", "total_steps=200", "num_steps=12"),
    ),
}


@pytest.mark.parametrize("kind", WHOLE_EPISODES)
def test_seeds_that_end_at_different_iterations_leave_what_they_leave_alone(base, tmp_path, kind):
    del base  # its folder
    config = config_of(*QUICK, *WHOLE_EPISODES[kind])
    seeds = [dataclasses.replace(config, seed=seed) for seed in (1, 2, 3, 4)]
    (tmp_path / "alone").mkdir()
    group = group_of(tmp_path, *seeds)
    train(Stack(4), [group])
    iterations = set()
    for run, summary in zip(seeds, group.summaries, strict=True):
        folder, alone_folder = tmp_path / f"seed_{run.seed}", tmp_path / "alone" / str(run.seed)
        alone_folder.mkdir()
        alone = run_in_folder(run, alone_folder, overrides=[])
        assert summary["status"] == "finished"
        assert summary["env_steps"] == alone["env_steps"] >= config.total_steps
        mine, its = (load_checkpoint(f) for f in (folder, alone_folder))
        assert mine.state.numbers["iteration"] == its.state.numbers["iteration"]
        iterations.add(mine.state.numbers["iteration"])
        for name, tensor in its.state.tensors.items():
            torch.testing.assert_close(mine.state.tensors[name], tensor, rtol=1e-3, atol=1e-5)
        saved, saved_alone = (
            load_file(f / "checkpoint" / "model.safetensors") for f in (folder, alone_folder)
        )
        for name, tensor in saved_alone.items():
            torch.testing.assert_close(saved[name], tensor, rtol=1e-3, atol=1e-5)
    assert len(iterations) > 1


def test_the_lanes_are_busy_until_the_queue_is_empty(base, tmp_path):
    # 9 runs of 1 to 4 iterations each in 4 lanes: every lane that is freed is filled at once.
    configs = [
        dataclasses.replace(base, seed=seed, total_steps=64 * (1 + seed % 4))
        for seed in range(1, 10)
    ]
    stack = Stack(4)
    summaries = train(stack, [group_of(tmp_path, config) for config in configs])
    assert stack.utilization.num_all > 0
    assert stack.utilization.busy_frac == 1.0
    assert all(summary["stack"]["busy_frac"] == 1.0 for summary in summaries)


def test_a_share_of_busy_lanes_counts_iterations_up_to_the_last_begin():
    utilization = LaneUtilization()
    utilization.mark_run_start()
    utilization.count(4, 4)
    utilization.count(2, 4)
    assert utilization.busy_frac == 1.0  # nothing was waiting: there was nothing to be filled with
    utilization.mark_run_start()
    utilization.count(1, 4)
    assert utilization.busy_frac == 6 / 8


def test_a_diverged_run_gives_its_lane_to_the_next(base, tmp_path):
    doomed = dataclasses.replace(base, seed=1, lr=1e30)
    others = [dataclasses.replace(base, seed=seed) for seed in (2, 3)]
    stack = Stack(2)
    groups = [group_of(tmp_path, config) for config in (doomed, *others)]
    first, second, third = train(stack, groups)
    assert first["status"] == "diverged"
    assert not (tmp_path / "seed_1" / "checkpoint").exists()
    assert (second["status"], third["status"]) == ("finished", "finished")
    # 4 iterations each: the third begins after the first's one, and so the stack makes 1 + 4.
    assert stack.utilization.num_all == 2
    assert third["stack"]["lane"] == 0


def after_two_iterations(trainer, lanes):
    return "behind the others" if trainer.lane_iteration(lanes[0]) == 2 else None


def test_a_group_that_is_told_to_stop_frees_all_its_lanes_at_once(base, tmp_path):
    trials = [
        group_of(
            tmp_path,
            *(dataclasses.replace(base, seed=seed) for seed in seeds),
            should_stop=after_two_iterations,
        )
        for seeds in ((1, 2), (3, 4), (5, 6))
    ]
    stack = Stack(5)  # room for two trials of two seeds; a fifth lane would never be filled
    train(stack, trials)
    for trial in trials:
        assert [summary["status"] for summary in trial.summaries] == ["pruned", "pruned"]
        assert [summary["env_steps"] for summary in trial.summaries] == [128, 128]
        assert trial.summaries[0]["stack"]["num_lanes"] == 4
    assert stack.utilization.busy_frac == 1.0


def test_another_program_waits_until_the_lanes_are_free(base, tmp_path):
    configs = [
        dataclasses.replace(base, seed=1),
        dataclasses.replace(base, seed=2, num_epochs=2),
        dataclasses.replace(base, seed=3),
    ]
    groups = [group_of(tmp_path, config) for config in configs]
    summaries = train(Stack(2), groups)
    assert [summary["status"] for summary in summaries] == ["finished"] * 3
    assert groups[0].key == groups[2].key != groups[1].key


def test_a_strategy_of_one_lane_trains_its_runs_one_after_the_other(base, tmp_path):
    alone = config_of(*QUICK, "memory=offloaded_optimizer")
    configs = [dataclasses.replace(alone, seed=seed) for seed in (1, 2)]
    summaries = train(Stack(4), [group_of(tmp_path, config) for config in configs])
    assert [summary["status"] for summary in summaries] == ["finished", "finished"]
    assert "stack" not in summaries[0]


@pytest.fixture
def broken_by(monkeypatch):
    """Return a function that makes every update with one of ``seeds`` in its stack raise."""

    def break_it(seeds, error):
        update = Trainer.update

        def breaks(trainer, rows):
            live = [trainer.configs[lane].seed for lane in trainer.live_lanes]
            if trainer.iteration == 1 and set(seeds) & set(live):
                raise error
            return update(trainer, rows)

        monkeypatch.setattr(Trainer, "update", breaks)

    return break_it


def test_a_run_that_fails_costs_the_others_of_its_stack_nothing(base, tmp_path, broken_by):
    broken_by([2], RuntimeError("the pole caught fire"))
    configs = [dataclasses.replace(base, seed=seed) for seed in range(1, 7)]
    summaries = train(Stack(4), [group_of(tmp_path, config) for config in configs])
    assert [summary["status"] for summary in summaries] == [
        "finished", "failed", *["finished"] * 4
    ]  # fmt: skip
    assert summaries[1]["reason"] == "RuntimeError: the pole caught fire"
    assert summaries[1]["stopped_in"] == "update"
    assert "stopped_in" not in summaries[0]
    for seed in (1, 3, 4):  # what the first attempt recorded is gone
        rows = (tmp_path / f"seed_{seed}" / "metrics.jsonl").read_text().splitlines()
        assert len(rows) == 4


def test_a_stack_that_fills_the_memory_is_run_in_smaller_ones(base, tmp_path, monkeypatch):
    update = Trainer.update

    def filled(trainer, rows):
        if len(trainer.configs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(trainer, rows)

    monkeypatch.setattr(Trainer, "update", filled)
    configs = [dataclasses.replace(base, seed=seed) for seed in range(1, 8)]
    summaries = train(Stack(4), [group_of(tmp_path, config) for config in configs])
    assert [summary["status"] for summary in summaries] == ["finished"] * 7
    assert [summary["stack"]["num_lanes"] for summary in summaries] == [2] * 7


def test_ctrl_c_leaves_every_running_runs_summary_and_nothing_of_those_that_wait(
    base, tmp_path, monkeypatch
):
    def interrupted(trainer, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "update", interrupted)
    groups = [group_of(tmp_path, dataclasses.replace(base, seed=seed)) for seed in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        train(Stack(2), groups)
    for seed in (1, 2):
        summary = read_summary(tmp_path / f"seed_{seed}" / "summary.json")
        assert (summary["status"], summary["reason"]) == ("interrupted", "stopped by a signal")
    assert list((tmp_path / "seed_3").iterdir()) == []


def test_an_aborted_group_frees_its_lane_and_one_that_waits_leaves_no_trace(base, tmp_path):
    groups = [group_of(tmp_path, dataclasses.replace(base, seed=seed)) for seed in (1, 2, 3)]
    stack = Stack(1)
    for group in groups:
        stack.queue.put(group)
    stack.step()
    stack.abort(groups[0])
    stack.abort(groups[1])
    train(stack, [])
    assert groups[0].summaries[0]["status"] == "interrupted"
    assert list((tmp_path / "seed_2").iterdir()) == []
    assert groups[2].summaries[0]["status"] == "finished"


def test_a_program_has_no_lanes_that_nobody_will_take(base, tmp_path):
    """Two of one program, three of the next, and one more of that at most."""
    other = dataclasses.replace(base, num_epochs=2)
    configs = [
        *(dataclasses.replace(base, seed=seed) for seed in (1, 2)),
        *(dataclasses.replace(other, seed=seed) for seed in (3, 4, 5)),
    ]
    stack = Stack(8)
    stack.queue.num_more = 1
    summaries = train(stack, [group_of(tmp_path, config) for config in configs])
    assert [summary["stack"]["num_lanes"] for summary in summaries] == [2, 2, 4, 4, 4]


def test_a_group_can_be_aborted_while_it_waits_to_run_again(base, tmp_path, broken_by):
    broken_by([1, 2, 3], RuntimeError("the pole caught fire"))
    groups = [group_of(tmp_path, dataclasses.replace(base, seed=seed)) for seed in (1, 2, 3)]
    stack = Stack(3)
    for group in groups:
        stack.queue.put(group)
    stack.step()
    stack.step()  # fails: 1 and 2 are to run again, and 3 by itself
    stack.abort(groups[2])
    summaries = [group.summaries for group in groups]
    assert summaries == [[], [], []]
    train(stack, [])
    assert [group.summaries[0]["status"] for group in groups[:2]] == ["failed", "failed"]
    assert groups[2].summaries == []

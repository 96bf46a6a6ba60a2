"""What an iteration leaves behind: one record per lane, and the end of a lane that diverged."""

import dataclasses
import math

import pytest
import torch

from ppo_lab.ppo.diagnostics import ratio_edges
from ppo_lab.ppo.rollout import lane_rows
from ppo_lab.training.recorder import EpisodeTotals, Recorder
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import PENDULUM, TWENTY_STEPS, config, lanes_of, train_to_end, weights

DOOMED = {"lr": 1e30}  # weights overflow float32 within one update, whatever the machine


def iteration_of(trainer):
    """Return one real iteration's tensors, not yet recorded."""
    rollout = trainer.collect()
    rows = lane_rows(rollout, trainer.advantages(rollout))
    return trainer.diagnose(rollout, rows, trainer.update(rows))


def recorder_of(trainer):
    return Recorder(trainer.env, trainer.placement, trainer.model.distribution.max_entropy)


def train(*changes, num_iterations=3, overrides=TWENTY_STEPS):
    """Return the trainer, its results and each lane's records."""
    base = config(*overrides)
    base = dataclasses.replace(base, total_steps=num_iterations * base.num_rows)
    records = [[] for _ in changes]
    trainer = Trainer(lanes_of(base, *changes), lambda lane, record: records[lane].append(record))
    return trainer, train_to_end(trainer), records


def test_every_lane_gets_one_record_per_iteration_counted_from_one():
    _, _, records = train({"seed": 1}, {"seed": 2})
    for lane in records:
        assert [record.iteration for record in lane] == [1, 2, 3]
        assert [record.global_step for record in lane] == [1024, 2048, 3072]
        for record in lane:
            assert all(isinstance(value, float) for value in record.metrics.values())
            assert all(math.isfinite(value) for value in record.metrics.values())
    assert records[0][0].metrics["losses/entropy"] != records[1][0].metrics["losses/entropy"]


def test_the_ratio_histogram_counts_every_row_once():
    _, _, records = train({})
    for record in records[0]:
        histogram = record.histograms["ppo/ratio"]
        assert sum(histogram.counts) == 1024
        assert list(histogram.edges) == ratio_edges()


def test_episode_statistics_are_those_worked_out_by_hand():
    trainer = Trainer(lanes_of(config(*TWENTY_STEPS), {}, {}))
    tensors = iteration_of(trainer)
    # Three steps, one environment. Lane 0 ends episodes of 10 and 30, lane 1 none.
    ended = torch.tensor([[1, 0], [0, 0], [1, 0]], dtype=torch.bool).unsqueeze(-1)
    returns = torch.tensor([[10.0, 7.0], [5.0, 7.0], [30.0, 7.0]]).unsqueeze(-1)
    episodes = EpisodeTotals(ended, returns, 2.0 * returns)
    recorder = recorder_of(trainer)
    records = recorder.records(
        dataclasses.replace(tensors, episodes=episodes),
        trainer.progress,
        shared={"perf/x": 4.0},
    )
    some, none = records[0], records[1]
    expected = {
        "charts/episodes": 2.0,
        "charts/episodic_return": 20.0,
        "charts/episodic_return_std": 10.0,  # of the two, not an estimate
        "charts/episodic_return_min": 10.0,
        "charts/episodic_return_max": 30.0,
        "charts/episodic_length": 40.0,
    }
    assert {name: some.metrics[name] for name in expected} == expected
    assert none.metrics["charts/episodes"] == 0.0
    assert not any(name.startswith("charts/episodic") for name in none.metrics)
    assert some.metrics["perf/x"] == none.metrics["perf/x"] == 4.0
    assert recorder.histories[0].final_return == 20.0
    assert recorder.histories[1].final_return is None


def test_entropy_is_a_share_of_its_maximum_where_there_is_one():
    _, _, ((record,),) = train({}, num_iterations=1)
    share = record.metrics["ppo/entropy"] / math.log(2.0)
    assert record.metrics["ppo/entropy_frac"] == pytest.approx(share)
    _, results, ((record,),) = train({}, num_iterations=1, overrides=PENDULUM)
    assert "ppo/entropy_frac" not in record.metrics
    assert results[0].entropy_fracs == []


def spoil(tensor, value):
    return torch.stack((tensor[0], torch.full_like(tensor[1], value)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("part", "field", "name"),
    [
        ("update", "policy_loss", "losses/policy_loss"),
        ("update", "value_loss", "losses/value_loss"),
        ("update", "grad_norm", "losses/grad_norm"),
        ("after", "ratios", "ppo/kl_k3"),
    ],
)
def test_a_number_that_must_be_finite_and_is_not_is_noted_by_name(part, field, name, value):
    trainer = Trainer(lanes_of(config(*TWENTY_STEPS), {}, {}))
    tensors = iteration_of(trainer)
    whole = getattr(tensors, part)
    spoilt = getattr(whole, field)
    if field == "ratios":
        spoilt = spoilt._replace(kl_k3=spoil(spoilt.kl_k3, value))
    else:
        spoilt = spoil(spoilt, value)
    bad = dataclasses.replace(tensors, **{part: whole._replace(**{field: spoilt})})
    recorder = recorder_of(trainer)
    recorder.records(tensors, trainer.progress, shared={})
    assert [each.diverged for each in recorder.histories] == [None, None]
    recorder.records(bad, trainer.progress, shared={})
    assert [each.diverged for each in recorder.histories] == [None, f"{name} is {value}"]
    recorder.records(tensors, trainer.progress, shared={})  # the first reason stays
    assert [each.diverged for each in recorder.histories] == [
        None,
        f"{name} is {value}",
    ]


def test_a_constant_critics_undefined_explained_variance_is_no_divergence():
    trainer = Trainer([config(*TWENTY_STEPS)])
    tensors = iteration_of(trainer)
    after = tensors.after._replace(explained_variance=torch.tensor([math.nan]))
    tensors = dataclasses.replace(tensors, after=after)
    recorder = recorder_of(trainer)
    recorder.records(tensors, trainer.progress, shared={})
    assert [each.diverged for each in recorder.histories] == [None]


def test_a_diverged_lane_gets_no_more_records_and_the_others_go_on_as_without_it():
    trainer, results, records = train({"seed": 1}, DOOMED, {"seed": 3})
    assert [len(lane) for lane in records] == [3, 1, 3]
    assert [result.diverged is None for result in results] == [True, False, True]
    assert results[1].diverged.startswith("losses/")
    assert weights(trainer, 1).isnan().any()
    healthy, _, _ = train({"seed": 1}, {"seed": 2}, {"seed": 3})
    for lane in (0, 2):
        assert torch.equal(weights(trainer, lane), weights(healthy, lane))


def test_a_run_ends_when_every_lane_has_diverged():
    trainer, results, records = train(DOOMED, DOOMED, num_iterations=5)
    assert trainer.iteration == 1
    assert [len(lane) for lane in records] == [1, 1]
    assert all(result.diverged for result in results)


def test_a_diverged_lanes_history_ends_where_it_would_alone():
    """What a dead policy does afterwards, because the stack goes on, is none of its score."""
    _, (_, stacked), _ = train({}, DOOMED)
    _, (alone,), _ = train(DOOMED)
    assert stacked.returns == alone.returns
    assert stacked.num_episodes == alone.num_episodes
    assert len(stacked.kls) == len(alone.kls) == 1

"""Known ratios and known curves in, known numbers out: through records, files and the summary."""

import json
import math

import pytest
import torch

from ppo_lab.compiler.compilation import Compilation
from ppo_lab.ppo.after_update import RolloutDiagnostics
from ppo_lab.ppo.diagnostics import UpdateLog, ratio_diagnostics, ratio_histogram
from ppo_lab.ppo.rollout import Rollout
from ppo_lab.runner.run import run_in_folder
from ppo_lab.tracking import read_metrics
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config

# The clip is [0.8, 1.5]: above it are three rows, of which two are cut, below it one, which is cut.
RATIOS = [2.0, 2.0, 2.0, 0.5, 1.3, 0.9, 1.0, 1.0]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
RUN = (
    "epsilon=0.2", "epsilon_high=0.5", "separate_grad_clip=true", "num_envs=10", "num_steps=10",
    "num_minibatches=2", "num_epochs=1", "total_steps=1000", "tracking.terminal=none",
)  # fmt: skip
LOG_2, LOG_1P3, LOG_0P9 = math.log(2.0), math.log(1.3), math.log(0.9)
K1 = -(2.0 * LOG_2 + LOG_1P3 + LOG_0P9) / 8.0  # three doublings less a half
K2 = (4.0 * LOG_2**2 + LOG_1P3**2 + LOG_0P9**2) / 16.0
K3 = (3.0 - 0.5 + 0.3 - 0.1) / 8.0 + K1
EXPECTED = {
    "losses/clipfrac": 0.5, "ppo/clip_frac": 0.5,
    "losses/clipfrac_above": 0.375, "ppo/clip_above_frac": 0.375,
    "losses/clipfrac_below": 0.125, "ppo/clip_below_frac": 0.125,
    "losses/cutfrac_above": 0.25, "ppo/cut_above_frac": 0.25,
    "losses/cutfrac_below": 0.125, "ppo/cut_below_frac": 0.125,
    "losses/passfrac": 0.125, "ppo/pass_frac": 0.125,
    "ppo/outside_0p2_frac": 0.625,
    "losses/old_approx_kl": K1, "ppo/kl_k1": K1, "ppo/kl_k2": K2,
    "losses/approx_kl": K3, "ppo/kl_k3": K3,
    "losses/ratio_min": 0.5, "ppo/ratio_min": 0.5, "ppo/ratio_p01": 0.5,
    "losses/ratio_max": 2.0, "ppo/ratio_max": 2.0, "ppo/ratio_p99": 2.0,
    "ppo/ess_frac": 10.7**2 / 16.75 / 8.0,  # sum 10.7, sum of squares 12 + 0.25 + 1.69 + 0.81 + 2
    # Two minibatches: means of 1 and 3, 2 and 6, 0.4 and 0.6; norms 3-4-5 and 6-8-10.
    "losses/policy_loss": 2.0, "losses/value_loss": 4.0, "losses/entropy": 0.5,
    "losses/grad_norm_actor": 4.5, "losses/grad_norm_critic": 6.0, "losses/grad_norm": 7.5,
    "ppo/gradient_steps": 2.0, "ppo/epochs_done": 1.0,
    "ppo/entropy": 0.25 * LOG_2, "ppo/entropy_frac": 0.25, "ppo/advantages_std": 3.0,
    "losses/explained_variance": 0.75, "charts/learning_rate": 1e-3, "ppo/epsilon": 0.2,
    "charts/episodes": 100.0, "charts/episodic_length": 1.0,
}  # fmt: skip


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Return what runs a whole job whose returns, entropies and ratios are given in advance."""

    def run(curve, entropy_frac=0.25, ratios=RATIOS):
        log_ratio = torch.tensor([ratios]).log()
        advantages = torch.tensor([ADVANTAGES])

        def collect(trainer):
            """Every step is an episode of its own with the return of this iteration."""
            shape = (10, 1, 10)
            returns = torch.full(shape, curve[trainer.iteration])
            yes, zeros = torch.ones(shape, dtype=torch.bool), torch.zeros(shape)
            observations = torch.zeros(*shape, 4)
            columns = (zeros.long(), zeros, zeros, zeros, returns, returns, yes, ~yes)
            return Rollout(observations, *columns)

        def update(trainer, rows):
            log = UpdateLog((1, 1, 8), 2, 2, like=log_ratio)
            for number, step in enumerate(log.steps):
                half = slice(4 * number, 4 * number + 4)
                step.log_ratios.copy_(log_ratio[:, half])
                step.advantages.copy_(advantages[:, half])
                step.policy_loss.fill_((1.0, 3.0)[number])
                step.value_loss.fill_((2.0, 6.0)[number])
                step.entropy.fill_((0.4, 0.6)[number])
                step.grad_norms.copy_(torch.tensor([[3.0], [4.0]]) * (number + 1))
            return log.means(clip_of(trainer))

        def after_update(compilation, rows, clip):
            numbers = (entropy_frac * LOG_2, 0.75, 3.0)
            entropy, explained, deviation = (torch.tensor([number]) for number in numbers)
            ratios = ratio_diagnostics(log_ratio, advantages, clip)
            counts = ratio_histogram(log_ratio)
            return RolloutDiagnostics(ratios, entropy, counts, explained, deviation)

        monkeypatch.setattr(Trainer, "collect", collect)
        monkeypatch.setattr(Trainer, "update", update)
        monkeypatch.setattr(Compilation, "after_update", after_update)
        monkeypatch.chdir(tmp_path)
        run_in_folder(config(*RUN), tmp_path, overrides=[])
        summary = json.loads((tmp_path / "summary.json").read_text())
        return read_metrics(tmp_path / "metrics.jsonl"), summary

    return run


def clip_of(trainer):
    return trainer._lanes.hyperparameters(trainer.iteration).clip


# CartPole: a random policy's return is 22, the task's 500; ten iterations of 100 steps.
RISES = [22.0, 50.0, 100.0, 200.0, 300.0, 400.0, 450.0, 480.0, 490.0, 500.0]
FALLS = [22.0, 100.0, 200.0, 300.0, 400.0, 400.0, 300.0, 200.0, 100.0, 50.0]
DIES = [30.0, 22.0, 20.0, 15.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]


def test_known_ratios_are_reported_under_their_names_with_their_signs(scripted):
    rows, _ = scripted(RISES)
    assert len(rows) == 10
    for row in rows:
        found = {name: row[name] for name in EXPECTED}
        assert found == pytest.approx(EXPECTED, rel=1e-5)
    for name in ("charts/episodic_return", "charts/episodic_return_last100"):
        assert [row[name] for row in rows] == RISES
    assert [row["charts/episodic_return_std"] for row in rows] == [0.0] * 10


@pytest.mark.parametrize(
    ("curve", "still", "expected"),
    [
        # The areas are the trapezoids' over nine intervals: all but half of the first and last.
        (RISES, {}, (500.0, 500.0, (11 + 2470 + 250) / 9, False, False)),
        (FALLS, {}, (50.0, 400.0, (11 + 2000 + 25) / 9, True, False)),
        # Certain (entropy below a hundredth) and unmoved (k3 of 1.001 is 5e-7).
        (DIES, {"entropy_frac": 0.005, "ratios": [1.001] * 8},
         (9.0, 30.0, (15 + 102 + 4.5) / 9, False, True)),
        (DIES, {"entropy_frac": 0.02, "ratios": [1.001] * 8},
         (9.0, 30.0, (15 + 102 + 4.5) / 9, False, False)),
        (DIES, {"entropy_frac": 0.005}, (9.0, 30.0, (15 + 102 + 4.5) / 9, False, False)),
    ],
    ids=["rises", "falls", "dies", "is not certain", "moves"],
)  # fmt: skip
def test_known_curves_end_in_known_scores(scripted, curve, still, expected):
    _, summary = scripted(curve, **still)
    scores = ("final_return", "best_return", "auc_return", "collapsed", "dead")
    found = tuple(summary[name] for name in scores)
    assert found == pytest.approx(expected)
    assert found[3:] == expected[3:]  # truths, not numbers near them
    assert (summary["num_episodes"], summary["env_steps"]) == (1000, 1000)
    assert summary["status"] == "finished"

"""``python -m benchmarks.learning cartpole_a``: mean final returns compared with their goals.

The checks are cartpole_a, cartpole_b, critic_free, acrobot and halfcheetah; each trains several
seeds, as lanes of one stack, and compares their mean final return (of the last 100 episodes) with a
goal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.result_page import RESULTS_DIR, publish, table
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.scores import History
from ppo_lab.training.trainer import Trainer

_TINY_CARTPOLE = ["env=cartpole", "network=tiny"]  # 8 x 128, 4 minibatches, 10 epochs, lr 1e-3
_CLEANRL_CARTPOLE = [
    *_TINY_CARTPOLE,
    "num_epochs=4",
    "lr=2.5e-4",
    "lr_schedule=linear",
    "entropy_coef=0.01",
    "value_coef=0.5",
]
_CLEANRL_HABITS = ["value_epsilon=0.2", "bootstrap_truncated=false"]
_COMMON = ["device=cpu", "num_threads=1"]


@dataclass(frozen=True)
class Goal:
    """Bound for a mean final return."""

    text: str
    is_met: Callable[[float], bool]

    def judge(self, mean: float) -> str:
        """Return the goal and whether ``mean`` meets it."""
        return f"{self.text}: {'met' if self.is_met(mean) else 'missed'}"


def at_least(bound: float) -> Goal:
    return Goal(f">= {bound:g}", lambda mean: mean >= bound)


def below(bound: float) -> Goal:
    return Goal(f"< {bound:g}", lambda mean: mean < bound)


@dataclass(frozen=True)
class Trained:
    """One setting's seeds after training."""

    configs: list[Config]
    lanes: list[History]
    wall_s: float

    @property
    def final_returns(self) -> list[float]:
        """Each seed's final return."""
        returns = [lane.final_return for lane in self.lanes]
        assert all(value is not None for value in returns)
        return [value for value in returns if value is not None]


def compose(overrides: Sequence[str], *, num_seeds: int, total_steps: int) -> list[Config]:
    """Return one config per seed, from 1 on."""
    seeds = ",".join(str(seed) for seed in range(1, num_seeds + 1))
    command = [*overrides, *_COMMON, f"total_steps={total_steps}", f"seed={seeds}"]
    jobs = check_jobs(command, is_multirun=True, config_dir=None, config_name=None)
    return [job.config for job in jobs]


def train(configs: list[Config]) -> Trained:
    """Train ``configs`` as lanes of one stack."""
    begin_s = time.perf_counter()
    configure_torch(configs[0])
    trainer = Trainer(configs)
    while trainer.retire_ended():
        trainer.iterate()
    lanes = [trainer.history(lane) for lane in range(len(configs))]
    trainer.close()
    return Trained(configs, lanes, time.perf_counter() - begin_s)


def row(label: str, trained: Trained, goal: Goal | None) -> list[str]:
    """Return a table row: the setting, mean, deviation and every seed."""
    returns = trained.final_returns
    mean = statistics.fmean(returns)
    diverged = sum(lane.diverged is not None for lane in trained.lanes)
    return [
        label,
        f"{mean:.1f}",
        f"{statistics.stdev(returns):.1f}" if len(returns) > 1 else "",
        " ".join(f"{value:.0f}" for value in returns)
        + (f" ({diverged} diverged)" if diverged else ""),
        goal.judge(mean) if goal else "",
        f"{trained.wall_s:.0f}",
    ]


_HEADER = ["setting", "mean final return", "sd", "seeds 1, 2, ...", "goal", "wall s of the stack"]


def cartpole_a(options: argparse.Namespace) -> None:
    """CartPole in 100k steps at a high learning rate, with the clip and without it."""
    steps, seeds = options.steps or 100_000, options.seeds or 64
    trained = {
        epsilon: train(
            compose([*_TINY_CARTPOLE, f"epsilon={epsilon}"], num_seeds=seeds, total_steps=steps)
        )
        for epsilon in ("0.2", "none")
    }
    rows = [
        row("epsilon=0.2", trained["0.2"], at_least(485)),
        row("epsilon=none", trained["none"], below(320)),
    ]
    spread = statistics.stdev(trained["0.2"].final_returns) / 16**0.5
    text = (
        f"CartPole-v1, {steps:,} steps, {seeds} seeds: `{' '.join(_TINY_CARTPOLE)}`. Now and then "
        "a seed falls late even with the clip, and which one is decided by rounding: the means of "
        f"16 of these seeds at epsilon 0.2 vary from draw to draw by about {spread:.0f}."
    )
    publish(
        "cartpole_a",
        "CartPole, with the clip and without",
        [text, table(_HEADER, rows)],
        write=options.write,
    )


def cartpole_b(options: argparse.Namespace) -> None:
    """CartPole at the settings of CleanRL's ppo.py, with more environments, without its habits."""
    steps, seeds = options.steps or 500_000, options.seeds or 16
    rows = []
    for label, extra, goal in (
        ("CleanRL's own: 4 environments", [*_CLEANRL_HABITS, "num_envs=4"], at_least(484)),
        ("8 environments", _CLEANRL_HABITS, None),
        ("8 environments, value clipping alone", _CLEANRL_HABITS[:1], None),
        ("8 environments, neither habit", [], None),
    ):
        overrides = [*_CLEANRL_CARTPOLE, *extra]
        trained = train(compose(overrides, num_seeds=seeds, total_steps=steps))
        rows.append(row(label, trained, goal))
    text = (
        f"CartPole-v1, {steps:,} steps, {seeds} seeds, the settings of CleanRL's ppo.py: "
        f"`{' '.join([*_CLEANRL_CARTPOLE, *_CLEANRL_HABITS])}`. CleanRL publishes 490 +- 6 of 3 "
        "seeds, with 4 environments. With twice as many there are half as many updates at a "
        "learning rate that is low for them."
    )
    publish(
        "cartpole_b",
        "CartPole at CleanRL's settings",
        [text, table(_HEADER, rows)],
        write=options.write,
    )


def critic_free(options: argparse.Namespace) -> None:
    """CartPole without a critic, beside PPO."""
    steps, seeds = options.steps or 100_000, options.seeds or 8
    rows = []
    for label, extra, goal in (
        ("memory=critic_free (baseline=per_step)", ["memory=critic_free"], at_least(470)),
        ("memory=critic_free baseline=grpo", ["memory=critic_free", "baseline=grpo"], None),
        ("memory=co_resident (PPO)", ["memory=co_resident"], None),
    ):
        overrides = [*_TINY_CARTPOLE, *extra]
        trained = train(compose(overrides, num_seeds=seeds, total_steps=steps))
        rows.append(row(label, trained, goal))
    text = (
        f"CartPole-v1, {steps:,} live steps, {seeds} seeds: `{' '.join(_TINY_CARTPOLE)}`. Without "
        "a critic, rollouts are 8 whole episodes from one start, and a run ends after the rollout "
        "that reaches the steps. Whole episodes have room for 500 steps, so their updates compute "
        "dead rows while the policy is poor."
    )
    publish(
        "critic_free",
        "CartPole without a critic",
        [text, table(_HEADER, rows)],
        write=options.write,
    )


def acrobot(options: argparse.Namespace) -> None:
    """Acrobot at the settings of CleanRL's ppo.py."""
    steps, seeds = options.steps or 500_000, options.seeds or 8
    overrides = ["env=acrobot", "network=tiny"]
    trained = train(compose(overrides, num_seeds=seeds, total_steps=steps))
    text = (
        f"Acrobot-v1, {steps:,} steps, {seeds} seeds: `{' '.join(overrides)}`. CleanRL publishes "
        "-86.4 +- 1.3 of 3 seeds."
    )
    publish(
        "acrobot",
        "Acrobot",
        [text, table(_HEADER, [row("the file's", trained, at_least(-90))])],
        write=options.write,
    )


Curve = tuple[Sequence[int], Sequence[float]]  # env steps, mean of the last 100 episodes


def halfcheetah(options: argparse.Namespace) -> None:
    """HalfCheetah compared with Stable-Baselines3 and VecNormalize, same settings and seeds."""
    import torch

    from benchmarks import sb3

    steps, seeds = options.steps or 300_000, options.seeds or 2
    overrides = ["env=halfcheetah", "network=tiny"]
    configs = compose(overrides, num_seeds=seeds, total_steps=steps)
    trained = train(configs)
    torch.set_num_threads(1)
    theirs = [sb3.train(config) for config in configs]
    curves: dict[str, list[Curve]] = {
        "ppo_lab": [(lane.steps, lane.returns) for lane in trained.lanes],
        "Stable-Baselines3": [(run.steps, run.returns) for run in theirs],
    }
    if options.write:
        _plot(curves)
    text = (
        f"HalfCheetah-v5, {steps:,} steps (the learning rate falls to 0 within them), {seeds} "
        f"seeds: `{' '.join(overrides)}`; 2 x 64 tanh, actor and critic apart. Stable-Baselines3's "
        "PPO in DummyVecEnv and VecNormalize at the same settings; its vf_coef is half of our "
        "value_coef, because our value loss is half a mean squared error. Mean of the last 100 "
        "episodes (of all, if fewer) after so many steps:"
    )
    picture = "![return over environment steps](halfcheetah.png)"
    publish(
        "halfcheetah",
        "HalfCheetah beside Stable-Baselines3",
        [text, _curve_table(curves), picture],
        write=options.write,
    )


def _curve_table(curves: dict[str, list[Curve]]) -> str:
    end = max(curve[0][-1] for own in curves.values() for curve in own)
    marks = [*range(50_000, end, 50_000), end]
    rows = []
    for program, own in curves.items():
        by_seed = [[_value_at(curve, mark) for mark in marks] for curve in own]
        rows += [
            [f"{program}, seed {seed}", *(f"{value:.0f}" for value in values)]
            for seed, values in enumerate(by_seed, 1)
        ]
        means = [statistics.fmean(values) for values in zip(*by_seed)]
        rows.append([f"{program}, mean", *(f"{value:.0f}" for value in means)])
    return table(["program", *(f"{mark:,}" for mark in marks)], rows)


def _value_at(curve: Curve, step: int) -> float:
    """Return the curve's last value at or before ``step``, NaN before its first."""
    return next((value for at, value in zip(*map(reversed, curve)) if at <= step), float("nan"))


def _plot(curves: dict[str, list[Curve]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (program, own), colour in zip(curves.items(), ("tab:blue", "tab:orange")):
        for number, (steps, returns) in enumerate(own):
            axes.plot(
                steps, returns, color=colour, label=program if number == 0 else None, linewidth=1.5
            )
    axes.set(
        title="HalfCheetah-v5, one line per seed",
        xlabel="environment steps",
        ylabel="return, mean of the last 100 episodes",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    RESULTS_DIR.mkdir(exist_ok=True)
    figure.savefig(RESULTS_DIR / "halfcheetah.png", dpi=150)


_CHECKS = {
    check.__name__: check for check in (cartpole_a, cartpole_b, critic_free, acrobot, halfcheetah)
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    checks = parser.add_subparsers(dest="check", required=True)
    for name, check in _CHECKS.items():
        arguments = checks.add_parser(name, help=check.__doc__, description=check.__doc__)
        arguments.add_argument("--steps", type=int, help="env steps per seed, for a quick look")
        arguments.add_argument("--seeds", type=int, help="number of seeds, for a quick look")
        arguments.add_argument("--write", action="store_true", help="keep the page in results/")
    options = parser.parse_args(argv)
    register()
    _CHECKS[options.check](options)


if __name__ == "__main__":
    main()

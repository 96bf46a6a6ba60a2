"""``python -m benchmarks.env_checks [--steps 20000] [--write]``: the cost of checking environments.

Two times eight CartPoles take the same steps, in turns: through the loop of the gymnasium backend
as it is, and through one that believes whatever they return. The difference is compared with the
time of a run, learning included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from types import MethodType

import numpy as np
import torch
from torch import Tensor

from benchmarks.result_page import publish, table
from benchmarks.throughput import SETTINGS
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.devices.placement import Placement
from ppo_lab.envs.gymnasium_env import GymnasiumEnv
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.trainer import Trainer

_GOAL = 0.03
_WARM_UP = 200
"""Steps that are left out; the first are checked more closely."""
_NUM_ITERATIONS = 40


def _step_rows_unchecked(env: GymnasiumEnv, actions: Tensor) -> bool:
    """Do what ``GymnasiumEnv._step_rows`` does, and look at nothing."""
    ended: list[int] = []
    env._guard.call.step += 1
    for row, action in enumerate(env._env_actions(actions)):
        observation, reward, terminated, truncated, _ = env._envs[row].step(action)
        if terminated or truncated:
            if not ended:
                env._flag_rows[:] = False
            ended.append(row)
            env._flag_rows[:, row] = terminated, truncated and not terminated
            env._last_rows[row] = observation
            observation, _ = env._envs[row].reset()
        env._observation_rows[row] = observation
        env._reward_rows[row] = reward
    if ended:
        env._end_episodes(ended)
    return bool(ended)


def _pairs_of_steps(config: Config, num_steps: int) -> list[tuple[float, float]]:
    """Return the seconds of each step, with the checks and without."""
    envs = []
    for _ in range(2):
        placement, seeds = Placement(torch.device("cpu")), torch.tensor([config.seed])
        env = GymnasiumEnv(config.env.id, seeds, config.num_envs, placement, timeout_s=60.0)
        env.reset()
        envs.append(env)
    checked, unchecked = envs
    unchecked._step_rows = MethodType(_step_rows_unchecked, unchecked)  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    costs = []
    for number in range(_WARM_UP + num_steps):
        actions = torch.randint(2, (1, config.num_envs), generator=generator)
        cost = {}
        for env in (checked, unchecked) if number % 2 else (unchecked, checked):
            begin = time.thread_time()
            env._step_rows(actions)
            cost[env] = time.thread_time() - begin
        costs.append((cost[checked], cost[unchecked]))
        assert np.array_equal(checked._rows, unchecked._rows)
    for env in envs:
        env.close()
    return costs[_WARM_UP:]


def _step_of_a_run_s(config: Config) -> float:
    """Return the median seconds of a run's iteration, by its steps of all environments."""
    trainer = Trainer([config])
    costs = []
    for _ in range(_NUM_ITERATIONS):
        begin = time.thread_time()
        trainer.iterate()
        costs.append(time.thread_time() - begin)
    return statistics.median(costs) / config.num_steps


def main() -> None:
    """Measure, and exit with 1 if the checks cost more than the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--write", action="store_true", help="save the page in benchmarks/results")
    arguments = parser.parse_args()
    register()
    words = [*SETTINGS, "env.backend=gymnasium", "compile=never", "total_steps=1000000"]
    (job,) = check_jobs(words, is_multirun=False, config_dir=None, config_name=None)
    configure_torch(job.config)
    costs = _pairs_of_steps(job.config, arguments.steps)
    run_s = _step_of_a_run_s(job.config)
    with_s, without_s = (statistics.median(side) for side in zip(*costs))
    ends = sorted(one - other for one, other in costs)
    low, middle, high = (ends[len(ends) * k // 4] for k in (1, 2, 3))
    share = middle / run_s
    rows = [
        ["a step of eight environments, with the checks, us", f"{1e6 * with_s:.1f}"],
        ["without, us", f"{1e6 * without_s:.1f}"],
        ["difference within a pair, us",
         f"{1e6 * middle:.1f} ({1e6 * low:.1f} to {1e6 * high:.1f})"],
        ["a step of a run, learning included, us", f"{1e6 * run_s:.1f}"],
        ["share of the run", f"{share:.1%}"],
        ["goal", f"below {_GOAL:.0%}, {'met' if share < _GOAL else 'missed'}"],
    ]  # fmt: skip
    what = (
        f"`{' '.join(words)}`. Medians of the main thread's processor time over "
        f"{arguments.steps:,} pairs of steps, with and without the checks of what the "
        f"environments return, by turns in one process, and over {_NUM_ITERATIONS} iterations of a "
        "run; the middle half of the differences is in brackets."
    )
    title = "Cost of checking what environments return"
    publish("env_checks", title, [what, table(["what", "figure"], rows)], write=arguments.write)
    raise SystemExit(share >= _GOAL)


if __name__ == "__main__":
    main()

"""``python -m benchmarks.throughput``: env steps per second, compared with Stable-Baselines3.

Cases: CartPole-v1 with 8 and with 64 environments at the settings of CleanRL's ppo.py (less its
value clipping), and HalfCheetah-v5 with normalised observations and rewards; learning included.
Our environments are also stepped alone, with random actions drawn beforehand, as an upper bound for
training.

Every measurement is a separate process with one thread, in steady state: the first iterations are
left out. The programs are interleaved, and each is compared with SB3's run of the same round,
because other load on the machine may vary. Neither side writes logs or files.

Shapes: T = steps per rollout, L = lanes, N = environments per lane, A = action size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.result_page import publish, table

if TYPE_CHECKING:
    from torch import Tensor

    from ppo_lab.config.run import Config
    from ppo_lab.envs.base import EnvSpec

__all__ = ["CASES", "SETTINGS", "Case", "Speed", "measure"]

_ROOT = Path(__file__).resolve().parent.parent
_BASELINE = "Stable-Baselines3"
SETTINGS = [
    "env=cartpole",
    "network=tiny",
    "num_envs=8",
    "num_steps=128",
    "num_minibatches=4",
    "num_epochs=4",
    "lr=2.5e-4",
    "lr_schedule=linear",
    "entropy_coef=0.01",
    "value_coef=0.5",
    "device=cpu",
    "num_threads=1",
]
_TORCH, _GYMNASIUM = "env.backend=torch", "env.backend=gymnasium"
_EAGER, _COMPILED = "compile=never", "compile=always"


class Program(NamedTuple):
    """One way to spend the environment steps of a case."""

    overrides: tuple[str, ...]
    measure: Callable[[Config, Case], Speed]
    goal: float | None = None
    """Times SB3's env steps per second."""


class Case(NamedTuple):
    """A run that several programs train."""

    title: str
    settings: tuple[str, ...]
    programs: Mapping[str, Program]
    num_warm_up: int
    """Iterations left out: first calls, allocator, caches, compilation."""
    num_iterations: int
    """Iterations measured."""


class Speed(NamedTuple):
    """Env steps of one measurement."""

    per_s: float  # by the wall clock
    per_cpu_s: float  # by the processor time of the process


def _train_ours(config: Config, case: Case) -> Speed:
    from ppo_lab.training.precision import configure_torch
    from ppo_lab.training.trainer import Trainer

    ends: list[tuple[float, float]] = []
    configure_torch(config)
    trainer = Trainer([config], on_record=lambda *_: ends.append(_clocks()))
    while trainer.retire_ended():
        trainer.iterate()
    return _speed_after(ends, case, config)


def _train_sb3(config: Config, case: Case) -> Speed:
    from benchmarks import sb3

    return _speed_after(sb3.train(config).iteration_ends, case, config)


def _step_alone(config: Config, case: Case) -> Speed:
    """Step our environment without normalisation, as often as a training run does."""
    import torch

    from ppo_lab.devices.placement import Placement

    raw = dataclasses.replace(config.env, normalize_observations=False, normalize_rewards=False)
    env = raw.build(
        seeds=torch.tensor([config.seed]),
        num_envs=config.num_envs,
        gamma=torch.tensor([config.gamma]),
        placement=Placement(torch.device("cpu")),
    )
    actions = _random_actions(env.spec, config)
    ends: list[tuple[float, float]] = []
    env.reset()
    for _ in range(case.num_warm_up + case.num_iterations):
        for one_step in actions:
            env.step(one_step)
        ends.append(_clocks())
    return _speed_after(ends, case, config)


def _random_actions(spec: EnvSpec, config: Config) -> list[Tensor]:
    """Return T uniformly random actions, (1, N) or (1, N, A) each."""
    import torch

    from ppo_lab.envs.base import DiscreteActions

    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.num_steps, 1, config.num_envs)
    if isinstance(spec.actions, DiscreteActions):
        return list(torch.randint(spec.actions.num_actions, shape, generator=generator))
    low, high = torch.tensor(spec.actions.low), torch.tensor(spec.actions.high)
    return list(low + (high - low) * torch.rand(*shape, len(low), generator=generator))


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _speed_after(ends: Sequence[tuple[float, float]], case: Case, config: Config) -> Speed:
    """Return the speed after the warm-up, from the clocks at the ``ends`` of iterations."""
    begin, end = ends[case.num_warm_up - 1], ends[-1]
    measured = (len(ends) - case.num_warm_up) * config.num_rows
    return Speed(measured / (end[0] - begin[0]), measured / (end[1] - begin[1]))


def _gymnasium(goal: float) -> dict[str, Program]:
    """Return the settings that all cases share."""
    return {
        "ppo_lab, gymnasium": Program((_GYMNASIUM, _EAGER), _train_ours, goal),
        "ppo_lab, gymnasium, compiled": Program((_GYMNASIUM, _COMPILED), _train_ours, goal),
        _BASELINE: Program((_GYMNASIUM,), _train_sb3),
        "gymnasium, stepped alone": Program((_GYMNASIUM,), _step_alone),
    }


_CARTPOLE_PROGRAMS = {
    "ppo_lab, torch": Program((_TORCH, _EAGER), _train_ours, 2.0),
    "ppo_lab, torch, compiled": Program((_TORCH, _COMPILED), _train_ours, 6.0),
    **_gymnasium(2.0),
    "torch, stepped alone": Program((_TORCH,), _step_alone),
}
CASES = {
    "cartpole_8": Case(
        "CartPole-v1, 8 environments x 128 steps",
        tuple(SETTINGS),
        _CARTPOLE_PROGRAMS,
        num_warm_up=10,
        num_iterations=40,
    ),
    "cartpole_64": Case(
        "CartPole-v1, 64 environments x 128 steps",
        (*SETTINGS, "num_envs=64"),
        _CARTPOLE_PROGRAMS,
        num_warm_up=3,
        num_iterations=10,
    ),
    "halfcheetah": Case(
        "HalfCheetah-v5, 8 environments x 256 steps, observations and rewards normalised",
        ("env=halfcheetah", "network=tiny", "device=cpu", "num_threads=1"),
        _gymnasium(1.5),
        num_warm_up=2,
        num_iterations=5,
    ),
}


def measure(case: Case, name: str) -> Speed:
    """Run a program of ``case`` in this process and return its speed after the warm-up."""
    import torch

    from ppo_lab.config.compose import check_jobs, register

    torch.set_num_threads(1)
    register()
    program = case.programs[name]
    overrides = [*case.settings, *program.overrides]
    (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
    num_iterations = case.num_warm_up + case.num_iterations
    total_steps = num_iterations * job.config.num_rows
    return program.measure(dataclasses.replace(job.config, total_steps=total_steps), case)


def measure_apart(case: str, program: str) -> Speed:
    """Return ``measure`` of a fresh process with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", "--measure", case, program],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Speed(*json.loads(done.stdout.splitlines()[-1]))


def summary_table(programs: Mapping[str, Program], speeds: Mapping[str, Sequence[Speed]]) -> str:
    """Return medians over rounds, and of the ratios to SB3 within a round."""
    rows = []
    for name, own in speeds.items():
        wall = [mine.per_s / other.per_s for mine, other in zip(own, speeds[_BASELINE])]
        cpu = [mine.per_cpu_s / other.per_cpu_s for mine, other in zip(own, speeds[_BASELINE])]
        ratio, goal = statistics.median(wall), programs[name].goal
        rows.append(
            [
                name,
                f"{statistics.median(s.per_s for s in own):,.0f}",
                f"{statistics.median(s.per_cpu_s for s in own):,.0f}",
                f"{ratio:.2f} ({min(wall):.2f} to {max(wall):.2f})",
                f"{statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})",
                "" if goal is None else f"{goal}, {'met' if ratio >= goal else 'missed'}",
            ]
        )
    header = ["program", "env steps/s", "env steps per CPU s", "ratio to SB3", "by CPU time"]
    return table([*header, "goal"], rows)


def rounds_table(speeds: Mapping[str, Sequence[Speed]]) -> str:
    """Return every measurement."""
    rows = [
        [number, *(f"{speed.per_s:,.0f} / {speed.per_cpu_s:,.0f}" for speed in one_round)]
        for number, one_round in enumerate(zip(*speeds.values()), 1)
    ]
    return table(["round", *(f"{program} (wall / CPU)" for program in speeds)], rows)


def case_page(case: Case, speeds: Mapping[str, Sequence[Speed]]) -> list[str]:
    """Return the page's parts about one case."""
    return [
        f"## {case.title}",
        f"{case.num_iterations} iterations after {case.num_warm_up} of warm-up: "
        f"`{' '.join(case.settings)}`.",
        summary_table(case.programs, speeds),
        rounds_table(speeds),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each program")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        case, program = options.measure
        print(json.dumps(measure(CASES[case], program)))
        return
    speeds: dict[str, dict[str, list[Speed]]] = {
        name: {program: [] for program in CASES[name].programs} for name in options.cases
    }
    for _ in range(options.rounds):
        for name in options.cases:
            for program, own in speeds[name].items():
                own.append(measure_apart(name, program))
                print(f"{name}, {program}: {own[-1].per_s:,.0f} env steps/s", file=sys.stderr)
    parts = [
        f"One thread, learning included. Medians of {options.rounds} interleaved rounds; ratios "
        "are within a round, smallest and largest in brackets. What is stepped alone learns "
        "nothing: random actions, drawn beforehand, in our own environment as it comes.",
    ]
    for name in options.cases:
        parts += case_page(CASES[name], speeds[name])
    publish("throughput", "Throughput", parts, write=options.write)


if __name__ == "__main__":
    main()

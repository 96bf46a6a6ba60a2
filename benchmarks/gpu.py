"""``python -m benchmarks.gpu``: speed of stacks and of a large run on a GPU, eager and as graphs.

CartPole, learning included: stacks of lanes of 8 environments, and one run of 4,096. Every case
builds an eager trainer and one that replays CUDA graphs, warms both up, and interleaves them in one
process. Speeds are medians over rounds; ratios are taken within a round. Each case ends with one
profiled iteration, which is not timed. No case begins after ``--limit-s`` seconds.

An update of K gradient steps over E * L * R rows is compared with two limits of the card, both
measured here, with the copy of a large tensor and with a large matrix product:

- FLOP: 6 * E * L * R * parameters of a lane: 2 forward, 4 backward for each weight.
- bytes: 4 * (E * L * R * (12 * units + 2 * columns) + 7 * K * L * parameters). A hidden unit of a
  row takes 12 passes as the kernels are cut: the product, tanh and the next product write or read
  it 4 times; backward its gradient is written, read with tanh's output, written through tanh, and
  read for input, weight and bias, and tanh's output once more for the next layer's weight. A row's
  columns are read and written when they are gathered. Adam reads 4 numbers and writes 3.

``--device cpu`` runs tiny cases with a stand-in for graphs: a smoke test.

Shapes: L = lanes, R = rows per lane of a rollout, E = epochs, K = gradient steps of an update.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import torch

from benchmarks.result_page import publish, table
from ppo_lab.config.choices import Compile
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.devices.pcie import DeviceWindow
from ppo_lab.devices.trace import DeviceUse
from ppo_lab.networks.mlp import MlpConfig
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.trainer import Trainer

_SETTINGS = [
    *("env=cartpole", "network=tiny", "num_epochs=4", "num_minibatches=4", "lr=2.5e-4"),
    *("total_steps=1_000_000_000", "tracking=local", "profile=never"),
]
_EAGER, _GRAPHS = "eager", "graphs"
_VARIANTS = {_EAGER: Compile.never, _GRAPHS: Compile.always}
_NUM_WARM_UP = 3  # the first is eager, the second records, the third is the first like all others
_ROUND_S = 0.6  # about so long is one measurement
_MOST_ITERATIONS = 50  # in it


@dataclass(frozen=True)
class Case:
    """Number of lanes, and of environments per lane."""

    num_lanes: int
    num_envs: int

    @property
    def name(self) -> str:
        """Label in tables."""
        return f"{self.num_lanes:,} x {self.num_envs:,}"


@dataclass(frozen=True)
class Size:
    """The cases, and the sizes with which the limits are measured."""

    stacks: tuple[Case, ...]
    run: Case
    num_steps: int
    copied: int  # numbers in the tensor that is copied
    width: int  # of the matrices that are multiplied


_SIZES = {
    "cuda": Size(
        stacks=tuple(Case(lanes, 8) for lanes in (1, 8, 64, 512, 2048, 8192)),
        run=Case(1, 4096),
        num_steps=128,
        copied=1 << 28,
        width=8192,
    ),
    "cpu": Size((Case(1, 2), Case(3, 2)), Case(1, 16), num_steps=8, copied=1 << 20, width=256),
}


class HostTrainer(Trainer):
    """A trainer on the CPU that replays recordings, as on CUDA."""

    def __init__(self, configs: Sequence[Config]) -> None:
        """Replay what ``HostCapturer`` records."""
        from tests.helpers.host_capturer import HostCapturer  # a checkout has it

        super().__init__(configs)
        self._compilation.capturer = HostCapturer()


@dataclass
class Speeds:
    """Seconds of one iteration of one variant of a case, one number per round."""

    iteration_s: list[float] = field(default_factory=list)
    rollout_s: list[float] = field(default_factory=list)
    update_s: list[float] = field(default_factory=list)
    use: DeviceUse | None = None
    """Device use in the profiled iteration."""


@dataclass(frozen=True)
class Limits:
    """Lower bounds of an update: operations and bytes moved; see the module."""

    flop: float
    num_bytes: float


@dataclass(frozen=True)
class Result:
    """Measurements of one case."""

    num_env_steps: int  # in an iteration, of all lanes
    speeds: dict[str, Speeds]
    limits: Limits


def limits_of(trainer: Trainer) -> Limits:
    """Return the lower bounds for an update of ``trainer``."""
    config = trainer.config
    assert isinstance(config.network, MlpConfig)
    num_lanes = len(trainer.configs)
    num_parameters = sum(p.numel() for p in trainer.model.parameters())  # of all lanes
    num_gradient_steps = config.num_epochs * config.num_minibatches
    num_rows = config.num_epochs * num_lanes * config.num_rows
    num_units = 2 * sum(config.network.hidden)  # actor and critic
    num_columns = trainer.spec.observation_size + 2 + 4  # an action takes 8 bytes
    numbers = num_rows * (12 * num_units + 2 * num_columns)
    numbers += 7 * num_gradient_steps * num_parameters
    return Limits(6.0 * num_rows * num_parameters / num_lanes, 4.0 * numbers)


def measure_peaks(device: torch.device, size: Size) -> tuple[float, float]:
    """Return FLOP/s of a matrix product and bytes/s of a copy, each the best of five."""
    a, b = (torch.rand(size.width, size.width, device=device) for _ in range(2))
    flop_per_s = 2.0 * size.width**3 / min(_seconds(lambda: a @ b, device) for _ in range(5))
    source = torch.rand(size.copied, device=device)
    target = torch.empty_like(source)
    copy_s = min(_seconds(lambda: target.copy_(source), device) for _ in range(5))
    return flop_per_s, 2.0 * 4.0 * size.copied / copy_s


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of ``function``, synchronising before and after."""
    _synchronize(device)
    begin_s = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - begin_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(case: Case, variant: str, words: Sequence[str]) -> Trainer:
    """Return a warmed-up trainer of ``case``; ``words`` are its other settings."""
    words = [*_SETTINGS, *words, f"num_envs={case.num_envs}"]
    (job,) = check_jobs(words, is_multirun=False, config_dir=None, config_name=None)
    base = dataclasses.replace(job.config, compile=_VARIANTS[variant])
    configs = [dataclasses.replace(base, seed=1 + lane) for lane in range(case.num_lanes)]
    configure_torch(base)
    trainer = (Trainer if base.torch_device.type == "cuda" else HostTrainer)(configs)
    for _ in range(_NUM_WARM_UP):
        trainer.iterate()
    return trainer


def measure(case: Case, words: Sequence[str], num_rounds: int) -> Result:
    """Measure both variants of ``case`` interleaved, then profile an iteration of each."""
    trainers = {variant: build(case, variant, words) for variant in _VARIANTS}
    speeds = {variant: Speeds() for variant in trainers}
    for _ in range(num_rounds):
        for variant, trainer in trainers.items():
            add_round(speeds[variant], trainer)
    for variant, trainer in trainers.items():
        window = DeviceWindow(trainer.placement.device)
        window.begin()
        trainer.iterate()
        speeds[variant].use = window.end()
    one = trainers[_EAGER]
    result = Result(one.config.num_rows * case.num_lanes, speeds, limits_of(one))
    del one, trainer, trainers
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def add_round(speeds: Speeds, trainer: Trainer) -> None:
    """Add one measurement: as many iterations as fit into a round."""
    device, totals = trainer.placement.device, trainer.meters.clock.totals
    one_s = speeds.iteration_s[-1] if speeds.iteration_s else _seconds(trainer.iterate, device)
    num_iterations = min(max(round(_ROUND_S / one_s), 1), _MOST_ITERATIONS)
    before = dict(totals)

    def iterate() -> None:
        for _ in range(num_iterations):
            trainer.iterate()

    speeds.iteration_s.append(_seconds(iterate, device) / num_iterations)
    for phase, seconds in (("rollout", speeds.rollout_s), ("update", speeds.update_s)):
        seconds.append((totals[phase] - before[phase]) / num_iterations)


def stacks_table(results: dict[Case, Result]) -> str:
    """Return env steps per second of every case, eager and as graphs."""
    rows = []
    for case, result in results.items():
        eager, graphs = (result.speeds[variant] for variant in _VARIANTS)
        ratios = [a / b for a, b in zip(eager.iteration_s, graphs.iteration_s)]
        rates = [result.num_env_steps / statistics.median(s.iteration_s) for s in (eager, graphs)]
        rows.append(
            [
                case.name,
                *(f"{rate:,.0f}" for rate in rates),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                *(_idle(speeds.use) for speeds in (eager, graphs)),
            ]
        )
    header = ["lanes x environments", "eager, env steps/s", "graphs", "ratio"]
    return table([*header, "device idle, eager", "graphs"], rows)


def run_table(result: Result, flop_per_s: float, bytes_per_s: float) -> str:
    """Return a table of time by phase, and of the update's share of the limits."""
    rows = []
    for variant, speeds in result.speeds.items():
        update_s = statistics.median(speeds.update_s)
        milliseconds = (speeds.iteration_s, speeds.rollout_s, speeds.update_s)
        rows.append(
            [
                variant,
                *(f"{1e3 * statistics.median(seconds):.2f}" for seconds in milliseconds),
                f"{result.limits.flop / flop_per_s / update_s:.1%}",
                f"{result.limits.num_bytes / bytes_per_s / update_s:.1%}",
                _idle(speeds.use),
                "none seen" if not _saw(speeds.use) else f"{speeds.use.num_events:,}",
            ]
        )
    header = ["", "iteration, ms", "rollout, ms", "update, ms", "update: share of the FLOP limit"]
    return table([*header, "of the byte limit", "device idle", "kernels and copies"], rows)


def _saw(use: DeviceUse | None) -> TypeGuard[DeviceUse]:
    """Return whether the profiler recorded events of the device."""
    return use is not None and use.num_events > 0


def _idle(use: DeviceUse | None) -> str:
    return f"{use.idle_no_copy_frac:.0%}" if _saw(use) else "none seen"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each variant")
    parser.add_argument("--precision", default="highest", help="matmul_precision of every run")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument(
        "--limit-s", type=float, default=360.0, help="seconds after which no case is begun"
    )
    parser.add_argument(
        "--device", choices=list(_SIZES), default="cuda", help="cpu: tiny, to try it"
    )
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: there is no CUDA device here; --device cpu tries it out")
    if options.device == "cpu" and options.write:
        raise SystemExit("benchmarks.gpu: --write keeps what a GPU did, not --device cpu")
    register()
    begin_s = time.perf_counter()
    device, size = torch.device(options.device), _SIZES[options.device]
    words = [f"device={options.device}", f"num_steps={size.num_steps}"]
    words.append(f"matmul_precision={options.precision}")
    results, left_out = {}, []
    for case in (size.run, *size.stacks):
        if time.perf_counter() - begin_s > options.limit_s:
            left_out.append(case.name)
            continue
        results[case] = measure(case, words, options.rounds)
        elapsed_s = time.perf_counter() - begin_s
        print(f"{case.name}: done after {elapsed_s:.0f} s", file=sys.stderr)
    # After the runs, which have set the precision of products.
    flop_per_s, bytes_per_s = measure_peaks(device, size)
    is_cuda = device.type == "cuda"
    card = torch.cuda.get_device_name(device) if is_cuda else "no GPU: a trial of this program"
    limits = results[size.run].limits
    parts = [
        f"{card}. CartPole, {size.num_steps} steps: `{' '.join([*_SETTINGS, *words])}`. Medians of "
        f"{options.rounds} interleaved rounds; ratios above 1 are for graphs, smallest and largest "
        "in brackets. Idle: neither a kernel nor a copy ran, in one profiled iteration, the record "
        f"included. Left out for time: {', '.join(left_out) or 'nothing'}.",
        "## By lanes",
        stacks_table(results),
        f"## {size.run.name}: one large run",
        run_table(results[size.run], flop_per_s, bytes_per_s),
        f"An update has {limits.flop / 1e9:,.3f} GFLOP and moves {limits.num_bytes / 1e9:,.3f} GB "
        f"by the formulas in `benchmarks/gpu.py`. A product of matrices of {size.width} x "
        f"{size.width} ran at {flop_per_s / 1e12:,.2f} TFLOP/s, a copy at "
        f"{bytes_per_s / 1e9:,.0f} GB/s.",
    ]
    publish("gpu", "On a GPU, eager and as CUDA graphs", parts, write=options.write)


if __name__ == "__main__":
    main()

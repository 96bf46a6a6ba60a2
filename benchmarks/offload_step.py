"""``python -m benchmarks.offload_step``: ``offloaded_optimizer``'s step against its bounds.

A step uses three resources: the device (forward and backward), the bus (gradients down, weights up)
and the host (Adam). It takes at least as long as its busiest resource. The second, larger bound
follows from exact clipping: the host cannot start before the norm of the whole gradient is known,
and transfers after that point do not overlap with the device.

Without CUDA tiny steps are measured against a stand-in for the bus: a trial of this program.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.result_page import Deadline, publish, table
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.devices.pcie import BusLimit, measure_bus
from ppo_lab.forecasting.counting import counted_trainer
from ppo_lab.ppo.rollout import lane_rows
from ppo_lab.tracking import Record
from ppo_lab.training.precision import configure_torch
from ppo_lab.training.trainer import Trainer

__all__ = ["Bound", "Point", "host_step_s", "measure", "points_table"]

_SAMPLES = (256, 1024, 4096, 16_384, 65_536, 131_072)

_BACKWARD_SHARE = 2 / 3  # of forward and backward together: two products a layer against one
_NUM_STEPS = 4  # environment steps of a rollout: what is measured is the update
_NUM_MINIBATCHES = 2
_NUM_ITERATIONS = 3  # the first counts memory, the third is profiled
_STEADY = 2  # the iteration whose times count
_REPEATS = 5


class Bound(NamedTuple):
    """Seconds that each resource alone needs for one gradient step."""

    compute_s: float
    d2h_s: float
    h2d_s: float
    host_s: float

    @property
    def busiest_s(self) -> float:
        """Lower bound if everything overlaps."""
        return max(self)

    @property
    def clipped_s(self) -> float:
        """Lower bound if the host starts after the norm of the whole gradient is known."""
        return max(self.compute_s, self.d2h_s) + max(self.host_s, self.h2d_s)

    @property
    def exposed_s(self) -> float:
        """Seconds in which the bus is busy and the device is not, in a step of ``clipped_s``."""
        return self.h2d_s + max(self.d2h_s - _BACKWARD_SHARE * self.compute_s, 0.0)


class Point(NamedTuple):
    """One number of samples per gradient step."""

    num_samples: int
    resident_s: float
    """A gradient step of ``co_resident``."""
    offloaded_s: float
    bound: Bound
    exposed_frac: float | None
    """Share of the profiled iteration in which the bus was busy and the device was not."""
    predicted_frac: float
    """The same share according to the bound, for the measured duration."""


def measure(settings: Sequence[str], num_samples: int, limit: BusLimit, host_s: float) -> Point:
    """Return the steps of ``num_samples``; ``settings`` choose network and device."""
    num_rows = num_samples * _NUM_MINIBATCHES
    overrides = [
        *settings,
        f"num_steps={_NUM_STEPS}",
        f"num_envs={num_rows // _NUM_STEPS}",
        f"num_minibatches={_NUM_MINIBATCHES}",
        "num_epochs=1",
        f"total_steps={num_rows * _NUM_ITERATIONS}",
    ]
    resident, _ = _run(_config([*overrides, "memory=co_resident"]))
    compute_s, num_parameters = _compute_s(_config([*overrides, "memory=co_resident"]))
    offloaded, window = _run(_config([*overrides, "memory=offloaded_optimizer"]))
    num_bytes = 4 * num_parameters
    bound = Bound(
        compute_s, num_bytes / limit.d2h_bytes_per_s, num_bytes / limit.h2d_bytes_per_s, host_s
    )
    window_s = window.get("perf/window_s", _NUM_MINIBATCHES * offloaded)
    return Point(
        num_samples,
        resident,
        offloaded,
        bound,
        window.get("perf/exposed_copy_frac"),
        _NUM_MINIBATCHES * bound.exposed_s / window_s,
    )


def host_step_s(settings: Sequence[str]) -> float:
    """Return the seconds of Adam on the host, without device and bus."""
    trainer = Trainer([_config([*settings, "memory=co_resident"])])
    shapes = [parameter.shape for parameter in trainer.model.parameters()]
    del trainer
    on_host = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in on_host:
        parameter.grad = torch.zeros_like(parameter)
    adam = torch.optim.AdamW(on_host, lr=1e-3, weight_decay=0.0, fused=True)
    adam.step()  # makes the moments
    seconds = []
    for _ in range(_REPEATS):
        begin_s = time.perf_counter()
        adam.step()
        seconds.append(time.perf_counter() - begin_s)
    return min(seconds)


def points_table(points: Sequence[Point]) -> str:
    """Return a row per number of samples; times in milliseconds."""
    rows = []
    for point in points:
        bound = point.bound
        milliseconds = [
            f"{1e3 * seconds:,.1f}"
            for seconds in (point.resident_s, point.offloaded_s, *bound, bound.clipped_s)
        ]
        exposed = "-" if point.exposed_frac is None else f"{point.exposed_frac:.1%}"
        rows.append(
            [
                f"{point.num_samples:,}",
                *milliseconds,
                f"{point.offloaded_s / bound.busiest_s:.2f}",
                f"{point.offloaded_s / bound.clipped_s:.2f}",
                f"{point.predicted_frac:.1%}",
                exposed,
            ]
        )
    header = [
        "samples per gradient step", "co_resident", "offloaded", "compute", "down", "up", "host",
        "bound with clipping", "offloaded / busiest", "offloaded / bound with clipping",
        "exposed copy predicted", "measured",
    ]  # fmt: skip
    return table(header, rows)


def _config(overrides: Sequence[str]) -> Config:
    (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
    return job.config


def _run(config: Config) -> tuple[float, dict[str, float]]:
    """Train, and return the seconds of a steady gradient step and the profiled record's metrics."""
    records: list[Record] = []
    configure_torch(config)
    trainer = counted_trainer([config], lambda _, record: records.append(record))
    while trainer.retire_ended():
        trainer.iterate()
    trainer.close()
    steady_s = records[_STEADY - 1].metrics["time/update_s"]
    windows = [r.metrics for r in records if "perf/exposed_copy_frac" in r.metrics]
    num_steps = config.num_epochs * config.num_minibatches
    return steady_s / num_steps, dict(windows[0]) if windows else {}


def _compute_s(config: Config) -> tuple[float, int]:
    """Return the seconds of forward and backward passes alone, and the number of parameters."""
    configure_torch(config)
    trainer = Trainer([config])

    def stand_still(*, lr: Tensor, **_: Tensor | None) -> Tensor:
        return lr.new_zeros(trainer.optimizer.num_clip_groups, len(lr))

    trainer.optimizer.step = stand_still  # type: ignore[method-assign]
    rollout = trainer.collect()
    rows = lane_rows(rollout, trainer.advantages(rollout))
    seconds = [_timed(lambda: trainer.update(rows), trainer.placement.device) for _ in range(3)]
    num_steps = config.num_epochs * config.num_minibatches
    return min(seconds) / num_steps, sum(p.numel() for p in trainer.model.parameters())


def _timed(work: Callable[[], object], device: torch.device) -> float:
    begin_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin_s


def parts(deadline: Deadline) -> Iterator[str]:
    """Yield the parts of the page: a table for each number of samples, as it is measured."""
    is_cuda = torch.cuda.is_available()
    width, depth, samples = (4096, 4, _SAMPLES) if is_cuda else (64, 2, _SAMPLES[:2])
    limit = measure_bus(torch.device("cuda")) if is_cuda else BusLimit(1e10, 1e10)
    settings = [
        *("env=cartpole", "env.backend=torch", "network.activation=relu", "network.init=default"),
        f"network.hidden={[width] * depth}".replace(" ", ""),
        *("tracking=local", "tracking.terminal=none", "profile=always", "vram_budget_gib=none"),
        f"device={'cuda' if is_cuda else 'cpu'}",
    ]
    card = torch.cuda.get_device_name() if is_cuda else "no GPU: a trial of this program"
    yield (
        f"{card}. {depth} x {width}, milliseconds. The goal is 1.15 times the busiest resource; "
        "clipping by the exact norm allows the other bound."
    )
    host_s = host_step_s([*settings, "num_envs=64", "num_steps=4"])
    points: list[Point] = []
    for num_samples in samples:
        if deadline.has_passed:
            yield f"The time limit left out {len(samples) - len(points)} numbers of samples."
            return
        points.append(measure(settings, num_samples, limit, host_s))
        yield points_table(points[-1:])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument(
        "--limit-s", type=float, default=120.0, help="seconds after which no number is begun"
    )
    options = parser.parse_args(argv)
    register()
    found = parts(Deadline(options.limit_s))
    publish("offload_step", "The offloaded optimizer's gradient step", found, write=options.write)


if __name__ == "__main__":
    main()

"""``python -m benchmarks.scaling``: env steps per second as lanes, environments and networks grow.

CartPole-v1 in the native environment, learning included, eager and compiled. From one base point
(one lane, 8 environments, 2 x 64) one size is varied at a time. Every measurement is a separate
process with one thread, in steady state: the first iterations, including compilation, are left out.
A first run compiles a set of programs for each point, half a minute each; later ones load them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.result_page import publish, table
from benchmarks.throughput import SETTINGS

__all__ = ["Point", "measure"]

_ROOT = Path(__file__).resolve().parent.parent
_PICTURE = _ROOT / "docs" / "scaling.png"
_MODES = {"eager": "compile=never", "compiled": "compile=always"}
_NUM_WARM_UP = 2  # iterations left out: the first one is never compiled, the second compiles
_MIN_ITERATIONS = 2
_MIN_S = 1.5  # measured at least, so that a small point is not three short iterations


class Point(NamedTuple):
    """Sizes of a stack."""

    num_lanes: int = 1
    num_envs: int = 8
    hidden: int = 64


class Axis(NamedTuple):
    """One size of a point, and its label."""

    field: str
    title: str
    values: tuple[int, ...]


_AXES = {
    "lanes": Axis("num_lanes", "lanes of 8 environments", (1, 2, 4, 8, 16, 32)),
    "envs": Axis("num_envs", "environments of one lane", (8, 64, 512, 4096)),
    "hidden": Axis("hidden", "width of two hidden layers", (64, 128, 256, 512, 1024)),
}
Speeds = Mapping[tuple[Point, str], float]
"""Env steps per second of all lanes, by point and mode."""


def measure(point: Point, mode: str) -> float:
    """Train in this process; return env steps per second of all lanes, of a median iteration."""
    import dataclasses

    import torch

    from ppo_lab.config.compose import check_jobs, register
    from ppo_lab.training.precision import configure_torch
    from ppo_lab.training.trainer import Trainer

    torch.set_num_threads(1)
    register()
    sizes = [f"num_envs={point.num_envs}", f"network.hidden=[{point.hidden},{point.hidden}]"]
    overrides = [*SETTINGS, *sizes, "env.backend=torch", _MODES[mode], "total_steps=1_000_000_000"]
    (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
    seeds = range(1, point.num_lanes + 1)
    configure_torch(job.config)
    trainer = Trainer([dataclasses.replace(job.config, seed=seed) for seed in seeds])
    for _ in range(_NUM_WARM_UP):
        trainer.iterate()
    seconds: list[float] = []
    while len(seconds) < _MIN_ITERATIONS or sum(seconds) < _MIN_S:
        begin_s = time.perf_counter()
        trainer.iterate()
        seconds.append(time.perf_counter() - begin_s)
    return point.num_lanes * job.config.num_rows / statistics.median(seconds)


def measure_apart(point: Point, mode: str) -> float:
    """Return ``measure`` of a fresh process with one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--measure", mode, *map(str, point)],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def points_of(axis: Axis, values: Sequence[int]) -> list[Point]:
    """Return the base point once for each of ``values`` of the size that is varied."""
    return [Point()._replace(**{axis.field: value}) for value in values]


def axis_table(axis: Axis, values: Sequence[int], speeds: Speeds) -> str:
    """Return the speeds along one axis, each also in multiples of the first one's."""
    points = points_of(axis, values)
    rows = []
    for value, point in zip(values, points):
        row = [f"{value:,}"]
        for mode in _MODES:
            speed = speeds[point, mode]
            row += [f"{speed:,.0f}", f"{speed / speeds[points[0], mode]:.2f}"]
        rows.append([*row, f"{speeds[point, 'compiled'] / speeds[point, 'eager']:.2f}"])
    header = [axis.title]
    for mode in _MODES:
        header += [f"{mode}, env steps/s", "to the first"]
    return table([*header, "compiled to eager"], rows)


def draw(wanted: Mapping[str, Sequence[int]], speeds: Speeds) -> None:
    """Draw one panel per axis into docs/."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(wanted), figsize=(4 * len(wanted), 3.6), sharey=True, squeeze=False
    )
    for panel, (name, values) in zip(panels[0], wanted.items()):
        axis = _AXES[name]
        points = points_of(axis, values)
        for mode in _MODES:
            panel.plot(values, [speeds[p, mode] for p in points], marker="o", label=mode)
        panel.set(xlabel=axis.title, xscale="log", yscale="log")
        panel.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("env steps/s of all lanes")
    panels[0][0].legend()
    figure.suptitle("CartPole, one thread, learning included")
    figure.tight_layout()
    figure.savefig(_PICTURE, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, axis in _AXES.items():
        text = f"{axis.title} (none: leave out)"
        parser.add_argument(f"--{name}", type=int, nargs="*", default=axis.values, help=text)
    parser.add_argument("--write", action="store_true", help="keep page and picture")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        mode, *sizes = options.measure
        print(json.dumps(measure(Point(*map(int, sizes)), mode)))
        return
    wanted = {name: values for name in _AXES if (values := getattr(options, name))}
    speeds: dict[tuple[Point, str], float] = {}
    for name, values in wanted.items():
        for key in [(p, mode) for p in points_of(_AXES[name], values) for mode in _MODES]:
            if key not in speeds:  # the base point lies on every axis
                speeds[key] = measure_apart(*key)
                print(f"{key[1]}, {key[0]}: {speeds[key]:,.0f} env steps/s", file=sys.stderr)
    parts = [
        "CartPole-v1, native, one thread, learning included: env steps per second of all lanes, "
        f"of a median iteration after {_NUM_WARM_UP} of warm-up. One size grows at a time from "
        f"one lane of 8 environments and 2 x 64 units: `{' '.join(SETTINGS)}`.",
        *(axis_table(_AXES[name], values, speeds) for name, values in wanted.items()),
    ]
    if options.write:
        draw(wanted, speeds)
        parts.append("![curves](../../docs/scaling.png)")
    publish("scaling", "Scaling", parts, write=options.write)


if __name__ == "__main__":
    main()

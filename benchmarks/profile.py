"""``python -m benchmarks.profile``: processor time of an eager iteration by part.

A stopwatch wraps the calls of an iteration and assigns each its own processor time, without that of
nested calls. The parts add up to the iteration; time outside all calls is a part too. Operations on
small tensors take as long as their launch, so operations are counted as well, in a separate
iteration.

Every case is a separate process with one thread. The thread's processor time is measured instead of
wall time, so that other load disturbs only caches and the clock rate.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.result_page import publish, table
from benchmarks.throughput import SETTINGS

if TYPE_CHECKING:
    from ppo_lab.training.trainer import Trainer

_ROOT = Path(__file__).resolve().parent.parent
_CARTPOLE = tuple(SETTINGS)  # those of benchmarks.throughput
_HALFCHEETAH = (
    "env=halfcheetah",
    "network=tiny",
    "num_steps=2048",
    "device=cpu",
    "num_threads=1",
)  # 8 environments, 10 epochs, 32 minibatches
_ENV_PARTS = {"NormalizedEnv": "normalising"}
_NUM_WARM_UP = 3  # iterations left out: first calls, allocator, caches


class Case(NamedTuple):
    """A run to profile."""

    overrides: tuple[str, ...]
    num_lanes: int = 1
    share: float = 1.0
    """Share of the requested iterations; cases with long iterations use fewer."""


_CASES = {
    "CartPole, torch, 1 lane": Case((*_CARTPOLE, "env.backend=torch")),
    "CartPole, torch, 8 lanes": Case((*_CARTPOLE, "env.backend=torch"), num_lanes=8),
    "CartPole, gymnasium": Case((*_CARTPOLE, "env.backend=gymnasium")),
    "CartPole, gymnasium, 64 environments": Case(
        (*_CARTPOLE, "env.backend=gymnasium", "num_envs=64"), share=0.3
    ),
    "HalfCheetah": Case(_HALFCHEETAH, share=0.1),
}
_PARTS = {  # in the order of an iteration: what is timed, and what that says
    "env": "step the environments",
    "normalising": "running statistics of observations and rewards, and their use",
    "policy": "the policy network, acting",
    "sampling": "noise, and actions from it",
    "steps kept": "the rest of collecting: storage of steps, log probabilities, the loop",
    "values": "the critic over the rollout",
    "GAE": "advantages and value targets",
    "gather": "rows of minibatches, by the epoch's permutation",
    "forward": "both networks on a minibatch",
    "losses": "the rest of the update: losses, their log, permutations, the loop",
    "backward": "gradients",
    "optimizer": "clipping, Adam",
    "diagnostics": "the updated policy over the rollout, and what is told of it",
    "record": "read back, one record per lane",
    "rest": "meters, and whatever no part has",
}


class Stopwatch:
    """Splits a thread's processor time among named parts, each without the parts within it."""

    def __init__(self) -> None:
        """Start with the part ``rest``."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._parts = ["rest"]
        self._since_s = time.thread_time()

    @property
    def part(self) -> str:
        """The current part."""
        return self._parts[-1]

    def timed(
        self, part: str, function: Callable[..., Any], *, within: str | None = None
    ) -> Callable[..., Any]:
        """Return ``function``, timed as ``part``; with ``within`` only where called from there."""

        def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever function takes
            if within is not None and self._parts[-1] != within:
                return function(*arguments, **named)
            self._turn()
            self._parts.append(part)
            self.calls[part] += 1
            try:
                return function(*arguments, **named)
            finally:
                self._turn()
                self._parts.pop()

        return call

    def take(self) -> dict[str, float]:
        """Return the seconds by part since the last call."""
        self._turn()
        seconds = dict(self.seconds)
        self.seconds.clear()
        return seconds

    def _turn(self) -> None:
        now_s = time.thread_time()
        self.seconds[self._parts[-1]] += now_s - self._since_s
        self._since_s = now_s


def attach(watch: Stopwatch, trainer: Trainer) -> None:
    """Wrap the calls of an iteration of ``trainer`` with ``watch``.

    Classes and modules stay patched until the process ends.
    """
    import torch

    from ppo_lab.envs.base import Env
    from ppo_lab.ppo import update
    from ppo_lab.ppo.rollout import ObservationStore

    phases = {
        "collect": "steps kept",
        "advantages": "GAE",
        "update": "losses",
        "diagnose": "diagnostics",
        "record": "record",
    }
    model, distribution = trainer.model, trainer.model.distribution
    kinds = Env.__subclasses__()  # a normalised environment steps one of another kind
    collecting, updating = phases["collect"], phases["update"]
    for owner, name, part, within in (
        *((trainer, name, part, None) for name, part in phases.items()),
        *((kind, "step", _ENV_PARTS.get(kind.__name__, "env"), None) for kind in kinds),
        (model, "policy", "policy", collecting),
        (distribution, "noise", "sampling", None),
        (distribution, "sample", "sampling", None),
        (model, "values", "values", collecting),
        (ObservationStore, "gather", "gather", None),
        (model, "forward", "forward", updating),
        (torch.Tensor, "backward", "backward", None),
        (trainer.optimizer, "step", "optimizer", None),
        (trainer.optimizer, "zero_grad", "optimizer", None),
    ):
        setattr(owner, name, watch.timed(part, getattr(owner, name), within=within))

    deal = vars(update)["minibatches"]

    def minibatches(*arguments: Any) -> Iterator[Any]:  # noqa: ANN401 - the function's own
        return iter(watch.timed("gather", deal(*arguments).__next__), None)

    vars(update)["minibatches"] = minibatches


@dataclass(frozen=True)
class Profile:
    """Result of one case; times are CPU seconds of an iteration, medians over iterations."""

    seconds: Mapping[str, float]
    """By part."""
    whole_s: float
    """Of an iteration with the stopwatch; medians of parts need not add up to it."""
    plain_s: float
    """Of an iteration without."""
    operations: Mapping[str, int]
    """By part, as torch's dispatcher sees them: views are counted too."""
    num_env_steps: int
    """In an iteration, of all lanes."""


def measure(case: Case, num_iterations: int) -> Profile:
    """Train in this process, without and then with the stopwatch."""
    import dataclasses

    import torch

    from ppo_lab.config.compose import check_jobs, register
    from ppo_lab.training.trainer import Trainer

    torch.set_num_threads(1)
    register()
    num_iterations = max(round(num_iterations * case.share), 1)
    (job,) = check_jobs(case.overrides, is_multirun=False, config_dir=None, config_name=None)
    most_steps = (2 * num_iterations + _NUM_WARM_UP + 2) * job.config.num_rows
    configs = [
        dataclasses.replace(job.config, seed=1 + lane, total_steps=most_steps)
        for lane in range(case.num_lanes)
    ]
    trainer = Trainer(configs)
    for _ in range(_NUM_WARM_UP):
        trainer.iterate()
    plain_s = [_seconds_of(trainer.iterate) for _ in range(num_iterations)]
    watch = Stopwatch()
    attach(watch, trainer)
    parts_s = []
    for _ in range(num_iterations):
        watch.take()
        trainer.iterate()
        parts_s.append(watch.take())
    unseen = set(_PARTS) - set(watch.calls) - {"rest", "normalising"}  # which HalfCheetah has
    assert not unseen, f"the trainer no longer calls what is timed as {unseen}"
    return Profile(
        seconds={p: statistics.median(s.get(p, 0.0) for s in parts_s) for p in _PARTS},
        whole_s=statistics.median(sum(seconds.values()) for seconds in parts_s),
        plain_s=statistics.median(plain_s),
        operations=_count_operations(trainer, watch),
        num_env_steps=job.config.num_rows * case.num_lanes,
    )


def _seconds_of(function: Callable[[], None]) -> float:
    begin_s = time.thread_time()
    function()
    return time.thread_time() - begin_s


def _count_operations(trainer: Trainer, watch: Stopwatch) -> dict[str, int]:
    """Return the operations of one more iteration by part."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., Any],
            types: Any,  # noqa: ANN401 - torch's signature
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:  # noqa: ANN401
            counts[watch.part] += 1
            return func(*args, **(kwargs or {}))

    with Count():  # type: ignore[no-untyped-call]
        trainer.iterate()
    return dict(counts)


def measure_apart(name: str, num_iterations: int) -> Profile:
    """Return ``measure`` of a fresh process with one thread."""
    iterations = ["--iterations", str(num_iterations)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.profile", "--measure", name, *iterations],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Profile(**json.loads(done.stdout.splitlines()[-1]))


def times_table(profiles: Mapping[str, Profile]) -> str:
    """Return milliseconds and shares by part and case."""
    rows: list[list[str]] = [
        [
            f"{part}: {meaning}",
            *(
                f"{1e3 * p.seconds[part]:.2f} ({p.seconds[part] / p.whole_s:.0%})"
                for p in profiles.values()
            ),
        ]
        for part, meaning in _PARTS.items()
    ]
    rows += [
        ["**iteration**", *(f"**{1e3 * p.whole_s:.2f}**" for p in profiles.values())],
        ["without the stopwatch", *(f"{1e3 * p.plain_s:.2f}" for p in profiles.values())],
        [
            "env steps per CPU s, without it",
            *(f"{p.num_env_steps / p.plain_s:,.0f}" for p in profiles.values()),
        ],
    ]
    return table(["CPU ms of an iteration", *profiles], rows)


def operations_table(profiles: Mapping[str, Profile]) -> str:
    """Return operations by part and case, and the time of one."""

    def cell(profile: Profile, part: str) -> str:
        number = profile.operations.get(part, 0)
        return f"{number:,} x {1e6 * profile.seconds[part] / number:.1f}" if number else "0"

    rows = [[part, *(cell(p, part) for p in profiles.values())] for part in _PARTS]
    rows.append(["**all**", *(f"**{sum(p.operations.values()):,}**" for p in profiles.values())])
    return table(["operations x µs of each", *profiles], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=40, help="iterations timed, CartPole's")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument("--measure", choices=_CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        profile = measure(_CASES[options.measure], options.iterations)
        print(json.dumps(vars(profile)))
        return
    profiles = {}
    for name in _CASES:
        profiles[name] = measure_apart(name, options.iterations)
        print(f"{name}: {1e3 * profiles[name].whole_s:.2f} ms", file=sys.stderr)
    settings = "\n".join(f"- {name}: `{' '.join(case.overrides)}`" for name, case in _CASES.items())
    parts = [
        f"Eager, one thread, medians of {options.iterations} iterations (HalfCheetah: a tenth as "
        "many) after a warm-up. Gymnasium's environments are stepped one after the other in `env`.",
        settings,
        times_table(profiles),
        "How many operations torch dispatches, and the part's time divided by them (Python between "
        "the operations included):",
        operations_table(profiles),
    ]
    publish("profile", "Where an iteration's time goes", parts, write=options.write)


if __name__ == "__main__":
    main()

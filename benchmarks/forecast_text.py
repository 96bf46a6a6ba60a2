"""``python -m benchmarks.forecast_text``: what PPO on texts costs, by category and phase.

Actor, critic and reference of the shapes of models with 0.5 and 7 billion parameters, under every
memory strategy. Needs no GPU: nothing is measured on one.
"""

from __future__ import annotations

import argparse
import itertools
import time

from benchmarks.result_page import publish, table
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.forecast import Forecast, forecast
from ppo_lab.memory import STRATEGIES

_GIB = 1024**3
_NETWORKS = ("gpt_large", "gpt_7b")
_WORDS = (
    *("env=text", "dtype=bfloat16", "num_envs=64", "num_steps=512", "num_minibatches=8"),
    "memory.checkpoint_activations=true",
)
_PHASES = ("rollout", "evaluation", "update")
_WHAT = (
    "GiB of 64 texts of 512 tokens, in bfloat16 over float32 weights, 8 minibatches, recomputed "
    "activations; without CUDA's own. The vocabulary is that of `env=text`, 41 words: a real one "
    "adds its embeddings. Rollout is generation, with a cache of keys and values; evaluation is "
    "the critic's values and the reference's log-probabilities.\n\n**Forecast, not measured on a "
    "GPU.** CPU s are what a forecast takes here."
)


def _config(*words: str) -> Config:
    chosen = [*_WORDS, *words, "tracking=local", "device=cpu", "forecast=true"]
    return check_jobs(chosen, is_multirun=False, config_dir=None, config_name=None)[0].config


def _phases(needed: Forecast) -> list[str]:
    return [f"{needed.phase_peaks[name].total / _GIB:.1f}" for name in _PHASES]


def _sizes(sizes: list[int]) -> list[str]:
    return [f"{size / _GIB:.1f}" if size else "" for size in sizes]


def main() -> None:
    """Print the page; ``--write`` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    arguments = parser.parse_args()
    register()
    by_phase, by_category = [], []
    for network, strategy in itertools.product(_NETWORKS, STRATEGIES):
        config = _config(f"network={network}", f"memory={strategy}")
        begin_s = time.process_time()
        needed = forecast(config)
        seconds = time.process_time() - begin_s
        label, bus = f"{network}, {strategy}", needed.bus.iteration.total / _GIB
        host = f"{needed.host_peak.total / _GIB:.1f}"
        by_phase.append([label, *_phases(needed), host, f"{bus:.1f}", f"{seconds:.0f}"])
        for name in _PHASES:
            sums = needed.phase_peaks[name].by_category()
            by_category.append([f"{label}: {name}", *_sizes([*sums.values()])])
    parts = [
        f"{_WHAT}\n\n`{' '.join(_WORDS)}`\n\n"
        + table(["peak", *_PHASES, "host", "PCIe per iteration", "CPU s"], by_phase),
        "## By category\n\nAt the peak of each phase.\n\n"
        + table(["peak", *(category.value for category in Category)], by_category),
    ]
    publish("forecast_text", "Memory of texts, forecast", parts, write=arguments.write)


if __name__ == "__main__":
    main()

"""``python -m benchmarks.claims [NAME ...]``: measure what is claimed of PPO; ``make claims``.

Trains what is missing of the grids in sweeps/claims (they resume), draws docs/claims/*.png and
prints a page of tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.claims import control, lucky, memory, texts
from benchmarks.result_page import publish, table
from ppo_lab.config.compose import register

_CLAIMS: dict[str, Callable[[], list[str]]] = {
    "clip": control.clip,
    "asymmetric": control.asymmetric,
    "normalised": control.normalised,
    "lucky": lucky.lucky,
    "critic": control.critic,
    "memory": memory.memory,
    "bus": memory.bus,
    "text": texts.text,
}


def main() -> None:
    """Measure the claims that are named, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(_CLAIMS))
    parser.add_argument("--write", action="store_true", help="save the page; needs every claim")
    parsed = parser.parse_args()
    names = parsed.names or list(_CLAIMS)
    if unknown := set(names) - set(_CLAIMS):
        parser.error(f"no claim {', '.join(sorted(unknown))}; there are {', '.join(_CLAIMS)}")
    if parsed.write and set(names) != set(_CLAIMS):
        parser.error("--write needs every claim")
    register()
    parts, times = [], []
    for name in names:
        begin_s = time.perf_counter()
        parts += _CLAIMS[name]()
        times.append([name, f"{(time.perf_counter() - begin_s) / 60:.1f}"])
    parts += ["## Minutes", "Of this command; runs that were there already took none."]
    parts.append(table(["claim", "minutes"], times))
    publish("claims", "What is claimed of PPO, measured", parts, write=parsed.write)


if __name__ == "__main__":
    main()

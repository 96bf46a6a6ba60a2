"""Entry point of ``python -m ppo_lab``; see ``ppo_lab.cli``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ppo_lab.utils.paths import SWEEPS_DIR

__all__ = ["main"]


def main() -> None:
    """Run the command line; the fork server of trials starts while this process imports torch."""
    words = sys.argv[1:]
    if expects_study(words) or "hydra/launcher=stacked" in words:
        from ppo_lab.utils.forkserver import start_server

        without_wandb = {"tracking=local", "tracking=csv", "tracking=tensorboard"}
        start_server(is_tracked=without_wandb.isdisjoint(words))

    from ppo_lab.cli import main as run

    run()


def expects_study(words: Sequence[str]) -> bool:
    """Guess from ``words`` whether the command is a study, before Hydra and torch are imported.

    A wrong guess only costs time.
    """
    for word in words:
        key, _, value = word.partition("=")
        if key == "study":
            return value != "null"
        if key == "sweep" and (file := SWEEPS_DIR / f"{value}.yaml").is_file():
            return "override /study:" in file.read_text()
    return False


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # while the imports ran: nothing has begun
        sys.exit(130)
